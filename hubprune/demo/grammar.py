"""A small seeded template grammar: a table of facts and rules of phrasing to documents, questions and answers.

A template is text with fields in braces. ``{name}`` is a column of the current row of facts or, where no column has
that name, one of the alternatives of the rule ``name``, drawn at random. ``{a name}`` puts the indefinite article
before it. A rule ``fact_<column>`` states a fact, ``ask_<column>`` asks for it; columns of a second row, for
comparisons, are ``other_<column>``.
"""

from __future__ import annotations

import csv
import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Rules = Mapping[str, Sequence[str]]

FACTS = Path(__file__).resolve().parent / "facts"
SHORTEST, LONGEST = 60, 200
"""Length of a document in words."""

_FIELD = re.compile(r"\{(a )?([a-z_]+)\}")
_SENTENCE_START = re.compile(r"(^|[.!?] )(\"?[a-z])")


class Draw:
    """Random choices that come out the same on every machine, Python version and hash seed.

    The standard library promises as much for ``random()`` of a seeded generator and not for the methods built on it,
    so the choices are made here.

    Args:
        key: What the draws belong to, such as the data set, the split and a seed.
    """

    def __init__(self, *key: object) -> None:
        digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big"))

    def below(self, count: int) -> int:
        """Return an integer in ``[0, count)``."""
        return int(self._random.random() * count)

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the choices, each as likely as the others."""
        return choices[self.below(len(choices))]

    def order(self, items: Sequence[T]) -> list[T]:
        """Return the items in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in items]


def expand(template: str, rules: Rules, slots: Mapping[str, str], draw: Draw) -> str:
    """Fill the fields of a template, and those of the alternatives drawn for them.

    Raises:
        KeyError: A field names neither a slot nor a rule.
    """
    literals, fields = _parse(template)
    parts = [literals[0]]
    for (article, name), literal in zip(fields, literals[1:], strict=True):
        value = slots[name] if name in slots else expand(draw.pick(rules[name]), rules, slots, draw)
        if article:
            parts.append("an " if value[0] in "aeiou" else "a ")
        parts += (value, literal)
    return "".join(parts)


@cache
def _parse(template: str) -> tuple[list[str], list[tuple[bool, str]]]:
    """Return the texts around the fields of a template, and the fields: whether with an article, and the name."""
    pieces = _FIELD.split(template)
    return pieces[::3], [(bool(article), name) for article, name in zip(pieces[1::3], pieces[2::3], strict=True)]


def sentence(text: str) -> str:
    """Start every sentence of the text with a capital letter."""
    return _SENTENCE_START.sub(lambda start: start[1] + start[2].upper(), text)


@dataclass(frozen=True)
class Domain:
    """One corpus: what is true in it and how it speaks.

    Attributes:
        name: Name of the data set, and of its table of facts.
        title: What the data set is, in one sentence.
        rules: Alternatives by name. ``opening`` and ``closing`` frame a document, ``lead`` begins a fact's sentence.
        columns: Columns of the table that have ``fact_`` and ``ask_`` rules.
        asides: Rules of sentences that a document may hold beside facts.
    """

    name: str
    title: str
    rules: Rules
    columns: tuple[str, ...]
    asides: tuple[str, ...]

    def rows(self) -> list[dict[str, str]]:
        """Return the table of facts: one row a subject, whose name stands in the first column."""
        with open(FACTS / f"{self.name}.csv", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def say(self, rule: str, slots: Mapping[str, str], draw: Draw) -> str:
        """Return one phrasing of a rule as a whole sentence."""
        return sentence(expand(f"{{{rule}}}", self.rules, slots, draw))

    def document(self, slots: Mapping[str, str], draw: Draw) -> str:
        """Return a document about one row: some of its facts in random order, asides between them, 60 to 200 words."""
        body = draw.order(
            [f"{{lead}}{{fact_{column}}}" for column in self.columns] + [f"{{{rule}}}" for rule in self.asides]
        )
        closing = self.say("closing", slots, draw)
        target = SHORTEST + draw.below((LONGEST - SHORTEST) * 3 // 4)
        sentences = [self.say("opening", slots, draw)]
        words = len(closing.split()) + len(sentences[0].split())
        while body and words < target:
            said = sentence(expand(body.pop(), self.rules, slots, draw))
            if said not in sentences:
                sentences.append(said)
                words += len(said.split())
        return " ".join([*sentences, closing])

    def question(self, slots: Mapping[str, str], draw: Draw) -> tuple[str, str]:
        """Return a question about one fact of a row, and the answer: the value, then two sentences that explain it."""
        column, beside = draw.order(self.columns)[:2]
        value = sentence(expand(f"{{{column}}}.", self.rules, slots, draw))
        explanation = [self.say(f"fact_{name}", slots, draw) for name in (column, beside)]
        return self.say(f"ask_{column}", slots, draw), " ".join([value, *explanation])

    def examples(self, counts: Mapping[str, int], seed: int) -> dict[str, list[dict[str, str]]]:
        """Return the rows of every split: the facts are shared, no text and no question-answer pair occurs twice.

        Args:
            counts: Number of rows by split.
            seed: Seed of every choice.

        Returns:
            Rows with the columns ``text``, ``question`` and ``answer``, by split.
        """
        table = self.rows()
        seen: set[str] = set()
        splits: dict[str, list[dict[str, str]]] = {}
        for split, count in counts.items():
            draw = Draw(self.name, split, seed)
            rows = splits.setdefault(split, [])
            while len(rows) < count:
                first = draw.below(len(table))
                second = (first + 1 + draw.below(len(table) - 1)) % len(table)
                subject, other = table[first], table[second]
                slots = {**subject, **{f"other_{column}": value for column, value in other.items()}}
                text = self.document(slots, draw)
                question, answer = self.question(slots, draw)
                fresh = text not in seen and f"{question}\n{answer}" not in seen
                if fresh and SHORTEST <= len(text.split()) <= LONGEST:
                    seen.update((text, f"{question}\n{answer}"))
                    rows.append({"text": text, "question": question, "answer": answer})
        return splits
