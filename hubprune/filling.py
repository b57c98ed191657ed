"""A row's values put into a template: ``{column}``, ``{nested.field}``, ``{holding_{label}}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubprune.errors import CorpusError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Filled:
    """A template filled from a row.

    Attributes:
        text: The text.
        answer: Character at which the answer begins; None without one.
        label: What the first place of the answer was filled with.
    """

    text: str
    answer: int | None = None
    label: str = ""


@dataclass(frozen=True)
class Field:
    """A place in a template; its name may hold places itself, which are filled first."""

    name: tuple[str | Field, ...]


Template = Sequence[str | Field]


def parse_template(text: str) -> Template:
    """Read a template: ``{column}``, ``{nested.field}``, ``{holding_{label}}``; ``{{`` and ``}}`` stand for braces.

    Raises:
        CorpusError: A brace has no partner, or a place no name.
    """
    parts, end = _parse(text, 0, inside=False)
    if end < len(text):
        raise CorpusError(
            f"template {text!r} closes a brace that was not opened (character {end + 1}): write '}}}}' for '}}'"
        )
    if not any(isinstance(part, Field) for part in parts):
        raise CorpusError(f"a template names at least one column in braces, such as '{{text}}', got {text!r}")
    return parts


def _parse(text: str, start: int, *, inside: bool) -> tuple[tuple[str | Field, ...], int]:
    parts: list[str | Field] = []
    position = start
    while position < len(text):
        character = text[position]
        if not inside and text[position : position + 2] in ("{{", "}}"):
            position += 1
        elif character == "}":
            break
        elif character == "{":
            name, position = _parse(text, position + 1, inside=True)
            if position == len(text) or not name:
                raise CorpusError(f"template {text!r} has a brace without a partner, or without a name in it: mend it")
            parts.append(Field(name))
            position += 1
            continue
        parts.append(character)
        position += 1
    return tuple(parts), position


def split_template(text: str, answer: str | None) -> tuple[Template, Template]:
    """Read a template in two: what stands before the answer, and the answer; all and nothing where there is none.

    Raises:
        CorpusError: As ``parse_template``, or the answer is no end of the template that is a template by itself.
    """
    whole = parse_template(text)
    if answer is None:
        return whole, ()
    try:
        question, _ = _parse(text.removesuffix(answer), 0, inside=False)
        rest = parse_template(answer)
    except CorpusError:
        question, rest = (), ()
    if (*question, *rest) != (*whole,):
        raise CorpusError(
            f"an answer is the end of its template and holds at least one whole place, got {answer!r} for {text!r}: "
            "cut it in front of a brace"
        )
    return question, rest


def fill_template(question: Template, answer: Template, row: Row, name: str) -> Filled | None:
    """Fill a template that ``split_template`` read.

    Args:
        question: What stands before the answer.
        answer: The answer, empty for none.
        row: The row.
        name: Where it comes from, for messages.

    Returns:
        The text; None when every place in it is empty.

    Raises:
        CorpusError: The row has no such column, or something in it is no text.
    """
    parts = [(part, _fill(part, row, name) if isinstance(part, Field) else None) for part in (*question, *answer)]
    if not any(value is not None and value.strip() for _, value in parts):
        return None
    texts = [str(part) if value is None else value for part, value in parts]
    given = [value for _, value in parts[len(question) :] if value is not None]
    if not any(value.strip() for value in given):
        return Filled("".join(texts))
    return Filled("".join(texts), len("".join(texts[: len(question)])), given[0].strip())


def _fill(place: Field, row: Row, name: str) -> str:
    path = "".join(_fill(part, row, name) if isinstance(part, Field) else part for part in place.name)
    return as_text(look_up(row, path, name), path, name)


def look_up(row: Row, path: str, name: str) -> Any:
    """Follow a dotted path; a name in a list of records picks that field of each, a number one item."""
    if path in row:
        return row[path]
    first, *rest = path.split(".")
    value = column_of(row, first, name)
    for key in rest:
        if isinstance(value, list) and key.isdecimal():
            value = value[int(key)] if int(key) < len(value) else None
        elif isinstance(value, list):
            value = [_member(item, key, path, name) for item in value]
        elif value is not None:
            value = _member(value, key, path, name)
    return value


def _member(value: Any, key: str, path: str, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise CorpusError(f"{name} has no field {path!r}: {key!r} is asked of a {type(value).__name__}")
    if key not in value:
        raise CorpusError(f"{name} has no field {path!r}: {key!r} is not among {', '.join(value)}")
    return value[key]


def column_of(row: Row, column: str, name: str) -> Any:
    """Get a column of a row.

    Raises:
        CorpusError: There is none of that name; the message lists those there are.
    """
    if column not in row:
        raise CorpusError(f"{name} has no column {column!r}; its columns are {', '.join(row)}")
    return row[column]


def as_text(value: Any, column: str, name: str) -> str:
    """Write a value: numbers as they are, lists one item a line, nothing for None."""
    if isinstance(value, list | tuple):
        return "\n".join(as_text(item, column, name) for item in value if item is not None)
    if isinstance(value, str | int | float):
        return str(value)
    if value is None:
        return ""
    if isinstance(value, Mapping) and value:
        remedy = f" with the fields {', '.join(value)}: name one, as in '{{{column}.{next(iter(value))}}}'"
    else:
        remedy = ", which is no text: name another column"
    raise CorpusError(f"column {column!r} of {name} is a {type(value).__name__}{remedy}")
