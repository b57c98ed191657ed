"""The models that are compared, each loaded when its turn comes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hubprune import hub
from hubprune.architecture import check_supported
from hubprune.errors import AccessError, NotFoundError, OfflineError, UsageError
from hubprune.opening import Opening
from hubprune.report import PruningReport

BASE = "base"


@dataclass
class Variant:
    """One of the models that are compared.

    Attributes:
        name: What its rows are called.
        opening: The model by its name; None for one in memory.
        model: The model in memory; None while it is not.
        own_tokenizer: Its tokenizer, where it is not the repository's.
    """

    name: str
    opening: Opening | None = None
    model: Any = None
    own_tokenizer: Any = None

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            UsageError: There is none.
        """
        found = self.own_tokenizer or getattr(self.model, "tokenizer", None)
        if found is None and self.opening is not None:
            found = self.opening.tokenizer
        if found is None:
            raise UsageError(f"the {self.name} model is in memory without its tokenizer: give tokenizer=")
        return found

    @cached_property
    def report(self) -> PruningReport | None:
        """The record of the run that made it; None for a model that hubprune did not make."""
        if self.opening is None:
            return getattr(self.model, "hubprune_report", None)
        return hub.read_report(self.opening.repo, token=self.opening.keywords.get("token"), **self.opening.cache)

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.opening.config if self.opening is not None else self.model.config

    @property
    def outline(self) -> Any:
        """The model, or its shapes."""
        return self.opening.outline if self.opening is not None else self.model

    @property
    def folder(self) -> Path | None:
        """Where its files lie; None for a model in memory."""
        if self.opening is None:
            return None
        return hub.model_folder(self.opening.repo, **self.opening.cache)

    @contextmanager
    def loaded(self) -> Iterator[Any]:
        """The model in memory, for as long as it is used."""
        if self.model is not None:
            yield self.model
            return
        assert self.opening is not None
        self.model = self.opening.weights()
        try:
            yield self.model
        finally:
            self.model = None
            gc.collect()


def find_variants(
    model: Any,
    base: Any,
    beside: Mapping[str, Any],
    variant: str | None,
    tokenizer: Any,
    keywords: Mapping[str, Any],
) -> list[Variant]:
    """The models that were asked for, the base first.

    Args:
        model: A model in memory, its repository or folder, or several by name.
        base: What stands beside a single model: ``"auto"`` for the base that its record names, a model, or None.
        beside: More models by name.
        variant: Name of a single model; None for ``pruned`` or ``recovered``, or ``base`` where it has neither record
            nor base.
        tokenizer: Tokenizer of a single model in memory.
        keywords: Keywords of ``from_pretrained``; ``revision`` is that of the single model.

    Raises:
        UsageError: No model was given, or two of one name.
        AccessError, NotFoundError, OfflineError: A model is out of reach.
        UnsupportedModelError: One is no decoder language model.
    """
    shared = {name: value for name, value in keywords.items() if name != "revision"}
    if isinstance(model, Mapping):
        found = [_variant(str(name), one, None, shared) for name, one in model.items()]
    else:
        found = _with_base(_variant("", model, tokenizer, shared, keywords.get("revision")), base, variant, shared)
    found += [_variant(name, one, None, shared) for name, one in beside.items()]
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise UsageError(
            f"each model has a name of its own, and {', '.join(twice)} stands for two: rename one"
            if twice
            else 'there is no model to measure: give at least one, such as {"pruned": "folder"}'
        )
    return found


def _with_base(one: Variant, base: Any, variant: str | None, keywords: Mapping[str, Any]) -> list[Variant]:
    """A single model, behind the one that it was made from."""
    auto = isinstance(base, str) and base == "auto"
    facts = one.report.base if one.report is not None and one.report.base.model_id else None
    own = one.report.result if one.report is not None else "pruned"
    one.name = variant or (BASE if facts is None and (auto or base is None) else own)
    if base is None or one.name == BASE or (auto and facts is None):
        return [one]
    if not auto:
        return [_variant(BASE, base, one.tokenizer if _in_memory(base) else None, keywords), one]
    assert facts is not None
    try:
        return [_variant(BASE, facts.model_id, None, keywords, facts.commit), one]
    except (AccessError, NotFoundError, OfflineError) as error:
        error.add_note("to measure the model without its base, give base=None (--no-base)")
        raise


def _in_memory(model: Any) -> bool:
    return not isinstance(model, str | os.PathLike)


def _variant(
    name: str, model: Any, tokenizer: Any, keywords: Mapping[str, Any], revision: str | None = None
) -> Variant:
    if _in_memory(model):
        return Variant(name, model=model, own_tokenizer=tokenizer)
    opening = Opening(os.fspath(model), revision, keywords)
    if getattr(opening.config, "quantization_config", None) is None:
        check_supported(opening.config)
    return Variant(name, opening, own_tokenizer=tokenizer)


def recorded_texts(variants: Sequence[Variant]) -> dict[str, Any]:
    """The texts that the models' records name, by label."""
    reports = [one.report for one in variants if one.report is not None]
    return {row.corpus: report.text_of(row) for report in reports for row in report.evaluation if row.sources}
