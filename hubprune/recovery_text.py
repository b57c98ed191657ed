"""The text of a recovery: general and domain text in shares, and held-out text to measure on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hubprune.architecture import max_length
from hubprune.calibration import Corpus, corpus_from_tokens, held_out, load_corpus
from hubprune.corpora import CORPUS_NAMES, CorpusConfig, SourceConfig, parse_corpus
from hubprune.errors import AccessError, ConfigError, CorpusError, NotFoundError, OfflineError
from hubprune.facts import CorpusFacts, Perplexity
from hubprune.flow import EVALUATION_SAMPLES
from hubprune.recovery_config import RecoveryConfig
from hubprune.report import PruningReport


class Reader:
    """Reads the text of a recovery."""

    def __init__(self, tokenizer: Any, outline: PreTrainedModel, token: Any, progress: bool) -> None:
        self.tokenizer, self.token, self.progress = tokenizer, token, progress
        self.limit = max_length(outline.config)

    def _load(self, value: Any, name: str, **more: Any) -> Corpus:
        if isinstance(value, Corpus):
            return value.named(name)
        if isinstance(value, torch.Tensor):
            return corpus_from_tokens(value, name)
        if self.tokenizer is None:
            raise ConfigError(
                f"the {name} corpus is text, and text needs a tokenizer, got None: give it, or give token ids (n, T)"
            )
        return load_corpus(
            value,
            self.tokenizer,
            name=name,
            max_length=self.limit,
            at_most=True,
            token=self.token,
            progress=self.progress,
            **more,
        )

    def evaluation(
        self, wanted: str | Mapping[str, Any] | None, report: PruningReport
    ) -> tuple[dict[str, Corpus], list[str]]:
        """The text that the pruned model was measured on, where it can be had again; or what is asked for."""
        if wanted is None or wanted == "none":
            return {}, []
        length = max((corpus.sequence_length for corpus in report.corpora), default=0) or None
        if isinstance(wanted, Mapping):
            lengths = {"sequence_length": length, "num_samples": EVALUATION_SAMPLES}
            return {label: self._load(value, label, **lengths) for label, value in wanted.items()}, []
        if wanted != "auto":
            raise ConfigError(
                f"evaluation is 'auto', None, or text by label ({{'medical': 'repo:config:test'}}), got {wanted!r}"
            )
        found, warnings = {}, []
        known = {corpus.name: config_of(corpus) for corpus in report.corpora if corpus.sources}
        rows = {row.corpus: row for row in report.evaluation}
        # What calibration read was passed over when the pruned model was measured.
        used = [key for name, config in known.items() for key in self._load(config, name).keys] if rows else []
        for label, row in rows.items():
            test = self._measured(row, report)
            if test is None and label in known:
                split = held_out(known[label], num_samples=EVALUATION_SAMPLES, token=self.token)
                test = None if split is None else self._load(split, label, exclude=used)
            if test is None:
                warnings.append(
                    f"the {label} text cannot be had again: no perplexity on it was measured after recovery"
                )
            else:
                found[label] = test
        return found, warnings

    def _measured(self, row: Perplexity, report: PruningReport) -> Corpus | None:
        """The text that a row of the report was measured on, by the data sets it names; None if it is another now."""
        if not row.sources:
            return None
        config = parse_corpus(report.text_of(row))
        config = dataclasses.replace(config, num_samples=EVALUATION_SAMPLES, sequence_length=row.window)
        try:
            found = self._load(config, row.corpus)
        except (AccessError, CorpusError, NotFoundError, OfflineError):
            return None
        return found if found.facts.fingerprint == row.fingerprint else None

    def text(
        self,
        given: Mapping[str, Any],
        report: PruningReport,
        config: RecoveryConfig,
        measured: Mapping[str, Corpus],
    ) -> dict[str, Corpus]:
        """The text to recover on, in shares."""
        unknown = [name for name in given if name not in CORPUS_NAMES]
        if unknown:
            raise ConfigError(f"corpora are called {' and '.join(CORPUS_NAMES)}, got {', '.join(unknown)}")
        sources: dict[str, Any] = dict(given) or {
            corpus.name: config_of(corpus)
            for corpus in report.corpora
            if corpus.sources and corpus.name in CORPUS_NAMES
        }
        if not sources:
            raise ConfigError(
                "recovery needs text, and the calibration's was given in memory or there was none: give domain=... or "
                "general=... (a Hub data set, a file, a list of strings or token ids)"
            )
        shares = _shares(list(sources), config.domain_ratio)
        length = config.sequence_length or max((c.sequence_length for c in report.corpora), default=0) or None
        loaded = {}
        for name, share in shares.items():
            value = sources[name]
            more: dict[str, Any] = {}
            if not isinstance(value, Corpus | torch.Tensor):
                wanted: dict[str, Any] = {
                    "num_samples": max(1, round(share * config.num_samples)),
                    "seed": config.seed,
                }
                wanted |= {} if length is None else {"sequence_length": length}
                value = dataclasses.replace(parse_corpus(value), **wanted)
                more = {"exclude": [key for corpus in measured.values() for key in corpus.keys]}
            loaded[name] = self._load(value, name, **more)
        total = min(
            [config.num_samples, *(int(len(loaded[name].sequences) / share) for name, share in shares.items())]
        )
        if total < 2:
            raise CorpusError(
                f"recovery needs at least two sequences in the shares that domain_ratio={config.domain_ratio} asks "
                "for, and there is less text: give more, or lower sequence_length"
            )
        return {name: loaded[name].first(max(1, round(share * total))) for name, share in shares.items()}


def _shares(names: list[str], ratio: float) -> dict[str, float]:
    """The share of each corpus; domain, language and task share theirs equally. One that has none is left out."""
    special = [name for name in names if name != "general"]
    if len(special) in (0, len(names)):
        return dict.fromkeys(names, 1 / len(names))
    wanted = {"general": 1 - ratio, **dict.fromkeys(special, ratio / len(special))}
    return {name: wanted[name] for name in names if wanted[name] > 0}


def config_of(facts: CorpusFacts) -> CorpusConfig:
    """The config that reads a corpus again, from what a report says of it."""
    sources = tuple(
        SourceConfig(
            s.dataset, s.config, s.split, s.commit, s.template, s.text_column, s.weight, tuple(s.filters), s.answer
        )
        for s in facts.sources
    )
    return CorpusConfig(
        sources,
        num_samples=max(facts.num_sequences, len(sources)),
        sequence_length=facts.sequence_length,
        packing=facts.packing,
        seed=facts.seed,
        join=facts.join,
    )
