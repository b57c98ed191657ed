"""One model pruned: the request checked, its text read, the loop run, and all of it recorded."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hubprune import environment
from hubprune.activations import Activations
from hubprune.allocation import allocate, blocks_of, weights_in
from hubprune.architecture import (
    Matrix,
    check_pattern_fits,
    check_supported,
    describe,
    find_matrices,
    is_encoder,
    is_paired,
    max_length,
)
from hubprune.calibration import Corpus, as_questions, check_fits, corpus_from_tokens, load_corpus
from hubprune.choosing import Chooser
from hubprune.config import PruningConfig
from hubprune.corpora import TASK
from hubprune.criteria.attribution import Attribution
from hubprune.criteria.block_influence import BlockInfluence
from hubprune.criterion import Criterion, load_criterion
from hubprune.energy import metered
from hubprune.engine import Engine
from hubprune.errors import ConfigError, UnsupportedModelError, UsageError
from hubprune.facts import Totals
from hubprune.labelling import label
from hubprune.layers import choose_layers
from hubprune.loop import Loop
from hubprune.removal import kept_layers
from hubprune.replay import Replay
from hubprune.report import PruningReport
from hubprune.sparsity import Structured, Unstructured
from hubprune.unit_criterion import UnitCriterion
from hubprune.unitwise import Unitwise
from hubprune.weights import Touched, Weights, touched_by, weights_of
from hubprune.weightwise import Weightwise
from hubprune.whole import engine_of, sweeps_of
from hubprune.work import Journal

CorpusLike = Any  # a Corpus, a tensor of token ids (n, T), or anything config.parse_corpus reads


def prune(
    model: PreTrainedModel | Weights,
    tokenizer: PreTrainedTokenizerBase | None,
    config: PruningConfig | None = None,
    corpora: Mapping[str, CorpusLike] | None = None,
    *,
    criterion: Criterion | None = None,
    progress: bool = True,
    journal: Journal | None = None,
    activations: Activations | None = None,
    meter: bool = True,
) -> PruningReport:
    """Prune a language model: in place, or for a decoder block by block into a work folder.

    In a ``torch.distributed`` program every process calls this with the same arguments; each runs its part of the
    sequences, and all end with the same weights.

    Args:
        model: The model: a decoder, an encoder-decoder, or an encoder with a method that needs no loss. Where its
            blocks are on disk, the result goes to the journal's folder.
        tokenizer: Its tokenizer; None when every corpus is given as token ids.
        config: What to prune and how.
        corpora: Calibration text by name (``general``, ``domain``, ``language``, ``task``): a ``Corpus``, token ids
            ``(n, T)``, or what ``from_pretrained`` takes.
        criterion: A criterion of your own, instead of the config's method.
        progress: Whether to show a progress bar.
        journal: Where finished blocks are written down; None for nowhere.
        activations: Where activations are put away between two blocks; None for host memory.
        meter: Whether codecarbon, where it is installed, takes the electricity.

    Returns:
        The record of the run; ``model.config.hubprune`` holds its summary.

    Raises:
        ConfigError: A corpus the method needs is missing, or a pattern fits nothing.
        CorpusError: A corpus cannot be read or is too short.
        UnsupportedModelError: The model is quantised or no language model, or the method needs a loss that it lacks.
        NumericalError: NaN was met, or a Hessian cannot be factorised.
    """
    config = config or PruningConfig()
    given = dict(corpora or {})
    weights, journal = weights_of(model), journal or Journal()
    model = weights.model
    encoder = is_encoder(model)
    check_supported(model.config, encoder=encoder)
    if criterion is None:
        config.check_corpora(tuple(given))
        criterion = load_criterion(config)
        method = config.method
    else:
        method = type(criterion).__name__
        config = _for_own_criterion(config, criterion)
        criterion.check_corpora(tuple(given), compensates=config.repairs())
    if encoder:
        _check_encoder(model, method, criterion)
    work = _Work(weights, config, criterion)
    _check_place(weights, journal, config)
    weights.check_finite()
    loaded = {name: _as_corpus(name, value, tokenizer, model, config, progress) for name, value in given.items()}
    if config.pseudo_labels:
        loaded[TASK] = as_questions(loaded[TASK])
    for corpus in loaded.values():
        check_fits(corpus, model)
    report = PruningReport(
        base=describe(model, model_id=model.config.name_or_path or ""),
        config={**config.to_dict(), **work.settled, "method": method},
        pattern=str(config.resolved_pattern()),
        application=config.resolved_application(),
        options=config.resolved_options() if method == config.method else {},
        corpora=[corpus.facts for corpus in loaded.values()],
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    if not work.layers:
        report.untouched_sha256 = weights.untouched_sha256(work.touched)
    energy = metered(partial(setattr, report, "energy")) if meter else nullcontext()
    with energy, engine_of(weights) as replay:
        if isinstance(criterion, Attribution) and criterion.pseudo and TASK in loaded:
            _label(replay, loaded, criterion, tokenizer, report, activations or Activations(), progress)
        work.run(replay, loaded, report, journal, activations or Activations(), progress)
    if work.layers:
        stay = kept_layers(report.units) or []
        report.untouched_sha256 = weights.untouched_sha256({}, {old: new for new, old in enumerate(stay)})
    report.totals = work.totals(report)
    report.peak_memory_bytes = environment.peak_memory()
    report.peak_gpu_memory_bytes = environment.peak_gpu_memory()
    report.hardware, report.versions = environment.hardware(), environment.versions()
    model.config.hubprune = report.summary()
    return report


def _label(
    engine: Engine,
    corpora: dict[str, Corpus],
    criterion: Attribution,
    tokenizer: Any,
    report: PruningReport,
    activations: Activations,
    progress: bool,
) -> None:
    """Let the model answer the questions of the task itself; corpora and report are brought up to date."""
    started = time.perf_counter()
    sweeps = sweeps_of(engine, [[] for _ in engine.blocks], activations)
    corpora[TASK] = label(
        sweeps,
        corpora[TASK],
        tokenizer=tokenizer,
        answer_tokens=criterion.answer_tokens,
        confidence=criterion.confidence,
        progress=progress,
    )
    report.corpora = [corpus.facts for corpus in corpora.values()]
    report.timings["labels"] = round(time.perf_counter() - started, 3)


def _check_encoder(model: PreTrainedModel, method: str, criterion: Criterion) -> None:
    """Refuse a method that needs the gradient of a loss, for a model that predicts no next token."""
    if criterion.gradients is not None:
        raise UnsupportedModelError(
            f"method {method!r} needs the loss of the next token, and {type(model).__name__} reads both ways and "
            "predicts none: take magnitude, random, wanda-sp, cus-prun or mutual-information"
        )


def _for_own_criterion(config: PruningConfig, criterion: Criterion) -> PruningConfig:
    """Fill in the defaults of a criterion that is not of the table."""
    unit = config.unit or ("ffn_neuron" if isinstance(criterion, UnitCriterion) else "weight")
    if unit != "weight":
        return dataclasses.replace(config, method="random", unit=unit, application=config.application or "compensate")
    scope = config.scope or (None if config.pattern else criterion.scope)
    return dataclasses.replace(config, scope=scope, application=config.application or criterion.application)


class _Work:
    """What a run does to a model: single weights, units, or layers."""

    def __init__(self, weights: Weights, config: PruningConfig, criterion: Criterion) -> None:
        self.weights, self.config, self.criterion = weights, config, criterion
        self.units = isinstance(config.resolved_pattern(), Structured)
        self.matrices: list[Matrix] = []
        if self.units:
            self.allocation = allocate(weights.model, config)
        else:
            self.matrices = find_matrices(weights.model, config.targets, config.ignore)
            check_pattern_fits(self.matrices, config.resolved_pattern())

    @property
    def layers(self) -> int:
        """Layers that go."""
        return self.allocation.layers if self.units else 0

    @property
    def settled(self) -> dict[str, Any]:
        """Settings that were left to the model's size, as they were found: a run with them gives the same widths."""
        multiple = self.allocation.multiple if self.units and not self.layers else None
        return {} if multiple in (None, 1) else {"multiple": multiple}

    @property
    def touched(self) -> Touched:
        """Parameters that are written to."""
        if not self.units:
            return touched_by(self.matrices)
        return touched_by(each for group in self.allocation.groups for each in group.slices)

    def run(
        self,
        replay: Engine,
        corpora: Mapping[str, Corpus],
        report: PruningReport,
        journal: Journal,
        activations: Activations,
        progress: bool,
    ) -> None:
        """Prune, and fill the report's rows."""
        size = self.config.batch_size
        if self.layers:
            kept = {"activations": activations, "progress": progress}
            assert isinstance(self.criterion, BlockInfluence)  # the config lets no other one remove layers
            assert isinstance(replay, Replay)  # asked before
            report.units = [choose_layers(replay, self.criterion, corpora, size, self.layers, journal, **kept)]
            return
        chooser: Chooser
        if self.units:
            chooser = Unitwise(replay, self.config, self.criterion, self.allocation.groups, self.allocation.removed)
        else:
            chooser = Weightwise(replay, self.config, self.criterion, self.matrices)
        loop = Loop(replay, chooser, corpora, size, report)
        loop.start(journal, activations, progress)
        loop()

    def totals(self, report: PruningReport) -> Totals:
        """Count over the model."""
        model, rows, units = self.weights.model, report.matrices, report.units
        parameters = weights_in(model)
        pruned = sum((row.count - row.kept) * row.weights for row in units) or sum(row.pruned for row in rows)
        return Totals(
            targeted=sum(row.count * row.weights for row in units) or sum(row.numel for row in rows),
            pruned=pruned,
            zeros=sum(row.zeros for row in rows),
            parameters=parameters,
            blocks=sum(map(weights_in, blocks_of(model))),
            left=parameters - pruned if report.application == "remove" else parameters,
        )


def _as_corpus(
    name: str, value: CorpusLike, tokenizer: Any, model: PreTrainedModel, config: PruningConfig, progress: bool
) -> Corpus:
    if isinstance(value, Corpus):
        return value.named(name)
    if isinstance(value, torch.Tensor):
        return corpus_from_tokens(value, name)
    if tokenizer is None:
        raise ConfigError(
            f"the {name} corpus is text, and text needs a tokenizer, got None: give it, or give token ids (n, T)"
        )
    return load_corpus(
        value,
        tokenizer,
        name=name,
        max_length=max_length(model.config),
        progress=progress,
        pairs=is_paired(model.config),
        questions=config.pseudo_labels and name == TASK,
        usual_length=config.preset.sequence_length,
        seed=config.seed,
    )


def _check_place(weights: Weights, journal: Journal, config: PruningConfig) -> None:
    """Refuse a run that would have nowhere to leave its result, or that needs all of it at once."""
    if not weights.streamed:
        return
    if not journal.lasting:
        raise UsageError(
            "a model whose blocks are on disk is pruned into a folder, and none is given: name the model instead of "
            "loading it, and give out=, or load it without disk offload"
        )
    pattern = config.resolved_pattern()
    if isinstance(pattern, Unstructured) and pattern.scope == "model":
        raise ConfigError(
            "scope 'model' compares the scores of all weights at once, and this model stays on disk: choose another "
            "scope, or raise max_memory"
        )
