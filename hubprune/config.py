"""What is asked for: frozen configs that check themselves, report every error at once and travel as JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hubprune.errors import ConfigError, did_you_mean
from hubprune.presets import APPLICATIONS, CORPORA, METHODS, TEMPLATES, Method
from hubprune.sparsity import SCOPES, Pattern, Unstructured, parse_pattern

CORPUS_NAMES = ("general", "domain")
# Fields of a ``CorpusConfig`` that are given as keywords beside those of a pruning config.
CORPUS_KEYWORDS = ("num_samples", "sequence_length", "packing", "streaming")

# Words that users bring from wanda, llm-compressor and SparseGPT, with ours.
ALIASES = {
    "sparsity_ratio": "sparsity",
    "mask_structure": "pattern",
    "sparsity_type": "pattern",
    "nsamples": "num_samples",
    "num_calibration_samples": "num_samples",
    "max_seq_length": "sequence_length",
    "seqlen": "sequence_length",
    "percdamp": "damping",
    "dampening_frac": "damping",
}


def _in_our_words(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config under their own names; an unknown one, or one given under two names, is refused."""
    known = [f.name for f in fields(cls)]
    renamed: dict[str, Any] = {}
    problems = []
    for word, value in data.items():
        name = ALIASES.get(word, word)
        if name not in known:
            problems.append(f"{cls.__name__} has no field {word!r}: {did_you_mean(word, known)}")
        elif name in renamed:
            problems.append(f"{word!r} is another word for a field that is given already: give {name!r} once")
        renamed[name] = value
    if problems:
        raise ConfigError(problems)
    return renamed


def _count_problems(config: Any, smallest: Mapping[str, tuple[int, str]]) -> list[str]:
    """What is wrong with the fields that count something, given the smallest number and the unit of each."""
    return [
        f"{name} must be a whole number, at least {least}{unit}, got {value!r}"
        for name, (least, unit) in smallest.items()
        if not (isinstance(value := getattr(config, name), int) and value >= least)
    ]


@dataclass(frozen=True)
class PruningConfig:
    """What to prune and how; says nothing about the model or the text.

    Attributes:
        method: Name of a method, see ``hubprune methods``.
        sparsity: Fraction removed of the targeted weights, in [0, 1). None: 0.5, or what ``pattern`` implies.
        pattern: ``"N:M"`` such as ``"2:4"`` (N weights kept of every M along the input), None for unstructured.
        scope: Who competes with whom in an unstructured run: row, block, matrix or model. None: the method's own.
        application: ``zero`` leaves the remaining weights alone, ``compensate`` repairs them (SparseGPT's column
            sweep). None: the method's own.
        targets: Names of the matrices to prune; empty for every linear map of the decoder blocks. A name is a full
            module name, a last component (``q_proj``), or ``re:`` and a regular expression matched from the start.
        ignore: Matrices left alone, in the same notation.
        block_size: Consecutive input columns of a ``block``, and of the column sweep.
        damping: Added to the Hessian's diagonal, as a fraction of its mean.
        batch_size: Sequences in one forward pass of the calibration.
        seed: Seed of everything random in a run.
        options: The method's own settings, see ``hubprune methods``.

    Raises:
        ConfigError: Any rule is broken; the message lists every one.
    """

    method: str = "d-pruner"
    sparsity: float | None = None
    pattern: str | None = None
    scope: str | None = None
    application: str | None = None
    targets: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    block_size: int = 128
    damping: float = 0.01
    batch_size: int = 8
    seed: int = 0
    options: Mapping[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("targets", "ignore"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        object.__setattr__(self, "options", dict(self.options))
        problems = [*self._pattern_problems(), *self._method_problems(), *self._number_problems()]
        if problems:
            raise ConfigError(problems)

    def _pattern_problems(self) -> list[str]:
        problems = []
        if self.sparsity is not None and not (isinstance(self.sparsity, int | float) and 0.0 <= self.sparsity < 1.0):
            problems.append(
                f"sparsity must be a number of at least 0 and below 1, got {self.sparsity!r}: it is the fraction "
                "removed, write 0.5 for half"
            )
        if self.pattern is not None:
            try:
                parse_pattern(self.pattern)
            except ConfigError as error:
                problems.extend(error.problems)
            if self.sparsity is not None:
                problems.append(
                    f"pattern {self.pattern!r} fixes the sparsity by itself, got sparsity={self.sparsity} as well: "
                    "give one"
                )
            if self.scope is not None:
                problems.append(
                    f"scope applies to unstructured runs, got scope={self.scope!r} with {self.pattern!r}: drop one"
                )
        if self.scope is not None and self.scope not in SCOPES:
            problems.append(f"scope must be one of {', '.join(SCOPES)}, got {self.scope!r}")
        return problems

    def _method_problems(self) -> list[str]:
        problems = []
        if self.application is not None and self.application not in APPLICATIONS:
            problems.append(f"application must be one of {', '.join(APPLICATIONS)}, got {self.application!r}")
        if self.method not in METHODS:
            return [*problems, f"unknown method {self.method!r}: {did_you_mean(str(self.method), METHODS)}"]
        method = METHODS[self.method]
        for name, value in self.options.items():
            if name not in method.options:
                known = did_you_mean(name, method.options) if method.options else "it has none"
                problems.append(f"method {self.method!r} has no option {name!r}: {known}")
            elif name in method.choices and value not in method.choices[name]:
                problems.append(f"option {name} must be one of {', '.join(method.choices[name])}, got {value!r}")
            elif name not in method.choices and not (isinstance(value, int | float) and 0 <= value < math.inf):
                problems.append(f"option {name} must be a finite number of at least 0, got {value!r}")
            elif name == "domain_ratio" and value > 1:  # type: ignore[operator]
                problems.append(f"option domain_ratio must be between 0 and 1, got {value}")
        return problems

    def _number_problems(self) -> list[str]:
        problems = _count_problems(
            self, {"block_size": (1, " column"), "batch_size": (1, " sequence"), "seed": (0, "")}
        )
        if not (isinstance(self.damping, int | float) and 0.0 < self.damping < 1.0):
            problems.append(
                f"damping must be above 0 and below 1 (a fraction of the mean diagonal), got {self.damping!r}"
            )
        for pattern in (*self.targets, *self.ignore):
            if not isinstance(pattern, str):
                problems.append(f"targets and ignore hold names of matrices, got {pattern!r}: write it in quotes")
            elif pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as error:
                    problems.append(f"{pattern!r} is not a regular expression ({error}): mend what follows 're:'")
        return problems

    @property
    def preset(self) -> Method:
        """The method's row in the table."""
        return METHODS[self.method]

    def resolved_pattern(self) -> Pattern:
        """The pattern with the method's defaults filled in."""
        if self.pattern is not None:
            return parse_pattern(self.pattern)
        sparsity = 0.5 if self.sparsity is None else float(self.sparsity)
        return Unstructured(sparsity, self.scope or self.preset.scope)  # type: ignore[arg-type]

    def resolved_application(self) -> str:
        """The application with the method's default filled in."""
        return self.application or self.preset.application

    def resolved_options(self) -> dict[str, float | str]:
        """The method's settings with its defaults filled in."""
        return {**self.preset.options, **self.options}

    def required_corpora(self) -> tuple[str, ...]:
        """Names of the corpora this run cannot do without; ``("any",)`` for at least one of any name."""
        terms = self.resolved_options().get("terms")
        narrowed = {"no-general": ("domain",), "no-domain": ("general",), "general-only": ("general",)}
        if terms in narrowed:
            return narrowed[str(terms)]
        if not self.preset.corpora and self.resolved_application() == "compensate":
            return ("any",)
        return self.preset.corpora

    def check_corpora(self, names: tuple[str, ...]) -> None:
        """Refuse a run whose corpora are missing.

        Args:
            names: Names of the corpora given.

        Raises:
            ConfigError: The method needs a corpus that is not among them.
        """
        required = self.required_corpora()
        presets = ", ".join(CORPORA)
        if required == ("any",):
            if not names:
                raise ConfigError(
                    f"method {self.method!r} needs calibration text, got none: give domain=... or general=... "
                    f"(a Hub data set, a file, a list of strings or a preset: {presets})"
                )
            return
        problems = [
            f"method {self.method!r} needs a {name} corpus, got {', '.join(names) or 'none'}: give {name}=... "
            f"(a Hub data set, a file, a list of strings or a preset: {presets})"
            for name in required
            if name not in names
        ]
        if problems:
            raise ConfigError(problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, defaults included."""
        return {**asdict(self), "targets": list(self.targets), "ignore": list(self.ignore)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruningConfig:
        """Build from ``to_dict`` output; a name that is no field is refused.

        Raises:
            ConfigError: A field is unknown or breaks a rule.
        """
        return cls(**_in_our_words(cls, data))


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
    """

    dataset: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    template: str | None = None
    text_column: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        problems = []
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
            is one document, cut at the length.
        streaming: Read rows from the Hub as needed instead of downloading the files.
        seed: Seed of the choice and order of the rows.

    Raises:
        ConfigError: Any rule is broken; the message lists every one.
    """

    sources: tuple[SourceConfig, ...] = ()
    texts: tuple[str, ...] = ()
    num_samples: int = 128
    sequence_length: int | None = None
    packing: bool = True
    streaming: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        sources = (self.sources,) if isinstance(self.sources, str | Mapping | SourceConfig) else self.sources
        object.__setattr__(self, "sources", tuple(_source(given) for given in sources))
        object.__setattr__(self, "texts", (self.texts,) if isinstance(self.texts, str) else tuple(self.texts))
        problems = _count_problems(self, {"num_samples": (1, " sequence"), "seed": (0, "")})
        if bool(self.sources) == bool(self.texts):
            problems.append("a corpus needs either data sets or texts, got " + ("both" if self.texts else "neither"))
        if self.sequence_length is not None:
            problems += _count_problems(self, {"sequence_length": (2, " tokens")})
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
        return cls(**_in_our_words(cls, data))


def _source(given: SourceConfig | Mapping[str, Any] | str) -> SourceConfig:
    """A source as the fields of ``SourceConfig``, or in the short form that ``parse_source`` reads."""
    if isinstance(given, Mapping):
        return SourceConfig(**{"dataset": "", **_in_our_words(SourceConfig, given)})
    return parse_source(given) if isinstance(given, str) else given


def parse_source(text: str, **settings: Any) -> SourceConfig:
    """Read ``repo[@revision][:config[:split]]``, or the path of a local file.

    A text that ends in the suffix of a data file, or that begins with ``.`` or ``/``, is a path. A data set that
    stands in a preset brings its template along.
    """
    if re.match(r"^[./~]|^[A-Za-z]:\\", text) or re.search(r"\.(jsonl?|csv|parquet|txt)(\.gz)?$", text):
        return SourceConfig(text, **settings)
    name, _, rest = text.partition(":")
    config, _, split = rest.partition(":")
    repo, _, revision = name.partition("@")
    if repo in TEMPLATES and "text_column" not in settings:
        settings = {"template": TEMPLATES[repo], **settings}
    return SourceConfig(repo, config or None, split or None, revision or None, **settings)


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
        return CorpusConfig.from_dict({**settings, **_in_our_words(CorpusConfig, value)})
    if isinstance(value, str) and value:
        if value in CORPORA:
            rows = CORPORA[value]
            sources = tuple(parse_source(row.dataset, template=row.template, weight=row.weight) for row in rows)
        else:
            sources = tuple(parse_source(part.strip()) for part in value.split("+"))
        return CorpusConfig(sources=sources, **settings)
    if isinstance(value, list | tuple) and value and all(isinstance(text, str) for text in value):
        return CorpusConfig(texts=tuple(value), **settings)
    raise ConfigError(
        f"a corpus is a preset ({', '.join(CORPORA)}), a data set 'repo[@revision][:config[:split]]', several joined "
        f"with '+', a file, a CorpusConfig or a list of strings, got {value!r:.80}"
    )


def parse_size(value: int | str | None, name: str) -> int | None:
    """Read a size: bytes, or a number with a unit such as ``4GiB`` or ``500MB``; None stays None.

    Raises:
        ConfigError: It is neither, or not above 0.
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT]?)(I?)B)?\s*", str(value).upper())
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " ")) if match else 0
    if size <= 0:
        raise ConfigError(f"{name} is a size above 0 such as 4GiB or 500MB, got {value!r}: give a number and a unit")
    return size
