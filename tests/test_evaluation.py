"""Perplexity against a slow reference, with its protocol."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hubprune.architecture import find_blocks
from hubprune.calibration import Corpus, corpus_from_tokens, load_corpus
from hubprune.errors import ConfigError, NumericalError
from hubprune.evaluation import cut, perplexity
from hubprune.facts import CorpusFacts
from tests.families import FAMILIES, build, token_ids


def reference(model, sequences) -> float:
    """One token at a time, in float64."""
    nats, count = 0.0, 0
    for sequence in sequences:
        for position in range(1, len(sequence)):
            with torch.no_grad():
                logits = model(input_ids=sequence[None, :position], use_cache=False).logits[0, -1].double()
            nats -= float(torch.log_softmax(logits, -1)[sequence[position]])
            count += 1
    return math.exp(nats / count)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_perplexity_is_that_of_a_token_by_token_reference(family):
    assert family in FAMILIES
    model = build(family)
    corpus = corpus_from_tokens(token_ids(5, 9), "domain")
    found = perplexity(model, corpus, batch_size=2, progress=False)
    assert found.perplexity == pytest.approx(reference(model, corpus.sequences), rel=1e-5)
    assert (found.windows, found.tokens, found.window, found.stride) == (5, 5 * 8, 9, 9)
    assert (found.variant, found.corpus, found.fingerprint) == ("pruned", "domain", corpus.facts.fingerprint)


def test_windows_of_several_lengths_count_every_token_once():
    model = build("llama")
    sequences = (*token_ids(2, 6), *token_ids(3, 11, seed=1))
    corpus = Corpus("x", sequences, CorpusFacts("x"))
    found = perplexity(model, corpus, progress=False)
    assert found.perplexity == pytest.approx(reference(model, sequences), rel=1e-5)
    assert (found.tokens, found.window) == (2 * 5 + 3 * 10, 11)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_changes_nothing(batch_size):
    model, corpus = build("llama"), corpus_from_tokens(token_ids(7, 10), "x")
    whole = perplexity(model, corpus, batch_size=8, progress=False)
    part = perplexity(model, corpus, batch_size=batch_size, progress=False)
    assert part.perplexity == pytest.approx(whole.perplexity, rel=1e-6)
    assert part.stderr == pytest.approx(whole.stderr, rel=1e-4)


def test_standard_error_says_how_far_another_draw_of_windows_lies():
    """The error of 40 windows is the spread of many such means, and shrinks with the root of the windows."""
    model = build("llama")
    values = [
        perplexity(model, corpus_from_tokens(token_ids(40, 8, seed=seed), "x"), progress=False).perplexity
        for seed in range(60)
    ]
    spread = torch.tensor(values).std().item()
    stated = perplexity(model, corpus_from_tokens(token_ids(40, 8, seed=99), "x"), progress=False).stderr
    assert 0.6 < stated / spread < 1.6
    assert perplexity(model, corpus_from_tokens(token_ids(1, 8), "x"), progress=False).stderr == 0.0


def test_start_token_is_stated_as_it_is():
    model = build("llama")
    ids = token_ids(3, 8)
    assert not perplexity(model, corpus_from_tokens(ids, "x"), progress=False).bos
    ids[:, 0] = model.config.bos_token_id
    assert perplexity(model, corpus_from_tokens(ids, "x"), progress=False).bos


def test_sources_are_named_as_a_user_writes_them(demo_hub):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hubprune.demo import MEDICAL_ID, MODEL_ID

    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    model = AutoModelForCausalLM.from_pretrained(MODEL_ID)
    corpus = load_corpus(f"{MEDICAL_ID}:default:test", tokenizer, num_samples=2, sequence_length=64)
    assert perplexity(model, corpus, progress=False).sources == [f"{MEDICAL_ID}:default:test"]


def test_model_is_left_as_it_was():
    model = build("gpt2")
    model.train()
    model.transformer.h[1].eval()
    before = [module.training for module in model.modules()]
    perplexity(model, corpus_from_tokens(token_ids(), "x"), progress=False)
    assert [module.training for module in model.modules()] == before


def test_what_cannot_be_stated_is_an_error():
    model, corpus = build("llama"), corpus_from_tokens(token_ids(), "legal")
    with pytest.raises(ConfigError, match="at least 1 sequence, got 0"):
        perplexity(model, corpus, batch_size=0)
    with torch.no_grad():
        model.lm_head.weight[5, 5] = math.nan
    with pytest.raises(NumericalError, match="loss of the base model on the legal text is nan nats.* prune less"):
        perplexity(model, corpus, variant="base", progress=False)


def strided(model, ids, window, stride) -> float:
    """Every token but the first, from what a window that moves by the stride holds before it; in float64."""
    nats, done, begin = 0.0, 1, 0
    while done < len(ids):
        end = min(begin + window, len(ids))
        with torch.no_grad():
            at = max(0, end - window)
            logits = model(input_ids=ids[None, at:end], use_cache=False).logits[0].double().log_softmax(-1)
        nats -= sum(float(logits[place - at - 1, ids[place]]) for place in range(max(done, begin + 1), end))
        done, begin = end, begin + stride
    return nats


@pytest.mark.parametrize(("window", "stride"), [(12, 4), (12, 11), (12, 1), (7, 3), (64, 5)])
def test_a_stride_gives_each_token_more_context_and_counts_it_once(window, stride):
    model = build("llama")
    ids = torch.cat(list(token_ids(4, 12)))
    corpus = Corpus("x", tuple(ids.split(12)), CorpusFacts("x", packing=True))
    found = perplexity(model, corpus, window=window, stride=stride, batch_size=3, progress=False)
    assert found.tokens == len(ids) - 1
    assert math.log(found.perplexity) * found.tokens == pytest.approx(strided(model, ids, window, stride), rel=1e-5)
    assert (found.window, found.stride) == (window, stride)


def test_a_stride_of_the_window_is_what_the_sequences_give():
    model, corpus = build("gpt2"), Corpus("x", tuple(token_ids(5, 12)), CorpusFacts("x"))
    plain = perplexity(model, corpus, progress=False)
    assert perplexity(model, corpus, window=12, stride=12, progress=False) == plain


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(2, 20),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
)
def test_no_token_is_predicted_twice(lengths, window, stride, packing, first):
    sequences, place = [], 0
    for length in lengths:
        sequences.append(torch.arange(place, place + length))
        place += length
    corpus = Corpus("x", tuple(sequences), CorpusFacts("x", packing=packing), sizes=tuple(s + 1 for s in sequences))
    if stride > window:
        with pytest.raises(ConfigError, match=f"a window of {window} and a stride of {stride}"):
            cut(corpus, window, stride)
        return
    found = cut(corpus, window, stride, -1 if first else None)
    predicted = [int(token) for one in found for token in one.ids[one.context :]]
    assert len(predicted) == len(set(predicted))
    assert all(len(one.ids) <= window and one.context >= 1 for one in found)
    if stride < window:
        texts = 1 if packing else len(sequences)
        assert len(predicted) == place - (0 if first else texts)
    assert sum(one.text_bytes for one in found) == sum(token + 1 for token in predicted)


def test_bits_per_byte_are_those_of_the_text_whatever_the_vocabulary():
    model = build("llama")
    ids = torch.cat(list(token_ids(4, 12)))
    sizes = torch.arange(len(ids)) % 4
    corpus = Corpus("x", tuple(ids.split(12)), CorpusFacts("x"), sizes=tuple(sizes.split(12)))
    found = perplexity(model, corpus, window=48, stride=1, progress=False)
    nats = math.log(reference(model, [ids])) * (len(ids) - 1)
    assert found.text_bytes == int(sizes[1:].sum())
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.text_bytes, rel=1e-5)
    assert perplexity(model, corpus_from_tokens(token_ids(), "x"), progress=False).bits_per_byte is None


def test_a_start_token_goes_in_front_of_each_text():
    model = build("llama")
    ids = token_ids(3, 9)
    corpus = corpus_from_tokens(ids, "x")
    found = perplexity(model, corpus, window=10, stride=9, start=1, progress=False)
    behind = torch.cat([torch.ones(3, 1, dtype=torch.long), ids], dim=1)
    assert found.perplexity == pytest.approx(reference(model, behind), rel=1e-5)
    assert (found.tokens, found.bos, found.layout) == (27, True, "separate")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_that_are_too_many_are_asked_of_the_head_a_few_at_a_time(family, monkeypatch):
    model, corpus = build(family), corpus_from_tokens(token_ids(4, 12), "general")
    whole = perplexity(model, corpus, batch_size=2)
    ran, asked = [], []
    _, blocks = find_blocks(model)
    blocks[0].register_forward_hook(lambda *_: ran.append(1))
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _args, output: asked.append(output.shape[1]))
    monkeypatch.setattr("hubprune.evaluation.MOST_AT_ONCE", 2 * 5 * model.get_input_embeddings().num_embeddings)
    parts = perplexity(model, corpus, batch_size=2)
    assert asked == [5, 5, 1] * 2  # of 11 positions, for 2 windows each time
    assert len(ran) == 2  # the blocks ran once for each batch
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-6)
    assert (parts.tokens, parts.windows) == (whole.tokens, whole.windows)
    assert perplexity(model, corpus, batch_size=2) == parts  # nothing is left changed
