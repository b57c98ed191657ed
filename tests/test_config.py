"""What is asked for is checked as a whole, before any work, and travels as JSON without loss."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hubprune.config import PruningConfig
from hubprune.corpora import CorpusConfig, SourceConfig, filter_text, joins_documents, parse_corpus, parse_source
from hubprune.errors import ConfigError
from hubprune.fields import ALIASES
from hubprune.presets import ANSWERS, APPLICATIONS, CORPORA, METHODS, TEMPLATES, WEIGHT_METHODS
from hubprune.sparsity import NM, SCOPES, SHARES, Unstructured


def problems_of(kind: Any, **fields: Any) -> tuple[str, ...]:
    """Every rule that these fields break."""
    with pytest.raises(ConfigError) as caught:
        kind(**fields)
    return caught.value.problems


# What to prune and how


def test_defaults_are_those_of_the_method() -> None:
    config = PruningConfig()
    assert config.resolved_pattern() == Unstructured(0.5, "matrix")
    assert config.resolved_application() == "zero"
    assert config.resolved_options() == {"general_weight": 10.0, "form": "dual", "terms": "both"}
    assert PruningConfig("wanda", sparsity=0.6).resolved_pattern() == Unstructured(0.6, "row")
    assert PruningConfig("sparsegpt").resolved_application() == "compensate"


def test_what_is_given_goes_before_the_methods_defaults() -> None:
    config = PruningConfig("wanda", sparsity=0, scope="model", application="compensate")
    assert config.resolved_pattern() == Unstructured(0.0, "model")
    assert config.resolved_application() == "compensate"
    assert PruningConfig("sparsegpt", pattern="1:4").resolved_pattern() == NM(1, 4)
    options = PruningConfig(options={"general_weight": 0}).resolved_options()
    assert options == {"general_weight": 0, "form": "dual", "terms": "both"}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"method": "dpruner"}, "unknown method 'dpruner': did you mean 'd-pruner' or 'cus-prun'?"),
        ({"method": "zzz"}, f"unknown method 'zzz': known: {', '.join(sorted(METHODS))}"),
        ({"method": None}, f"unknown method None: known: {', '.join(sorted(METHODS))}"),
        (
            {"pattern": "5:4"},
            "N:M keeps N of every M weights, so N must be at least 1 and below M, got 5:4: "
            "use for instance '2:4' (keeps 2 of 4) or '1:4'",
        ),
        (
            {"pattern": "half"},
            "a pattern is written 'N:M', N weights kept of every M, got 'half': use for instance '2:4'",
        ),
        (
            {"pattern": "2:4", "sparsity": 0.5},
            "pattern '2:4' fixes the sparsity by itself, got sparsity=0.5 as well: give one",
        ),
        (
            {"pattern": "2:4", "scope": "row"},
            "scope applies to unstructured runs, got scope='row' with '2:4': drop one",
        ),
        ({"scope": "column"}, "scope must be one of row, block, matrix, model, got 'column'"),
        ({"application": "shrink"}, "application must be one of zero, compensate, remove, got 'shrink'"),
        ({"block_size": 0}, "block_size must be a whole number, at least 1 column, got 0"),
        ({"block_size": "128"}, "block_size must be a whole number, at least 1 column, got '128'"),
        ({"batch_size": 1.5}, "batch_size must be a whole number, at least 1 sequence, got 1.5"),
        ({"seed": -1}, "seed must be a whole number, at least 0, got -1"),
        ({"damping": 0.0}, "damping must be above 0 and below 1 (a fraction of the mean diagonal), got 0.0"),
        ({"damping": "1%"}, "damping must be above 0 and below 1 (a fraction of the mean diagonal), got '1%'"),
        (
            {"targets": "re:*proj"},
            "'re:*proj' is not a regular expression (nothing to repeat at position 0): mend what follows 're:'",
        ),
        ({"ignore": [3]}, "targets and ignore hold names of matrices, got 3: write it in quotes"),
        (
            {"method": "ria", "options": {"activation": 1}},
            "method 'ria' has no option 'activation': did you mean 'activation_power'?",
        ),
        ({"method": "wanda", "options": {"x": 1}}, "method 'wanda' has no option 'x': it has none"),
        (
            {"options": {"form": "triple"}},
            "option form must be one of dual, additive, paper, got 'triple'",
        ),
        (
            {"options": {"general_weight": float("inf")}},
            "option general_weight must be a finite number of at least 0, got inf",
        ),
        (
            {"method": "cross-calibration", "options": {"domain_ratio": "much"}},
            "option domain_ratio must be a finite number of at least 0, got 'much'",
        ),
        (
            {"method": "cross-calibration", "options": {"domain_ratio": 1.5}},
            "option domain_ratio must be between 0 and 1, got 1.5",
        ),
    ],
)
def test_a_broken_rule_is_told_with_the_value_and_the_remedy(fields: dict[str, Any], problem: str) -> None:
    assert problems_of(PruningConfig, **fields) == (problem,)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1, 50, float("nan"), "0.5", "half"])
def test_a_sparsity_outside_its_range_is_refused(sparsity: Any) -> None:
    assert problems_of(PruningConfig, sparsity=sparsity) == (
        f"sparsity must be a number of at least 0 and below 1, got {sparsity!r}: it is the fraction removed, "
        "write 0.5 for half",
    )


def test_every_broken_rule_is_told_at_once() -> None:
    problems = problems_of(
        PruningConfig,
        method="wandb",
        sparsity=2,
        pattern="5:4",
        scope="all",
        application="cut",
        block_size=0,
        damping=1,
    )
    words = ("sparsity must", "N:M keeps", "fixes the sparsity", "scope applies", "scope must", "application must")
    words += ("did you mean 'wanda'", "block_size", "damping")
    assert len(problems) == len(words)
    for problem, word in zip(problems, words, strict=True):
        assert word in problem


def test_one_name_is_a_list_of_one() -> None:
    config = PruningConfig(targets="q_proj", ignore="re:.*up_proj")  # type: ignore[arg-type]
    assert (config.targets, config.ignore) == (("q_proj",), ("re:.*up_proj",))


def test_the_options_given_are_copied() -> None:
    given_options = {"general_weight": 2.0}
    config = PruningConfig(options=given_options)
    given_options["general_weight"] = -1.0
    assert config.options == {"general_weight": 2.0}


# Corpora


@pytest.mark.parametrize(
    ("fields", "required"),
    [
        ({}, ("general", "domain")),
        ({"options": {"terms": "no-general"}}, ("domain",)),
        ({"options": {"terms": "no-domain"}}, ("general",)),
        ({"options": {"terms": "general-only"}}, ("general",)),
        ({"method": "cross-calibration"}, ("general", "domain")),
        ({"method": "wanda"}, ("any",)),
        ({"method": "magnitude"}, ()),
        ({"method": "magnitude", "application": "compensate"}, ("any",)),
    ],
)
def test_a_run_needs_the_corpora_of_its_method_and_options(fields: dict[str, Any], required: tuple[str, ...]) -> None:
    config = PruningConfig(**fields)
    assert config.required_corpora() == required
    config.check_corpora(("general", "domain"))
    if not required:
        config.check_corpora(())
    elif required == ("any",):
        config.check_corpora(("domain",))
    else:
        config.check_corpora(required)


def test_a_missing_corpus_is_told_with_what_can_be_given() -> None:
    ways = f"(a Hub data set, a file, a list of strings or a preset: {', '.join(CORPORA)})"
    with pytest.raises(ConfigError) as caught:
        PruningConfig().check_corpora(("general",))
    assert caught.value.problems == (f"method 'd-pruner' needs a domain corpus, got general: give domain=... {ways}",)
    with pytest.raises(ConfigError) as caught:
        PruningConfig().check_corpora(())
    assert [problem.partition(" corpus, got none")[0] for problem in caught.value.problems] == [
        "method 'd-pruner' needs a general",
        "method 'd-pruner' needs a domain",
    ]
    with pytest.raises(ConfigError) as caught:
        PruningConfig("wanda").check_corpora(())
    assert caught.value.problems == (
        f"method 'wanda' needs calibration text, got none: give domain=... or general=... {ways}",
    )


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("org/set", SourceConfig("org/set")),
        ("set", SourceConfig("set")),
        ("org/set:small", SourceConfig("org/set", "small")),
        ("org/set:small:test", SourceConfig("org/set", "small", "test")),
        ("org/set::test", SourceConfig("org/set", None, "test")),
        ("org/set@v1:small:test", SourceConfig("org/set", "small", "test", "v1")),
        (
            "org/set@refs/convert/parquet::train",
            SourceConfig("org/set", None, "train", "refs/convert/parquet"),
        ),
        ("org/set?lang=de", SourceConfig("org/set", filters=(("lang", "de"),))),
        (
            "org/set@v1:small:test?meta.lang=de&kind=a=b",
            SourceConfig("org/set", "small", "test", "v1", filters=(("meta.lang", "de"), ("kind", "a=b"))),
        ),
        ("org/set?name=C%2B%2B%26&empty=", SourceConfig("org/set", filters=(("name", "C++&"), ("empty", "")))),
        ("notes.jsonl?lang=de", SourceConfig("notes.jsonl", filters=(("lang", "de"),))),
        ("./what?/a.txt", SourceConfig("./what?/a.txt")),
        ("./folder:odd", SourceConfig("./folder:odd")),
        ("/data/set", SourceConfig("/data/set")),
        ("~/set", SourceConfig("~/set")),
        ("C:\\data\\set", SourceConfig("C:\\data\\set")),
        *(
            (f"notes{suffix}", SourceConfig(f"notes{suffix}"))
            for suffix in (".txt", ".csv", ".json", ".jsonl", ".jsonl.gz", ".parquet")
        ),
    ],
)
def test_a_short_form_says_repository_revision_configuration_and_split(text: str, source: SourceConfig) -> None:
    assert parse_source(text) == source


def test_a_data_set_of_a_preset_brings_its_template_unless_another_way_is_named() -> None:
    name, template = next(iter(TEMPLATES.items()))
    wanted = SourceConfig(name, None, "test", "v1", template, answer=ANSWERS[name])
    assert parse_source(f"{name}@v1::test") == parse_source(f"{name}@v1::test", template=template) == wanted
    other = parse_source(name, template="{x}")
    assert (other.template, other.answer) == ("{x}", None)
    named = parse_source(name, text_column="x")
    assert (named.template, named.text_column, named.answer) == (None, "x", None)
    assert parse_source(name, answer=None) == SourceConfig(name, template=template)


@given(st.lists(st.tuples(st.text(min_size=1), st.text()), min_size=1, max_size=3).map(tuple))
def test_filters_are_written_as_they_are_read(filters: tuple[tuple[str, str], ...]) -> None:
    text = f"org/set:small{filter_text(filters)}"
    assert parse_source(text) == SourceConfig("org/set", "small", filters=filters)
    assert parse_corpus(f"{text} + org/b").sources == (parse_source(text), SourceConfig("org/b"))
    assert filter_text(()) == ""


def test_filters_are_also_a_mapping_and_compare_as_text() -> None:
    wanted = SourceConfig("org/a", filters=(("lang", "de"), ("year", "2020")))
    assert SourceConfig("org/a", filters={"lang": "de", "year": 2020}) == wanted  # type: ignore[arg-type]
    assert parse_corpus({"sources": {"dataset": "org/a", "filters": {"lang": "de", "year": 2020}}}).sources == (
        wanted,
    )


@pytest.mark.parametrize(
    ("name", "answers", "packing", "joined"),
    [
        ("task", ["{a}", "{b}"], None, False),
        ("task", ["{a}", None], None, True),
        ("task", [None], None, True),
        ("task", [], None, True),
        ("domain", ["{a}"], None, True),
        ("task", ["{a}"], True, True),
        ("domain", ["{a}"], False, False),
    ],
)
def test_only_a_task_whose_sources_have_answers_is_not_joined_unless_said(
    name: str, answers: list[str | None], packing: bool | None, joined: bool
) -> None:
    assert joins_documents(name, answers, packing) is joined


def test_a_corpus_is_given_in_many_ways() -> None:
    sources = (SourceConfig("org/a", None, "train"), SourceConfig("notes.txt"))
    config = CorpusConfig(sources=sources, num_samples=4)
    assert parse_corpus("org/a::train + notes.txt", num_samples=4) == config
    assert parse_corpus(config, num_samples=9) is config
    assert parse_corpus(config.to_dict(), num_samples=9) == config
    assert (
        parse_corpus({"sources": ["org/a::train", {"dataset": "notes.txt"}], "nsamples": 4}, num_samples=9) == config
    )
    assert parse_corpus(["one", "two"], seed=3) == CorpusConfig(texts=("one", "two"), seed=3)
    assert parse_corpus("org/a", num_samples=None, sequence_length=None) == CorpusConfig((SourceConfig("org/a"),))


def test_one_text_or_one_source_is_a_list_of_one() -> None:
    assert CorpusConfig(texts="a whole text").texts == ("a whole text",)  # type: ignore[arg-type]
    for one in ("org/a", {"dataset": "org/a"}, SourceConfig("org/a")):
        assert CorpusConfig(sources=one).sources == (SourceConfig("org/a"),)  # type: ignore[arg-type]


def test_a_preset_is_a_corpus_with_its_sources_and_weights() -> None:
    config = parse_corpus("medical", num_samples=10)
    assert [source.dataset for source in config.sources] == ["qiaojin/PubMedQA", "lavita/MedQuAD"]
    assert [source.weight for source in config.sources] == [0.6, 0.4]
    assert config.num_samples == 10


@pytest.mark.parametrize("value", ["", [], [1], None, 7, {"a": 1}.keys()])
def test_what_is_no_corpus_is_told_what_is_one(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_corpus(value)
    assert str(caught.value) == (
        f"a corpus is a preset ({', '.join(CORPORA)}), a data set 'repo[@revision][:config[:split]][?column=value]', "
        f"several joined with '+', a file, a CorpusConfig or a list of strings, got {value!r}"
    )


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "a corpus needs either data sets or texts, got neither"),
        ({"texts": ["a"], "sources": ["org/a"]}, "a corpus needs either data sets or texts, got both"),
        ({"texts": ["a"], "num_samples": 0}, "num_samples must be a whole number, at least 1 sequence, got 0"),
        ({"texts": ["a"], "num_samples": "8"}, "num_samples must be a whole number, at least 1 sequence, got '8'"),
        (
            {"texts": ["a"], "sequence_length": 1},
            "sequence_length must be a whole number, at least 2 tokens, got 1",
        ),
        ({"texts": ["a"], "seed": -2}, "seed must be a whole number, at least 0, got -2"),
        ({"sources": ["org/a", ""]}, "a corpus source needs a data set or a file, got an empty name"),
        ({"sources": [{}]}, "a corpus source needs a data set or a file, got an empty name"),
        (
            {"sources": [{"dataset": "org/a", "filters": "lang=de"}]},
            "filters are columns with their values, such as {'lang': 'de'}, got 'lang=de'",
        ),
        (
            {"sources": [{"dataset": "org/a", "filters": [["", "de"]]}]},
            "filters are columns with their values, such as {'lang': 'de'}, got [['', 'de']]",
        ),
        (
            {"sources": [{"dataset": "org/a", "template": "{a} {b}", "answer": "{c}"}]},
            "an answer is the end of its template, got '{c}' for '{a} {b}': give both, such as "
            "template='{question} {answer}' and answer='{answer}'",
        ),
        (
            {"sources": [{"dataset": "org/a", "answer": "{c}"}]},
            "an answer is the end of its template, got '{c}' for None: give both, such as "
            "template='{question} {answer}' and answer='{answer}'",
        ),
        (
            {"sources": [{"dataset": "org/a", "template": "{a}", "answer": "{a}"}]},
            "an answer follows a question, got '{a}' as all or nothing of its template",
        ),
        (
            {"sources": [{"dataset": "org/a", "spilt": "test"}]},
            "SourceConfig has no field 'spilt': did you mean 'split' or 'filters'?",
        ),
    ],
)
def test_a_corpus_that_breaks_a_rule_is_refused(fields: dict[str, Any], problem: str) -> None:
    assert problems_of(CorpusConfig, **fields) == (problem,)


def test_a_source_tells_all_its_broken_rules_at_once() -> None:
    assert problems_of(SourceConfig, dataset="", template="{a}", text_column="a", weight=0) == (
        "a corpus source needs a data set or a file, got an empty name",
        "give a template or a text column, got both: '{a}' and 'a'",
        "the weight of '' must be a number above 0, got 0",
    )


# JSON


shares = st.none() | st.floats(0, 1, exclude_max=True)
counts = st.integers(1, 4096)
names = st.lists(st.sampled_from(["q_proj", "re:.*mlp.*", "model.layers.0.self_attn.k_proj"])).map(tuple)
configs = st.builds(
    PruningConfig,
    method=st.sampled_from(sorted(WEIGHT_METHODS)),
    sparsity=shares,
    scope=st.none() | st.sampled_from(SCOPES),
    application=st.none() | st.sampled_from(["zero", "compensate"]),
    targets=names,
    ignore=names,
    block_size=counts,
    damping=st.floats(0, 1, exclude_min=True, exclude_max=True),
    batch_size=counts,
    seed=st.integers(0, 2**31),
) | st.builds(PruningConfig, pattern=st.sampled_from(["2:4", "4:8", "1:4"]), options=st.just({"form": "paper"}))
configs |= st.builds(
    PruningConfig,
    method=st.sampled_from(["d-pruner", "cus-prun", "random"]),
    unit=st.sampled_from(["ffn_neuron", "kv_group", "ffn_neuron+kv_group"]),
    sparsity=shares,
    share_of=st.sampled_from(SHARES),
    application=st.none() | st.sampled_from(APPLICATIONS),
    multiple=st.none() | counts,
)
ways_to_text = st.one_of(
    st.just({}),
    st.builds(lambda text: {"template": text}, st.text()),
    st.builds(lambda text: {"template": text + "{a}", "answer": "{a}"}, st.text(min_size=1)),
    st.just({"text_column": "body"}),
)
sources_given = st.builds(
    lambda way, **fields: SourceConfig(**fields, **way),
    ways_to_text,
    dataset=st.text(min_size=1),
    config=st.none() | st.text(),
    split=st.none() | st.text(),
    revision=st.none() | st.text(),
    weight=st.floats(0, 100, exclude_min=True),
    filters=st.dictionaries(st.text(min_size=1), st.text(), max_size=2),
)
lengths = st.none() | st.integers(2, 4096)
corpora = st.builds(
    CorpusConfig,
    sources=st.lists(sources_given, min_size=1, max_size=3).map(tuple),
    num_samples=counts,
    sequence_length=lengths,
    packing=st.none() | st.booleans(),
    streaming=st.booleans(),
    seed=counts,
) | st.builds(CorpusConfig, texts=st.lists(st.text(), min_size=1).map(tuple), sequence_length=lengths)


@settings(max_examples=50, deadline=None)
@given(st.one_of(configs, corpora))
def test_a_config_comes_back_from_json(config: PruningConfig | CorpusConfig) -> None:
    data = json.loads(json.dumps(config.to_dict()))
    assert type(config).from_dict(data) == config
    assert set(data) == {field.name for field in dataclasses.fields(config)}


@pytest.mark.parametrize(("word", "name"), ALIASES.items())
def test_words_of_other_tools_are_understood(word: str, name: str) -> None:
    values: dict[str, Any] = {"sparsity": 0.25, "pattern": "1:4", "damping": 0.5, "num_samples": 7}
    value = values.get(name, 33)
    kind = CorpusConfig if name in ("num_samples", "sequence_length") else PruningConfig
    rest = {"texts": ["a"]} if kind is CorpusConfig else {}
    assert getattr(kind.from_dict({word: value, **rest}), name) == value
    with pytest.raises(ConfigError) as caught:
        kind.from_dict({name: value, word: value, **rest})
    assert str(caught.value) == f"{word!r} is another word for a field that is given already: give {name!r} once"


def test_unknown_fields_are_refused_with_near_names() -> None:
    with pytest.raises(ConfigError) as caught:
        PruningConfig.from_dict({"sparcity": 0.5, "targetz": []})
    assert caught.value.problems == (
        "PruningConfig has no field 'sparcity': did you mean 'sparsity'?",
        "PruningConfig has no field 'targetz': did you mean 'targets'?",
    )
    with pytest.raises(ConfigError, match="^CorpusConfig has no field 'num_sample': did you mean 'num_samples'"):
        parse_corpus({"texts": ["a"], "num_sample": 3})


def test_a_pattern_without_quotes_in_yaml_is_explained() -> None:
    data = yaml.safe_load("method: wanda\npattern: 2:4\n")
    with pytest.raises(ConfigError, match=r"use for instance '2:4', in a YAML file with the quotes$"):
        PruningConfig.from_dict(data)
    assert PruningConfig.from_dict(yaml.safe_load("pattern: '2:4'")).pattern == "2:4"
