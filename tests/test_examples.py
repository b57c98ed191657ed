"""Scripts and notebook in examples/ run as they stand, on a tiny model and the demo's text in place of real ones."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from hubprune.demo import GENERAL_ID, LEGAL_ID, MEDICAL_ID, MODEL_ID
from hubprune.demo.world import examples
from hubprune.report import PruningReport
from tests.test_seq2seq import t5

ROOT = Path(__file__).resolve().parents[1]
FEW = ("--num-samples", "8", "--sequence-length", "64")


@pytest.fixture(autouse=True)
def _few_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubprune.flow.EVALUATION_SAMPLES", 8)


@pytest.fixture
def run(demo_hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs a script in an empty folder and returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, "--base", MODEL_ID, *FEW, *words])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_every_script_is_run_here() -> None:
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert scripts == set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text(encoding="utf-8")))
    for name in scripts:
        assert 20 <= len((ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()) <= 50


def test_medical_expert(run: Any) -> None:
    told = run("medical_expert.py", "--general", GENERAL_ID, "--domain", MEDICAL_ID)
    report = PruningReport.load("medical-expert")
    base, pruned = report.perplexities()["domain"].values()
    assert f"domain text: perplexity {base.perplexity:.2f} before, {pruned.perplexity:.2f} after" in told
    assert "No advice to patients." in Path("medical-expert/README.md").read_text(encoding="utf-8")


def test_legal_expert(run: Any) -> None:
    told = run("legal_expert.py", "--general", GENERAL_ID, "--domain", LEGAL_ID)
    totals = PruningReport.load("legal-expert").totals
    assert totals.left < totals.parameters
    assert f"{totals.left:,} of {totals.parameters:,} parameters are left" in told
    assert {"base, after", "pruned, after"} <= {line[: line.index("after") + 5] for line in told.splitlines()[1:]}


def test_code_expert(run: Any) -> None:
    told = run("code_expert.py", "--general", GENERAL_ID, "--domain", MEDICAL_ID, "--steps", "2")
    report = PruningReport.load("code-expert")
    assert report.pattern == "2:4"
    assert f"all {report.recovery.groups_kept:,} groups" in told
    assert re.search(r"domain text: perplexity [\d.]+ base, [\d.]+ pruned, [\d.]+ recovered", told)


def test_unseen_domain(run: Any, hub_api: Any) -> None:
    rows = [{**row, "topic": topic} for topic in ("medical", "legal") for row in examples(topic)["train"][:40]]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    api = hub_api("me")
    api.create_repo("me/questions", repo_type="dataset", exist_ok=True)
    api.upload_file(
        path_or_fileobj=lines.encode(), path_in_repo="train.jsonl", repo_id="me/questions", repo_type="dataset"
    )
    words = ("--data", "me/questions", "--column", "topic", "--seen", "medical", "--unseen", "legal")
    told = run("unseen_domain.py", *words)
    after = {name: float(value) for name, value in re.findall(r"(\w+): legal [\d.]+ before, ([\d.]+) after", told)}
    assert after["attribution"] < after["random"]


def test_t5_task(run: Any, demo_hub: Any) -> None:
    tokenizer, token = AutoTokenizer.from_pretrained(MODEL_ID), demo_hub.token("me")
    model = t5("gated", len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    for part in (model, tokenizer):
        part.push_to_hub("me/tiny-t5-task", token=token)
    told = run("t5_task.py", "--base", "me/tiny-t5-task", "--data", MEDICAL_ID)
    report = PruningReport.load("t5-task")
    assert f"{report.totals.left:,} of {report.totals.parameters:,} parameters are left" in told
    assert re.search(r"task text: perplexity [\d.]+ before, [\d.]+ after", told)
    card = Path("t5-task/README.md").read_text(encoding="utf-8")
    assert "from transformers import AutoModelForSeq2SeqLM" in card
    assert "vllm" not in card
    assert ModelCard(card).data.pipeline_tag == "text2text-generation"


def test_the_notebook_runs_from_its_first_cell_to_its_last(
    demo_hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        assert (cell["outputs"], cell["execution_count"]) == ([], None), "the notebook is kept without output"
        source = "".join(line for line in cell["source"] if not line.startswith("%"))
        exec(compile(source, f"cell {number}", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            names |= {"BASE": MODEL_ID, "GENERAL": GENERAL_ID, "DOMAIN": MEDICAL_ID, "SAMPLES": 8, "TOKENS": 64}
    told = capsys.readouterr().out
    report = PruningReport.load("expert")
    assert f"{report.totals.left:,} of {report.totals.parameters:,} parameters are left" in told
    assert "## At a glance" in told
    assert {row.variant for row in report.answers} == {"base", "pruned"}
