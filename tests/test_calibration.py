"""Text to token blocks: what is packed, what is counted, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hubprune.calibration import Corpus, _shares, corpus_from_tokens, held_out, load_corpus, refuse_overlap
from hubprune.corpora import CorpusConfig, SourceConfig, parse_corpus
from hubprune.errors import CorpusError
from hubprune.facts import CorpusFacts

GENERAL = "hubprune-demo/general"


class Letters:
    """A tokenizer that a test can follow: one id a character, 1 in front of a text, 2 the end token."""

    eos_token_id: int | None = 2
    chat_template = None

    def __call__(self, text, add_special_tokens=True, verbose=True):
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}


def letters(text: str) -> list[int]:
    return [1, *(ord(letter) for letter in text)]


def ids(corpus: Corpus) -> list[list[int]]:
    return [sequence.tolist() for sequence in corpus.sequences]


def test_packing_joins_documents_with_the_end_token_and_cuts_full_sequences():
    corpus = load_corpus(["abcd", "efg", "hijklmn"], Letters(), num_samples=2, sequence_length=6)
    stream = [*letters("abcd"), 2, *letters("efg"), 2, *letters("hijklmn"), 2]
    assert ids(corpus) == [stream[:6], stream[6:12]]
    assert (corpus.facts.num_sequences, corpus.facts.sequence_length, corpus.facts.tokens) == (2, 6, 12)


def test_without_packing_a_sequence_is_one_document_cut_at_the_length():
    config = CorpusConfig(texts=("abcdefgh", "", "xy"), num_samples=2, sequence_length=5, packing=False)
    corpus = load_corpus(config, Letters())
    assert ids(corpus) == [letters("abcd"), letters("xy")]
    assert not corpus.facts.packing
    assert corpus.facts.sequence_length == 5


def test_a_tokenizer_without_an_end_token_just_joins():
    tokenizer = Letters()
    tokenizer.eos_token_id = None
    assert ids(load_corpus(["ab", "cd"], tokenizer, num_samples=1, sequence_length=6)) == [
        [*letters("ab"), *letters("cd")]
    ]


def test_batches_hold_sequences_of_one_length_in_order():
    lengths = [3, 3, 3, 5, 5, 3]
    corpus = Corpus("x", tuple(torch.full((n,), i) for i, n in enumerate(lengths)), CorpusFacts("x"))
    found = list(corpus.batches(2))
    assert [tuple(batch.shape) for batch in found] == [(2, 3), (1, 3), (2, 5), (1, 3)]
    assert [int(row[0]) for batch in found for row in batch] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("limit", "length"), [(None, 2048), (100_000, 2048), (64, 64)])
def test_default_length_is_capped_and_never_what_a_long_model_announces(limit, length):
    text = "word " * 20_000
    corpus = load_corpus([text], Letters(), num_samples=1, max_length=limit)
    assert corpus.facts.sequence_length == length


def test_a_length_that_the_model_cannot_read_is_refused():
    with pytest.raises(CorpusError, match=r"at most the 64 tokens .* got 65 .* lower it"):
        load_corpus(["text"], Letters(), max_length=64, sequence_length=65)
    asked = load_corpus(["a" * 9000], Letters(), max_length=None, sequence_length=4096, num_samples=2)
    assert asked.facts.sequence_length == 4096


def test_fewer_sequences_than_asked_is_an_error_that_says_how_many_there_are():
    with pytest.raises(
        CorpusError,
        match=r"general corpus must give 3 sequences of 4 tokens and gives 2 \(1 documents, 9 tokens\): lower",
    ):
        load_corpus(["abcdefg"], Letters(), name="general", num_samples=3, sequence_length=4)


def test_an_evaluation_takes_what_there_is():
    two = load_corpus(["abcdefg"], Letters(), num_samples=3, sequence_length=4, at_most=True)
    assert two.facts.num_sequences == 2
    short = load_corpus(["ab"], Letters(), num_samples=3, sequence_length=100, at_most=True)
    assert ids(short) == [[*letters("ab"), 2]]


@pytest.mark.parametrize("at_most", [False, True])
@pytest.mark.parametrize("texts", [["", "  \n"], ["\t"]])
def test_empty_texts_are_refused(texts, at_most):
    with pytest.raises(CorpusError, match=r"holds no text that can be used: give texts"):
        load_corpus(texts, Letters(), num_samples=1, at_most=at_most)


@given(st.integers(1, 300), st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_shares_add_up_exactly_and_no_source_is_left_out(num_samples, weights):
    config = CorpusConfig(tuple(SourceConfig(f"a/{w}", weight=w) for w in weights), num_samples=num_samples)
    if num_samples < len(weights):
        with pytest.raises(CorpusError, match="at least one for each source"):
            _shares(config, "general")
        return
    counts = _shares(config, "general")
    assert sum(counts) == num_samples
    assert min(counts) >= 1
    spare = num_samples - len(weights)
    assert all(abs(c - 1 - spare * w / sum(weights)) <= 1 for c, w in zip(counts, weights, strict=True))


def test_the_same_request_gives_the_same_tokens_and_any_change_another_fingerprint(tmp_path: Path):
    def make(**changes):
        rows = [
            {"text": f"line {number} of {'many ' * (number % 7)}", "other": str(number), "kind": number % 2}
            for number in range(200)
        ]
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        source = SourceConfig(str(file), template=changes.pop("template", None), filters=changes.pop("filters", ()))
        settings = {"num_samples": 8, "sequence_length": 32, "seed": 1, **changes}
        return load_corpus(CorpusConfig((source,), **settings), Letters(), name="domain").facts

    first = make()
    assert make() == first
    variants = [
        make(seed=2),
        make(num_samples=9),
        make(sequence_length=33),
        make(packing=False),
        make(template="{other}"),
        make(filters={"kind": "1"}),
    ]
    assert len({first.fingerprint, *(facts.fingerprint for facts in variants)}) == 7
    assert variants[-1].sources[0].filters == [("kind", "1")]
    assert make(seed=2).token_sha256 != first.token_sha256


def test_facts_name_the_sources_and_show_a_sample_of_each(demo_hub):
    value = f"{GENERAL}:default:train+hubprune-demo/medical"
    facts = load_corpus(value, Letters(), num_samples=10, sequence_length=200).facts
    assert [(s.dataset, s.config, s.split) for s in facts.sources] == [
        (GENERAL, "default", "train"),
        ("hubprune-demo/medical", "default", "train"),
    ]
    assert all(len(source.commit) == 40 and source.rows > 0 for source in facts.sources)
    assert len(facts.samples) == 2
    assert all(0 < len(sample) <= 240 for sample in facts.samples)


def test_downloaded_and_streamed_corpora_have_the_same_shape(demo_hub):
    streamed, whole = (
        load_corpus(CorpusConfig((SourceConfig(GENERAL),), num_samples=4, sequence_length=50, streaming=s), Letters())
        for s in (True, False)
    )
    assert streamed.facts.tokens == whole.facts.tokens == 200


def test_held_out_is_the_test_split_pinned_to_the_commit(demo_hub):
    config = parse_corpus(f"{GENERAL}+hubprune-demo/legal", num_samples=5, sequence_length=64)
    test = held_out(config, num_samples=7)
    assert test is not None
    assert [source.split for source in test.sources] == ["test", "test"]
    assert all(len(source.revision) == 40 for source in test.sources)
    assert (test.num_samples, test.sequence_length) == (7, 64)
    assert held_out(parse_corpus(f"{GENERAL}:default:test"), num_samples=7) is None
    assert held_out(parse_corpus(["a text"]), num_samples=7) is None


@pytest.mark.real
def test_filters_and_answers_hold_for_held_out_splits(real_hub):
    config = parse_corpus("hubprune-real/meqsum:default:train?id=1-131188152.xml.txt+openai/gsm8k:main:train")
    test = held_out(config, num_samples=3)
    assert [source.split for source in test.sources] == ["test", "test"]
    assert [source.filters for source in test.sources] == [(("id", "1-131188152.xml.txt"),), ()]
    assert test.sources[1].answer == "{answer}"


def test_held_out_of_a_file_is_none(tmp_path: Path):
    file = tmp_path / "text.txt"
    file.write_text("one line\n", encoding="utf-8")
    assert held_out(parse_corpus(str(file)), num_samples=7) is None


SENTENCE = "The quick brown fox jumps over the lazy dog."


@pytest.mark.parametrize("again", [SENTENCE, "  the QUICK brown fox, jumps over the lazy dog "])
def test_evaluating_on_calibration_text_is_refused_whatever_its_spelling(again):
    used = load_corpus([SENTENCE], Letters(), name="domain", num_samples=1, sequence_length=8)
    test = load_corpus([again], Letters(), name="medical", num_samples=1, sequence_length=8)
    with pytest.raises(CorpusError, match=r"medical evaluation text shares 1 of its documents with the domain corpus"):
        refuse_overlap([used], [test])
    other = load_corpus(
        ["An altogether different text about something else."], Letters(), num_samples=1, sequence_length=8
    )
    refuse_overlap([used], [other])


def test_one_row_through_two_templates_is_the_same_row(demo_hub):
    def make(template):
        source = SourceConfig(GENERAL, split="test", template=template)
        return load_corpus(CorpusConfig((source,), num_samples=2, sequence_length=200), Letters())

    with pytest.raises(CorpusError, match="must not be calibration text"):
        refuse_overlap([make("{question}")], [make("{answer}")])


def test_documents_that_calibration_used_can_be_passed_over():
    used = load_corpus([SENTENCE], Letters(), num_samples=1, sequence_length=8)
    rest = load_corpus(
        [SENTENCE, "Another text with quite other words in it."],
        Letters(),
        num_samples=1,
        sequence_length=8,
        exclude=used.keys,
    )
    assert ids(rest)[0] == letters("Another")
    refuse_overlap([used], [rest])


def test_token_ids_are_taken_as_they_are():
    tokens = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    corpus = corpus_from_tokens(tokens, "domain")
    assert ids(corpus) == tokens.tolist()
    assert (corpus.facts.name, corpus.facts.num_sequences, corpus.facts.tokens) == ("domain", 3, 12)
    with pytest.raises(CorpusError, match="shares 1 of its documents"):
        refuse_overlap([corpus], [corpus_from_tokens(tokens[2:], "test")])


# Examples

ROWS = [("ab?", "yes"), ("cdef?", "no"), ("?", "yes"), ("gh?", "maybe so, though")]


def task_file(folder: Path) -> SourceConfig:
    file = folder / "task.jsonl"
    file.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in ROWS), encoding="utf-8")
    return SourceConfig(str(file), template="{q} {a}.", answer="{a}.")


def read_task(sources, name="task", **settings):
    config = CorpusConfig(sources, **{"num_samples": 4, "sequence_length": 9, **settings})
    return load_corpus(config, Letters(), name=name, at_most=True)


def test_a_task_is_read_as_examples_whose_answers_stay_whole(tmp_path: Path):
    corpus = read_task(task_file(tmp_path))
    found = zip(ids(corpus), corpus.answers, corpus.labels, strict=True)
    assert sorted(found) == sorted(
        [(letters("ab? yes."), 5, "yes"), (letters("def? no."), 6, "no"), (letters("? yes."), 3, "yes")]
    )
    facts = corpus.facts
    assert (facts.packing, facts.examples, facts.distinct_answers, facts.passed_over) == (False, 3, 2, 1)
    assert facts.sources[0].answer == "{a}."
    assert facts.sources[0].rows == 3


def test_only_a_task_is_read_as_examples_unless_said(tmp_path: Path):
    source = task_file(tmp_path)
    for corpus in (read_task(source, name="domain"), read_task(source, packing=True)):
        assert corpus.facts.packing
        assert (corpus.answers, corpus.labels, corpus.facts.examples) == ((), (), 0)
    assert len(read_task(source, name="domain", packing=False).answers) == 3
    plain = read_task(SourceConfig(source.dataset, template=source.template))
    assert plain.facts.packing
    assert plain.answers == ()


def test_a_task_of_which_some_sources_have_no_answer_is_refused(tmp_path: Path):
    source = task_file(tmp_path)
    mixed = (source, SourceConfig(source.dataset, template="{q}"))
    for packing in (None, False):
        with pytest.raises(
            CorpusError, match=r"all sources of a task have an answer or none, and .*task.jsonl has none"
        ):
            read_task(mixed, packing=packing)
    assert read_task(mixed, packing=True).answers == ()
    assert read_task(mixed, name="domain").answers == ()


def test_answers_are_part_of_the_fingerprint_and_keep_their_place_under_another_name(tmp_path: Path):
    source = task_file(tmp_path)
    corpus, wider = (
        read_task(given) for given in (source, SourceConfig(source.dataset, template="{q} {a}.", answer=" {a}."))
    )
    assert corpus.facts.token_sha256 == wider.facts.token_sha256
    assert [at - 1 for at in sorted(corpus.answers)] == sorted(wider.answers)
    moved = Corpus(corpus.name, corpus.sequences, corpus.facts, corpus.keys, wider.answers, corpus.labels)
    renamed, other = corpus.named("mine"), moved.named("mine")
    assert (renamed.answers, renamed.labels) == (corpus.answers, corpus.labels)
    assert renamed.facts.examples == 3
    assert len({corpus.facts.fingerprint, renamed.facts.fingerprint, other.facts.fingerprint}) == 3
    assert renamed.named("task").facts == corpus.facts


def test_examples_whose_answers_all_are_too_long_are_told(tmp_path: Path):
    source = task_file(tmp_path)
    with pytest.raises(CorpusError, match=r"4 examples were passed over, since their answer alone is longer .* 3 tok"):
        read_task(source, sequence_length=3)


def test_the_demo_is_a_task_too(demo_hub):
    tokenizer = AutoTokenizer.from_pretrained("hubprune-demo/tiny-base")
    template = {"template": "Question: {question}\nAnswer: {answer}", "answer": "{answer}"}
    config = CorpusConfig(SourceConfig("hubprune-demo/medical", **template), num_samples=6, sequence_length=128)
    corpus = load_corpus(config, tokenizer, name="task")
    assert len(corpus.answers) == len(corpus.labels) == 6
    for sequence, at, label in zip(corpus.sequences, corpus.answers, corpus.labels, strict=True):
        assert tokenizer.decode(sequence[at:], skip_special_tokens=True).strip() == label
        assert tokenizer.decode(sequence[:at]).endswith("Answer:")


@pytest.mark.real
def test_real_tasks_end_in_their_answers(real_hub):
    tokenizer = AutoTokenizer.from_pretrained("hubprune-real/tri-domain-6m")
    asked = {"num_samples": 40, "sequence_length": 200}
    corpus = load_corpus("qiaojin/PubMedQA:pqa_labeled", tokenizer, name="task", **asked)
    assert set(corpus.labels) == {"yes", "no", "maybe"}
    assert (corpus.facts.examples, corpus.facts.distinct_answers) == (40, 3)
    assert max(map(len, corpus.sequences)) == 200
    for sequence, at, label in zip(corpus.sequences, corpus.answers, corpus.labels, strict=True):
        assert tokenizer.decode(sequence[:at]).endswith("Answer:")
        assert tokenizer.decode(sequence[at:]).startswith(f" {label}. ")
    two = load_corpus("openai/gsm8k:main+casehold/casehold:all", tokenizer, name="task", **asked)
    assert len(two.answers) == 40
    assert all("####" in tokenizer.decode(s[at:]) for s, at in zip(two.sequences[:20], two.answers, strict=False))


@pytest.mark.real
@pytest.mark.parametrize("streaming", [True, False])
def test_one_language_of_a_real_set_is_read_alone(real_hub, streaming):
    tokenizer = AutoTokenizer.from_pretrained("hubprune-real/tri-domain-6m")
    place = "hubprune-real/xquad_contexts:default:train"
    asked = {"num_samples": 240, "sequence_length": 512, "packing": False, "streaming": streaming}
    german, english = (
        load_corpus(f"{place}?lang={lang}", tokenizer, name="language", **asked) for lang in ("de", "en")
    )
    words = {"der", "die", "und", "in"}
    assert all(words & set(tokenizer.decode(sequence).split()) for sequence in german.sequences)
    assert german.facts.sources[0].filters == [("lang", "de")]
    assert german.facts.sources[0].rows == 240
    refuse_overlap([german], [english])
    with pytest.raises(CorpusError, match="must give 241 sequences .* and gives 240"):
        load_corpus(f"{place}?lang=de", tokenizer, **{**asked, "num_samples": 241})
    with pytest.raises(CorpusError, match="no row with lang='fr': .* lang is 'de', 'en', 'es', 'th', 'zh'"):
        load_corpus(f"{place}?lang=fr", tokenizer, **asked)


@pytest.mark.parametrize(
    "tokens", [torch.zeros(3, 4), torch.zeros(4, dtype=torch.long), torch.zeros(0, 4).long(), torch.zeros(3, 1).long()]
)
def test_other_tensors_are_refused(tokens):
    with pytest.raises(CorpusError, match=r"integers of shape \(n, T\) with T of at least 2, got"):
        corpus_from_tokens(tokens)


def test_conversations_go_through_the_chat_template_without_a_second_start_token(tmp_path: Path):
    class Chat(Letters):
        chat_template = "given"

        def apply_chat_template(self, messages, tokenize):
            assert not tokenize
            return "".join(f"{turn['role']}:{turn['content']};" for turn in messages)

    file = tmp_path / "chat.jsonl"
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    file.write_text(json.dumps({"conversations": turns}) + "\n", encoding="utf-8")
    config = CorpusConfig((SourceConfig(str(file)),), num_samples=1, sequence_length=50, packing=False)
    assert ids(load_corpus(config, Chat())) == [[ord(letter) for letter in "user:hi;assistant:ho;"]]
