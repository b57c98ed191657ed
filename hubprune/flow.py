"""One run from request to record, shared by every door: prepare, then execute.

Everything that can be refused is refused in ``prepare`` (small downloads, all checks), before the weights are
downloaded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hubprune.allocation import allocate, blocks_of, weights_in
from hubprune.architecture import check_pattern_fits, check_supported, describe, find_matrices, is_paired, max_length
from hubprune.calibration import (
    Corpus,
    as_questions,
    check_fits,
    corpus_from_tokens,
    held_out,
    load_corpus,
    refuse_overlap,
)
from hubprune.config import PruningConfig
from hubprune.corpora import CORPUS_NAMES, TASK, CorpusConfig, parse_corpus
from hubprune.errors import ConfigError, CorpusError, NotFoundError, NumericalError, UnsupportedModelError, UsageError
from hubprune.evaluation import perplexity
from hubprune.facts import BaseFacts, Perplexity
from hubprune.masks import removed_count
from hubprune.opening import Opening
from hubprune.pruner import prune
from hubprune.reloading import TOLERANCES, make_probe
from hubprune.removal import kept_layers, shrunk
from hubprune.report import PruningReport
from hubprune.sparsity import Structured
from hubprune.weights import weights_of

# Sequences of held-out text in a perplexity, and the fewest it is worth printing for.
EVALUATION_SAMPLES = 64


@dataclass(frozen=True)
class Outline:
    """What a run will meet, known before any weight is downloaded.

    Attributes:
        matrices: Matrices to prune; 0 where units are removed.
        targeted: Weights in them, or in the units.
        pruned: Weights that go.
        left: Parameters of the result.
        parameters: Parameters of the model; tied ones count once.
        facts: The model, as a report records it.
    """

    matrices: int
    targeted: int
    pruned: int
    left: int
    parameters: int
    facts: BaseFacts


@dataclass
class Plan:
    """A run that passed all checks.

    Attributes:
        base: The base model.
        config: What to prune and how.
        tokenizer: The base's tokenizer; None where it has none.
        corpora: Calibration text by name.
        evaluation: Held-out text by label.
        warnings: What the user should know.
        seconds: Time that preparing took.
    """

    base: Opening
    config: PruningConfig
    tokenizer: PreTrainedTokenizerBase | None
    corpora: dict[str, Corpus]
    evaluation: dict[str, Corpus]
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0


def draw(base: Opening, config: PruningConfig) -> Outline:
    """Find out from the base's config alone what would be pruned.

    Raises:
        UnsupportedModelError: The model is quantised, or not a decoder language model.
        UsageError: It was already pruned.
        ConfigError: The pattern or the name of a matrix does not fit it.
    """
    check_supported(base.config)
    done = getattr(base.config, "hubprune", None)
    if done:
        raise UsageError(
            f"{base.name} was already pruned ({done['method']}, {done['pattern']}): prune {done['base_model']} instead"
        )
    parameters, matrices = weights_in(base.outline), 0
    pattern = config.resolved_pattern()
    if isinstance(pattern, Structured):
        allocation = allocate(base.outline, config)
        blocks = blocks_of(base.outline)
        size = weights_in(blocks[0])
        pruned = allocation.layers * size
        pruned += sum(allocation.removed[group.name] * group.unit_size for group in allocation.groups)
        targeted = sum(group.count * group.unit_size for group in allocation.groups) or len(blocks) * size
    else:
        found = find_matrices(base.outline, config.targets, config.ignore)
        check_pattern_fits(found, pattern)
        matrices, targeted = len(found), sum(matrix.view().numel() for matrix in found)
        pruned = removed_count(targeted, pattern.sparsity)
    return Outline(
        matrices=matrices,
        targeted=targeted,
        pruned=pruned,
        left=parameters - pruned if config.resolved_application() == "remove" else parameters,
        parameters=parameters,
        facts=describe(base.outline, model_id=base.repo.repo_id, commit=base.repo.commit),
    )


def prepare(
    base: Opening,
    config: PruningConfig,
    corpora: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    evaluation: str | Mapping[str, Any] | None = "auto",
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: bool = True,
) -> Plan:
    """Check a request and read its text; downloads the tokenizer and rows of the data sets, no weights.

    Args:
        base: The base model.
        config: What to prune and how.
        corpora: Calibration text by name, as ``parse_corpus`` reads it, or ``Corpus``, or token ids ``(n, T)``.
        settings: Fields of ``CorpusConfig`` for corpora that carry none.
        evaluation: ``auto`` for the held-out splits of the calibration sets, text by label, or None for none.
        tokenizer: The tokenizer, None to load the base's.
        progress: Whether to show progress bars.

    Raises:
        ConfigError, CorpusError, UnsupportedModelError, AccessError, NotFoundError, OfflineError: The request is
        refused.
    """
    started = time.perf_counter()
    unknown = [name for name in corpora if name not in CORPUS_NAMES]
    if unknown:
        raise ConfigError(f"corpora are called {', '.join(CORPUS_NAMES)}, got {', '.join(unknown)}: name them so")
    config.check_corpora(tuple(corpora))
    draw(base, config)
    warnings: list[str] = []
    if tokenizer is None:
        try:
            tokenizer = base.tokenizer
        except (NotFoundError, UnsupportedModelError) as error:
            if isinstance(evaluation, Mapping) or not all(_is_tokens(value) for value in corpora.values()):
                raise
            warnings.append(f"the result goes without a tokenizer: {error}")
    reader = _Reader(tokenizer, base, config, progress)
    settings = {**settings, "seed": settings.get("seed", config.seed)}
    loaded, parsed = {}, {}
    for name, value in corpora.items():
        if not _is_tokens(value):
            parsed[name] = parse_corpus(value, **settings)
        loaded[name] = reader.calibration(name, parsed.get(name, value))
    if config.pseudo_labels:
        loaded[TASK] = as_questions(loaded[TASK])
    used = frozenset(key for corpus in loaded.values() for key in corpus.keys)
    held, missing = reader.evaluation(evaluation, parsed, settings, used)
    for corpus in (*loaded.values(), *held.values()):
        check_fits(corpus, base.outline)
    refuse_overlap(loaded.values(), held.values())
    return Plan(base, config, tokenizer, loaded, held, warnings + missing, time.perf_counter() - started)


def _is_tokens(value: Any) -> bool:
    """Whether a corpus needs no tokenizer any more."""
    return isinstance(value, Corpus | torch.Tensor)


class _Reader:
    """Reads corpora with one tokenizer."""

    def __init__(self, tokenizer: Any, base: Opening, config: PruningConfig, progress: bool) -> None:
        self.tokenizer, self.config, self.token = tokenizer, config, base.keywords.get("token")
        self.kept: dict[str, Any] = {
            "max_length": max_length(base.config),
            "pairs": is_paired(base.config),
            "progress": progress,
        }

    def _load(self, value: Any, name: str, **more: Any) -> Corpus:
        return load_corpus(value, self.tokenizer, name=name, token=self.token, **self.kept, **more)

    def calibration(self, name: str, value: Any) -> Corpus:
        if isinstance(value, Corpus):
            return value.named(name)
        if isinstance(value, torch.Tensor):
            return corpus_from_tokens(value, name)
        usual = self.config.preset.sequence_length  # held-out text is cut alike for all methods
        return self._load(value, name, questions=self.config.pseudo_labels and name == TASK, usual_length=usual)

    def evaluation(
        self,
        wanted: str | Mapping[str, Any] | None,
        parsed: Mapping[str, CorpusConfig],
        settings: Mapping[str, Any],
        used: frozenset[str],
    ) -> tuple[dict[str, Corpus], list[str]]:
        """Read the held-out text: what was asked for, or the held-out splits of the calibration sets.

        Splits of public data sets share a document here and there; those that calibration used are passed over.
        """
        if wanted is None or wanted == "none":
            return {}, []
        if isinstance(wanted, Mapping):
            lengths = {"sequence_length": settings.get("sequence_length"), "num_samples": EVALUATION_SAMPLES}
            return {label: self._load(value, label, at_most=True, **lengths) for label, value in wanted.items()}, []
        if wanted != "auto":
            raise ConfigError(
                f"evaluation is 'auto', None, or text by label ({{'medical': 'repo:config:test'}}), got {wanted!r}"
            )
        found, warnings = {}, []
        for name, config in parsed.items():
            test = held_out(config, num_samples=EVALUATION_SAMPLES, token=self.token)
            if test is None:
                warnings.append(f"the {name} corpus has no held-out split, so no {name} perplexity was measured")
                continue
            try:
                found[name] = self._load(test, name, at_most=True, exclude=used)
            except CorpusError as error:
                warnings.append(f"no {name} perplexity was measured: {error}")
        return found, warnings


def execute(model: PreTrainedModel, plan: Plan, *, progress: bool = True) -> tuple[PreTrainedModel, PruningReport]:
    """Measure, prune, measure again, and record it all.

    Args:
        model: The base model; pruned in place.
        plan: The run.
        progress: Whether to show progress bars.

    Returns:
        The result, which is the same model unless units are cut out, and the record.

    Raises:
        NumericalError: NaN was met, or a Hessian cannot be factorised, or the smaller model answers otherwise.
    """
    timings = {"prepare": plan.seconds}

    def timed(variant: str) -> list[Perplexity]:
        started = time.perf_counter()
        rows = measure(model, plan, variant, progress=progress)
        if rows:
            timings[f"evaluate {variant}"] = time.perf_counter() - started
        return rows

    weights_of(model).check_finite()
    before = timed("base")
    report = prune(model, plan.tokenizer, plan.config, plan.corpora, progress=progress)
    report.base = base_facts(model, plan)
    if report.application == "remove":
        model = smaller(model, report, plan.tokenizer)
    report.evaluation = before + timed("pruned")
    report.warnings = plan.warnings + report.warnings
    report.timings = {name: round(seconds, 3) for name, seconds in {**timings, **report.timings}.items()}
    report.probe = make_probe(model, plan.tokenizer)
    model.config.hubprune = report.summary()
    return model, report


def smaller(
    model: PreTrainedModel, report: PruningReport, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedModel:
    """Cut out the units that are masked in a model, and check that the smaller model answers as the masked one does.

    Args:
        model: The masked model.
        report: The record of the run that masked it.
        tokenizer: Its tokenizer.

    Returns:
        A new model of the same class.

    Raises:
        ConfigError: The model's class cannot be built so small; it names what is possible.
        NumericalError: The smaller model answers otherwise.
    """
    masked = None if kept_layers(report.units) is not None else make_probe(model, tokenizer)
    small = shrunk(model, report.units)
    if masked is not None:
        logits = torch.tensor(masked.logits)
        apart = float((torch.tensor(make_probe(small, tokenizer).logits) - logits).abs().max() / logits.abs().max())
        allowed = TOLERANCES[str(model.dtype).removeprefix("torch.")]
        if not apart <= allowed:
            raise NumericalError(
                f"a model without the removed units must answer as one in which they are zero, and its logits differ "
                f"by {apart:.2g} of the largest, allowed {allowed:.2g}: mask them instead (application='compensate')"
            )
    return small


def measure(model: PreTrainedModel, plan: Plan, variant: str, *, progress: bool = True) -> list[Perplexity]:
    """Measure the perplexity of a model on the held-out text of a run.

    Args:
        model: The model; its blocks may be on disk, behind the hooks that bring them in.
        plan: The run.
        variant: What the rows are called, ``base`` or ``pruned``.
        progress: Whether to show progress bars.
    """
    size = plan.config.batch_size
    return [
        perplexity(model, corpus, variant=variant, batch_size=size, progress=progress)
        for corpus in plan.evaluation.values()
    ]


def base_facts(model: PreTrainedModel, plan: Plan) -> BaseFacts:
    """What the report says about the base model of a run."""
    repo = plan.base.repo
    return describe(
        model,
        model_id=repo.repo_id,
        revision=repo.revision,
        commit=repo.commit,
        trust_remote_code=bool(plan.base.keywords["trust_remote_code"]),
        gated=repo.gated,
        card=repo.card,
    )
