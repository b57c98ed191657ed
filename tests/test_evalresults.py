"""Scores on whole benchmarks go into the Hub's own files, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResultEntry
from huggingface_hub._eval_results import parse_eval_result_entries

from hubprune.errors import OutputError
from hubprune.evalresults import BENCHMARKS, result_files, write_results
from hubprune.outcomes import RecoveryFacts, TaskScore
from hubprune.report import PruningReport
from hubprune.saving import save
from tests.pruned import prune_by_hand, tiny_model, tiny_tokenizer

GSM8K = BENCHMARKS[0]


def scored(**changes: object) -> PruningReport:
    row = {"variant": "pruned", "task": "gsm8k", "metric": GSM8K.metric, "value": 0.41236, "examples": GSM8K.examples}
    base = TaskScore("base", "gsm8k", GSM8K.metric, 0.9, examples=GSM8K.examples)
    return PruningReport(tasks=[base, TaskScore(**{**row, "fewshot": 5, **changes})])  # type: ignore[arg-type]


def test_a_whole_benchmark_is_a_result_of_the_hub() -> None:
    files = result_files(scored())
    assert list(files) == [".eval_results/gsm8k-hubprune.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[GSM8K.path]))
    notes = "lm-evaluation-harness, exact_match,strict-match, 5-shot"
    assert entry == EvalResultEntry("openai/gsm8k", "gsm8k", 41.24, notes=notes)


@pytest.mark.parametrize(
    "changes",
    [{"examples": 100}, {"metric": "exact_match,flexible-extract"}, {"variant": "base"}, {"task": "my-gsm8k"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_part_of_it_another_metric_the_base_and_other_tasks_are_not(changes: dict[str, object]) -> None:
    assert result_files(scored(**changes)) == {}


def test_results_from_before_a_recovery_are_no_longer_the_models() -> None:
    report = scored()
    report.recovery = RecoveryFacts(config={"method": "adapter"})
    assert result_files(report) == {}
    report.tasks[1].variant = "recovered"
    assert list(result_files(report)) == [GSM8K.path]


def test_our_files_come_and_go_and_the_users_stay(tmp_path: Path) -> None:
    model = tiny_model()
    report = prune_by_hand(model)
    report.tasks = scored().tasks
    folder = save(model, tmp_path / "model", report=report, tokenizer=tiny_tokenizer())
    mine = folder / ".eval_results" / "exam.yaml"
    mine.write_text("- mine\n")
    save(model, folder, report=report, tokenizer=tiny_tokenizer())
    assert sorted(path.name for path in mine.parent.iterdir()) == ["exam.yaml", "gsm8k-hubprune.yaml"]
    report.tasks = []
    save(model, folder, report=report, tokenizer=tiny_tokenizer())
    assert [path.read_text() for path in mine.parent.iterdir()] == ["- mine\n"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".eval_results").write_text("a file")
    with pytest.raises(OutputError, match="cannot make the folder"):
        write_results(scored(), tmp_path)
