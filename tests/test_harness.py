"""Tasks of lm-evaluation-harness on a model in memory, without a network; its scores are those of a slow reference."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubprune.calibration import Corpus
from hubprune.demo import LEGAL_ID, MEDICAL_ID, MODEL_ID
from hubprune.errors import ConfigError, UsageError
from hubprune.evaluation import Window, log_losses
from hubprune.harness import Tasks, recover
from hubprune.outcomes import TaskScore

PAIRS = """\
task: pairs
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[good, bad]}}}}"
target_delimiter: ""
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.5
"""


def write_pairs(folder: Path, pairs: list[dict[str, str]]) -> str:
    """A task file, and its data beside it."""
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    task = folder / "pairs.yaml"
    task.write_text(PAIRS.format(file=data), encoding="utf-8")
    return str(task)


def own_accuracy(model, tokenizer, pairs: list[dict[str, str]]) -> float:
    """The share of pairs whose good sentence is likelier behind the start token, by our own scoring."""
    right = 0
    for pair in pairs:
        found = {}
        for side in ("good", "bad"):
            ids = tokenizer(pair[side], add_special_tokens=False).input_ids
            (found[side],) = log_losses(model, [Window(torch.tensor([tokenizer.bos_token_id, *ids]))])
        right += found["good"] < found["bad"]
    return right / len(pairs)


@pytest.fixture
def world(demo_hub):
    """The demo's model and tokenizer."""
    return AutoModelForCausalLM.from_pretrained(MODEL_ID), AutoTokenizer.from_pretrained(MODEL_ID)


def sentences(tokenizer) -> list[dict[str, str]]:
    """Pairs of a sentence and the same with two words exchanged."""
    from hubprune.calibration import load_corpus

    found = []
    for source in (MEDICAL_ID, LEGAL_ID):
        corpus: Corpus = load_corpus(f"{source}:default:test", tokenizer, num_samples=12, sequence_length=24)
        for ids in corpus.sequences:
            words = tokenizer.decode(ids, skip_special_tokens=True).split()
            if len(words) > 5:
                found.append({"good": " ".join(words), "bad": " ".join([*words[:2], words[3], words[2], *words[4:]])})
    return found


def test_scores_are_those_of_our_own_scoring(world, tmp_path: Path) -> None:
    model, tokenizer = world
    pairs = sentences(tokenizer)
    tasks = Tasks([write_pairs(tmp_path, pairs)], progress=False)
    model.train()
    (row,) = tasks.score(model, tokenizer, variant="base", batch_size=4, progress=False)
    assert model.training
    assert (row.task, row.metric, row.examples, row.fewshot) == ("pairs", "acc", len(pairs), 0)
    assert (row.higher_is_better, row.version, row.variant) == (True, "1.5", "base")
    assert row.value == own_accuracy(model, tokenizer, pairs)
    spread = (row.value * (1 - row.value) / (len(pairs) - 1)) ** 0.5
    assert row.stderr == pytest.approx(spread)


def test_the_same_tasks_are_put_to_several_models(world, tmp_path: Path) -> None:
    model, tokenizer = world
    pairs = sentences(tokenizer)
    tasks = Tasks([write_pairs(tmp_path, pairs)], limit=10, progress=False)
    rows = tasks.score(model, tokenizer, variant="base", progress=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=generator) < 0.5)
    rows += tasks.score(model, tokenizer, variant="pruned", progress=False)
    recover(rows)
    base, pruned = rows
    assert base.examples == pruned.examples == 10
    assert pruned.value == own_accuracy(model, tokenizer, pairs[:10])
    assert base.recovered is None
    assert pruned.recovered == pruned.value / base.value


def test_a_config_is_a_task_and_progress_is_silent(world, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import yaml

    model, tokenizer = world
    pairs = sentences(tokenizer)[:3]
    config = yaml.safe_load(Path(write_pairs(tmp_path, pairs)).read_text())
    (row,) = Tasks([config], progress=False).score(model, tokenizer, variant="base", progress=False)
    assert row.value == own_accuracy(model, tokenizer, pairs)
    assert capfd.readouterr() == ("", "")


def test_the_users_random_numbers_are_left_alone(world, tmp_path: Path) -> None:
    model, tokenizer = world
    tasks = Tasks([write_pairs(tmp_path, sentences(tokenizer)[:2])], progress=False)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), float(np.random.rand()), float(torch.rand(1))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    tasks.score(model, tokenizer, variant="base", progress=False)
    assert (random.random(), float(np.random.rand()), float(torch.rand(1))) == expected


def test_what_is_no_task_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # datasets looks for its files below
    with pytest.raises(UsageError, match="no task file .*absent.yaml: check the path"):
        Tasks([str(tmp_path / "absent.yaml")])
    (tmp_path / "broken.yaml").write_text("task: broken\ndataset_path: json\noutput_type: multiple_choice\n")
    with pytest.raises(UsageError, match=r"the harness cannot set up .*broken\.yaml: "):
        Tasks([str(tmp_path / "broken.yaml")], progress=False)
    with pytest.raises(ConfigError, match="limit must be at least 1 example, got 0"):
        Tasks(["piqa"], limit=0)


def test_an_unknown_name_gets_the_near_ones() -> None:
    with pytest.raises(UsageError, match="no task 'hellaswagg': did you mean 'hellaswag'"):
        Tasks(["hellaswagg"], progress=False)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"is not installed: pip install \"hubprune\[eval\]\""):
        Tasks(["piqa"])


@pytest.mark.parametrize(
    ("better", "value", "base", "share"),
    [(True, 0.4, 0.5, 0.8), (False, 20.0, 10.0, 0.5), (None, 1.0, 2.0, None), (True, 0.5, 0.0, None)],
)
def test_recovered_is_a_share_of_the_base(better, value, base, share) -> None:
    rows = [
        TaskScore("base", "t", "m", base, higher_is_better=better),
        TaskScore("pruned", "t", "m", value, higher_is_better=better),
        TaskScore("pruned", "alone", "m", value, higher_is_better=better),
    ]
    recover(rows)
    assert [row.recovered for row in rows] == [None, share if share is None else pytest.approx(share), None]
