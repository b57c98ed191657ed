"""One model pruned: the request checked, its text read, the loop run, and all of it recorded."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hubprune import environment
from hubprune.activations import Activations
from hubprune.architecture import check_pattern_fits, check_supported, describe, find_matrices, max_length
from hubprune.calibration import Corpus, check_fits, corpus_from_tokens, load_corpus
from hubprune.config import PruningConfig
from hubprune.criterion import Criterion, load_criterion
from hubprune.errors import ConfigError, UsageError
from hubprune.facts import Totals
from hubprune.loop import Loop
from hubprune.replay import Replay
from hubprune.report import PruningReport
from hubprune.sparsity import Unstructured
from hubprune.weights import Weights, weights_of
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
) -> PruningReport:
    """Prune a decoder language model: in place, or block by block into a work folder.

    In a ``torch.distributed`` program every process calls this with the same arguments; each runs its part of the
    sequences, and all end with the same weights.

    Args:
        model: The model. Where its blocks are on disk, the result goes to the journal's folder.
        tokenizer: Its tokenizer; None when every corpus is given as token ids.
        config: What to prune and how.
        corpora: Calibration text by name (``general``, ``domain``, ``language``, ``task``): a ``Corpus``, token ids
            ``(n, T)``, or what ``from_pretrained`` takes.
        criterion: A criterion of your own, instead of the config's method.
        progress: Whether to show a progress bar.
        journal: Where finished blocks are written down; None for nowhere.
        activations: Where activations are put away between two blocks; None for host memory.

    Returns:
        The record of the run; ``model.config.hubprune`` holds its summary.

    Raises:
        ConfigError: A corpus the method needs is missing, or a pattern fits nothing.
        CorpusError: A corpus cannot be read or is too short.
        UnsupportedModelError: The model is quantised, or not a decoder language model.
        NumericalError: NaN was met, or a Hessian cannot be factorised.
    """
    config = config or PruningConfig()
    given = dict(corpora or {})
    weights, journal = weights_of(model), journal or Journal()
    model = weights.model
    check_supported(model.config)
    if criterion is None:
        config.check_corpora(tuple(given))
        criterion = load_criterion(config)
        method = config.method
    else:
        method = type(criterion).__name__
        scope = config.scope or (None if config.pattern else criterion.scope)
        config = dataclasses.replace(config, scope=scope, application=config.application or criterion.application)
        criterion.check_corpora(tuple(given), compensates=config.application == "compensate")
    matrices = find_matrices(model, config.targets, config.ignore)
    check_pattern_fits(matrices, config.resolved_pattern())
    _check_place(weights, journal, config)
    weights.check_finite()
    loaded = {name: _as_corpus(name, value, tokenizer, model, config.seed, progress) for name, value in given.items()}
    for corpus in loaded.values():
        check_fits(corpus, model)
    report = PruningReport(
        base=describe(model, model_id=model.config.name_or_path or ""),
        config={**config.to_dict(), "method": method},
        pattern=str(config.resolved_pattern()),
        application=config.resolved_application(),
        options=config.resolved_options() if method == config.method else {},
        corpora=[corpus.facts for corpus in loaded.values()],
        untouched_sha256=weights.untouched_sha256(matrices),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    with Replay(weights) as replay:
        loop = Loop(replay, config, criterion, matrices, loaded, report)
        loop.start(journal, activations or Activations(), progress)
        loop()
    report.totals = Totals(
        targeted=sum(row.numel for row in report.matrices),
        pruned=sum(row.pruned for row in report.matrices),
        zeros=sum(row.zeros for row in report.matrices),
        parameters=sum(p.numel() for p in model.parameters()),
    )
    report.peak_memory_bytes = environment.peak_memory()
    report.peak_gpu_memory_bytes = environment.peak_gpu_memory()
    report.hardware, report.versions = environment.hardware(), environment.versions()
    model.config.hubprune = report.summary()
    return report


def _as_corpus(
    name: str, value: CorpusLike, tokenizer: Any, model: PreTrainedModel, seed: int, progress: bool
) -> Corpus:
    if isinstance(value, Corpus):
        return value.named(name)
    if isinstance(value, torch.Tensor):
        return corpus_from_tokens(value, name)
    if tokenizer is None:
        raise ConfigError(
            f"the {name} corpus is text, and text needs a tokenizer, got None: give it, or give token ids (n, T)"
        )
    return load_corpus(value, tokenizer, name=name, max_length=max_length(model.config), progress=progress, seed=seed)


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
