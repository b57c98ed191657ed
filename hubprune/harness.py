"""Tasks of lm-evaluation-harness: named ones, and task files of one's own, on a model in memory."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hubprune.errors import ConfigError, HubPruneError, UsageError, did_you_mean
from hubprune.huberrors import hub_errors, one_line
from hubprune.outcomes import TaskScore

Task = str | Mapping[str, Any]

# What the harness itself takes.
SEED = 1234
# Draws for the standard error of metrics that have no formula; the harness' own 100,000 take minutes.
BOOTSTRAPS = 1000
SUFFIXES = (".yaml", ".yml")
TALKATIVE = ("lm_eval", "datasets", "transformers.tokenization_utils_base")


class Tasks:
    """Tasks that are ready to be put to models, their data read.

    Args:
        wanted: Names of tasks, groups or tags of the harness, task files (``.yaml``), or configs.
        fewshot: Worked examples in each prompt; None for the task's own number.
        limit: Examples of each task, at most; None for all.
        progress: Whether to show progress bars.

    Raises:
        UsageError: The harness is not installed, there is no such task, or its data cannot be read.
    """

    def __init__(
        self, wanted: Sequence[Task], *, fewshot: int | None = None, limit: int | None = None, progress: bool = True
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"limit must be at least 1 example, got {limit}: raise it, or leave it out")
        try:
            from lm_eval.tasks import TaskManager
        except ModuleNotFoundError as error:
            raise UsageError(
                f"tasks are put by lm-evaluation-harness, and {error.name} is not installed: "
                'pip install "hubprune[eval]"'
            ) from error
        self.limit = limit
        files = [task for task in wanted if isinstance(task, str) and task.endswith(SUFFIXES)]
        missing = [file for file in files if not Path(file).is_file()]
        if missing:
            raise UsageError(f"there is no task file {', '.join(missing)}: check the path")
        with _quiet(progress):
            # Thousands of task files are read for the names; a file of one's own needs none of them.
            manager = TaskManager(include_defaults=any(isinstance(task, str) and task not in files for task in wanted))
            known = {*manager.all_tasks}
            unknown = [task for task in wanted if isinstance(task, str) and task not in {*files, *known}]
            if unknown:
                raise UsageError("; ".join(f"there is no task {task!r}: {_near(task, known)}" for task in unknown))
            self.loaded = self._load(manager, wanted)
        for task in self.loaded["tasks"].values():
            own = task.get_config("num_fewshot")
            # A task that says 0 cannot be shown examples.
            task.set_config(key="num_fewshot", value=own if own == 0 or fewshot is None and own else fewshot or 0)

    def _load(self, manager: Any, wanted: Sequence[Task]) -> dict[str, Any]:
        names = ", ".join(str(task if isinstance(task, str) else task.get("task")) for task in wanted)
        try:
            with hub_errors("read the data of", names, "dataset"):
                return manager.load([task if isinstance(task, str) else dict(task) for task in wanted])
        except HubPruneError:
            raise
        except Exception as error:  # a task file is a program in parts, and fails in any way it likes
            raise UsageError(
                f"the harness cannot set up {names}: {type(error).__name__}: {one_line(error)}"
            ) from error

    def score(
        self, model: Any, tokenizer: Any, *, variant: str, batch_size: int = 8, progress: bool = True
    ) -> list[TaskScore]:
        """Put the tasks to a model, which is left as it was.

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer.
            variant: What the rows are called.
            batch_size: Requests in a forward pass.
            progress: Whether to show the harness' progress bars.

        Returns:
            One row for each metric of each task and group.
        """
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        for task in self.loaded["tasks"].values():
            task.set_fewshot_seed(seed=SEED)
        with _quiet(progress), _seeded():
            modes = [(module, module.training) for module in model.modules()]
            try:
                # In half precision, log likelihoods of some hundred nats would be summed to whole numbers.
                asked = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=torch.float32)
                found: Any = evaluate(
                    asked, self.loaded, limit=self.limit, bootstrap_iters=BOOTSTRAPS, log_samples=False
                )
            finally:
                for module, training in modes:
                    module.training = training
        return _rows(found, variant)


def _near(name: str, known: set[str]) -> str:
    """The remedy for an unknown task; of thousands of names only near ones are told."""
    told = did_you_mean(name, known) if known else ""
    return (
        told if told.startswith("did you mean") else "lm-eval ls tasks lists them, and a file of yours ends in .yaml"
    )


def _rows(found: Mapping[str, Any], variant: str) -> list[TaskScore]:
    """What the harness found, one row a metric."""
    rows = []
    results = {**found["results"], **found.get("groups", {})}
    for task, metrics in results.items():
        for name, value in metrics.items():
            metric, _, kind = name.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{kind}")
            known = isinstance(error, int | float) and math.isfinite(error)
            better = found["higher_is_better"].get(task, {}).get(metric)
            members = found.get("group_subtasks", {}).get(task) or [task]
            counts = found["n-samples"]
            rows.append(
                TaskScore(
                    variant=variant,
                    task=task,
                    metric=metric if kind == "none" else name,
                    value=float(value),
                    stderr=float(error) if known and error is not None else None,
                    examples=sum(counts[member]["effective"] for member in members if member in counts),
                    fewshot=int(found["n-shot"].get(task, 0) or 0),
                    higher_is_better=better if isinstance(better, bool) else None,
                    version=str(found["versions"].get(task, "")),
                )
            )
    return rows


def recover(rows: Sequence[TaskScore], base: str = "base") -> None:
    """Fill in which part of the base's score each other model reaches.

    Args:
        rows: Rows of all models; ``recovered`` is set in place.
        base: Name of the base.
    """
    dense = {(row.task, row.metric): row.value for row in rows if row.variant == base}
    for row in rows:
        before = dense.get((row.task, row.metric))
        if row.variant == base or before is None or row.higher_is_better is None:
            continue
        above, below = (row.value, before) if row.higher_is_better else (before, row.value)
        row.recovered = above / below if below else None


@contextlib.contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Keep the harness from telling what it does; its progress bars cannot be switched off one by one."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seed what tasks draw from, and put the user's own generators back afterwards."""
    ours, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpys)
