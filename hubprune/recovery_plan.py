"""What a recovery is going to do, known and checked before any weight is downloaded."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hubprune import adapters, environment, ranks
from hubprune.architecture import Matrix, find_blocks, find_matrices, is_paired
from hubprune.calibration import Corpus, check_fits, refuse_overlap
from hubprune.config import PruningConfig
from hubprune.errors import UsageError
from hubprune.opening import Opening
from hubprune.recovery_config import RecoveryConfig
from hubprune.recovery_text import Reader
from hubprune.report import PruningReport
from hubprune.sparsity import NM, parse_pattern
from hubprune.training import check_reports


@dataclass
class RecoveryPlan:
    """A recovery that passed all checks.

    Attributes:
        config: How, with its defaults filled in.
        corpora: The text by name, in the shares that the config asks for.
        evaluation: Held-out text by label.
        base: The dense base, where it is needed: about to be loaded, or in memory.
        warnings: What the user should know.
        seconds: Time that preparing took.
    """

    config: RecoveryConfig
    corpora: dict[str, Corpus]
    evaluation: dict[str, Corpus]
    base: Opening | PreTrainedModel | None
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def needs_base(self) -> bool:
        """Whether the dense base has a part in it."""
        return self.config.method == "reconstruct" or self.config.distill

    def split(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Sequences to train on and to look at: the last ones of each corpus are held out."""
        training: list[torch.Tensor] = []
        looked_at: list[torch.Tensor] = []
        for corpus in self.corpora.values():
            count = len(corpus.sequences)
            apart = min(count - 1, max(1, round(self.config.held_out * count))) if self.config.held_out else 0
            training += corpus.sequences[: count - apart]
            looked_at += corpus.sequences[count - apart :]
        return training, looked_at

    def batches(self) -> list[torch.Tensor]:
        """All sequences, ``(b, T)`` each."""
        size = self.config.batch_size
        return list(itertools.chain.from_iterable(corpus.batches(size) for corpus in self.corpora.values()))

    def fingerprint(self, report: PruningReport) -> dict[str, Any]:
        """What the recovery is about, in JSON types."""
        return {
            "model": {"base": report.base.model_id, "pruned": report.created, "untouched": report.untouched_sha256},
            "recovery": self.config.to_dict(),
            "corpora": {name: corpus.facts.fingerprint for name, corpus in self.corpora.items()},
            "evaluation": {name: corpus.facts.fingerprint for name, corpus in self.evaluation.items()},
            "versions": {name: environment.versions().get(name) for name in ("hubprune", "torch", "transformers")},
        }


def prepare(
    outline: PreTrainedModel,
    report: PruningReport,
    config: RecoveryConfig | Mapping[str, Any] | str | bool | None,
    corpora: Mapping[str, Any],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    evaluation: str | Mapping[str, Any] | None = "auto",
    base: PreTrainedModel | str | None = None,
    keywords: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> RecoveryPlan:
    """Check a request to recover and read its text; downloads no weights.

    Args:
        outline: The pruned model, with weights or without.
        report: The record of its pruning.
        config: How to recover, as ``RecoveryConfig.of`` reads it.
        corpora: Text by name; empty for the data sets of the calibration.
        tokenizer: The tokenizer; None where all text is given as token ids.
        evaluation: ``auto`` for the held-out splits of the calibration sets, text by label, a ``Corpus`` by label, or
            None for none.
        base: The dense base, where it is not the one that the report names.
        keywords: Keywords of ``from_pretrained`` for it, ``token`` above all.
        progress: Whether to show progress bars.

    Raises:
        ConfigError, CorpusError, UsageError, AccessError, NotFoundError, OfflineError: The request is refused.
    """
    started = time.perf_counter()
    resolved = RecoveryConfig.of(config).resolved()
    check_recoverable(outline, report)
    if resolved.method == "adapter":
        adapters.check_installed()
        check_reports(resolved)
        adapters.adaptable(matrices_of(outline, report), resolved)
    keywords = dict(keywords or {})
    reader = Reader(tokenizer, outline, keywords.get("token"), progress)
    measured, warnings = reader.evaluation(evaluation, report)
    text = reader.text(corpora, report, resolved, measured)
    for corpus in (*text.values(), *measured.values()):
        check_fits(corpus, outline)
    refuse_overlap(text.values(), measured.values())
    plan = RecoveryPlan(resolved, text, measured, None, warnings)
    if plan.needs_base:
        plan.base = _dense_base(outline, report, base, keywords)
    plan.seconds = time.perf_counter() - started
    return plan


def check_recoverable(model: PreTrainedModel, report: PruningReport) -> None:
    """Refuse a model that cannot be recovered.

    Raises:
        UsageError: It was recovered already, is not what the report is about, or the run has several processes.
    """
    if report.recovery is not None:
        raise UsageError(
            f"this model was already recovered ({report.recovery.what}): recover the pruned model that it was made of"
        )
    if ranks.size() > 1:
        raise UsageError(f"a recovery runs in one process, got {ranks.size()}: start it without torchrun")
    _refuse_paired(model)
    matrices_of(model, report)


def _refuse_paired(model: PreTrainedModel) -> None:
    if is_paired(model.config):
        raise UsageError(
            f"a recovery trains decoder language models, and {type(model).__name__} is an encoder-decoder: leave the "
            "recovery out (remaining weights are repaired while pruning), or train it with transformers"
        )


def matrices_of(model: PreTrainedModel, report: PruningReport) -> list[Matrix]:
    """The matrices of a model that its report lists.

    Raises:
        UsageError: It lacks one, or the report lists none.
    """
    found = {matrix.name: matrix for matrix in find_matrices(model)}
    lost = [facts.name for facts in report.matrices if facts.name not in found]
    if lost or not report.matrices:
        what = f"lists {lost[0]}, which it has not" if lost else "lists no matrix"
        raise UsageError(
            f"a model is recovered by the report of its own pruning, and the one given {what}: give its own"
        )
    return [found[facts.name] for facts in report.matrices]


def check_early(outline: PreTrainedModel, config: PruningConfig, how: RecoveryConfig) -> None:
    """Refuse a recovery that cannot follow a pruning, from shapes alone.

    Args:
        outline: The base without its weights.
        config: What is going to be pruned.
        how: How to recover.

    Raises:
        ConfigError: The adapter does not go with the model.
        UsageError: The run has several processes, or peft is not installed.
    """
    if ranks.size() > 1:
        raise UsageError(f"a recovery runs in one process, got {ranks.size()}: start it without torchrun")
    _refuse_paired(outline)
    if how.method == "adapter":
        adapters.check_installed()
        check_reports(how)
        adapters.adaptable(find_matrices(outline, config.targets, config.ignore), how)


def _dense_base(
    outline: PreTrainedModel, report: PruningReport, given: PreTrainedModel | str | None, keywords: Mapping[str, Any]
) -> Opening | PreTrainedModel:
    """The dense base, its shapes checked."""
    shapes: Any
    if given is None or isinstance(given, str):
        name = given or report.base.model_id
        if not name:
            raise UsageError("the report does not name the dense base: give base=, the model or its name")
        commit = report.base.commit if given is None else None
        more = {"trust_remote_code": report.base.trust_remote_code, "dtype": "auto", **keywords}
        base: Opening | PreTrainedModel = Opening(name, commit, more)
        shapes = base.outline
    else:
        base = shapes = given
    ours, theirs = find_blocks(outline)[1], find_blocks(shapes)[1]
    width: Any
    other: Any
    width, other = (each.get_input_embeddings().weight.shape for each in (outline, shapes))
    if len(ours) != len(theirs) or width != other:
        raise UsageError(
            f"the dense base must have the blocks and the vocabulary of the pruned model, {len(ours)} and "
            f"{tuple(width)}, and has {len(theirs)} and {tuple(other)}: give the model that was pruned (base=)"
        )
    return base


def pattern_of(report: PruningReport) -> NM | None:
    """The N:M pattern that a report speaks of, None for none."""
    pattern = report.config.get("pattern")
    return None if pattern is None else parse_pattern(pattern)
