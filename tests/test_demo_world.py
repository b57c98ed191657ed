"""The demo world: the grammars, the folder that seeds a Hub, the committed model and the script that trains it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from hubprune.demo import GENERAL_ID, LEGAL_ID, MEDICAL_ID, MODEL_ID, write_world
from hubprune.demo.grammar import LONGEST, SHORTEST, Domain, Draw, expand, sentence
from hubprune.demo.world import BASE, COUNTS, DOMAINS, examples
from hubprune.errors import OutputError

IDS = dict(zip((domain.name for domain in DOMAINS), (GENERAL_ID, MEDICAL_ID, LEGAL_ID), strict=True))
PERPLEXITY_BOUND = {"general": 6.0, "medical": 6.0, "legal": 6.0}
each_domain = pytest.mark.parametrize("domain", DOMAINS, ids=IDS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def all_rows(domain: Domain) -> list[dict[str, str]]:
    return [row for rows in examples(domain.name).values() for row in rows]


def outputs(commands: list[list[str]], **environment: str) -> list[str]:
    """Run the commands side by side and return what each printed."""
    settings = {**os.environ, **environment}
    running = [
        subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    done = [(*process.communicate(timeout=300), process.returncode) for process in running]
    assert [code for *_, code in done] == [0] * len(commands), done
    return [printed for printed, *_ in done]


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\"?\s+", text)


def phrases(values: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the values as whole words, the longest first."""
    longest_first = sorted({value.lower() for value in values}, key=len, reverse=True)
    return re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, longest_first))})(?![\w-])")


def statements(domain: Domain) -> Iterator[tuple[frozenset[str], str, str]]:
    """Every mention of a fact in the data set: the subjects that its sentence is about, the column, the value.

    This reader knows the table's words and none of the rules: a sentence is about the subjects that it names, or else
    about those of the sentence before.
    """
    table = domain.rows()
    key, *columns = table[0]
    subjects = phrases(row[key] for row in table)
    values = {column: phrases(row[column] for row in table) for column in columns if column != "friend"}
    for row in all_rows(domain):
        for text in (row["text"], f"{row['question']} {row['answer']}"):
            about: frozenset[str] = frozenset()
            for said in sentences(text.lower()):
                about = frozenset(subjects.findall(said)) or about
                yield from ((about, column, value) for column in values for value in values[column].findall(said))


def test_expand_fills_slots_rules_and_articles() -> None:
    rules = {"mood": ("happy",), "who": ("{a animal} that is {mood}",)}
    assert (
        expand("{who} met {a mood} cat.", rules, {"animal": "owl"}, Draw(0)) == "an owl that is happy met a happy cat."
    )
    assert sentence('so it began. "why?" said he. why not') == 'So it began. "Why?" said he. Why not'
    with pytest.raises(KeyError, match="absent"):
        expand("{absent}", rules, {}, Draw(0))


def test_draw_repeats_for_its_key_and_reaches_every_choice() -> None:
    assert [Draw("a", 1).below(1000) for _ in range(3)] == [Draw("a", 1).below(1000)] * 3
    assert {Draw("a", seed).pick("xyz") for seed in range(50)} == set("xyz")
    assert sorted(Draw("b").order(range(20))) == list(range(20)) != Draw("b").order(range(20))


@each_domain
def test_every_rule_can_be_said_of_every_row(domain: Domain) -> None:
    table = domain.rows()
    for row, other in zip(table, table[1:] + table[:1], strict=True):
        slots = {**row, **{f"other_{column}": value for column, value in other.items()}}
        for rule, alternatives in domain.rules.items():
            for alternative in alternatives:
                assert "{" not in expand(alternative, domain.rules, slots, Draw(rule)), alternative


@each_domain
def test_sizes_lengths_and_variety(domain: Domain) -> None:
    rows = all_rows(domain)
    assert {split: len(found) for split, found in examples(domain.name).items()} == COUNTS
    assert all(set(row) == {"text", "question", "answer"} for row in rows)
    assert all(SHORTEST <= len(row["text"].split()) <= LONGEST for row in rows)
    assert len({said for row in rows for said in sentences(row["text"])}) >= 5000


@each_domain
def test_splits_share_facts_and_no_documents(domain: Domain) -> None:
    train, test = (examples(domain.name)[split] for split in ("train", "test"))
    for render in (lambda row: row["text"], lambda row: f"{row['question']}\n{row['answer']}"):
        assert not {render(row) for row in train} & {render(row) for row in test}
        assert len({render(row) for row in train + test}) == len(train) + len(test)


@each_domain
def test_a_fact_is_stated_the_same_everywhere(domain: Domain) -> None:
    key = next(iter(domain.rows()[0]))
    table = {row[key].lower(): row for row in domain.rows()}
    stated = set()
    for about, column, value in statements(domain):
        holders = {subject for subject in about if table[subject][column].lower() == value}
        assert holders, f"{value} is no {column} of {sorted(about)}"
        stated |= {(subject, column) for subject in holders}
    columns = set(domain.rows()[0]) - {key, "friend"}
    assert stated == {(subject, column) for subject in table for column in columns}, "some facts are never stated"


def test_friends_are_stated_the_same_everywhere() -> None:
    general = DOMAINS[0]
    friend = {row["name"].lower(): row["friend"].lower() for row in general.rows()}
    names = phrases(friend)
    pairs = {frozenset(names.findall(said)) for row in all_rows(general) for said in sentences(row["text"].lower())}
    assert {pair for pair in pairs if len(pair) > 1} == {frozenset(pair) for pair in friend.items()}


def test_domains_speak_differently() -> None:
    words = {
        d.name: {w for row in all_rows(d) for w in re.findall(r"[a-z]{4,}", row["text"].lower())} for d in DOMAINS
    }
    for one in words:
        for other in set(words) - {one}:
            assert len(words[one] & words[other]) < 0.2 * len(words[one])


def test_text_is_the_same_in_every_process() -> None:
    code = (
        "import hashlib, json; from hubprune.demo.world import DOMAINS, examples;"
        "print(hashlib.sha256(json.dumps([examples(d.name) for d in DOMAINS]).encode()).hexdigest())"
    )
    here = hashlib.sha256(json.dumps([examples(domain.name) for domain in DOMAINS]).encode()).hexdigest()
    for hash_seed in ("1", "77"):
        assert outputs([[sys.executable, "-c", code]], PYTHONHASHSEED=hash_seed) == [f"{here}\n"]


def test_world_is_laid_out_like_a_hub(world: Path) -> None:
    model = world / "models" / MODEL_ID
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        file.name for file in model.iterdir()
    }
    card = yaml.safe_load((model / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert card["license"] == "apache-2.0"
    assert card["pipeline_tag"] == "text-generation"
    assert card["library_name"] == "transformers"
    assert card["datasets"] == list(IDS.values())
    for name, repo_id in IDS.items():
        readme = (world / "datasets" / repo_id / "README.md").read_text(encoding="utf-8")
        assert "not medical or legal advice" in readme
        for file in yaml.safe_load(readme.split("---")[1])["configs"][0]["data_files"]:
            lines = (world / "datasets" / repo_id / file["path"]).read_text(encoding="utf-8").splitlines()
            assert [json.loads(line) for line in lines] == examples(name)[file["split"]]


def test_world_is_written_fast_and_again(world: Path) -> None:
    examples.cache_clear()
    before = time.process_time()
    assert write_world(world) == world
    assert time.process_time() - before < 3


def test_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="name another folder"):
        write_world(tmp_path / "file")


@pytest.mark.parametrize("name", IDS)
def test_data_sets_load_with_datasets(name: str, world: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    loaded = load_dataset(str(world / "datasets" / IDS[name]), cache_dir=str(tmp_path))
    assert {split: rows.num_rows for split, rows in loaded.items()} == COUNTS
    assert loaded["test"][0] == examples(name)["test"][0]


def test_model_loads_in_plain_transformers_and_has_learned(world: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hubprune.demo.train import held_out_perplexity

    folder = world / "models" / MODEL_ID
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 3_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert 900_000 < model.num_parameters() < 1_200_000
    assert model.config.vocab_size == len(tokenizer) == 2048
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model.float()
    for name, bound in PERPLEXITY_BOUND.items():
        assert 1 < held_out_perplexity(model, tokenizer, name) < bound


def test_tokenizer_adds_bos_and_knows_the_way_back() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    text = 'Naïve "Pim" paid £5.\n\tEnd.'
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id != ids[1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode([tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]) == "<s></s></s>"


@pytest.mark.slow
def test_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hubprune.demo.train", "--steps", "3", "--out"]
    for printed in outputs([[*command, str(tmp_path / run)] for run in ("one", "two")]):
        assert [line.split(":")[0] for line in printed.splitlines()] == list(IDS)
    for file in ("model.safetensors", "tokenizer.json", "README.md"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert (tmp_path / "one" / "tokenizer.json").read_bytes() == (BASE / "tokenizer.json").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_script_reproduces_the_committed_model(tmp_path: Path) -> None:
    """Bit by bit where processor and versions are the same; elsewhere what is made of the model must not differ."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hubprune import PruningConfig, load_corpus, perplexity, prune

    subprocess.run([sys.executable, "-m", "hubprune.demo.train", "--out", str(tmp_path)], check=True)
    assert (tmp_path / "tokenizer.json").read_bytes() == (BASE / "tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    general, medical, test = (
        load_corpus([row["text"] for row in rows], tokenizer, num_samples=32, sequence_length=128)
        for rows in (examples("general")["train"], examples("medical")["train"], examples("medical")["test"])
    )
    found = []
    for folder in (BASE, tmp_path):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        report = prune(
            model, tokenizer, PruningConfig("d-pruner", sparsity=0.7), {"general": general, "domain": medical}
        )
        weights = dict(model.named_parameters())
        keep = torch.cat([(weights[f"{matrix.name}.weight"] != 0).flatten() for matrix in report.matrices])
        found.append((keep, perplexity(model, test).perplexity))
    (committed, expected), (trained, measured) = found
    assert float((committed == trained).float().mean()) > 0.99
    assert measured == pytest.approx(expected, rel=0.02)
