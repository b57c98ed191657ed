"""Rows become documents by a template, a column or a chat template; an error lists what there is to choose from."""

from __future__ import annotations

import datetime
import json
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from hubprune.corpora import SourceConfig, parse_source
from hubprune.errors import AccessError, CorpusError
from hubprune.filling import parse_template
from hubprune.hub import READERS
from hubprune.localhub import EmbeddedHub, seed_folder
from hubprune.sources import Document, documents, resolve_source, row_key, text_key
from tests.pruned import tiny_tokenizer

LONG = "a text of more than five words"


def read_rows(rows: list[Any], tokenizer: Any = None, **fields: Any) -> list[str]:
    """The texts that a source makes of rows, in alphabetical order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return sorted(found.text for found in documents(SourceConfig(str(path), **fields), tokenizer, commit=None))


@pytest.fixture(scope="module")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}"
        "{% if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('no role ' + m.role) }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    return tokenizer


# Which column


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"id": "7", "text": "the text", "content": "other"}, "the text"),
        ({"title": "a", "content": "the content", "body": "b"}, "the content"),
        ({"n": 1, "story": "the only string"}, "the only string"),
        ({"text": 5, "story": "the only string"}, "the only string"),
    ],
)
def test_the_text_column_is_found_by_name(row: dict[str, Any], text: str) -> None:
    assert read_rows([row]) == [text]


def test_a_column_that_is_named_goes_first() -> None:
    rows = [{"text": "not this", "answer": "this"}]
    assert read_rows(rows, text_column="answer") == ["this"]


def test_texts_without_a_letter_are_left_out() -> None:
    rows = [{"text": None}, {"text": ""}, {"text": " \n\t"}, {"text": "kept"}]
    assert read_rows(rows) == ["kept"]
    assert read_rows(rows, template="Text: {text}") == ["Text: kept"]


def test_a_value_is_written_plainly() -> None:
    rows = [{"a": 3, "b": 0.5, "c": ["x", None, "y"], "d": None, "e": True}]
    assert read_rows(rows, template="{a}|{b}|{c}|{d}|{e}") == ["3|0.5|x\ny||True"]


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (
            [{"question": "q", "answer": "a"}],
            {},
            "has no column that is known to hold text (text, content, sentence, document, article, passage, body): "
            "give text_column, or a template such as '{question}'; its columns are question, answer",
        ),
        (
            [{"n": 1, "m": 2}],
            {},
            "has no column that is known to hold text (text, content, sentence, document, article, passage, body): "
            "give text_column, or a template such as '{n}'; its columns are n, m",
        ),
        ([{"a": "x", "b": "y"}], {"text_column": "c"}, "has no column 'c'; its columns are a, b"),
        ([{"a": "x", "b": "y"}], {"template": "{a}{c}"}, "has no column 'c'; its columns are a, b"),
        (
            [{"a": {"x": "1", "y": "2"}}],
            {"template": "{a.z}"},
            "has no field 'a.z': 'z' is not among x, y",
        ),
        ([{"a": "text"}], {"template": "{a.z}"}, "has no field 'a.z': 'z' is asked of a str"),
    ],
)
def test_a_place_that_is_missing_is_told_with_those_there_are(
    rows: list[Any], fields: dict[str, str], message: str
) -> None:
    with pytest.raises(CorpusError) as caught:
        read_rows(rows, **fields)
    assert str(caught.value).endswith(f"rows.jsonl {message}")


def test_a_column_that_is_no_text_is_told() -> None:
    with pytest.raises(CorpusError, match="column 'a' of .* is a dict with the fields x, y: name one, as in '{a.x}'$"):
        read_rows([{"a": {"x": 1, "y": 2}}], template="{a}")
    with pytest.raises(CorpusError, match="column 'a' of .* is a datetime, which is no text: name another column$"):
        read_rows([{"a": datetime.datetime(2026, 1, 2).isoformat()}], text_column="a")


# Templates


@pytest.mark.parametrize(
    ("template", "row", "text"),
    [
        ("Q: {q}\nA: {a}", {"q": "why", "a": "so"}, "Q: why\nA: so"),
        ("{{{q}}}", {"q": "x"}, "{x}"),
        ("{context.contexts}", {"context": {"contexts": ["one", "two"]}}, "one\ntwo"),
        ("{a.b.c}", {"a": {"b": {"c": "deep"}}}, "deep"),
        ("{turns.text}", {"turns": [{"text": "one"}, {"text": "two"}]}, "one\ntwo"),
        ("{turns.1.text}", {"turns": [{"text": "one"}, {"text": "two"}]}, "two"),
        ("{a.b}", {"a.b": "dotted name"}, "dotted name"),
        ("{a.b} {x}", {"a": None, "x": "rest"}, " rest"),
        ("{choices.5} {x}", {"choices": ["A"], "x": "rest"}, " rest"),
        ("{holding_{label}}", {"label": 1, "holding_0": "no", "holding_1": "yes"}, "yes"),
        ("{choices.{label}}", {"label": 1, "choices": ["no", "yes"]}, "yes"),
        ("{{not a place}} {x}", {"x": "1"}, "{not a place} 1"),
    ],
)
def test_a_template_is_filled(template: str, row: dict[str, Any], text: str) -> None:
    assert read_rows([row], template=template) == [text]


plain = st.text(st.characters(codec="utf-8", exclude_characters="{}"))
columns = st.text(string.ascii_letters, min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(columns, st.text(), min_size=1, max_size=3), st.data())
def test_a_template_is_filled_as_python_fills_it(row: dict[str, str], data: st.DataObject) -> None:
    pieces = data.draw(st.lists(plain | st.sampled_from(["{{", "}}", *(f"{{{name}}}" for name in row)]), max_size=6))
    template = "".join([*pieces, f"{{{next(iter(row))}}}"])
    filled = any(row[name].strip() for name in row if f"{{{name}}}" in pieces) or row[next(iter(row))].strip()
    assert read_rows([row], template=template) == ([template.format(**row)] if filled else [])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{a", "template '{a' has a brace without a partner, or without a name in it: mend it"),
        ("{}", "template '{}' has a brace without a partner, or without a name in it: mend it"),
        ("{a_{b}", "template '{a_{b}' has a brace without a partner, or without a name in it: mend it"),
        (
            "{a} and}",
            "template '{a} and}' closes a brace that was not opened (character 8): write '}}' for '}'",
        ),
        ("no place", "a template names at least one column in braces, such as '{text}', got 'no place'"),
        ("{{text}}", "a template names at least one column in braces, such as '{text}', got '{{text}}'"),
    ],
)
def test_a_broken_template_is_refused_before_anything_is_read(template: str, message: str) -> None:
    for check in (parse_template, lambda text: resolve_source(SourceConfig("org/nothing", template=text))):
        with pytest.raises(CorpusError) as caught:
            check(template)
        assert str(caught.value) == message


# Filters

ROWS = [
    {"text": "one", "lang": "de", "meta": {"year": 2019}, "tags": ["a", "b"], "ok": True},
    {"text": "two", "lang": "de", "meta": {"year": 2020}, "tags": ["b"], "ok": False},
    {"text": "three", "lang": "en", "meta": {"year": 2020}, "tags": [], "ok": True},
    {"text": "four", "lang": None, "meta": None, "tags": None, "ok": None},
]


@pytest.mark.parametrize(
    ("filters", "texts"),
    [
        ({}, ["four", "one", "three", "two"]),
        ({"lang": "de"}, ["one", "two"]),
        ({"lang": " de "}, ["one", "two"]),
        ({"meta.year": "2020"}, ["three", "two"]),
        ({"lang": "de", "meta.year": "2020"}, ["two"]),
        ({"tags": "b"}, ["two"]),
        ({"ok": "True"}, ["one", "three"]),
        ({"lang": ""}, ["four"]),
    ],
)
def test_rows_pass_whose_columns_have_the_values_asked_for(filters: dict[str, str], texts: list[str]) -> None:
    assert read_rows(ROWS, filters=filters, text_column="text") == texts


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"lng": "de"}, "has no column 'lng'; its columns are text, lang, meta, tags, ok"),
        ({"meta.yaer": "2020"}, "has no field 'meta.yaer': 'yaer' is not among year"),
        ({"lang": "fr"}, "has no row with lang='fr': pick among those there are; lang is '', 'de', 'en'"),
        (
            {"lang": "en", "meta.year": "2019"},
            "has no row with lang='en' and meta.year='2019': pick among those there are; lang is '', 'de', 'en'; "
            "meta.year is '', '2019', '2020'",
        ),
    ],
)
def test_a_filter_that_picks_nothing_is_told_with_what_there_is(filters: dict[str, str], message: str) -> None:
    with pytest.raises(CorpusError) as caught:
        read_rows(ROWS[::-1], filters=filters, text_column="text")
    assert str(caught.value).partition("rows.jsonl ")[2] == message


def test_of_many_values_some_are_told() -> None:
    with pytest.raises(CorpusError, match=r"; n is ('\d+', ){7}'\d+' and others$"):
        read_rows([{"text": "x", "n": n} for n in range(40)], filters={"n": "40"})


def test_filters_that_can_pick_nothing_are_refused_before_anything_is_read() -> None:
    with pytest.raises(CorpusError, match=r"names a column once, .* got \?a=1&a=2 for org/nothing: join the data set"):
        resolve_source(SourceConfig("org/nothing", filters=(("a", "1"), ("a", "2"))))
    with pytest.raises(CorpusError, match=r"rows are picked with .*got 'org/nothing\?lang': write a column"):
        resolve_source(parse_source("org/nothing?lang"))


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.usefixtures("sets")
def test_rows_of_the_hub_are_picked_streamed_or_not(streaming: bool) -> None:
    known, commit = resolve_source(parse_source("sources/plain?lang=de"), token=False)
    found = documents(known, None, commit=commit, streaming=streaming, token=False)
    assert [document.text for document in found] == ["einfach"]


# Conversations

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
SHARED = [{"from": "system", "value": "be kind"}, {"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation"])
def test_a_conversation_goes_through_the_chat_template(chat_tokenizer: Any, column: str) -> None:
    assert read_rows([{"id": 1, column: CHAT}], chat_tokenizer) == ["<user>hello<assistant>hi"]
    assert read_rows([{column: SHARED}], chat_tokenizer) == ["<system>be kind<user>hello<assistant>hi"]
    assert read_rows([{"turns": CHAT}], chat_tokenizer, text_column="turns") == ["<user>hello<assistant>hi"]


def test_an_empty_conversation_is_left_out_wherever_it_stands(chat_tokenizer: Any) -> None:
    for rows in ([{"messages": []}, {"messages": CHAT}], [{"messages": CHAT}, {"messages": None}]):
        assert read_rows(rows, chat_tokenizer) == ["<user>hello<assistant>hi"]


def test_only_text_that_has_its_special_tokens_is_not_bare(tmp_path: Path, chat_tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": CHAT, "prompt": "hello"}) + "\n")
    bare = {
        template: [
            found.bare for found in documents(SourceConfig(str(path), template=template), chat_tokenizer, commit=None)
        ]
        for template in (None, "{prompt}")
    }
    assert bare == {None: [False], "{prompt}": [True]}


def test_conversations_need_a_chat_template() -> None:
    for tokenizer in (tiny_tokenizer(), None):
        with pytest.raises(CorpusError) as caught:
            read_rows([{"messages": CHAT}], tokenizer)
        assert str(caught.value).endswith(
            "rows.jsonl holds conversations (column 'messages'), and the tokenizer has no chat template: take the "
            "tokenizer of a chat model, give a template such as '{prompt}', or take a data set of plain text"
        )


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (
            [{"who": "me", "said": "hello"}],
            "a turn of a conversation has a role and a content, .* has one with who, said",
        ),
        (
            [{"role": "narrator", "content": "once"}],
            "the tokenizer's chat template refuses a conversation of .*rows.jsonl: no role narrator",
        ),
    ],
)
def test_a_conversation_of_another_form_is_told(chat_tokenizer: Any, turns: list[Any], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read_rows([{"messages": turns}], chat_tokenizer)


# What texts and rows are recognised by


def test_a_text_is_recognised_by_its_words() -> None:
    assert len(text_key(LONG)) == 1
    assert text_key(LONG) == text_key(f"  {LONG.upper()}!\n") == text_key(LONG.replace(" ", ", "))
    assert text_key(LONG) == text_key(LONG.replace("five", "\uff46\uff49\uff56\uff45"))  # wide letters
    assert text_key(LONG) != text_key(LONG + " more")
    assert text_key("Yes, of course.") == ()


def test_a_row_is_recognised_whatever_becomes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"a": LONG, "b": [1, {"c": None}], "d": datetime.date(2026, 1, 2)}
    source = SourceConfig("org/set", "small", "train")
    same = SourceConfig("org/set", "small", "train", "v1", "{a}", weight=2.0)
    assert row_key(source, row) == row_key(same, dict(reversed(row.items())))
    for other in (SourceConfig("org/set", "small", "test"), SourceConfig("org/other", "small", "train")):
        assert row_key(source, row) != row_key(other, row)
    assert row_key(source, row) != row_key(source, {**row, "a": "x"})
    monkeypatch.chdir(tmp_path)
    here = [SourceConfig("./a.txt"), SourceConfig("a.txt"), SourceConfig(str(tmp_path / "a.txt"))]
    assert len({row_key(source, row) for source in here}) == 1


def test_a_document_carries_the_keys_of_its_text_and_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"{LONG}\n")
    source = SourceConfig(str(path))
    assert list(documents(source, None, commit=None)) == [
        Document(LONG, True, (*text_key(LONG), row_key(source, {"text": LONG})))
    ]


# Whether a source exists


@pytest.fixture(scope="module")
def sets(hub: EmbeddedHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets on the Hub and in a folder: one plain, one with configurations and splits."""
    root = tmp_path_factory.mktemp("sets")
    configs = [
        {"config_name": "small", "data_files": [{"split": s, "path": f"{s}.jsonl"} for s in ("validation", "test")]},
        {"config_name": "large", "data_files": [{"split": "validation", "path": "validation.jsonl"}]},
    ]
    files = {
        "plain/train.jsonl": '{"text": "plain", "lang": "en"}\n{"text": "einfach", "lang": "de"}\n',
        "plain/test.jsonl": '{"text": "plain"}\n',
        "many/README.md": f"---\n{json.dumps({'configs': configs})}\n---\n",
        "many/validation.jsonl": '{"text": "validation"}\n',
        "many/test.jsonl": '{"text": "test"}\n',
    }
    for name, text in files.items():
        path = root / "datasets" / "sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    seed_folder(hub.store, root)
    return root / "datasets"


def test_what_is_left_open_is_filled_in(sets: Path, hub_api: Callable[..., HfApi]) -> None:
    commit = hub_api(None).repo_info("sources/plain", repo_type="dataset").sha
    known, found = resolve_source(SourceConfig("sources/plain", weight=2.0), token=False)
    assert (known, found) == (SourceConfig("sources/plain", "default", "train", weight=2.0), commit)
    known, commit = resolve_source(SourceConfig("sources/many", "large", template="{text}"), token=False)
    assert known == SourceConfig("sources/many", "large", "validation", template="{text}")
    assert [found.text for found in documents(known, None, commit=commit, token=False)] == ["validation"]


def test_a_folder_is_checked_as_a_data_set_is(sets: Path) -> None:
    folder = str(sets / "sources" / "many")
    assert resolve_source(SourceConfig(folder, "large")) == (SourceConfig(folder, "large", "validation"), None)
    with pytest.raises(CorpusError, match="has several configurations"):
        resolve_source(SourceConfig(folder))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            SourceConfig("sources/many"),
            "sources/many has several configurations: pick one, as in 'sources/many:small'; it has small, large",
        ),
        (
            SourceConfig("sources/many", "tiny"),
            "sources/many has no configuration 'tiny': pick one, as in 'sources/many:small'; it has small, large",
        ),
        (
            SourceConfig("sources/many", "small"),
            "sources/many (small) has no split 'train': pick one, as in 'sources/many:small:validation'; it has "
            "validation, test",
        ),
        (
            SourceConfig("sources/plain", split="dev"),
            "sources/plain (default) has no split 'dev': pick one, as in 'sources/plain:default:train'; it has "
            "train, test",
        ),
    ],
)
@pytest.mark.usefixtures("sets")
def test_a_configuration_or_split_that_is_missing_is_told_with_those_there_are(
    source: SourceConfig, message: str
) -> None:
    with pytest.raises(CorpusError) as caught:
        resolve_source(source, token=False)
    assert str(caught.value) == message


@pytest.mark.usefixtures("sets")
def test_a_data_set_or_revision_that_is_missing_is_told(hub: EmbeddedHub) -> None:
    with pytest.raises(
        CorpusError, match="cannot read sources/nothing: there is no data set at .*sources/nothing that"
    ):
        resolve_source(SourceConfig("sources/nothing"), token=hub.token("me"))
    with pytest.raises(CorpusError, match="cannot read sources/plain: it has no such branch, tag or commit; .* lists"):
        resolve_source(SourceConfig("sources/plain", revision="v9"), token=hub.token("me"))
    with pytest.raises(AccessError, match="log in"):
        resolve_source(SourceConfig("sources/nothing"), token=False)


def test_a_file_is_checked_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a line\n")
    (tmp_path / "notes.docx").write_text("a line\n")
    source = SourceConfig(str(tmp_path / "notes.txt"))
    assert resolve_source(source) == (source, None)
    for fields, message in (
        ({"dataset": "note.txt"}, r"there is no file .*note\.txt: did you mean 'notes.txt' or 'notes.docx'\?"),
        ({"dataset": "nowhere/notes.txt"}, r"there is no file .*nowhere/notes\.txt: check the path"),
        ({"dataset": "notes.docx"}, rf"a file of text ends in {', '.join(READERS)}, or in .* and \.gz, got .*docx"),
        ({"dataset": "notes.txt", "split": "test"}, "is a file, and a file has no .* splits .*: give the path alone"),
        (
            {"dataset": "notes.txt", "config": "x"},
            "is a file, and a file has no configurations.*: give the path alone",
        ),
        ({"dataset": "notes.txt", "revision": "v1"}, "is a file, and a file has no .* revisions: give the path alone"),
    ):
        with pytest.raises(CorpusError, match=message):
            resolve_source(SourceConfig(**{**fields, "dataset": str(tmp_path / fields["dataset"])}))
