"""Questions that the model answers itself: greedy, as sure as it says, in memory and streamed, decoder or T5."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hubprune import AutoPrunedModelForCausalLM, PruningConfig, prune, runs
from hubprune.activations import Activations
from hubprune.calibration import corpus_from_tokens
from hubprune.card import render_card
from hubprune.criteria.attribution import Attribution
from hubprune.demo import MEDICAL_ID, MODEL_ID
from hubprune.errors import ConfigError, CorpusError
from hubprune.labelling import label
from hubprune.verifier import CHECKS
from hubprune.weights import weights_of
from hubprune.whole import engine_of, sweeps_of
from hubprune.work import WorkFolder
from tests.families import build, token_ids
from tests.pruned import tiny_tokenizer
from tests.test_seq2seq import t5

QUESTIONS = corpus_from_tokens(token_ids(6, 12, seed=3), "task")
PSEUDO = {"labels": "pseudo", "confidence": 0.0, "answer_tokens": 3.0}


def sure(model):
    """The same model, sure of what it says."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)
    return model


def labelled(model, corpus=QUESTIONS, **settings):
    """The corpus with the model's own answers."""
    with engine_of(weights_of(model)) as engine:
        sweeps = sweeps_of(engine, [[] for _ in engine.blocks], Activations())
        return label(sweeps, corpus, **{"answer_tokens": 3, "confidence": 0.0, **settings})


def written(model, question: torch.Tensor, tokens: int) -> tuple[list[int], float]:
    """What plain transformers writes, and how probable it is."""
    more = {"max_new_tokens": tokens, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    found = model.generate(question[None], attention_mask=torch.ones_like(question[None]), **more)
    scores = torch.cat(found.scores).log_softmax(-1)
    ids = found.sequences[0, -len(scores) :]
    return ids.tolist(), float(scores.gather(1, ids[:, None]).sum().exp())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "t5"])
def test_answers_are_those_that_transformers_generates(family):
    model = t5("gated") if family == "t5" else build(family)
    model.generation_config.eos_token_id = None
    found = labelled(model)
    assert (found.facts.labelled, found.facts.dropped) == (6, 0)
    probabilities = []
    for question, ids, start, text in zip(
        QUESTIONS.sequences, found.sequences, found.answers, found.labels, strict=True
    ):
        expected, probability = written(model, question, 3)
        assert ids[:start].tolist() == question.tolist()
        assert ids[start:].tolist() == expected
        assert text == " ".join(map(str, expected))
        probabilities.append(probability)
    between = sorted(probabilities)[1] * 1.0001
    fewer = labelled(model, confidence=between)
    assert (fewer.facts.labelled, fewer.facts.dropped) == (4, 2)
    kept = [answer for answer, probability in zip(found.labels, probabilities, strict=True) if probability > between]
    assert list(fewer.labels) == kept


def test_answers_that_are_known_are_passed_over_and_questions_keep_room():
    given = dataclasses.replace(QUESTIONS, answers=(9,) * 6, labels=("yes",) * 6)
    found = labelled(build("llama"), given)
    assert found.answers == (9,) * 6
    assert "yes" not in found.labels
    model = build("llama", max_position_embeddings=12)
    cut = labelled(model, dataclasses.replace(QUESTIONS, sequences=tuple(token_ids(6, 12, seed=3))))
    assert {len(ids) for ids in cut.sequences} == {12}
    assert cut.sequences[0][:9].tolist() == QUESTIONS.sequences[0][3:].tolist()


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_an_answer_ends_in_front_of_the_end_token_or_with_it(family):
    """The end token belongs to what a decoder of T5 is asked for; sequences of a decoder model have none."""
    model = t5() if family == "t5" else build(family)
    whole = labelled(model).sequences[0][12:].tolist()
    model.generation_config.eos_token_id = whole[-1]
    found = labelled(model, QUESTIONS.first(1)).sequences[0][12:].tolist()
    assert found == whole[: whole.index(whole[-1]) + (family == "t5")]


def test_the_answer_of_a_decoder_ends_with_its_line():
    class Lines:
        eos_token_id = None

        def decode(self, ids, **_):
            return "\n" if ids == [int(third)] else "word"

    model = build("llama")
    third = labelled(model).sequences[0][-1]
    found = labelled(model, QUESTIONS.first(1), tokenizer=Lines())
    assert len(found.sequences[0]) - found.answers[0] == 2


def test_too_few_sure_answers_are_refused_with_the_remedy():
    with pytest.raises(CorpusError, match=r"answers 0 of the 6 questions .* at least 4 .* lower confidence"):
        labelled(build("llama"), confidence=1.0)
    with pytest.raises(ConfigError, match="option confidence must be between 0 and 1"):
        PruningConfig("attribution", options={"confidence": 2.0})
    with pytest.raises(ConfigError, match="option answer_tokens must be at least 1 token"):
        PruningConfig("attribution", options={"answer_tokens": 0.0})


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_each_answer_counts_as_much_as_it_is_probable(family, monkeypatch):
    model = t5() if family == "t5" else build(family)
    config = PruningConfig("attribution", application="zero", options=PSEUDO)
    seen = {}
    model.generation_config.eos_token_id = None
    expected = [written(model, question, 3) for question in QUESTIONS.sequences]

    def scores(self, view, observed, attributed, examples):
        seen.update(examples)
        return attributed["task"].sum(dim=0)

    monkeypatch.setattr(Attribution, "unit_scores", scores)
    report = prune(model, None, config, {"task": QUESTIONS}, progress=False)
    assert [each.weight for each in seen["task"]] == pytest.approx([p for _, p in expected], rel=1e-3)
    assert [each.label for each in seen["task"]] == [" ".join(map(str, ids)) for ids, _ in expected]
    (facts,) = report.corpora
    assert (facts.labelled, facts.dropped, facts.num_sequences) == (6, 0, 6)
    assert facts.token_sha256 == QUESTIONS.facts.token_sha256  # what was read, so that it can be read again
    assert report.timings["labels"] >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_and_in_memory_give_the_same_bytes(dtype, tmp_path, monkeypatch):
    monkeypatch.delitem(CHECKS, "reload")
    sure(build("llama", dtype)).save_pretrained(tmp_path / "base")
    config = PruningConfig("attribution", options={**PSEUDO, "confidence": 0.01})
    plan = runs._prepared(tmp_path / "base", None, config, {"task": QUESTIONS}, None, False, {})
    files, reports = [], []
    for name, streamed in (("resident", False), ("streamed", True)):
        out = tmp_path / name
        with WorkFolder(runs.work_folder(out), runs.fingerprint(plan)) as work:
            reports.append(runs.produce(plan, out, work, streamed=streamed, progress=False))
        files.append((out / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert reports[0].units == reports[1].units
    assert reports[0].corpora == reports[1].corpora
    card = render_card(reports[0])
    kept = reports[0].corpora[0].labelled
    assert f"The base model answered them itself: {kept} of its answers were used" in card
    assert runs.plan(tmp_path / "base", None, config, {"task": QUESTIONS}, progress=False, evaluation=None).seconds > 0


def test_questions_without_labels_come_in_by_a_keyword(demo_hub):
    """A template that only asks: each row is a question, and none is joined to another."""
    ask = {"sources": {"dataset": MEDICAL_ID, "template": "Question: {question}\nAnswer:"}}
    asked = {"method": "attribution", "sparsity": 0.25, "task": ask, "num_samples": 6, "sequence_length": 64}
    model = AutoPrunedModelForCausalLM.from_pretrained(
        MODEL_ID, labels="pseudo", confidence=0.0, answer_tokens=4, evaluation=None, progress=False, **asked
    )
    report = model.hubprune_report
    assert report.options["labels"] == "pseudo"
    (facts,) = report.corpora
    assert not facts.packing
    assert (facts.examples, facts.labelled) == (6, 6)
    assert facts.tokens < 6 * 64
    with pytest.raises(ConfigError, match="method 'wanda-sp' has no option 'labels'"):
        AutoPrunedModelForCausalLM.from_pretrained(MODEL_ID, labels="pseudo", **{**asked, "method": "wanda-sp"})


def test_a_long_question_loses_its_beginning():
    config = PruningConfig("attribution", application="zero", options=PSEUDO)
    text = " ".join(f"w{number}" for number in range(3, 50))
    corpus = {"texts": [text] * 4, "num_samples": 4, "sequence_length": 16}
    loaded = runs.pruner._as_corpus("task", corpus, tiny_tokenizer(), build("llama"), config, False)
    assert loaded.answers == (16,) * 4
    assert loaded.sequences[0].tolist() == list(range(34, 50))
