"""Where text comes from: a source is checked, and its rows become documents.

A row becomes text in one of four ways, the first that applies: the template that was given, the column that was
named, a conversation put through the tokenizer's chat template, or the text column found by its name. Only rows that
pass the filters of the source become text.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hubprune import hub
from hubprune.corpora import SourceConfig, filter_text
from hubprune.errors import CorpusError, NotFoundError, did_you_mean
from hubprune.filling import Row, as_text, column_of, fill_template, look_up, split_template

# Names of the column that holds the text, the most telling first.
TEXT_COLUMNS = ("text", "content", "sentence", "document", "article", "passage", "body")
CHAT_COLUMNS = ("messages", "conversations", "conversation")
# What data sets in the format of ShareGPT call the speakers.
CHAT_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
# Texts of fewer words, such as headings and one-word answers, recur everywhere: that two data sets share one says
# nothing.
TELLING_WORDS = 5
# Values of a column that are named where a filter finds none, and the characters of each.
VALUES_SHOWN, VALUE_CHARACTERS = 8, 40


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        text: The text.
        bare: Whether special tokens are still to be added; a chat template has put in its own.
        keys: What the text, and the row it comes from, are recognised by.
        answer: Character at which the answer begins; None for a text without one.
        label: What the first field of the answer was filled with.
    """

    text: str
    bare: bool = True
    keys: tuple[str, ...] = ()
    answer: int | None = None
    label: str = ""


def text_key(text: str) -> tuple[str, ...]:
    """What a text is recognised by, whatever its case, spacing and punctuation; nothing for a text of a few words."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return () if len(words) < TELLING_WORDS else ("text:" + _sha256(" ".join(words)),)


def row_key(source: SourceConfig, row: Row) -> str:
    """What a row is recognised by, whatever template it goes through and wherever it stands in its split."""
    place = hub.local_file(source)
    name = str(place.resolve()) if place else f"{source.dataset}:{source.config}:{source.split}"
    return "row:" + _sha256(f"{name}:{json.dumps(row, sort_keys=True, default=str)}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def resolve_source(source: SourceConfig, *, token: str | bool | None = None) -> tuple[SourceConfig, str | None]:
    """Check that a source exists, and fill in its configuration and its split.

    Args:
        source: The source.
        token: Token of the Hub.

    Returns:
        The source and its commit; None for files.

    Raises:
        CorpusError: There is no such data set, file, configuration or split; the message lists what there is. Or a
            filter or a template is written wrongly.
        AccessError, OfflineError: As ``hub.resolve_dataset``.
    """
    if source.template is not None:
        split_template(source.template, source.answer)
    _check_filters(source)
    path = hub.local_file(source)
    if path is not None:
        _check_file(source, path)
        return source, None
    try:
        repo = hub.resolve_dataset(source.dataset, revision=source.revision, token=token)
    except NotFoundError as error:
        raise CorpusError(str(error)) from error
    where: dict[str, Any] = {"commit": repo.commit, "token": token}
    name = source.dataset
    configs = hub.dataset_configs(name, **where)
    config = source.config or (configs[0] if len(configs) == 1 else "default")
    if config not in configs:
        asked = f"has no configuration {config!r}" if source.config else "has several configurations"
        raise CorpusError(f"{name} {asked}: pick one, as in '{name}:{configs[0]}'; it has {', '.join(configs)}")
    splits = hub.dataset_splits(name, config, **where)
    split = source.split or (splits[0] if len(splits) == 1 else "train")
    if split not in splits:
        spec = f"{name}:{config}:{splits[0]}"
        raise CorpusError(
            f"{name} ({config}) has no split {split!r}: pick one, as in '{spec}'; it has {', '.join(splits)}"
        )
    return replace(source, config=config, split=split), repo.commit


def _check_file(source: SourceConfig, path: Path) -> None:
    if not path.is_file():
        near = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        raise CorpusError(f"there is no file {path}: " + (did_you_mean(path.name, near) if near else "check the path"))
    if hub.data_suffix(path) not in hub.READERS:
        raise CorpusError(f"a file of text ends in {', '.join(hub.READERS)}, or in one of these and .gz, got {path}")
    if source.config or source.revision or source.split not in (None, "train"):
        raise CorpusError(
            f"{path} is a file, and a file has no configurations, splits and revisions: give the path alone"
        )


def _check_filters(source: SourceConfig) -> None:
    columns = [column for column, _ in source.filters]
    if len({*columns}) < len(columns):
        raise CorpusError(
            f"a filter names a column once, since a row must pass all of them, got {filter_text(source.filters)} for "
            f"{source.dataset}: join the data set with itself by '+' for several values"
        )
    if "?" in source.dataset and hub.local_file(source) is None:
        raise CorpusError(
            f"rows are picked with 'repo:config:split?column=value&column2=value2', got {source.dataset!r}: write a "
            "column and a value"
        )


def documents(
    source: SourceConfig,
    tokenizer: Any,
    *,
    commit: str | None,
    streaming: bool = True,
    seed: int = 0,
    token: str | bool | None = None,
) -> Iterator[Document]:
    """Read the texts of a source in a seeded order; empty ones are left out.

    Args:
        source: The source, as ``resolve_source`` returns it.
        tokenizer: Its chat template serves conversations.
        commit: The source's commit.
        streaming: As ``hub.open_rows``.
        seed: Seed of the order.
        token: Token of the Hub.

    Raises:
        CorpusError: The rows cannot be read, or have no such column; the message lists those there are. Or no row
            passes the filters; the message lists values that there are.
        AccessError, OfflineError: As ``hub.open_rows``.
    """
    write: Callable[[Row], Document | None] | None = None
    sieve = _Sieve(source)
    rows = hub.open_rows(source, commit=commit, streaming=streaming, seed=seed, token=token)
    for _, row in rows:
        if not sieve.passes(row):
            continue
        write = write or _writer(source, row, tokenizer)
        document = write(row)
        if document is not None and document.text.strip():
            yield replace(document, keys=(*text_key(document.text), row_key(source, row)))
    sieve.refuse_nothing()


@dataclass
class _Sieve:
    """Lets those rows of a source pass whose columns have the values asked for."""

    source: SourceConfig
    passed: bool = False
    seen: dict[str, dict[str, None]] = field(default_factory=dict)

    def passes(self, row: Row) -> bool:
        """Compare as text; until a row has passed, remember the values met."""
        name = self.source.dataset
        found = {
            column: as_text(look_up(row, column, name), column, name).strip() for column, _ in self.source.filters
        }
        passes = all(found[column] == value.strip() for column, value in self.source.filters)
        self.passed = self.passed or passes
        if not self.passed:
            for column, value in found.items():
                values = self.seen.setdefault(column, {})
                if len(values) <= VALUES_SHOWN:
                    values[value] = None
        return passes

    def refuse_nothing(self) -> None:
        """Say which values there are where no row has passed.

        Raises:
            CorpusError: No row has passed, though there were some.
        """
        if self.passed or not self.seen:
            return
        asked = " and ".join(f"{column}={value!r}" for column, value in self.source.filters)
        there = "; ".join(f"{column} is {_listed(list(values))}" for column, values in self.seen.items())
        raise CorpusError(f"{self.source.dataset} has no row with {asked}: pick among those there are; {there}")


def _listed(values: Sequence[str]) -> str:
    shown = [repr(value[:VALUE_CHARACTERS]) for value in sorted(values[:VALUES_SHOWN])]
    return ", ".join(shown) + (" and others" if len(values) > VALUES_SHOWN else "")


def _writer(source: SourceConfig, row: Row, tokenizer: Any) -> Callable[[Row], Document | None]:
    """Choose by the first row how rows become text."""
    name = source.dataset
    if source.template is not None:
        question, answer = split_template(source.template, source.answer)

        def fill(row: Row) -> Document | None:
            filled = fill_template(question, answer, row, name)
            return Document(filled.text, answer=filled.answer, label=filled.label) if filled else None

        return fill
    column = source.text_column or _text_column(row, name)

    def write(row: Row) -> Document:
        value = column_of(row, column, name)
        return _chat(value, tokenizer, column, name) if _is_chat(value) else Document(as_text(value, column, name))

    return write


def _text_column(row: Row, name: str) -> str:
    found = next((c for c in TEXT_COLUMNS if c in row and isinstance(row[c], str | None)), None)
    found = found or next((c for c in CHAT_COLUMNS if c in row and (not row[c] or _is_chat(row[c]))), None)
    if found is not None:
        return found
    strings = [c for c, value in row.items() if isinstance(value, str)]
    if len(strings) == 1:
        return strings[0]
    raise CorpusError(
        f"{name} has no column that is known to hold text ({', '.join(TEXT_COLUMNS)}): give text_column, or a "
        f"template such as '{{{(strings or list(row) or ['column'])[0]}}}'; its columns are {', '.join(row)}"
    )


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def _chat(turns: Any, tokenizer: Any, column: str, name: str) -> Document:
    if getattr(tokenizer, "chat_template", None) is None:
        raise CorpusError(
            f"{name} holds conversations (column {column!r}), and the tokenizer has no chat template: take the "
            "tokenizer of a chat model, give a template such as '{prompt}', or take a data set of plain text"
        )
    messages = []
    for turn in turns:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role is None or content is None:
            raise CorpusError(
                f"a turn of a conversation has a role and a content, {name} has one with {', '.join(turn)}"
            )
        messages.append({"role": CHAT_ROLES.get(role, role), "content": content})
    try:
        return Document(tokenizer.apply_chat_template(messages, tokenize=False), bare=False)
    except Exception as error:  # a chat template is a program, and says what it will not take in any way it likes
        raise CorpusError(f"the tokenizer's chat template refuses a conversation of {name}: {error}") from error
