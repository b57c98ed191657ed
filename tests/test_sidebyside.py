"""Models side by side: every door gives the same numbers, the record and the card take them over."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hubprune
from hubprune import AutoPrunedModelForCausalLM, Protocol, load_corpus, perplexity
from hubprune.card import render_card
from hubprune.corpora import CorpusConfig
from hubprune.demo import GENERAL_ID, LEGAL_ID, MEDICAL_ID, MODEL_ID
from hubprune.errors import AccessError, ConfigError, CorpusError, UnsupportedModelError, UsageError
from hubprune.facts import BaseFacts
from hubprune.outcomes import RecoveryFacts
from hubprune.report import PruningReport
from tests.pruned import tiny_model

TEST = f"{MEDICAL_ID}:default:test"
FEW: dict[str, Any] = {"num_samples": 6, "sequence_length": 64, "progress": False}


@pytest.fixture(scope="module")
def pruned(demo_hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that was pruned with text of the demo."""
    model = AutoPrunedModelForCausalLM.from_pretrained(
        MODEL_ID,
        method="wanda",
        sparsity=0.5,
        domain=MEDICAL_ID,
        num_samples=8,
        sequence_length=64,
        evaluation={"medical": TEST},
        progress=False,
    )
    folder = tmp_path_factory.mktemp("pruned")
    model.save_pretrained(folder)
    return folder


def test_a_folder_is_measured_beside_the_base_of_its_record(pruned: Path) -> None:
    found = hubprune.evaluate(pruned, {"medical": TEST, "legal": f"{LEGAL_ID}:default:test"}, **FEW)
    assert [(row.variant, row.corpus) for row in found.perplexities] == [
        ("base", "medical"),
        ("base", "legal"),
        ("pruned", "medical"),
        ("pruned", "legal"),
    ]
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    corpus = load_corpus(TEST, tokenizer, name="medical", num_samples=6, sequence_length=64)
    for row, name in ((found.perplexities[0], MODEL_ID), (found.perplexities[2], pruned)):
        model = AutoModelForCausalLM.from_pretrained(name)
        assert perplexity(model, corpus, variant=row.variant, progress=False) == row
        assert row.bits_per_byte == pytest.approx(
            math.log2(row.perplexity) * row.tokens / row.text_bytes  # bits of a token, over bytes of a token
        )
    assert found.hardware["threads"] == torch.get_num_threads()


def test_any_models_in_memory_or_by_name(pruned: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    base = AutoModelForCausalLM.from_pretrained(MODEL_ID)
    base.tokenizer = tokenizer
    text = {"medical": TEST}
    several = hubprune.evaluate({"base": base, "pruned": pruned, "recovered": MODEL_ID}, text, **FEW).perplexities
    assert [row.variant for row in several] == ["base", "pruned", "recovered"]
    assert several[0].perplexity == several[2].perplexity < several[1].perplexity
    (alone,) = hubprune.evaluate(base, text, **FEW).perplexities
    assert alone == several[0]
    single = hubprune.evaluate(pruned, text, base=None, **FEW).perplexities
    assert single == [several[1]]
    with_base = hubprune.evaluate(str(pruned), text, base=base, variant="x", beside={"y": base}, **FEW).perplexities
    assert [row.variant for row in with_base] == ["base", "x", "y"]
    base.hubprune_report = PruningReport(BaseFacts(MODEL_ID), recovery=RecoveryFacts(config={"method": "adapter"}))
    (recovered,) = hubprune.evaluate(base, text, base=None, **FEW).perplexities
    assert recovered == dataclasses.replace(alone, variant="recovered")


def test_a_model_takes_its_result_over_into_its_record(pruned: Path) -> None:
    model = AutoPrunedModelForCausalLM.from_pretrained(pruned)
    before = model.hubprune_report.perplexities()["medical"]
    found = model.evaluate(answers=True, size=True, speed=True, texts={"medical": TEST}, **FEW)
    report = model.hubprune_report
    assert list(report.perplexities()) == ["medical"]
    after = report.perplexities()["medical"]
    assert after["pruned"].tokens == 6 * 63 < before["pruned"].tokens
    assert {row.variant for row in report.answers} == {"base", "pruned"}
    assert report.speeds == found.speeds
    base, own = report.sizes
    assert base.parameters == own.parameters == report.totals.parameters
    assert base.nonzeros - own.nonzeros == pytest.approx(report.totals.zeros, abs=base.parameters - base.nonzeros)
    assert own.file_bytes > own.memory_bytes  # in memory until now: its files are written to be weighed, and go again
    assert own.resident_bytes > own.memory_bytes
    assert base.file_bytes > base.memory_bytes
    assert base.resident_bytes > base.memory_bytes
    assert own.zstd_bytes < base.zstd_bytes
    assert any("does not run faster" in note for note in report.warnings)
    card = render_card(report)
    for said in (f"{own.nonzeros:,}", f"{report.speeds[1].decode:.2f}", "## Sample answers", "does not run faster"):
        assert said in card


def test_without_anything_asked_for_the_texts_of_the_record_are_measured(pruned: Path) -> None:
    recorded = PruningReport.load(pruned).perplexities()["medical"]
    found = {row.variant: row for row in hubprune.evaluate(pruned, progress=False, sequence_length=64).perplexities}
    assert set(found) == {"base", "pruned"}
    for variant, row in found.items():
        assert row.sources == recorded[variant].sources
        assert row.perplexity == pytest.approx(recorded[variant].perplexity, rel=1e-5)


def test_text_that_shaped_the_model_is_refused(pruned: Path) -> None:
    with pytest.raises(CorpusError, match="seen evaluation text shares .* of its documents with the domain corpus"):
        hubprune.evaluate(pruned, {"seen": MEDICAL_ID}, **FEW)
    rows = hubprune.evaluate(MODEL_ID, {"seen": MEDICAL_ID}, **FEW).perplexities
    assert len(rows) == 1


def test_text_that_cannot_be_compared_is_told(pruned: Path, tmp_path: Path) -> None:
    report = PruningReport.load(pruned)
    report.corpora[0].sources = []
    model = AutoPrunedModelForCausalLM.from_pretrained(pruned)
    model.hubprune_report = report
    assert hubprune.evaluate(model, {"m": TEST}, base=None, **FEW).notes == [
        "whether an evaluation text was in the domain text that the model was calibrated on is not known: that text "
        "was given in memory"
    ]
    report = model.hubprune_report = PruningReport.load(pruned)
    report.corpora[0].sources[0].dataset = "hubprune-demo/gone"
    (note,) = hubprune.evaluate(model, {"m": TEST}, base=None, **FEW).notes
    assert "is not known: cannot read hubprune-demo/gone" in note
    report = model.hubprune_report = PruningReport.load(pruned)
    report.corpora[0].token_sha256 = "0" * 64
    (note,) = hubprune.evaluate(model, {"m": TEST}, base=None, **FEW).notes
    assert "read again, that text is another one" in note


def literature(model, tokenizer, texts: list[str], length: int) -> float:
    """The perplexity of the papers: one text, windows side by side, what is left over is not read."""
    ids = tokenizer("\n\n".join(texts), return_tensors="pt").input_ids
    count = ids.shape[1] // length
    nats = []
    for number in range(count):
        part = ids[:, number * length : (number + 1) * length]
        with torch.no_grad():
            nats.append(float(model(input_ids=part, labels=part).loss) * length)
    return math.exp(sum(nats) / (count * length))


def test_joined_text_gives_the_number_of_the_papers(demo_hub, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    model = AutoModelForCausalLM.from_pretrained(MODEL_ID, dtype=torch.float32)
    model.tokenizer = tokenizer
    texts = [" The patient had a fever . ", "", " = Heading = ", " A court heard the case of the patient . "] * 20
    (tmp_path / "lines.txt").write_text("\n".join(texts))
    for value in (texts, str(tmp_path / "lines.txt")):
        (row,) = hubprune.evaluate(
            model, {"x": value}, protocol="papers", sequence_length=32, progress=False
        ).perplexities
        assert row.perplexity == pytest.approx(literature(model, tokenizer, texts, 32), rel=1e-5)
        assert (row.layout, row.join, row.stride, row.bos) == ("joined", "\n\n", 32, False)
    own = CorpusConfig(texts=tuple(texts), join="\n\n", num_samples=3, sequence_length=32)
    (row,) = hubprune.evaluate(model, {"x": own}, progress=False).perplexities
    assert (row.windows, row.layout) == (3, "joined")


def test_a_stride_lowers_perplexity_and_is_stated(demo_hub) -> None:
    wide = hubprune.evaluate(MODEL_ID, {"m": TEST}, **FEW).perplexities[0]
    near = hubprune.evaluate(MODEL_ID, {"m": TEST}, stride=16, **FEW).perplexities[0]
    assert (near.window, near.stride, near.tokens) == (64, 16, 6 * 64 - 1)
    assert near.perplexity < wide.perplexity
    assert near.fingerprint == wide.fingerprint


def test_presets_are_read_where_they_are_held_out(demo_hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from hubprune.presets import CORPORA, SourceRow

    monkeypatch.setitem(CORPORA, "medical", (SourceRow(f"{MEDICAL_ID}:default:train"),))
    (row,) = hubprune.evaluate(MODEL_ID, {"m": "medical"}, **FEW).perplexities
    assert row.sources == [TEST]


def test_every_mistake_is_told_before_any_weight_is_loaded(
    demo_hub, pruned: Path, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("hubprune.opening.Opening.weights", lambda *_, **__: pytest.fail("weights were loaded"))
    text = {"m": TEST}
    for given, more, error, told in (
        (MODEL_ID, {}, UsageError, "nothing to measure"),
        ({}, {"texts": text}, UsageError, "no model to measure"),
        (tiny_model(), {"texts": text}, UsageError, "in memory without its tokenizer: give tokenizer="),
        (MODEL_ID, {"texts": text, "beside": {"base": MODEL_ID}}, UsageError, "base stands for two"),
        (
            MODEL_ID,
            {"texts": text, "sequence_length": 4096},
            ConfigError,
            "at most the 512 tokens that the base model",
        ),
        (MODEL_ID, {"texts": text, "protocol": "paper"}, ConfigError, "did you mean 'papers'"),
        (MODEL_ID, {"texts": text, "sequence_length": 16, "stride": 20}, ConfigError, "at most the 16 tokens"),
        (MODEL_ID, {"texts": text, "stride": 600}, ConfigError, "a window of 512 and a stride of 600"),
        (MODEL_ID, {"texts": {"m": f"{MEDICAL_ID}:default:tset"}}, CorpusError, "has no split 'tset'"),
        (MODEL_ID, {"tasks": [str(tmp_path / "x.yaml")]}, UsageError, "no task file"),
        ("hubprune-demo/absent", {"texts": text}, AccessError, "hubprune-demo/absent"),
        (pruned, {"texts": text, "base": "hubprune-demo/absent"}, AccessError, "hubprune-demo/absent"),
    ):
        with pytest.raises(error, match=told):
            hubprune.evaluate(given, progress=False, **more)


def test_a_base_out_of_reach_is_told_with_the_way_around_it(pruned: Path) -> None:
    model = AutoPrunedModelForCausalLM.from_pretrained(pruned)
    model.hubprune_report.base.model_id = "hubprune-demo/absent"
    with pytest.raises(AccessError) as caught:
        model.evaluate({"m": TEST}, **FEW)
    assert caught.value.__notes__ == ["to measure the model without its base, give base=None (--no-base)"]


def test_an_encoder_is_refused(demo_hub, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    BertForMaskedLM(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="BertForMaskedLM"):
        hubprune.evaluate(tmp_path, {"g": f"{GENERAL_ID}:default:test"}, protocol=Protocol(num_samples=2))
