"""A record turned back into the lines that repeat its run; what a line cannot say is not said wrongly."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubprune.config import PruningConfig
from hubprune.corpora import CorpusConfig, SourceConfig, parse_corpus, parse_source
from hubprune.facts import BaseFacts, CorpusFacts, SourceFacts
from hubprune.presets import CORPORA, WEIGHT_METHODS
from hubprune.recipe import base_on_hub, cli_recipe, public, python_recipe, quote
from hubprune.report import PruningReport

COMMIT = "a" * 40


def facts(name: str, *sources: SourceConfig, **fields: Any) -> CorpusFacts:
    """A corpus as it was used, 16 sequences of 64 tokens from the sources."""
    rows = [
        SourceFacts(
            *(s.dataset, s.config, s.split, s.revision, s.template),
            rows=9,
            text_column=s.text_column,
            weight=s.weight,
            filters=list(s.filters),
            answer=s.answer,
        )
        for s in sources
    ]
    return CorpusFacts(name, rows, **{"num_sequences": 16, "sequence_length": 64, "tokens": 1024, **fields})


def report(config: PruningConfig | None = None, *corpora: CorpusFacts, **base: Any) -> PruningReport:
    base = {"model_id": "org/base", "commit": COMMIT, **base}
    return PruningReport(
        base=BaseFacts(**base), config=(config or PruningConfig("wanda")).to_dict(), corpora=list(corpora)
    )


def run_python(source: str | None, **names: Any) -> tuple[str, dict[str, Any], str | None]:
    """Run the lines against a recorder in place of the Auto class: base, keywords and where to push."""
    calls: list[Any] = []

    class Recorder:
        def push_to_hub(self, repo_id: str) -> None:
            calls.append(repo_id)

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Recorder:
            calls.extend([*args, kwargs])
            return cls()

    assert source is not None
    header, _, body = source.partition("\n\n")
    wanted = header.removeprefix("from hubprune import ").split(", ")
    known = {"AutoPrunedModelForCausalLM": Recorder, "CorpusConfig": CorpusConfig, "PruningConfig": PruningConfig}
    known["SourceConfig"] = SourceConfig
    exec(body, {**{name: known[name] for name in wanted}, **names})  # a name that is not imported is an error
    return calls[0], calls[1], calls[2] if len(calls) > 2 else None


def options_of(command: str | None) -> dict[str, str]:
    """The options of a command, each with the word that follows it."""
    assert command is not None
    words = shlex.split(command)
    assert words[:2] == ["hubprune", "prune"]
    return {word: following for word, following in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}


GENERAL = SourceConfig("org/stories", None, "train", "b" * 40)
DOMAIN = SourceConfig("org/exams", "small", "train", "c" * 40)


def test_a_plain_run_is_one_call_and_one_command() -> None:
    made = report(PruningConfig(sparsity=0.6), facts("general", GENERAL), facts("domain", DOMAIN), dtype="bfloat16")
    assert python_recipe(made, "me/out") == (
        "from hubprune import AutoPrunedModelForCausalLM\n\n"
        "model = AutoPrunedModelForCausalLM.from_pretrained(\n"
        '    "org/base",\n'
        f'    revision="{COMMIT}",\n'
        '    method="d-pruner",\n'
        "    sparsity=0.6,\n"
        f'    general="org/stories@{"b" * 40}::train",\n'
        f'    domain="org/exams@{"c" * 40}:small:train",\n'
        "    num_samples=16,\n"
        "    sequence_length=64,\n"
        '    dtype="bfloat16",\n'
        ")\n"
        'model.push_to_hub("me/out")'
    )
    assert cli_recipe(made, "me/out") == (
        f"hubprune prune org/base --revision {COMMIT} --method d-pruner --sparsity 0.6 "
        f"--general org/stories@{'b' * 40}::train --domain org/exams@{'c' * 40}:small:train "
        "--num-samples 16 --sequence-length 64 --dtype bfloat16 --push me/out"
    )


def test_without_a_repository_the_model_stays_here() -> None:
    made = report(PruningConfig("magnitude", pattern="2:4"), trust_remote_code=True)
    assert run_python(python_recipe(made, None)) == (
        "org/base",
        {"revision": COMMIT, "method": "magnitude", "pattern": "2:4", "trust_remote_code": True},
        None,
    )
    assert cli_recipe(made, None) == (
        f"hubprune prune org/base --revision {COMMIT} --method magnitude --pattern 2:4 --out pruned-model "
        "--trust-remote-code"
    )


def shares(corpus: CorpusConfig) -> list[tuple[SourceConfig, float]]:
    """The sources with their share of the samples; only the proportions of weights matter."""
    total = sum(source.weight for source in corpus.sources)
    return [(dataclasses.replace(source, weight=1.0), source.weight / total) for source in corpus.sources]


@pytest.mark.parametrize("name", CORPORA)
def test_the_sources_of_a_preset_are_pinned_and_keep_their_shares(name: str) -> None:
    preset = parse_corpus(name)
    pinned = CorpusConfig(tuple(dataclasses.replace(source, revision="d" * 40) for source in preset.sources))
    made = report(None, facts("domain", *pinned.sources))
    _, keywords, _ = run_python(python_recipe(made, None))
    assert shares(parse_corpus(keywords["domain"])) == shares(pinned)
    on_cli = parse_corpus(options_of(cli_recipe(made, None))["--domain"])
    even = len({source.weight for source in preset.sources}) == 1
    assert shares(on_cli) == shares(pinned if even else preset)  # a string of several sources weighs them alike


@pytest.mark.parametrize(
    "source",
    [
        SourceConfig("org/own", template="{a}: {b}\n"),
        SourceConfig("org/own", "x:y", "train"),
        SourceConfig("a+b.txt"),
        SourceConfig("org/own", text_column="body"),
        SourceConfig("org/own", template="{a} {b}", filters=(("lang", "de"),), answer="{b}"),
        SourceConfig("qiaojin/PubMedQA", "pqa_labeled", "train"),
    ],
    ids=["template", "colon", "plus", "column", "answer", "preset without its template"],
)
def test_a_source_that_a_string_cannot_say_is_spelt_out(source: SourceConfig) -> None:
    made = report(None, facts("domain", source))
    _, keywords, _ = run_python(python_recipe(made, None))
    assert keywords["domain"] == CorpusConfig((source,), num_samples=16, sequence_length=64)
    assert "num_samples" not in keywords
    assert cli_recipe(made, None) is None


@pytest.mark.parametrize("fields", [{"packing": False}, {"seed": 5}, {"num_sequences": 8}, {"sequence_length": 32}])
def test_corpora_cut_in_another_way_are_spelt_out(fields: dict[str, Any]) -> None:
    made = report(PruningConfig(), facts("general", GENERAL), facts("domain", DOMAIN, **fields))
    _, keywords, _ = run_python(python_recipe(made, None))
    assert keywords["general"] == CorpusConfig((GENERAL,), num_samples=16, sequence_length=64)
    renamed = {{"num_sequences": "num_samples"}.get(name, name): value for name, value in fields.items()}
    assert keywords["domain"] == CorpusConfig((DOMAIN,), **{"num_samples": 16, "sequence_length": 64, **renamed})
    assert cli_recipe(made, None) is None


def test_filters_and_the_examples_of_a_task_are_in_the_short_form() -> None:
    german = SourceConfig("org/texts", None, "train", "b" * 40, filters=(("lang", "de"), ("sign", "a+b&c d")))
    task = parse_source(f"openai/gsm8k@{'c' * 40}:main:train")
    made = report(None, facts("language", german), facts("task", task, packing=False))
    _, keywords, _ = run_python(python_recipe(made, None))
    command = cli_recipe(made, None)
    assert keywords["language"] == f"org/texts@{'b' * 40}::train?lang=de&sign=a%2Bb%26c d"
    for name, source in (("language", german), ("task", task)):
        assert parse_corpus(keywords[name]).sources == (source,)
        assert parse_corpus(options_of(command)[f"--{name}"]).sources == (source,)
    assert "packing" not in str((keywords, command))


def test_a_split_that_ends_in_a_space_is_spelt_out() -> None:
    sources = (SourceConfig("org/a"), SourceConfig("org/a", None, " "))
    _, keywords, _ = run_python(python_recipe(report(None, facts("domain", *sources)), None))
    assert keywords["domain"].sources == sources  # one of several is read without the spaces around it


def test_a_task_that_was_joined_is_spelt_out() -> None:
    task = parse_source("openai/gsm8k:main:train")
    _, keywords, _ = run_python(python_recipe(report(None, facts("task", task)), None))
    assert keywords["task"] == CorpusConfig((task,), num_samples=16, sequence_length=64, packing=True)


def test_text_given_in_memory_is_a_name_to_fill_in() -> None:
    made = report(None, facts("domain"))
    _, keywords, _ = run_python(python_recipe(made, None), domain_texts=["mine"])
    assert keywords["domain"] == ["mine"]
    assert cli_recipe(made, None) is None


def test_other_settings_need_a_config_and_have_no_command() -> None:
    config = PruningConfig("ria", sparsity=0.3, ignore=("re:.*down_proj",), seed=4, options={"activation_power": 0.2})
    made = report(config, facts("domain", DOMAIN))
    _, keywords, _ = run_python(python_recipe(made, "me/out"))
    assert keywords["pruning_config"] == config
    assert "method" not in keywords
    assert cli_recipe(made, "me/out") is None


def test_a_criterion_of_the_users_own_cannot_be_repeated() -> None:
    made = report()
    made.config["method"] = "MyCriterion"
    assert python_recipe(made, None) is None
    assert cli_recipe(made, None) is None


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("org/base", "org/base"),
        ("./models/base", "./models/base"),
        ("/home/somebody/models/base", "./base"),
        ("/home/somebody/models/base/", "./base"),
        ("~/models/base", "./base"),
        ("C:\\Users\\somebody\\base", "./base"),
        ("\\\\server\\somebody\\base", "./base"),
    ],
)
def test_a_path_that_tells_who_made_it_is_cut_to_its_name(place: str, shown: str) -> None:
    assert public(place) == shown
    made = report(None, facts("domain", SourceConfig(place + ".txt" if "org" not in place else place)))
    made.base = BaseFacts(place, commit=None)
    base, keywords, _ = run_python(python_recipe(made, None))
    assert base == shown
    assert "revision" not in keywords
    assert "somebody" not in str((python_recipe(made, None), cli_recipe(made, None)))


@pytest.mark.parametrize(
    ("model_id", "commit", "expected"),
    [("org/base", COMMIT, True), ("gpt2", COMMIT, True), ("org/base", None, False), ("../base", COMMIT, False)],
)
def test_a_base_on_the_hub_has_a_commit_and_a_name(model_id: str, commit: str | None, expected: bool) -> None:
    assert base_on_hub(report(model_id=model_id, commit=commit)) is expected


@settings(deadline=None)
@given(st.text() | st.integers() | st.booleans() | st.none() | st.lists(st.text()))
def test_a_quoted_value_is_one_line_of_python(value: Any) -> None:
    text = quote(value)
    assert eval(text) == value
    assert len(text.splitlines()) == 1


words = st.from_regex(r"[A-Za-z][\w.-]{0,6}", fullmatch=True).filter(lambda word: not word.endswith("-"))
sources = st.builds(
    SourceConfig,
    st.builds("{}/{}".format, words, words),
    st.none() | st.text(min_size=1, max_size=6),
    st.none() | st.text(min_size=1, max_size=6),
    st.none() | st.just("e" * 40),
    st.none() | st.text(min_size=1),
    filters=st.dictionaries(st.text(min_size=1, max_size=4), st.text(max_size=4), max_size=2),
)
runs = st.builds(
    PruningConfig,
    method=st.sampled_from(sorted(WEIGHT_METHODS)),
    sparsity=st.none() | st.floats(0, 0.99),
    scope=st.none() | st.just("row"),
    targets=st.lists(st.text(max_size=5).filter(lambda text: not text.startswith("re:"))).map(tuple),
    seed=st.integers(0, 3),
)


@settings(max_examples=80, deadline=None)
@given(runs, st.lists(sources, min_size=1, max_size=2), st.booleans(), st.integers(0, 2))
def test_the_lines_ask_for_the_run_that_was_made(
    config: PruningConfig, given_sources: list[SourceConfig], packing: bool, seed: int
) -> None:
    made = report(config, facts("domain", *given_sources, packing=packing, seed=seed))
    usual = None if packing else False
    corpus = CorpusConfig(tuple(given_sources), num_samples=16, sequence_length=64, packing=usual, seed=seed)
    _, keywords, _ = run_python(python_recipe(made, None))
    shared = {name: keywords.pop(name) for name in ("num_samples", "sequence_length") if name in keywords}
    assert parse_corpus(keywords.pop("domain"), **shared) == corpus
    del keywords["revision"]
    assert keywords.pop("pruning_config", None) or PruningConfig(**keywords) == config
    command = cli_recipe(made, None)
    if command is not None:
        options = options_of(command)
        assert parse_corpus(options["--domain"], num_samples=16, sequence_length=64) == corpus
        assert options["--method"] == config.method
        assert options.get("--sparsity") == (None if config.sparsity is None else str(config.sparsity))
