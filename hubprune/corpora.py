"""Which text is asked for: data sets, files or texts, and how they are cut into token blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote, unquote

from hubprune.errors import ConfigError
from hubprune.fields import count_problems, in_our_words
from hubprune.presets import ANSWERS, CORPORA, TEMPLATES

CORPUS_NAMES = ("general", "domain", "language", "task")
# The corpus whose examples are kept apart where their sources say which part of a text is the answer.
TASK = "task"
# Fields of a ``CorpusConfig`` that are given as keywords beside those of a pruning config.
CORPUS_KEYWORDS = ("num_samples", "sequence_length", "packing", "streaming")

DATA_FILE = re.compile(r"^[./~]|^[A-Za-z]:\\|\.(jsonl?|csv|parquet|txt)(\.gz)?$")
# Filters behind the name of a source: ``?column=value&column2=value2``.
FILTERS = re.compile(r"\?([^?=&]+=[^&]*(?:&[^=&]+=[^&]*)*)$", re.DOTALL)
# What would end a column or a value, or the source itself.
RESERVED = re.compile(r"[%&+=?/\\]|^\s|\s$")


@dataclass(frozen=True)
class SourceConfig:
    """One place that text comes from.

    Attributes:
        dataset: Repository of a Hub data set, or path of a local file (.jsonl, .json, .csv, .parquet, .txt).
        config: Configuration of the data set, None when it has one.
        split: Split, None for ``train``, or the only one.
        revision: Branch, tag or commit, None for the default branch.
        template: Text with ``{column}`` fields (dots for nested ones); None: the text column is found by name.
        text_column: Name of the text column, where it cannot be guessed.
        weight: Share of the samples, relative to the corpus' other sources.
        filters: Columns (dots for nested ones) and the value that a row must have in each, compared as text; also as
            a mapping.
        answer: The part of the template, up to its end, that answers what stands before it; None: it is all text.
    """

    dataset: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    template: str | None = None
    text_column: str | None = None
    weight: float = 1.0
    filters: tuple[tuple[str, str], ...] = ()
    answer: str | None = None

    def __post_init__(self) -> None:
        problems = []
        pairs = self.filters.items() if isinstance(self.filters, Mapping) else self.filters
        if isinstance(pairs, str) or not all(
            isinstance(pair, list | tuple) and len(pair) == 2 and pair[0] != "" for pair in pairs
        ):
            problems.append(f"filters are columns with their values, such as {{'lang': 'de'}}, got {self.filters!r}")
        else:
            object.__setattr__(self, "filters", tuple((str(column), str(value)) for column, value in pairs))
        if self.answer is not None and not (self.template or "").endswith(self.answer):
            problems.append(
                f"an answer is the end of its template, got {self.answer!r} for {self.template!r}: give both, such as "
                "template='{question} {answer}' and answer='{answer}'"
            )
        elif self.answer in ("", self.template) and self.answer is not None:
            problems.append(f"an answer follows a question, got {self.answer!r} as all or nothing of its template")
        if not self.dataset:
            problems.append("a corpus source needs a data set or a file, got an empty name")
        if self.template is not None and self.text_column is not None:
            problems.append(f"give a template or a text column, got both: {self.template!r} and {self.text_column!r}")
        if not (isinstance(self.weight, int | float) and 0 < self.weight < math.inf):
            problems.append(f"the weight of {self.dataset!r} must be a number above 0, got {self.weight!r}")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class CorpusConfig:
    """Text for calibration or evaluation, and how it is cut into token blocks.

    Attributes:
        sources: Data sets or files, also as ``parse_source`` reads them; samples are shared out by their weights.
        texts: The text itself, instead of sources.
        num_samples: Sequences.
        sequence_length: Tokens in a sequence. None: 2,048 or the model's limit, whichever is smaller.
        packing: Join documents, separated by the end token, into sequences of the full length; without it a sequence
            is one document, cut at the length, or one example, whose question is cut from its beginning and whose
            answer stays whole. None: joined, but for a ``task`` whose sources have answers.
        streaming: Read rows from the Hub as needed instead of downloading the files.
        seed: Seed of the choice and order of the rows.
        join: Take the rows in their own order, empty ones too, and make one text of them before it becomes tokens,
            with this between them; then there is no end token between documents.

    Raises:
        ConfigError: Any rule is broken; the message lists every one.
    """

    sources: tuple[SourceConfig, ...] = ()
    texts: tuple[str, ...] = ()
    num_samples: int = 128
    sequence_length: int | None = None
    packing: bool | None = None
    streaming: bool = True
    seed: int = 0
    join: str | None = None

    def __post_init__(self) -> None:
        sources = (self.sources,) if isinstance(self.sources, str | Mapping | SourceConfig) else self.sources
        object.__setattr__(self, "sources", tuple(_source(given) for given in sources))
        object.__setattr__(self, "texts", (self.texts,) if isinstance(self.texts, str) else tuple(self.texts))
        problems = count_problems(self, {"num_samples": (1, " sequence"), "seed": (0, "")})
        if bool(self.sources) == bool(self.texts):
            problems.append("a corpus needs either data sets or texts, got " + ("both" if self.texts else "neither"))
        if self.sequence_length is not None:
            problems += count_problems(self, {"sequence_length": (2, " tokens")})
        if self.join is not None and (not isinstance(self.join, str) or self.packing is False):
            problems.append(
                f"join is a string, and joined documents are packed, got {self.join!r} and packing={self.packing}"
            )
        if problems:
            raise ConfigError(problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, defaults included."""
        return {**asdict(self), "sources": [asdict(s) for s in self.sources], "texts": list(self.texts)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CorpusConfig:
        """Build from ``to_dict`` output; a name that is no field is refused.

        Raises:
            ConfigError: A field is unknown or breaks a rule.
        """
        return cls(**in_our_words(cls, data))


def _source(given: SourceConfig | Mapping[str, Any] | str) -> SourceConfig:
    """A source as the fields of ``SourceConfig``, or in the short form that ``parse_source`` reads."""
    if isinstance(given, Mapping):
        return SourceConfig(**{"dataset": "", **in_our_words(SourceConfig, given)})
    return parse_source(given) if isinstance(given, str) else given


def parse_source(text: str, **settings: Any) -> SourceConfig:
    """Read ``repo[@revision][:config[:split]]``, or the path of a local file; ``?column=value`` behind it picks rows.

    A text that ends in the suffix of a data file, or that begins with ``.`` or ``/``, is a path. Several filters are
    joined with ``&``; what has a meaning here is written as in an address (``%2B`` for ``+``). A data set that stands
    in a preset brings its template along, and which part of it is the answer.
    """
    found = FILTERS.search(text)
    if found is not None:
        pairs = (pair.partition("=") for pair in found[1].split("&"))
        settings = {"filters": tuple((unquote(column), unquote(value)) for column, _, value in pairs), **settings}
        text = text[: found.start()]
    if DATA_FILE.search(text):
        return SourceConfig(text, **settings)
    name, _, rest = text.partition(":")
    config, _, split = rest.partition(":")
    repo, _, revision = name.partition("@")
    if repo in TEMPLATES and "text_column" not in settings:
        settings = {"template": TEMPLATES[repo], **settings}
        if settings["template"] == TEMPLATES[repo] and repo in ANSWERS:
            settings = {"answer": ANSWERS[repo], **settings}
    return SourceConfig(repo, config or None, split or None, revision or None, **settings)


def filter_text(filters: Iterable[tuple[str, str]]) -> str:
    """Write filters as ``parse_source`` reads them behind the name of a source; nothing for none."""
    text = "&".join(
        "=".join(RESERVED.sub(lambda sign: quote(sign[0], safe=""), part) for part in pair) for pair in filters
    )
    return f"?{text}" if text else ""


def joins_documents(
    name: str, answers: Iterable[str | None], packing: bool | None = None, *, pairs: bool = False
) -> bool:
    """Whether a corpus is packed.

    Args:
        name: What the corpus is called.
        answers: The ``answer`` of each source.
        packing: What was asked for, None for the default.
        pairs: Whether it is for an encoder-decoder, which reads examples only.
    """
    given = list(answers)
    if packing is not None:
        return packing
    return not ((pairs or name == TASK) and bool(given) and None not in given)


def parse_corpus(
    value: str | CorpusConfig | Mapping[str, Any] | list[str] | tuple[str, ...], **settings: Any
) -> CorpusConfig:
    """Turn what a user gives for a corpus into a config.

    Args:
        value: A preset name, data sets or files joined with ``+``, a config, its dictionary, or a list of texts.
        settings: Fields of ``CorpusConfig`` for values that carry none; None leaves the default.

    Raises:
        ConfigError: The value is of another type, or breaks a rule.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    if isinstance(value, CorpusConfig):
        return value
    if isinstance(value, Mapping):
        return CorpusConfig.from_dict({**settings, **in_our_words(CorpusConfig, value)})
    if isinstance(value, str) and value:
        if value in CORPORA:
            rows = CORPORA[value]
            sources = tuple(
                parse_source(row.dataset, template=row.template, weight=row.weight, answer=row.answer) for row in rows
            )
        else:
            sources = tuple(parse_source(part.strip()) for part in value.split("+"))
        return CorpusConfig(sources=sources, **settings)
    if isinstance(value, list | tuple) and value and all(isinstance(text, str) for text in value):
        return CorpusConfig(texts=tuple(value), **settings)
    raise ConfigError(
        f"a corpus is a preset ({', '.join(CORPORA)}), a data set 'repo[@revision][:config[:split]][?column=value]', "
        f"several joined with '+', a file, a CorpusConfig or a list of strings, got {value!r:.80}"
    )
