"""Scores on public benchmarks in the Hub's own form: one file a benchmark in the folder ``.eval_results``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from hubprune.errors import OutputError
from hubprune.report import PruningReport, write_text

FOLDER = ".eval_results"
"""Where the Hub looks for results; other files there are the user's."""


@dataclass(frozen=True)
class Benchmark:
    """A data set of the Hub that keeps a leaderboard, and the task of lm-evaluation-harness that asks it.

    Attributes:
        task: Name of the task.
        metric: The metric that counts, as the harness names it.
        dataset: Repository of the data set.
        task_id: Name of the task in the data set's own ``eval.yaml``.
        examples: Examples of the whole test; a part of it is no result.
    """

    task: str
    metric: str
    dataset: str
    task_id: str
    examples: int

    @property
    def path(self) -> str:
        """Path of our file in the model's folder."""
        return f"{FOLDER}/{self.task}-hubprune.yaml"


BENCHMARKS = (
    Benchmark("gsm8k", "exact_match,strict-match", "openai/gsm8k", "gsm8k", 1319),
    Benchmark("mmlu_pro", "exact_match,custom-extract", "TIGER-Lab/MMLU-Pro", "mmlu_pro", 12032),
)
PATHS = frozenset(benchmark.path for benchmark in BENCHMARKS)


def result_files(report: PruningReport) -> dict[str, str]:
    """The files that a report has scores for, by path: the model's own scores on whole benchmarks, in per cent."""
    found = {}
    for benchmark in BENCHMARKS:
        for score in report.tasks:
            asked = (score.variant, score.task, score.metric, score.examples)
            if asked != (report.result, benchmark.task, benchmark.metric, benchmark.examples):
                continue
            entry = EvalResultEntry(
                dataset_id=benchmark.dataset,
                task_id=benchmark.task_id,
                value=round(100 * score.value, 2),
                notes=f"lm-evaluation-harness, {score.metric}, {score.fewshot}-shot",
            )
            found[benchmark.path] = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return found


def write_results(report: PruningReport, folder: str | os.PathLike[str]) -> list[str]:
    """Write the files of a report into a model's folder; earlier ones of ours that no longer hold go.

    Returns:
        Their paths.

    Raises:
        OutputError: The folder cannot be written.
    """
    files = result_files(report)
    place = Path(folder) / FOLDER
    if place.is_dir():
        for path in PATHS.difference(files):
            (Path(folder) / path).unlink(missing_ok=True)
    for path, text in files.items():
        try:
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the folder {place} ({error.strerror}): give a folder that is writable"
            ) from error
        write_text(Path(folder) / path, text)
    return sorted(files)
