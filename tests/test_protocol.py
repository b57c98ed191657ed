"""A protocol says what is read of a text, and by which window; a mistake is told with the remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hubprune.corpora import CorpusConfig, parse_source
from hubprune.errors import ConfigError
from hubprune.protocol import PROTOCOLS, WHOLE, Protocol

WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1:test"


def test_text_of_lines_is_joined_whole_and_in_its_own_order() -> None:
    for value in ("wikitext2", WIKITEXT):
        config, decided = Protocol().corpus("w", value)
        assert config.sources == (parse_source(WIKITEXT),)
        assert (config.join, config.packing, config.num_samples) == ("\n\n", True, WHOLE)
        assert decided.layout == "joined"


def test_other_text_is_packed_and_cut_off() -> None:
    config, decided = Protocol().corpus("x", "org/set::test")
    assert (config.join, config.packing, config.num_samples, decided.layout) == (None, True, 64, "packed")
    config, _ = Protocol().corpus("x", f"{WIKITEXT}+org/set")
    assert config.join is None


def test_what_is_asked_for_wins() -> None:
    config, _ = Protocol(num_samples=3, sequence_length=32).corpus("w", "wikitext2")
    assert (config.num_samples, config.sequence_length, config.join) == (3, 32, "\n\n")
    config, _ = Protocol(layout="packed", num_samples=3).corpus("w", "wikitext2")
    assert (config.num_samples, config.join) == (3, None)


def test_a_config_of_ones_own_keeps_its_numbers() -> None:
    own = CorpusConfig(texts=("a text",), num_samples=5, sequence_length=16)
    assert Protocol().corpus("x", own)[0] == replace(own, packing=True)  # text is packed, unless it is told apart
    assert Protocol(num_samples=2).corpus("x", own)[0].num_samples == 2
    separate = CorpusConfig(texts=("a text",), packing=False)
    assert Protocol().corpus("x", separate)[1].layout == "separate"


def test_the_harness_reads_each_document_whole_behind_the_start_token() -> None:
    protocol = Protocol.named("harness")
    config, _ = protocol.corpus("x", "org/set")
    assert protocol.bos
    assert (config.packing, config.sequence_length, config.num_samples) == (False, WHOLE, WHOLE)
    assert set(PROTOCOLS) == {"default", "papers", "harness"}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"layout": "joind"}, "did you mean 'joined'?"),
        ({"stride": 0}, "stride must be a whole number, at least 1 token"),
        ({"sequence_length": 1}, "at least 2 tokens"),
        ({"num_samples": 0}, "at least 1 window"),
        ({"stride": 17, "sequence_length": 16}, "at most the 16 tokens of a window, got 17"),
    ],
)
def test_a_mistake_is_told(fields: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("?", r"\?")):
        Protocol(**fields)
    with pytest.raises(ConfigError, match=told.replace("?", r"\?")):
        Protocol().changed(**fields)


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(ConfigError, match="did you mean 'papers'"):
        Protocol.named("paper")


def test_a_joined_corpus_is_packed() -> None:
    with pytest.raises(ConfigError, match="joined documents are packed"):
        CorpusConfig(texts=("a",), join="\n", packing=False)
