"""Encoder-decoders from calibration to a pushed model, and encoders in memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers as tf

from hubprune import (
    AutoPrunedModelForCausalLM,
    AutoPrunedModelForSeq2SeqLM,
    CorpusConfig,
    PruningConfig,
    PruningReport,
    evaluate,
    export,
    load_corpus,
    perplexity,
    prune,
    runs,
    shrink,
    verify,
)
from hubprune.allocation import allocate
from hubprune.calibration import corpus_from_tokens
from hubprune.cli import main
from hubprune.demo import GENERAL_ID, MEDICAL_ID, MODEL_ID
from hubprune.errors import ConfigError, CorpusError, UnsupportedModelError, UsageError
from hubprune.removal import kept_of
from hubprune.unit_criterion import UnitCriterion
from hubprune.units import find_groups
from hubprune.verifier import CHECKS
from hubprune.work import WorkFolder
from tests.families import VOCABULARY, token_ids
from tests.test_resume import stop_after

SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
KINDS = {"relu": "relu", "gated": "gated-gelu"}
FORM = {"template": "Question: {question}\nAnswer: {answer}", "answer": "{answer}"}
QUESTIONS = {"sources": {"dataset": MEDICAL_ID, **FORM}}
SMALL = {"num_samples": 6, "sequence_length": 96, "progress": False}


def t5(kind: str = "relu", vocabulary: int = VOCABULARY, **more) -> tf.PreTrainedModel:
    """A tiny T5 whose blocks have something to say."""
    torch.manual_seed(0)
    config = tf.T5Config(vocab_size=vocabulary, feed_forward_proj=KINDS[kind], **SIZES, **more)
    model = tf.AutoModelForSeq2SeqLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


def examples(count: int = 5, answer: int = 4):
    """Random questions and answers."""
    corpus = corpus_from_tokens(token_ids(count, 16, seed=3), "task")
    return dataclasses.replace(corpus, answers=(16 - answer,) * count, labels=(("yes", "no") * count)[:count])


def logits(model) -> torch.Tensor:
    """What a model answers to fixed questions."""
    more = {"decoder_input_ids": token_ids(seed=4)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=token_ids(), **more).logits


@pytest.fixture(scope="module")
def base(demo_hub, hub_api):
    """A T5 on the Hub, with the tokenizer of the demo."""
    tokenizer = tf.AutoTokenizer.from_pretrained(MODEL_ID)
    model = t5("gated", len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    token = demo_hub.token("me")
    model.push_to_hub("me/tiny-t5", token=token)
    tokenizer.push_to_hub("me/tiny-t5", token=token)
    return "me/tiny-t5"


@pytest.fixture(scope="module")
def model(base):
    return AutoPrunedModelForSeq2SeqLM.from_pretrained(
        base, method="attribution", sparsity=0.25, task=QUESTIONS, **SMALL
    )


# The engine


class Noted(UnitCriterion):
    """Keeps what the engine shows of gradients."""

    gradients, answers_only = "task", True

    def __init__(self) -> None:
        self.found: dict[str, list] = {}

    def attribute(self, view, gradient, inputs, inputs_gradient):
        self.found.setdefault(view.name, []).append((gradient.clone(), inputs.clone(), inputs_gradient.clone()))
        return torch.rand(view.count)

    def unit_scores(self, view, observed, attributed, examples):
        self.examples = examples
        return attributed["task"].sum(dim=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unit", ["ffn_neuron", "kv_group"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_log_probability_of_the_answer(kind, unit, dtype):
    criterion, corpus = Noted(), examples()
    config = PruningConfig("random", unit=unit, sparsity=0.25, application="zero")
    prune(t5(kind).to(dtype), None, config, {"task": corpus}, criterion=criterion, progress=False)
    model = t5(kind).to(dtype).float()
    for position, ids in enumerate(corpus.sequences):
        model.zero_grad()
        found = model(input_ids=ids[None, :12], decoder_input_ids=torch.cat([ids.new_zeros(1), ids[12:-1]])[None])
        total = -F.cross_entropy(found.logits[0], ids[12:], reduction="sum")
        total.backward()
        assert criterion.examples["task"][position].weight == pytest.approx(float(total.exp().detach()), rel=1e-3)
        for group in find_groups(model, (unit,)):
            gradient, inputs, back = criterion.found[group.name][position]
            expected = group.writer.parameter.grad
            assert torch.allclose(gradient, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)
            direct, identity = (inputs * back).sum(dim=0), (group.writer.view() * expected).sum(dim=0)
            assert torch.allclose(direct, identity, atol=1e-4 * float(identity.abs().max()))


UNIT_METHODS = ["attribution", "wanda-sp", "taylor", "magnitude", "random", "cus-prun", "d-pruner"]


@pytest.mark.parametrize("application", ["zero", "compensate"])
@pytest.mark.parametrize("unit", ["ffn_neuron", "ffn_neuron+kv_group"])
@pytest.mark.parametrize("method", [*UNIT_METHODS, "mutual-information"])
def test_masked_and_removed_answer_alike(method, unit, application):
    if method == "mutual-information" and unit != "ffn_neuron":
        return
    model, texts = t5("gated"), {"task": examples()}
    if method == "d-pruner":
        texts = {"general": examples(), "domain": examples(3)}
    report = prune(
        model, None, PruningConfig(method, unit=unit, sparsity=0.25, application=application), texts, progress=False
    )
    groups = {group.name: group for group in find_groups(model, unit.split("+"))}
    kept = kept_of(report.units)
    assert kept.keys() == groups.keys()
    tied: dict[str, list] = {}
    for name, group in groups.items():
        assert int((~kept[name]).sum()) == group.count // 4
        tied.setdefault(group.tied or name, []).append(kept[name].tolist())
    assert all(mask == masks[0] for masks in tied.values() for mask in masks)  # the heads of a stack
    masked, small = logits(model), shrink(model, report)
    assert (logits(small) - masked).abs().max() <= 1e-5 * masked.abs().max()
    assert small.config.d_ff == 36
    assert small.config.num_heads == (3 if "kv_group" in unit else 4)


@pytest.mark.parametrize("method", ["cus-prun", "taylor"])
def test_heads_that_a_stack_shares_tell_how_far_texts_agree(method):
    config = PruningConfig(method, unit="ffn_neuron+kv_group", sparsity=0.25, application="zero")
    for other, same in ((examples(), True), (examples(3), False)):
        report = prune(t5("gated"), None, config, {"language": examples(), "domain": other}, progress=False)
        for row in report.units:
            assert row.overlap.keys() == {"language/domain"}
            assert (row.reached is not None and row.reached >= 0.25) == (method == "cus-prun")
            if same:  # one text under two names
                assert row.overlap == {"language/domain": 1.0}
                assert row.reached in (0.25, None)
        shared = [row for row in report.units if "SelfAttention" in row.name and row.name.startswith("encoder")]
        assert len(shared) > 1
        assert len({row.overlap["language/domain"] for row in shared}) == 1


def test_repair_brings_the_answer_closer():
    before, errors = logits(t5()), []
    for application in ("zero", "compensate"):
        model = t5()
        prune(model, None, PruningConfig("random", sparsity=0.5, application=application), {"task": examples(40)})
        errors.append(float((logits(model) - before).square().mean()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "gblm", "sparsegpt"])
def test_single_weights_of_both_stacks_are_pruned(method):
    model = t5("gated")
    report = prune(model, None, PruningConfig(method, pattern="2:4"), {"task": examples()}, progress=False)
    assert {row.name.split(".")[0] for row in report.matrices} == {"encoder", "decoder"}
    assert report.totals.sparsity == 0.5
    assert report.totals.zeros >= report.totals.pruned


# From the Hub and back


def test_questions_and_answers_become_tokens_apart(base):
    tokenizer = tf.AutoTokenizer.from_pretrained(base)
    config = CorpusConfig.from_dict({**QUESTIONS, "num_samples": 4, "sequence_length": 40})
    corpus = load_corpus(config, tokenizer, name="domain", pairs=True, progress=False)
    for ids, start in zip(corpus.sequences, corpus.answers, strict=True):
        assert len(ids) <= 40
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[:start]).endswith(":")
        assert ids[start] == tokenizer.bos_token_id  # which this tokenizer puts in front of every text
        assert ids[-1] == tokenizer.eos_token_id
    whole = load_corpus(dataclasses.replace(config, sequence_length=400), tokenizer, pairs=True, progress=False)
    question = tokenizer.decode(whole.sequences[0][: whole.answers[0]], skip_special_tokens=True)
    assert question.startswith("Question: ")
    assert question.endswith("\nAnswer:")


def test_one_line_prunes_pushes_and_loads_in_plain_transformers(model, base, hub, hub_api):
    report = model.hubprune_report
    assert isinstance(model, tf.T5ForConditionalGeneration)
    assert model.config.d_ff == 36
    assert report.totals.left == sum(parameter.numel() for parameter in model.parameters())
    (text,) = report.evaluation[:1]
    assert (text.corpus, text.layout, text.variant) == ("task", "answers", "base")
    model.push_to_hub("me/tiny-t5-smaller", token=hub.token("me"))
    assert {"units", "untouched", "reload"} <= set(report.verification.checks)
    plain = tf.AutoModelForSeq2SeqLM.from_pretrained("me/tiny-t5-smaller")
    assert type(plain) is tf.T5ForConditionalGeneration
    assert torch.equal(logits(plain.eval()), logits(model))
    again = AutoPrunedModelForSeq2SeqLM.from_pretrained("me/tiny-t5-smaller")
    assert again.hubprune_report.totals == report.totals
    card = Path(hub_api().hf_hub_download("me/tiny-t5-smaller", "README.md")).read_text(encoding="utf-8")
    assert "pipeline_tag: text2text-generation" in card
    assert "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer" in card
    assert "AutoPrunedModelForSeq2SeqLM.from_pretrained(" in card
    assert "AutoModelForCausalLM" not in card
    assert "the answers of examples, each after its question" in card


def test_the_command_line_gives_the_same_folder_after_it_was_stopped(model, base, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(CHECKS, "reload")  # made in the test above
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "run.yaml").write_text(json.dumps({"task": QUESTIONS}), encoding="utf-8")
    words = ["prune", base, "--config", str(tmp_path / "run.yaml"), "--method", "attribution", "--sparsity", "0.25"]
    words += ["--num-samples", "6", "--sequence-length", "96", "--eval", "none", "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert main(words) != 0
    assert (tmp_path / ".out-run").is_dir()
    assert main(["plan", *words[1:]]) == 0
    assert "no one block stands for both stacks" in " ".join(capsys.readouterr().out.split())
    assert main(words) == 0
    report = PruningReport.load(tmp_path / "out")
    assert report.verification.passed
    assert [row.removed for row in report.units] == [row.removed for row in model.hubprune_report.units]
    loaded = tf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(loaded), logits(model))
    found = evaluate(
        tmp_path / "out", {"seen": {**QUESTIONS, "sources": {**QUESTIONS["sources"], "split": "test"}}},
        num_samples=4, sequence_length=96, answers=True, speed=True, progress=False,
    )  # fmt: skip
    assert [row.variant for row in found.perplexities] == ["base", "pruned"]
    assert len(found.answers) == 8
    assert found.sizes[1].parameters < found.sizes[0].parameters
    assert found.speeds[1].decode > 0


def test_perplexity_is_that_of_the_answers():
    model, corpus = t5(), examples()
    with torch.no_grad():
        total = torch.stack([model(input_ids=ids[None, :12], labels=ids[None, 12:]).loss for ids in corpus.sequences])
    assert perplexity(model, corpus, progress=False).perplexity == pytest.approx(float(total.mean().exp()), rel=1e-5)


# What is refused


def test_the_wrong_door_names_the_right_one(base):
    with pytest.raises(UsageError, match=r"use AutoPrunedModelForSeq2SeqLM\.from_pretrained"):
        AutoPrunedModelForCausalLM.from_pretrained(base, method="random")
    with pytest.raises(UsageError, match=r"use AutoPrunedModelForCausalLM\.from_pretrained"):
        AutoPrunedModelForSeq2SeqLM.from_pretrained(MODEL_ID, method="random")


def test_text_without_answers_is_refused_with_the_remedy(base):
    asked = {"method": "wanda-sp", "general": GENERAL_ID, **SMALL}
    with pytest.raises(CorpusError, match=r"the general corpus holds no answers: .*template ends in an answer"):
        AutoPrunedModelForSeq2SeqLM.from_pretrained(base, **asked)
    with pytest.raises(CorpusError, match="holds no answers"):
        prune(t5(), None, PruningConfig("wanda"), {"domain": token_ids()})


def test_streaming_is_refused_with_the_reason(base, tmp_path):
    asked = {"corpora": {"task": QUESTIONS}, "out": tmp_path / "out", "evaluation": None, **SMALL}
    with pytest.raises(ConfigError, match="an encoder-decoder is pruned whole in memory and cannot be streamed"):
        prune(base, config=PruningConfig("attribution"), max_memory="1MiB", **asked)
    plan = runs._prepared(base, None, PruningConfig("random", repair=False), {}, None, False, {})
    with (
        pytest.raises(UsageError, match="blocks of this one are on disk"),
        WorkFolder(tmp_path / "work", runs.fingerprint(plan)) as work,
    ):
        runs.produce(plan, tmp_path / "out", work, streamed=True, progress=False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PruningConfig("block-influence"), "layers of two kinds"),
        (PruningConfig("random", unit="attention_dim"), "single attention dimensions are looked at in decoder"),
    ],
)
def test_units_that_a_t5_does_not_have_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        allocate(t5(), config)


def test_recovery_and_export_are_for_decoders(base):
    asked = {"method": "random", "task": QUESTIONS, "evaluation": None, **SMALL}
    with pytest.raises(UsageError, match="a recovery trains decoder language models"):
        AutoPrunedModelForSeq2SeqLM.from_pretrained(base, recovery="reconstruct", **asked)
    with pytest.raises(UnsupportedModelError, match="is an encoder-decoder"):
        export(base, "graph")


# Encoders, in memory


def bert(kind=tf.BertForMaskedLM) -> tf.PreTrainedModel:
    """A tiny BERT."""
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return kind(config).eval()


@pytest.mark.parametrize("kind", [tf.BertForMaskedLM, tf.BertForSequenceClassification])
@pytest.mark.parametrize("method", ["magnitude", "random", "wanda-sp", "cus-prun", "mutual-information"])
def test_neurons_of_an_encoder_go_without_a_loss(method, kind):
    model = bert(kind)
    config = PruningConfig(method, unit="ffn_neuron", sparsity=0.25, application="compensate")
    report = prune(model, None, config, {"domain": token_ids(6, 16, seed=5)}, progress=False)
    masked, small = logits(model), shrink(model, report)
    assert small.config.intermediate_size == 36
    assert (logits(small) - masked).abs().max() <= 1e-5 * masked.abs().max()


@pytest.mark.parametrize("method", ["attribution", "taylor", "gblm"])
def test_methods_that_need_a_loss_are_refused_for_an_encoder(method):
    application = "zero" if method == "gblm" else "compensate"
    with pytest.raises(
        UnsupportedModelError, match=r"needs the loss of the next token, and BertForMaskedLM reads both"
    ):
        prune(bert(), None, PruningConfig(method, application=application), {"task": examples()})


def test_heads_of_an_encoder_stay(tmp_path):
    with pytest.raises(UnsupportedModelError, match="has no KV groups"):
        prune(bert(), None, PruningConfig("random", unit="kv_group", application="zero"))
    bert().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="needs a decoder language model"):
        prune(tmp_path, config=PruningConfig("random", repair=False), out=tmp_path / "out", progress=False)
    with pytest.raises(UsageError, match="holds no hubprune_report"):
        verify(tmp_path)
