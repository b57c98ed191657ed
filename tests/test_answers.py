"""Loops and other gibberish are found, language is not taken for it, and the base is the measure."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hubprune.answers import PERIOD, PROMPTS, TIMES, gibberish, greedy, looped, write_answers
from hubprune.outcomes import Answer
from tests.families import build, token_ids
from tests.pruned import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("written", "share"),
    [
        ([], 0.0),
        ([7], 0.0),
        ([7, 7], 0.0),
        ([7] * 10, 1.0),
        ([1, 2, 3] * 4, 1.0),
        ([9, 8, *[1, 2] * 3, 5, 4], 0.6),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.0),
        ([1, 2, 3, 1, 2, 3], 0.0),
        (list(range(PERIOD + 1)) * TIMES, 0.0),
    ],
)
def test_share_of_loops(written: list[int], share: float) -> None:
    assert looped(written) == pytest.approx(share)


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=PERIOD))
def test_a_loop_is_found_behind_anything(before: list[int], period: list[int]) -> None:
    written = before + period * TIMES
    assert looped(written) >= len(period) * TIMES / len(written)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma3"])
def test_greedy_writes_what_reading_anew_each_time_gives(family: str) -> None:
    model, ids = build(family), token_ids(1, 5)
    with torch.no_grad():
        written = greedy(model, ids, 6)
        for token in written:
            logits = model(input_ids=ids, use_cache=False).logits[0, -1]
            assert logits[token] == pytest.approx(float(logits.max()), abs=1e-4)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert len(written) == 6


def test_an_end_token_ends_the_answer() -> None:
    model, ids = build("llama"), token_ids(1, 5)
    with torch.no_grad():
        written = greedy(model, ids, 6)
        assert greedy(model, ids, 6, frozenset(written[2:3])) == written[: written.index(written[2])]


def stuck(token: int):
    """A model that says one word for ever."""
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(0.0)
        model.lm_head.weight.fill_(0.0)
        model.model.embed_tokens.weight.fill_(0.0)
    biased = torch.nn.Linear(32, model.config.vocab_size)
    with torch.no_grad():
        biased.weight.fill_(0.0)
        biased.bias.copy_(torch.nn.functional.one_hot(torch.tensor(token), model.config.vocab_size))
    model.lm_head = biased
    return model


def test_a_model_that_repeats_itself_or_says_nothing_is_found_out() -> None:
    model = stuck(7).train()
    rows = write_answers(model, tiny_tokenizer(), variant="pruned", new_tokens=12, progress=False)
    assert model.training
    assert [row.prompt for row in rows] == list(PROMPTS)
    assert {(row.text, row.tokens, row.looped) for row in rows} == {(" ".join(["w7"] * 12), 12, 1.0)}
    assert {row.problem for row in rows} == {"repeats itself (100% of its tokens)"}
    end = tiny_tokenizer().eos_token_id
    rows = write_answers(stuck(end), tiny_tokenizer(), variant="pruned", prompts=["w3"], progress=False)
    assert [(row.text, row.tokens, row.problem) for row in rows] == [("", 0, "says nothing")]


def test_the_base_is_the_measure() -> None:
    good, bad = Answer("base", "a", "b"), Answer("base", "a", "b", problem="says nothing")
    loops = [Answer("pruned", "a", "b", problem="repeats itself"), Answer("pruned", "a", "b")]
    assert gibberish([good, good, *loops]) == [
        "of 2 answers of the pruned model 1 are gibberish (0 of the base's): the first repeats itself"
    ]
    assert gibberish([good, bad, *loops]) == []
    assert gibberish(loops) == ["of 2 answers of the pruned model 1 are gibberish: the first repeats itself"]
    assert gibberish([good, bad]) == []
