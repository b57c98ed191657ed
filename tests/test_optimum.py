"""The command inside optimum-cli, in real processes, and the tasks it accepts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from hubprune.architecture import find_matrices
from hubprune.cli.optimum_command import check_task
from hubprune.errors import UnsupportedModelError, UsageError
from hubprune.report import PruningReport

ROOT = Path(__file__).resolve().parents[1]
BASE = "hubprune-demo/tiny-base"


def optimum_cli(place: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("optimum-cli")), *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **environment}
    return subprocess.run(command, env=env, cwd=place, capture_output=True, text=True, timeout=300, check=False)


def test_optimum_lists_the_command_and_its_options(tmp_path: Path) -> None:
    assert "prune" in optimum_cli(tmp_path, "--help").stdout
    shown = optimum_cli(tmp_path, "prune", "--help").stdout
    assert "-m MODEL" in shown
    for option in ("--task", "--method", "--sparsity", "--pattern", "--domain", "--task-text", "--push", "--dry-run"):
        assert f"\n  {option}" in shown


def test_optimum_prunes_a_model_into_a_folder(demo_hub: Any, tmp_path: Path) -> None:
    words = ("-m", BASE, "--method", "magnitude", "--pattern", "2:4", "--ignore", "o_proj", "--ignore", "down_proj")
    done = optimum_cli(tmp_path, "prune", *words, "--no-packing", "--eval", "none", "out", **demo_hub.env("me"))
    assert done.returncode == 0, done.stderr
    report = PruningReport.load(tmp_path / "out")
    assert (report.method, report.totals.sparsity, report.base.model_id) == ("magnitude", 0.5, BASE)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    zeros = {matrix.kind: int((matrix.view() == 0).sum()) for matrix in find_matrices(model)}
    assert zeros["q_proj"] > 0
    assert zeros["o_proj"] == zeros["down_proj"] == 0


def test_optimum_refuses_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config))
    done = optimum_cli(tmp_path, "prune", "-m", "encoder", "out", HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == (
        "error: pruning needs a model for text-generation or text2text-generation, and encoder is for "
        "text-classification: give a decoder language model or an encoder-decoder"
    )


def model_folder(place: Path, **config: Any) -> str:
    (place / "config.json").write_text(json.dumps(config))
    return str(place)


@pytest.mark.parametrize("task", ["auto", "text-generation", "text-generation-with-past", "causal-lm"])
def test_a_decoder_is_found_to_generate_text_and_its_class_is_named(task: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"])
    assert check_task(task, folder) is AutoModelForCausalLM


def test_an_encoder_decoder_is_found_too(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, model_type="t5", architectures=["T5ForConditionalGeneration"])
    assert check_task("auto", folder) is AutoModelForSeq2SeqLM


def test_another_task_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"])
    with pytest.raises(UnsupportedModelError, match="is for text-classification: give a decoder language model"):
        check_task("text-classification", folder)
    with pytest.raises(UsageError, match="optimum knows no task 'text-generatoin': did you mean 'text-generation'"):
        check_task("text-generatoin", folder)
