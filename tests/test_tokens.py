"""The bytes of a text's tokens add up to those of the text, whatever the tokenizer does to spaces and characters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hubprune.tokens import tokenize
from tests.pruned import tiny_tokenizer


def byte_level() -> PreTrainedTokenizerFast:
    """One token for each byte, behind a start token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({"<s>": 0, **{letter: n + 1 for n, letter in enumerate(alphabet)}}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="<s>")


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40), st.booleans())
def test_bytes_add_up(text: str, special: bool) -> None:
    ids, sizes = tokenize(byte_level(), text, special=special)
    assert sizes is not None
    assert len(sizes) == len(ids)
    assert sum(sizes) == len(text.encode())
    if special:
        assert (ids[0], sizes[0]) == (0, 0)


def test_a_token_stands_for_the_space_before_it_and_the_last_one_for_what_follows() -> None:
    ids, sizes = tokenize(tiny_tokenizer(), "w3  wörd w5 \n", special=True)
    assert (len(ids), sizes) == (3, [2, 7, 5])


def test_a_character_that_is_cut_into_tokens_is_counted_once() -> None:
    _, sizes = tokenize(byte_level(), "a€", special=False)
    assert sizes is not None
    assert sum(sizes) == 4
    assert max(sizes) == 3


def test_a_tokenizer_that_does_not_say_where_its_tokens_stand() -> None:
    class Slow:
        is_fast = False

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [len(word) for word in text.split()]}

    assert tokenize(Slow(), "one three", special=True) == ([3, 5], None)


@pytest.mark.parametrize("text", ["", "   "])
def test_nothing_is_no_tokens(text: str) -> None:
    assert tokenize(tiny_tokenizer(), text, special=False) == ([], [])
