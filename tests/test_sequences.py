"""Where the answer of an example begins, in tokenizers of every kind, and how a long example is cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from hubprune.sequences import SequenceReader, Taken, locate_answer
from hubprune.sources import Document

TEXT = "Is it so? Answer: yes. It is."
AT = TEXT.index("yes")


def words(kind: str) -> list[str]:
    """The pieces that a tokenizer of each kind makes of TEXT."""
    mark = {"bytes": "Ġ", "metaspace": "▁", "words": ""}[kind]
    plain = ["Is", "it", "so", "?", "Answer", ":", "y", "es", "yes", ".", "It", "is"]
    return [*plain, *(mark + word for word in plain if mark), *([mark] if mark else [])]


def make(kind: str, *, start: bool, end: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, with special tokens in front and behind or not."""
    pieces = ["<unk>", "<s>", "</s>", *words(kind)]
    inner = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    if kind == "bytes":
        parts = [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Punctuation()]
        inner.pre_tokenizer = pre_tokenizers.Sequence(parts)
        inner.decoder = decoders.ByteLevel()
    elif kind == "metaspace":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Punctuation()]
        )
    else:
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
    before, after = ["<s>"] if start else [], ["</s>"] if end else []
    inner.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


class Slow:
    """A tokenizer that does not tell which characters a token stands for."""

    is_fast = False

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> Any:
        return {"input_ids": self.inner(text, add_special_tokens=add_special_tokens)["input_ids"]}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("start", "end"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("kind", ["bytes", "metaspace", "words"])
@pytest.mark.parametrize("at", [AT, AT - 1], ids=["word", "space"])
def test_the_answer_begins_with_the_first_token_that_holds_some_of_it(
    kind: str, start: bool, end: bool, fast: bool, at: int
) -> None:
    tokenizer = make(kind, start=start, end=end)
    ids, front, position = locate_answer(tokenizer if fast else Slow(tokenizer), TEXT, at)
    assert ids == tokenizer(TEXT)["input_ids"]
    assert front == int(start)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert pieces[position].strip("Ġ▁") == "yes"
    assert [piece.strip("Ġ▁") for piece in pieces[front:position]] == ["Is", "it", "so", "?", "Answer", ":"]


@pytest.mark.parametrize("fast", [True, False])
def test_a_token_on_both_sides_belongs_to_the_answer(fast: bool) -> None:
    tokenizer = make("words", start=True, end=False)
    text = "so yes"
    _, _, position = locate_answer(tokenizer if fast else Slow(tokenizer), text, 4)
    assert position == 2
    assert locate_answer(tokenizer if fast else Slow(tokenizer), text, len(text))[2] == 3


def take(documents: list[Document], length: int, **settings: Any) -> Taken:
    tokenizer = make("words", start=settings.pop("start", True), end=False)
    reader = SequenceReader(tokenizer, length, False, True, frozenset(), examples=True)
    return reader.take(documents, len(documents), "the task", tqdm(disable=True))


def example(question: int, answer: int) -> Document:
    text = " ".join(["it"] * question + ["yes"] * answer)
    return Document(text, answer=3 * question, label="yes")


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(1, 9), st.integers(2, 12), st.booleans())
def test_a_question_is_cut_from_its_beginning_and_an_answer_never(
    question: int, answer: int, length: int, start: bool
) -> None:
    fits = example(3, 1)
    taken = take([example(question, answer), fits], max(length, 3), start=start)
    length = max(length, 3)
    room = length - answer - start
    if room < 0 or start + min(room, question) < 1:
        assert (len(taken.sequences), taken.passed_over, taken.documents) == (1, 1, 1)
        return
    assert (len(taken.sequences), taken.passed_over, taken.documents) == (2, 0, 2)
    ids = make("words", start=False, end=False)
    it, yes = (ids.convert_tokens_to_ids(word) for word in ("it", "yes"))
    kept = min(question, room)
    assert taken.sequences[0].tolist() == [1] * start + [it] * kept + [yes] * answer
    assert taken.answers[0] == start + kept
    assert len(taken.sequences[0]) <= length


def test_a_document_without_an_answer_is_no_example() -> None:
    taken = take([Document("it is"), Document("it is", answer=5), example(1, 1)], 8)
    assert (taken.documents, taken.answers, taken.labels, taken.passed_over) == (1, [2], ["yes"], 0)
