"""Every command does what its help says; a mistake is one line on the error stream and exit code 2."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from huggingface_hub import HfApi

import hubprune
from hubprune.cli import main, tables
from hubprune.cli.app import build
from hubprune.cli.prune import Request, read_request
from hubprune.corpora import CorpusConfig, SourceConfig
from hubprune.errors import AccessError, NotFoundError
from hubprune.facts import Verification
from hubprune.fields import ALIASES
from hubprune.presets import METHODS
from hubprune.recipe import cli_recipe, yaml_recipe
from hubprune.report import REPORT_NAME, PruningReport
from hubprune.verifier import CHECKS
from tests.localhub_helpers import run_command
from tests.pruned import VOCABULARY, prune_by_hand, save_plain, tiny_model, tiny_tokenizer
from tests.test_harness import write_pairs

Call = Callable[..., tuple[int, str, str]]

BASE, STORIES, NOTES = "cli/tiny", "cli/stories", "cli/notes"
TEXTS = ("--general", STORIES, "--domain", NOTES, "--num-samples", "4", "--sequence-length", "16")
HEAVY = ("torch", "transformers", "huggingface_hub", "datasets", "accelerate", "pydantic", "yaml", "starlette")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command in this process; returns exit code, output and errors, in which no token may stand."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "hf_test_" not in out + err  # how the tokens of the users of `hub` begin
        return code, out, err

    return run


def line(result: tuple[int, str, str]) -> str:
    """The one line in which a mistake was told."""
    code, out, err = result
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def read(*words: object) -> Request:
    """What ``hubprune prune`` reads from its words."""
    command = typer.main.get_command(build()).commands["prune"]  # type: ignore[attr-defined]
    return read_request(command.make_context("prune", [str(word) for word in words]))


def rows(count: int, seed: int) -> str:
    generator = random.Random(seed)
    texts = (" ".join(f"w{generator.randrange(3, VOCABULARY)}" for _ in range(24)) for _ in range(count))
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture(scope="session")
def world(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The Hub with a tiny model, an encoder, and two data sets with a test split."""
    from hubprune.localhub import seed_folder

    folder = tmp_path_factory.mktemp("cli-world")
    model = tiny_model()
    model.save_pretrained(folder / "models" / BASE)
    tiny_tokenizer().save_pretrained(folder / "models" / BASE)
    pruned = tiny_model()
    save_plain(pruned, prune_by_hand(pruned), folder / "models" / "cli" / "pruned")
    broken = tiny_model()
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    broken.save_pretrained(folder / "models" / "cli" / "broken")
    configs = {
        "encoder": {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        "quantised": {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}},
        "own-code": {
            "model_type": "own",
            "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
        },
    }
    for name, config in configs.items():
        (folder / "models/cli" / name).mkdir()
        (folder / "models/cli" / name / "config.json").write_text(json.dumps(config))
    for seed, name in enumerate((STORIES, NOTES, "google-research-datasets/mbpp")):
        data = folder / "datasets" / name
        data.mkdir(parents=True)
        (data / "train.jsonl").write_text(rows(30, 2 * seed))
        (data / "test.jsonl").write_text(rows(30, 2 * seed + 1))
    code = '{"text": "w3 w4 w5 w6 w7 w8", "code": "w9 w10 w11 w12 w13 w14"}\n'
    tasks = folder / "datasets/google-research-datasets/mbpp"
    for split in ("train", "test"):
        (tasks / f"{split}.jsonl").write_text(code * 5)
    (tasks / "README.md").write_text(
        "---\nconfigs:\n- config_name: full\n  data_files:\n"
        "  - {split: train, path: train.jsonl}\n  - {split: test, path: test.jsonl}\n---\n"
    )
    seed_folder(hub.store, folder)
    return hub


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing large may be downloaded."""
    from hubprune.opening import Opening

    def refuse(self: Any) -> None:
        raise AssertionError("the weights were downloaded")

    monkeypatch.setattr(Opening, "weights", refuse)


@pytest.fixture
def without_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check that starts a process."""
    monkeypatch.delitem(CHECKS, "reload")


@pytest.fixture(scope="module")
def pruned(world: Any, hub_api: Callable[..., HfApi], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder and what was printed, of a whole run in a process of its own that also pushed to me/cli-run."""
    place = tmp_path_factory.mktemp("cli-run")
    words = ["--method", "wanda", "--pattern", "2:4", *TEXTS, "--out", "result", "--push", "me/cli-run", "--private"]
    command = [sys.executable, "-m", "hubprune", "prune", BASE, *words]
    printed = run_command(world, command, place, COLUMNS="200")
    return place / "result", printed


# Help, version, speed


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, *options, "-m", "hubprune", "--help"]
        return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)

    imported = set(re.findall(r"\| +([\w.]+)$", run("-X", "importtime").stderr, re.MULTILINE))
    assert "typer" in imported
    assert imported.isdisjoint(HEAVY)
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.6


def test_without_a_command_the_help_is_shown(call: Call) -> None:
    assert call() == call("--help")
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    for name in ("prune", "methods", "eval", "push", "verify", "card", "hub", "demo"):
        assert re.search(rf"^\W*{name}\s", out, re.MULTILINE)


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"hubprune {hubprune.__version__}\n", "")


def test_methods_lists_every_method_with_its_options(call: Call) -> None:
    code, out, err = call("methods")
    assert code == 0, err
    for method in METHODS.values():
        assert re.search(rf"^  {method.name} +{re.escape(method.summary)}", out, re.MULTILINE)
        assert f"arXiv:{method.arxiv}" in out or not method.arxiv
        competes = f"scope {method.scope}" if method.unit == "weight" else f"unit {method.unit}"
        assert f"{competes}, application {method.application}" in out
        assert all(f"--option {name}=" in out for name in method.options)
    assert "--option form=dual|additive|paper (without it: dual)" in out
    assert "needs no text" in out
    assert "needs general and domain text" in out


# Mistakes that need no network


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prune", "m", "--method", "d-prunner", "--out", "x"], "did you mean 'd-pruner' or 'cus-prun'?"),
        (["prune", "m", "--method", "wanda", "--sparsity", "1", "--domain", "d", "--out", "x"], "below 1, got 1.0"),
        (["prune", "m", "--method", "wanda", "--sparsity", "-0.1", "--domain", "d", "--out", "x"], "at least 0"),
        (["prune", "m", "--method", "magnitude", "--pattern", "5:4", "--out", "x"], "got 5:4"),
        (["prune", "m", "--method", "magnitude", "--pattern", "2-4", "--out", "x"], "'N:M'"),
        (["prune", "m", "--method", "magnitude", "--pattern", "2:4", "--sparsity", "0.5", "--out", "x"], "give one"),
        (["prune", "m", "--domain", "d", "--out", "x"], "needs a general corpus"),
        (["prune", "m", "--method", "wanda", "--out", "x"], "needs calibration text"),
        (["prune", "m", "--method", "magnitude"], "give --out DIR or --push REPO"),
        (["prune", "m", "--method", "magnitude", "--out", "x", "--private"], "--private goes with --push"),
        (["prune", "m", "--method", "magnitude", "--option", "lambda=1", "--out", "x"], "no option 'lambda'"),
        (["prune", "m", "--method", "magnitude", "--option", "lambda", "--out", "x"], "name=value"),
        (["prune", "m", "--method", "magnitude", "--ignore", "re:(", "--out", "x"], "not a regular expression"),
        (["prune", "m", "--method", "magnitude", "--eval", "a=x", "--eval", "a=y", "--out", "x"], "each label once"),
        (["prune", "m", "--num-samples", "0", "--general", "g", "--domain", "d", "--out", "x"], "num_samples"),
        (["prune", "m", "--sparsity", "half", "--out", "x"], "'--sparsity'"),
        (["prune", "m", "--dtype", "float8", "--out", "x"], "'--dtype'"),
        (["prune", "m", "--sparsty", "0.5"], "--sparsity"),
        (["prune"], "BASE"),
        (["prun"], "No such command 'prun'"),
        (["eval", "m", "--protocol", "paper"], "did you mean 'papers'?"),
        (["eval", "m", "--with", "a=x", "--with", "a=y"], "each label once"),
        (["eval", "m", "--text", "=medical"], "label=text"),
        (["hub"], "Missing command"),
    ],
)
def test_mistake_is_one_line(call: Call, words: list[str], told: str) -> None:
    assert told in line(call(*words))


def test_of_several_processes_one_tells_a_mistake_and_each_what_befell_it(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mistake, gone = ["prune", "m", "--sparsity", "2", "--out", "x"], ["verify", str(tmp_path / "nowhere")]
    monkeypatch.setenv("RANK", "1")  # as some machines name themselves
    assert "sparsity must be" in line(call(*mistake))
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = call(*mistake)
    assert (code, out + err) == (2, "")
    monkeypatch.setattr("hubprune.cli.UsageError", ())
    assert line(call(*gone)).startswith("error: process 1: ")


def test_every_problem_of_a_request_is_told_at_once(call: Call) -> None:
    told = line(call("prune", "m", "--method", "magnitude", "--sparsity", "2", "--damping", "3", "--out", "x"))
    assert "sparsity must be" in told
    assert "damping must be" in told


def test_folder_of_no_pruned_model_is_refused(call: Call, tmp_path: Path) -> None:
    for command in (["push", tmp_path, "me/x"], ["verify", tmp_path], ["card", tmp_path]):
        assert REPORT_NAME in line(call(*command))


def test_a_failure_that_is_no_mistake_keeps_its_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("hubprune.cli.running.run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        call("prune", "m", "--method", "magnitude", "--out", "x")


def test_interruption_ends_with_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hubprune.cli.running.run", interrupt)
    assert call("prune", "m", "--method", "magnitude", "--out", "x") == (130, "", "interrupted\n")


# The request


def test_words_of_the_command_line_become_the_request(tmp_path: Path) -> None:
    request = read(
        *("me/base", "--method", "d-pruner", "--sparsity", "0.6", "--scope", "row", "--application", "compensate"),
        *("--general", "org/g@abc:c:s+org/h", "--domain", "medical", "--num-samples", "3", "--sequence-length", "9"),
        *("--targets", "q_proj", "--targets", "re:.*k_proj", "--ignore", "o_proj", "--seed", "5", "--batch-size", "2"),
        *("--option", "general_weight=3", "--option", "form=paper", "--damping", "0.1", "--block-size", "64"),
        *("--revision", "v1", "--dtype", "float32", "--device-map", "cpu", "--trust-remote-code", "--token", "t"),
        *("--eval", "a=org/a::test", "--eval", "legal", "--out", tmp_path, "--push", "me/x", "--create-pr"),
        *("--public", "--commit-message", "Words", "--dry-run"),
    )
    config = request.config
    assert (config.method, config.sparsity, config.scope, config.application) == ("d-pruner", 0.6, "row", "compensate")
    assert (config.targets, config.ignore) == (("q_proj", "re:.*k_proj"), ("o_proj",))
    assert (config.seed, config.batch_size, config.damping, config.block_size) == (5, 2, 0.1, 64)
    assert config.options == {"general_weight": 3.0, "form": "paper"}
    assert request.corpora["general"] == CorpusConfig(
        (SourceConfig("org/g", "c", "s", "abc"), SourceConfig("org/h")), num_samples=3, sequence_length=9, seed=5
    )
    assert len(request.corpora["domain"].sources) == 2
    assert request.evaluation == {"a": "org/a::test", "legal": "legal"}
    assert request.loading == {"dtype": "float32", "device_map": "cpu", "trust_remote_code": True, "token": "t"}
    assert (request.base, request.revision, request.out, request.push) == ("me/base", "v1", tmp_path, "me/x")
    wanted = {"private": False, "create_pr": True, "commit_message": "Words", "token": "t", "trust_remote_code": True}
    assert request.publishing == {**wanted, "space": False}
    assert request.dry_run


def test_texts_have_four_names_on_the_command_line_and_in_a_file(tmp_path: Path) -> None:
    german = SourceConfig("org/texts", "c", "s", filters=(("lang", "de"),))
    words = ("base", "--method", "wanda", "--out", "x", "--eval", "org/texts:c:s?lang=en")
    request = read(*words, "--language", "org/texts:c:s?lang=de", "--task", "openai/gsm8k:main")
    assert request.corpora["language"].sources == (german,)
    assert request.corpora["task"].sources[0].answer == "{answer}"
    assert [corpus.packing for corpus in request.corpora.values()] == [None, None]
    assert request.evaluation == {"org/texts:c:s?lang=en": "org/texts:c:s?lang=en"}
    assert read(*words, "--task", "t", "--no-packing").corpora["task"].packing is False
    path = write(
        tmp_path,
        """
        language: {sources: {dataset: org/texts, config: c, split: s, filters: {lang: de}}}
        task: [one text, another]
        packing: yes
        """,
    )
    filed = read(*words, "--config", path).corpora
    assert filed["language"].sources == (german,)
    assert filed["task"].texts == ("one text", "another")
    assert filed["task"].packing is True


def test_what_is_not_said_is_the_default() -> None:
    request = read("base", "--method", "magnitude", "--out", "x")
    assert request.config == hubprune.PruningConfig(method="magnitude")
    assert (request.corpora, request.evaluation, request.loading) == ({}, "auto", {"dtype": "auto"})
    assert read("base", "--method", "magnitude", "--out", "x", "--eval", "none").evaluation is None


@pytest.mark.parametrize("word", ALIASES)
def test_words_of_other_libraries_are_understood(word: str) -> None:
    values = {"sparsity": "0.25", "pattern": "1:4", "num_samples": "7", "sequence_length": "11", "damping": "0.2"}
    ours = ALIASES[word]
    texts = ("--general", "g", "--domain", "d", "--out", "x")
    for name in (f"--{word}", f"--{word.replace('_', '-')}"):
        assert read("base", name, values[ours], *texts) == read("base", f"--{ours}", values[ours], *texts)


@pytest.mark.parametrize(("push", "base_id"), [(None, "org/base"), ("me/x", "org/base"), (None, "folder")])
def test_command_in_the_card_is_read_as_the_run_it_came_from(push: str | None, base_id: str) -> None:
    report = prune_by_hand(tiny_model(), base_id, "gblm")
    report.base.trust_remote_code = True
    words = shlex.split(cli_recipe(report, push) or "")
    assert words[:2] == ["hubprune", "prune"]
    request = read(*words[2:])
    assert request.config.to_dict() == hubprune.PruningConfig(method="gblm", pattern="2:4").to_dict()
    facts = report.corpora[0]
    assert request.corpora["general"].sources[0].revision == facts.sources[0].commit
    assert (request.corpora["general"].num_samples, request.corpora["general"].sequence_length) == (12, 64)
    assert (request.base, request.revision, request.push) == (base_id, report.base.commit, push)
    assert request.loading["trust_remote_code"]


# The file of a run


@pytest.mark.parametrize(("push", "plain"), [(None, True), ("me/x", True), ("me/x", False)])
def test_file_in_the_card_is_read_as_the_run_it_came_from(tmp_path: Path, push: str | None, plain: bool) -> None:
    report = prune_by_hand(tiny_model(), "org/base", "d-pruner")
    config = hubprune.PruningConfig("d-pruner", pattern="2:4")
    if not plain:
        config = hubprune.PruningConfig(
            "d-pruner", sparsity=0.6, targets=("q_proj", "re:.*v"), damping=0.05, seed=3, options={"form": "paper"}
        )
        report.corpora[1].packing = False
        source = report.corpora[1].sources[0]
        source.template, source.answer, source.filters, source.weight = "{a}: {b}", "{b}", [("lang", "de")], 2.0
    report.config = config.to_dict()
    request = read("--config", write(tmp_path, yaml_recipe(report, push) or ""))
    assert request.config == config
    assert (request.base, request.revision, request.push) == ("org/base", report.base.commit, push)
    assert (request.out, request.loading["dtype"]) == (None if push else Path("pruned-model"), report.base.dtype)
    for facts in report.corpora:
        read_again, source = request.corpora[facts.name], facts.sources[0]
        assert (read_again.num_samples, read_again.sequence_length, read_again.seed) == (12, 64, facts.seed)
        assert read_again.packing == (None if facts.packing else False)
        (found,) = read_again.sources
        assert (found.dataset, found.revision, found.weight) == (source.dataset, source.commit, source.weight)
        assert (found.template, found.answer, found.filters) == (source.template, source.answer, tuple(source.filters))
    report.corpora[0].sources = []
    assert yaml_recipe(report, push) is None


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_file_holds_the_options_as_the_command_line_does(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        base: org/base
        method: d-pruner
        pattern: 2:4
        option: {general_weight: 3, form: paper}
        targets: [q_proj, k_proj]
        ignore: o_proj
        general: org/g
        domain:
          sources:
          - {dataset: org/d, template: "{question} {answer}", weight: 2}
          - org/e:c:train
          num_samples: 6
        nsamples: 5
        sequence-length: 8
        eval: {held: org/h, own: [some text, more text]}
        trust_remote_code: true
        revision: 0123
        push: me/x
        private: yes
        out:
        """,
    )
    request = read("--config", path)
    assert (request.base, request.revision, request.config.pattern, request.out) == ("org/base", "0123", "2:4", None)
    assert request.config.options == {"general_weight": 3.0, "form": "paper"}
    assert (request.config.targets, request.config.ignore) == (("q_proj", "k_proj"), ("o_proj",))
    assert request.corpora["general"].num_samples == 5
    domain = request.corpora["domain"]
    first = SourceConfig("org/d", template="{question} {answer}", weight=2)
    assert domain.sources == (first, SourceConfig("org/e", "c", "train"))
    assert (domain.num_samples, domain.sequence_length) == (6, 8)
    assert request.evaluation == {"held": "org/h", "own": ["some text", "more text"]}
    assert request.loading["trust_remote_code"] is True
    assert request.publishing["private"] is True


def test_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path, "method: wanda\nsparsity: 0.7\nscope: matrix\ndomain: [text]\nout: a\neval: {a: b}\nignore: [x]\n"
    )
    request = read("base", "--config", path, "--out", "b", "--domain", "d", "--eval", "none", "--ignore", "y")
    assert (request.config.sparsity, request.config.ignore) == (0.7, ("y",))
    assert (request.out, request.evaluation) == (Path("b"), None)
    assert request.corpora["domain"].sources == (SourceConfig("d"),)
    assert read("base", "--config", path, "--sparsity", "0").config.sparsity == 0
    # What the command line says also drops what the file says to the contrary.
    ruled = read("base", "--config", path, "--pattern", "2:4").config
    assert (ruled.pattern, ruled.sparsity, ruled.scope) == ("2:4", None, None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sparsty: 0.5\nmethds: wanda\n", ["'sparsty'", "did you mean 'sparsity'", "'methds'", "'method'"]),
        ("config: other.yaml\n", ["'config'"]),
        ("num_samples: 4\nnsamples: 5\n", ["'nsamples'", "give it once"]),
        ("- sparsity\n", ["must hold a mapping"]),
        ("", ["must hold a mapping"]),
        ("sparsity: [0.5\n", ["not valid YAML"]),
        ("sparsity: {a: 1}\n", ["sparsity", "write one value"]),
        ("sparsity: half\n", ["'--sparsity'"]),
        ("domain: {sources: [{datset: org/d}]}\n", ["'datset'", "'dataset'"]),
        ("domain: {sources: [org/d], num_samples: many}\n", ["num_samples", "'many'"]),
    ],
)
def test_file_that_cannot_be_used_is_refused(call: Call, tmp_path: Path, text: str, told: list[str]) -> None:
    found = line(call("prune", "base", "--config", write(tmp_path, text), "--method", "wanda", "--out", "x"))
    assert all(part in found for part in told), found


def test_file_that_is_not_there_is_refused(call: Call, tmp_path: Path) -> None:
    assert "run.yaml" in line(call("prune", "base", "--config", tmp_path / "run.yaml", "--out", "x"))


# Against a Hub: what is refused, and what a dry run says


@pytest.mark.usefixtures("no_weights")
def test_dry_run_checks_everything_and_leaves_no_trace(
    call: Call, world: Any, hub_api: Callable[..., HfApi], tmp_path: Path
) -> None:
    words = ("--sparsity", "0.5", *TEXTS, "--token", world.token("me"), "--push", "me/new", "--out", tmp_path / "a/b")
    code, out, err = call("prune", BASE, "--dry-run", *words)
    assert (code, err) == (0, "")
    facts = dict(re.findall(r"^  (\S.*?)  +(.*?) *$", out, re.MULTILINE))
    parameters = sum(p.numel() for p in tiny_model().parameters())
    assert facts["architecture"] == f"LlamaForCausalLM, {parameters:,} parameters"
    assert facts["method"].startswith("d-pruner, zero, general_weight=10.0")
    assert facts["would remove"] == "50 % per matrix of 15,360 weights in 14 matrices"
    assert facts["general text"] == f"4 sequences of up to 16 tokens (64 in all) from {STORIES}:default:train"
    assert f"{NOTES}:default:test" in facts["evaluation on domain"]
    assert facts["would push to"] == "me/new, a new repository"
    assert facts["would write"] == str(tmp_path / "a/b")
    assert not hub_api("me").repo_exists("me/new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cli/absent"], "there is no public model"),
        ([BASE, "--revision", "v9"], "no such branch, tag or commit"),
        (["./absent"], "there is no folder"),
        (["cli/encoder"], "BertForMaskedLM"),
        (["cli/pruned"], "already pruned (magnitude, 2:4): prune org/base instead"),
        (["cli/quantised"], "already quantised (gptq)"),
        (["cli/own-code"], "trust_remote_code"),
        ([BASE, "--pattern", "2:5"], "divisible by 5"),
        ([BASE, "--targets", "q_porj"], "q_proj"),
        ([BASE, "--method", "wanda", "--domain", "cli/absent"], "cli/absent"),
        ([BASE, "--method", "wanda", "--domain", f"{NOTES}:other"], "default"),
        ([BASE, "--method", "wanda", "--domain", f"{NOTES}:default:dev"], "train, test"),
        ([BASE, "--method", "wanda", "--domain", NOTES, "--num-samples", "4000"], "4000 sequences"),
        ([BASE, "--method", "wanda", "--domain", NOTES, "--num-samples", "4", "--eval", f"a={NOTES}"], "shares"),
        ([BASE, "--push", "me/new"], "token"),
        ([BASE, "--push", "guest/new", "--token", "TOKEN"], "me may not create it"),
        ([BASE, "--push", BASE, "--token", "TOKEN"], "cannot push to"),
    ],
)
def test_refusal_comes_before_the_weights(call: Call, world: Any, words: list[str], told: str) -> None:
    words = [world.token("me") if word == "TOKEN" else word for word in words]
    words = words if "--method" in words else [*words, "--method", "magnitude"]
    length = [] if "--num-samples" not in words else ["--sequence-length", "16"]
    assert told in line(call("prune", *words, *length, "--dry-run"))


@pytest.mark.usefixtures("no_weights")
def test_text_that_cannot_be_used_is_refused_before_the_weights(call: Call, world: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n\n")
    words = ("prune", BASE, "--method", "wanda", "--dry-run")
    assert "no text that can be used" in line(call(*words, "--domain", tmp_path / "empty.txt"))
    path = write(tmp_path, f"domain: {{sources: [{{dataset: {NOTES}, text_column: body}}], num_samples: 1}}\n")
    told = line(call(*words, "--config", path))
    assert "no column 'body'; its columns are text" in told


@pytest.mark.usefixtures("no_weights")
def test_gated_model_is_refused_with_the_page_to_ask_on(call: Call, world: Any, hub_api: Callable[..., HfApi]) -> None:
    api = hub_api("me")
    api.create_repo("me/cli-gated")
    api.update_repo_settings("me/cli-gated", gated="manual")
    words = ("prune", "me/cli-gated", "--method", "magnitude", "--dry-run", "--token", world.token("guest"))
    assert f"it is gated; ask for access at {world.url}/me/cli-gated" in line(call(*words))


@pytest.mark.usefixtures("no_weights")
def test_repository_with_another_model_is_refused_before_the_weights(
    call: Call, world: Any, hub_api: Callable[..., HfApi]
) -> None:
    api = hub_api("me")
    api.create_repo("me/cli-other")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="me/cli-other")
    words = ("prune", BASE, "--method", "magnitude", "--push", "me/cli-other", "--token", world.token("me"))
    assert "a model that hubprune did not make" in line(call(*words))
    code, out, err = call(*words, "--create-pr", "--dry-run")
    assert code == 0, err
    assert "would open a pull request on" in out


@pytest.mark.usefixtures("no_weights")
def test_folder_that_cannot_be_written_is_refused_first(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    words = ("prune", "cli/nowhere", "--method", "magnitude", "--out")
    assert "holds other files" in line(call(*words, tmp_path))
    assert "is a file" in line(call(*words, tmp_path / "file"))
    assert "cannot write" in line(call(*words, tmp_path / "file" / "folder"))
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        assert "cannot write" in line(call(*words, tmp_path / "folder"))
        tmp_path.chmod(0o700)


def test_folder_without_room_and_broken_weights_are_refused_before_the_work(
    call: Call, world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("--method", "magnitude", "--out", tmp_path / "model")
    code, out, err = call("prune", "cli/broken", *words)
    assert (code, out) == (2, "")
    assert "warning: the result goes without a tokenizer" in err
    assert "model.layers.1.mlp.up_proj" in err.splitlines()[-1]
    assert "transformers does not load cli/broken" in line(call("prune", "cli/broken", *words, "--eval", f"a={NOTES}"))
    monkeypatch.setattr("hubprune.saving.SPARE_BYTES", 2**60)
    monkeypatch.setattr("hubprune.pruner.prune", lambda *_, **__: pytest.fail("it was pruned"))
    code, out, err = call("prune", BASE, *words)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: saving needs 1,048,576.0 TiB, and ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_weights")
def test_plan_says_what_a_run_would_take_and_downloads_no_weights(call: Call, world: Any) -> None:
    code, out, err = call("plan", BASE, "--method", "magnitude", "--max-memory", "64GiB", "--eval", "none")
    assert code == 0, err
    for row in ("download +[0-9.]+ (KiB|MiB)", "disk +[0-9.]+ MiB", "memory +.* in memory, .* streamed"):
        assert re.search(f"^  {row}", out, re.MULTILINE), out
    assert "In memory: the whole model in memory takes about" in out
    assert re.search(r"^  time +about \d+ s on this machine", out, re.MULTILINE)


@pytest.mark.usefixtures("no_weights")
def test_plan_takes_the_options_of_prune_and_needs_none_of_the_result(call: Call, world: Any, tmp_path: Path) -> None:
    commands = typer.main.get_command(build()).commands  # type: ignore[attr-defined]
    options = {name: [(p.opts, p.default) for p in commands[name].params] for name in ("prune", "plan")}
    assert options["plan"] == options["prune"]
    assert commands["plan"].help != commands["prune"].help
    path = write(
        tmp_path,
        f"base: {BASE}\nmethod: wanda\ndomain: {NOTES}\nnum_samples: 4\nsequence_length: 16\neval: none\n"
        f"out: {tmp_path}/out\npush: me/never\njob: a10g-large\ntimeout: 2h\nprivate: yes\n",
    )
    code, out, err = call("plan", "--config", path, "--pattern", "2:4")
    assert (code, err) == (0, "")
    facts = dict(re.findall(r"^  (\S.*?)  +(.*?) *$", out, re.MULTILINE))
    assert facts["base"].startswith(f"{BASE} at ")
    assert facts["method"] == "wanda, zero"
    assert facts["would remove"] == "2:4 of 15,360 weights in 14 matrices"
    assert facts["domain text"].startswith("4 sequences of up to 16 tokens")
    assert facts["would run"].startswith("In memory: ")
    threads = "1 thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"
    assert facts["time"] == f"about 1 s on this machine ({threads}), without download and evaluation"
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.usefixtures("no_weights")
def test_plan_refuses_what_does_not_fit_before_it_measures(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubprune.probe.seconds", lambda _: pytest.fail("it was measured"))
    told = line(call("plan", BASE, "--method", "magnitude", "--max-memory", "1MB"))
    assert "max_memory must hold one block with all that is known of it, about " in told
    assert "needs a general corpus" in line(call("plan", BASE))
    assert "already pruned" in line(call("plan", "cli/pruned", "--method", "magnitude"))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (9e4, "25 h 0 min"),
    ],
)
def test_a_time_is_told_in_words(seconds: float, words: str) -> None:
    assert tables._duration(seconds) == words


@pytest.mark.usefixtures("no_weights")
def test_a_dry_run_says_where_the_blocks_would_be(call: Call, world: Any) -> None:
    code, out, err = call("prune", BASE, "--method", "magnitude", "--eval", "none", "--dry-run")
    assert code == 0, err
    assert "In memory: the whole model in memory takes about" in out
    assert "max_memory must hold one block" in line(
        call("prune", BASE, "--method", "magnitude", "--eval", "none", "--dry-run", "--max-memory", "1MB")
    )


# A whole run


def test_run_saves_pushes_and_tells(pruned: tuple[Path, str], hub_api: Callable[..., HfApi]) -> None:
    folder, printed = pruned
    report = PruningReport.load(folder)
    assert (report.pattern, report.totals.sparsity) == ("2:4", 0.5)
    assert report.verification is not None
    assert "reload" in report.verification.checks
    facts = dict(re.findall(r"^  (\S.*?)  +(.*?) *$", printed, re.MULTILINE))
    assert facts["base"] == f"{BASE} at {str(report.base.commit)[:12]}"
    assert facts["sparsity of the targeted weights"] == "50.00 % of 15,360"
    assert facts["of all parameters"].startswith(f"{100 * report.totals.share_of_all:.2f} % of ")
    assert facts["folder"] == "result"
    assert facts["verified"].startswith("passed: files, config, finite, zeros, groups, untouched, reload")
    assert re.fullmatch(r"\d+\.\d s \(prepare .*\)", facts["time"])
    assert facts["peak memory"].endswith("MiB")
    for name, row in report.perplexities().items():
        ratio = row["pruned"].perplexity / row["base"].perplexity
        shown = facts[name].split()
        assert [shown[0], shown[-1]] == [f"{row['base'].perplexity:.2f}", f"{ratio:.3f}"]
    info = hub_api("me").model_info("me/cli-run")
    assert info.sha is not None
    assert info.sha in facts["on the Hub"]
    assert info.private
    assert "me/cli-run" in (folder / "README.md").read_text()


@pytest.mark.usefixtures("without_reload")
def test_failed_push_keeps_the_model_and_says_how_to_push_it_again(
    call: Call, world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    words = ("prune", BASE, "--method", "magnitude", "--push", "me/cli-late", "--token", world.token("me"))

    def refuse(*_: Any, **__: Any) -> None:
        raise AccessError("the Hub refuses")

    with monkeypatch.context() as patch:
        patch.setattr("hubprune.publisher.publish_folder", refuse)
        code, out, err = call(*words)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: the Hub refuses; the pruned model is in ")
    again = shlex.split(last[last.index("hubprune push") :])
    code, out, err = call(*again[1:], "--token", world.token("me"))
    assert code == 0, err
    assert out.startswith(f"{world.url}/me/cli-late/commit/")


@pytest.mark.usefixtures("without_reload")
def test_nothing_is_left_when_the_model_is_on_the_hub_or_was_not_made(
    call: Call, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Path(os.environ["HF_HOME"]) / "hubprune" / "me--cli-gone"
    words = ("prune", BASE, "--method", "magnitude", "--push", "me/cli-gone", "--token", world.token("me"))
    with monkeypatch.context() as patch:
        patch.setattr("hubprune.pruner.prune", lambda *_, **__: (_ for _ in ()).throw(NotFoundError("lost")))
        code, out, err = call(*words, "--eval", "none")
    assert (code, out) == (2, "")
    assert err.endswith("error: lost\n")
    assert list(waiting.iterdir()) == []
    assert call(*words)[0] == 0
    assert not waiting.exists()


# Commands on a pruned folder


@pytest.mark.usefixtures("without_reload")
def test_verify_prints_the_checks_and_refuses_a_changed_folder(
    call: Call, pruned: tuple[Path, str], tmp_path: Path
) -> None:
    model = tiny_model()
    folder = save_plain(model, prune_by_hand(model), tmp_path / "model")
    code, out, err = call("verify", folder)
    assert code == 0, err
    assert re.search(r"^  zeros +7,680 zeros in 14 matrices", out, re.MULTILINE)
    changed = PruningReport.load(folder)
    changed.totals.pruned += 1
    changed.save(folder)
    assert "does not hold what its report says" in line(call("verify", folder))


def test_card_is_written_anew_and_keeps_what_the_user_wrote(call: Call, tmp_path: Path) -> None:
    model = tiny_model()
    folder = save_plain(model, prune_by_hand(model), tmp_path / "model")
    assert call("card", folder, "--repo-id", "me/named") == (0, f"{folder / 'README.md'}\n", "")
    path = folder / "README.md"
    assert "me/named" in path.read_text()
    path.write_text(path.read_text() + "\nA word of mine.\n")
    assert call("card", folder, "--repo-id", "me/other")[0] == 0
    text = path.read_text()
    assert "me/other" in text
    assert "me/named" not in text
    assert "A word of mine." in text
    path.write_bytes(b"\xff\xfe")
    assert "cannot read" in line(call("card", folder))


@pytest.mark.usefixtures("without_reload")
def test_push_sends_a_folder_to_a_branch_or_says_what_it_would_send(
    call: Call, pruned: tuple[Path, str], world: Any, hub_api: Callable[..., HfApi], tmp_path: Path
) -> None:
    folder, _ = pruned
    words = ("push", folder, "me/cli-pushed", "--token", world.token("me"))
    code, out, err = call(*words, "--dry-run")
    assert code == 0, err
    assert out.startswith("me/cli-pushed, new: ")
    assert "  upload model.safetensors" in out
    api = hub_api("me")
    assert not api.repo_exists("me/cli-pushed")
    code, out, err = call(*words, "--commit-message", "By hand", "--public")
    assert code == 0, err
    assert out.startswith(f"{world.url}/me/cli-pushed/commit/")
    assert api.list_repo_commits("me/cli-pushed")[0].title == "By hand"
    changed = shutil.copytree(folder, tmp_path / "changed")
    (changed / "notes.txt").write_text("more")
    code, out, err = call("push", changed, *words[2:], "--create-pr")
    assert out == f"{world.url}/me/cli-pushed/discussions/1\n"
    assert "may not create it" in line(call("push", folder, "guest/x", "--token", world.token("me")))


# eval


def test_eval_measures_beside_the_base_and_states_the_protocol(
    call: Call, world: Any, pruned: tuple[Path, str]
) -> None:
    folder, _ = pruned
    words = ("--num-samples", "4", "--sequence-length", "16", "--stride", "8")
    code, out, err = call("eval", folder, "--text", f"notes={NOTES}::test", *words)
    assert code == 0, err
    assert re.search(r"^  perplexity on +base +pruned +pruned / base", out, re.MULTILINE)
    values = re.search(r"^  notes +(\d+\.\d\d) ± [\d.]+ +(\d+\.\d\d) ± [\d.]+ +(\d+\.\d{3})", out, re.MULTILINE)
    assert values is not None
    assert 20 < float(values[1]) < 1000
    assert float(values[3]) == pytest.approx(float(values[2]) / float(values[1]), abs=2e-3)
    assert "notes: 63 tokens predicted in 7 windows of up to 16 tokens, one every 8; no start token" in out
    assert "documents packed one after the other" in out
    assert f"from {NOTES}:default:test; fingerprint " in out
    assert re.search(r"^  bits per byte on +base +pruned", out, re.MULTILINE)
    assert "warning" not in err
    assert "shares" in line(call("eval", folder, "--text", f"seen={NOTES}", *words))
    code, out, err = call("eval", folder, "--no-base", "--text", f"notes={NOTES}::test", *words)
    assert re.search(r"^  perplexity on +pruned *$", out, re.MULTILINE)


def test_eval_writes_what_it_found_into_report_and_card(
    call: Call, world: Any, pruned: tuple[Path, str], tmp_path: Path
) -> None:
    folder = shutil.copytree(pruned[0], tmp_path / "model")
    code, out, err = call("eval", folder, "--answers", "--size", "--speed", "--record")
    assert code == 0, err
    report = PruningReport.load(folder)
    assert [row.variant for row in report.sizes] == [row.variant for row in report.speeds] == ["base", "pruned"]
    base, own = report.sizes
    assert re.search(
        rf"^  not zero +{base.nonzeros:,} +{own.nonzeros:,} +{own.nonzeros / base.nonzeros:.3f}", out, re.M
    )
    assert re.search(r"^  pruned +[\d,.]+ \([\d,.]+ to [\d,.]+\)", out, re.M)
    assert "(estimate)" in out
    assert "1 thread" in out
    assert f"pruned: {' '.join(report.answers[-1].prompt.split())}" in out
    assert "warning: the pruned model has as many parameters as the base" in err
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| `pruned` | {own.parameters:,} | {own.nonzeros:,} |" in card
    assert "## Sample answers" in card
    assert "holds no hubprune_report.json" in line(call("eval", tmp_path, "--answers", "--record"))


def test_eval_puts_tasks(call: Call, world: Any, pruned: tuple[Path, str], tmp_path: Path) -> None:
    sides = [("w3 w4 w5", f"w5 w{n} w3") for n in (6, 7, 8)]
    pairs = [{"good": good, "bad": bad} for one in sides for good, bad in (one, one[::-1])]
    words = ("eval", BASE, "--task", write_pairs(tmp_path, pairs), "--with", f"other={pruned[0]}")
    code, out, err = call(*words, "--limit", "4")
    assert code == 0, err
    assert re.search(r"^  task +base +other +other recovers +examples +few-shot", out, re.MULTILINE)
    # Each pair stands there both ways, so that half of them are right.
    assert re.search(r"^  pairs, acc +0\.5000 ± [\d.]+ +0\.5000 ± [\d.]+ +100\.0% +4 +0", out, re.MULTILINE), out
    assert "no task file" in line(call("eval", BASE, "--task", "absent.yaml"))


def test_eval_reads_the_held_out_split_of_a_preset(call: Call, world: Any) -> None:
    code, out, err = call("eval", BASE, "--text", "code", "--num-samples", "2", "--sequence-length", "16")
    assert code == 0, err
    assert "google-research-datasets/mbpp:full:test" in out


@pytest.mark.usefixtures("no_weights")
def test_eval_refuses_what_it_cannot_measure(call: Call, world: Any) -> None:
    assert "BertForMaskedLM" in line(call("eval", "cli/encoder", "--text", f"a={NOTES}"))
    assert "cli/absent" in line(call("eval", BASE, "--text", "a=cli/absent"))
    assert "--text" in line(call("eval", BASE))
    assert "stands for two" in line(
        call("eval", BASE, "--answers", "--with", f"base={BASE}", "--with", f"pruned={BASE}")
    )


# Tables


def test_result_table_states_what_the_report_states(capsys: pytest.CaptureFixture[str]) -> None:
    report = prune_by_hand(tiny_model())
    report.warnings = ["one [thing]"]
    report.verification = Verification({"files": "one"}, True, "5.0")
    del report.evaluation[2]
    tables.show(*tables.result(report, {"folder": "out"}))
    out = capsys.readouterr().out
    for found in (
        r"time +3\.8 s \(forward 1\.2, backward 2\.5\)",
        r"peak memory +3\.0 GiB",
        r"general +21\.25 ± 0\.21 +34\.00 ± 0\.34 +1\.600",
        r"domain +- +17\.25 ± 0\.17 +-",
        r"warning +one \[thing\]",
        r"verified +passed: files \(transformers 5\.0\)",
        r"folder +out",
    ):
        assert re.search(found, out), (found, out)


# The embedded Hub and the demo


def test_hub_serve_serves_a_seeded_folder_until_interrupted(tmp_path: Path) -> None:
    (tmp_path / "seed/datasets/a/b").mkdir(parents=True)
    (tmp_path / "seed/datasets/a/b/data.txt").write_text("text")
    words = ["hub", "serve", "hub", "--seed", "seed", "--port", "0", "--user", "ann:hf_ann"]
    with subprocess.Popen(
        [sys.executable, "-m", "hubprune", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as serving:
        try:
            _check_serving(serving)
        finally:
            serving.kill()


def _check_serving(serving: subprocess.Popen[str]) -> None:
    assert serving.stdout is not None
    said = ""
    while "Ctrl+C" not in said:
        said += serving.stdout.readline()
        assert serving.poll() is None, serving.communicate()[1]
    url = re.search(r"export HF_ENDPOINT=(\S+)", said)
    assert url is not None
    assert "export HF_TOKEN=<token of ann>" in said
    assert "hf_ann" not in said
    with urllib.request.urlopen(f"{url[1]}/api/datasets/a/b", timeout=30) as answer:
        assert json.load(answer)["id"] == "a/b"
    serving.send_signal(signal.SIGINT)
    out, err = serving.communicate(timeout=30)
    assert (serving.returncode, out, err) == (0, "Stopped.\n", "")


def test_hub_serve_refuses_a_user_without_telling_the_token(call: Call, tmp_path: Path) -> None:
    assert "NAME:TOKEN" in line(call("hub", "serve", tmp_path, "--user", "me:hf_test_me:gold"))


def test_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from hubprune.cli import main; sys.exit(main(['hub', 'serve', 'folder']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    told = 'error: this command needs uvicorn: pip install "hubprune[demo]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_demo_hands_its_options_on(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Path | None, bool, bool]] = []
    monkeypatch.setattr("hubprune.demo.show.run_demo", lambda *given: calls.append(given))
    assert call("demo") == (0, "", "")
    assert call("demo", "--folder", tmp_path, "--serve", "--allow-spaces") == (0, "", "")
    assert calls == [(None, False, False), (tmp_path, True, True)]
