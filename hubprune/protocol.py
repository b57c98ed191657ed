"""How a text is measured: what is made of its documents, and the window that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hubprune.corpora import CorpusConfig, SourceConfig, joins_documents, parse_corpus
from hubprune.errors import ConfigError, did_you_mean
from hubprune.fields import count_problems, in_our_words
from hubprune.presets import JOINED, MEASURED_TEXTS

LAYOUTS = ("auto", "packed", "joined", "separate")
BLANK_LINE = "\n\n"
# More sequences, and more tokens in one, than any text has: the whole of it.
WHOLE = 2**31


@dataclass(frozen=True)
class Protocol:
    """How perplexity is measured.

    Attributes:
        layout: ``packed``: rows in a seeded order, each closed by the end token, one after the other. ``joined``: rows
            in their own order with ``join`` between them, one text before it becomes tokens. ``separate``: each row by
            itself. ``auto``: joined for text whose rows are lines of one text (wikitext), as papers measure it,
            otherwise packed.
        num_samples: Windows of each text, at most; of ``separate`` rows, rows. None: all of it, for ``auto`` only
            where it is joined, and 64 where it is packed.
        sequence_length: Tokens that the model reads in a window. None: 2,048 or the model's limit, whichever is
            smaller.
        stride: Tokens between the starts of two windows. None: the window.
        join: What goes between joined rows.
        bos: Put the start token in front of each text.
        seed: Seed of the choice and order of packed rows.

    Raises:
        ConfigError: Any rule is broken; the message lists every one.
    """

    layout: str = "auto"
    num_samples: int | None = None
    sequence_length: int | None = None
    stride: int | None = None
    join: str = BLANK_LINE
    bos: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        smallest = {"num_samples": (1, " window"), "sequence_length": (2, " tokens"), "stride": (1, " token")}
        counted = {name: rule for name, rule in smallest.items() if getattr(self, name) is not None}
        problems = count_problems(self, {**counted, "seed": (0, "")})
        if self.layout not in LAYOUTS:
            problems.append(f"there is no layout {self.layout!r}: {did_you_mean(str(self.layout), LAYOUTS)}")
        if not problems and self.stride is not None and self.stride > (self.sequence_length or WHOLE):
            problems.append(
                f"stride must be at most the {self.sequence_length} tokens of a window, got {self.stride}: lower it"
            )
        if problems:
            raise ConfigError(problems)

    @classmethod
    def named(cls, name: str) -> Protocol:
        """One of ``PROTOCOLS`` by its name.

        Raises:
            ConfigError: There is no such protocol.
        """
        if name not in PROTOCOLS:
            raise ConfigError(f"there is no protocol {name!r}: {did_you_mean(name, PROTOCOLS)}")
        return PROTOCOLS[name]

    def changed(self, **fields: Any) -> Protocol:
        """This protocol with some fields changed; None leaves a field as it is.

        Raises:
            ConfigError: A field is unknown, or a change breaks a rule.
        """
        given = {name: value for name, value in in_our_words(type(self), fields).items() if value is not None}
        return replace(self, **given)

    def corpus(self, label: str, value: Any) -> tuple[CorpusConfig, Protocol]:
        """What to read for a text, and this protocol with everything that depends on the text decided.

        Args:
            label: What the text is called.
            value: A name of ``presets.MEASURED_TEXTS``, or what ``parse_corpus`` takes.

        Raises:
            ConfigError: The value is no corpus.
        """
        value = MEASURED_TEXTS.get(value, value) if isinstance(value, str) else value
        given = value if isinstance(value, CorpusConfig | Mapping) else {}
        config = parse_corpus(value, seed=self.seed)
        decided = self
        if self.layout == "auto":
            join = config.join or _join_of(config.sources)
            packing = joins_documents(label, [source.answer for source in config.sources], config.packing)
            packed = packing and join is None
            layout = "joined" if join is not None else "packed" if packed else "separate"
            decided = replace(self, layout=layout, join=join or self.join)
            if given and self.num_samples is None and self.sequence_length is None:
                decided = replace(decided, num_samples=config.num_samples, sequence_length=config.sequence_length)
        if decided.num_samples is None and self.layout == "auto" and decided.layout == "packed":
            decided = replace(decided, num_samples=PACKED_SAMPLES)
        return replace(
            config,
            num_samples=decided.num_samples or WHOLE,
            sequence_length=WHOLE if decided.layout == "separate" else decided.sequence_length,
            packing=decided.layout != "separate",
            join=decided.join if decided.layout == "joined" else None,
        ), decided


def _join_of(sources: tuple[SourceConfig, ...]) -> str | None:
    """What goes between the rows of text that papers measure as one; None for other text."""
    found = {JOINED.get(source.dataset) for source in sources}
    return found.pop() if len(found) == 1 else None


PACKED_SAMPLES = 64
# Protocols by name. ``papers`` is that of the papers on pruning and quantisation: the whole split as one text, windows
# side by side. ``harness`` is that of lm-evaluation-harness: each row by itself behind the start token, every token of
# it predicted once.
PROTOCOLS: dict[str, Protocol] = {
    "default": Protocol(),
    "papers": Protocol(layout="joined"),
    "harness": Protocol(layout="separate", bos=True),
}
