"""A run that is killed goes on where it was, and ends in the same bytes; one about something else is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM

from hubprune import PruningConfig, flow, prune, runs, verifier
from hubprune.criteria.magnitude import Magnitude
from hubprune.errors import CorpusError, OutputError, UsageError
from hubprune.footprint import peak_memory
from hubprune.opening import Opening
from hubprune.replay import Replay
from hubprune.work import WorkFolder
from tests.families import build, token_ids
from tests.pruned import VOCABULARY, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
KILLS = 10
SURVIVED: list[int] = []


@pytest.fixture
def world(tmp_path_factory):
    """The command line of a run: a tiny base with its tokenizer, text to prune on and to measure on."""
    folder = tmp_path_factory.mktemp("world")
    tiny_model(layers=4).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    words = ["prune", str(folder / "base"), "--num-samples", "6", "--sequence-length", "24", "--batch-size", "2"]
    for seed, name in enumerate(("general", "domain", "test")):
        numbers = torch.randint(3, VOCABULARY, (40, 12), generator=torch.Generator().manual_seed(seed))
        text = "\n".join(" ".join(f"w{number}" for number in row) for row in numbers.tolist())
        (folder / f"{name}.txt").write_text(text)
        words += ["--eval", f"test={folder}/test.txt"] if name == "test" else [f"--{name}", f"{folder}/{name}.txt"]
    return words


@pytest.mark.parametrize(
    ("streamed", "method", "first", "at"),
    [
        (False, ["d-pruner"], 0, {"fsync", "replace", "write"}),
        (True, ["cross-calibration", "--application", "compensate"], 5, {"write_config", "create_commit"}),
    ],
)
def test_killed_at_any_moment_a_run_ends_in_the_same_bytes(streamed, method, first, at, hub, world, tmp_path, capsys):
    words = [*world, "--method", *method, "--token", hub.token("me")]
    request = {"words": words, "folder": str(tmp_path), "kills": KILLS, "seed": int(streamed), "streamed": streamed}
    request |= {"first": first}
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed", json.dumps(request)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["problems"] == [], done.stderr[-3000:]
    assert result["killed"] == KILLS
    assert result["moments"] > 40
    assert at <= set(result["hit"])  # during a write, and during publishing
    SURVIVED.append(result["killed"])
    with capsys.disabled():
        way = "streamed" if streamed else "in memory"
        print(f"\n{result['killed']} of {KILLS} kills survived ({method[0]}, {way}, {result['runs']} runs)")
        print(f"{sum(SURVIVED)} of {KILLS * len(SURVIVED)} so far")
    api = HfApi(token=hub.token("me"))
    for number in range(result["runs"]):
        files = set(api.list_repo_files(f"me/killed-{number}"))
        assert {"model.safetensors", "config.json", "README.md", "hubprune_report.json"} <= files
    model = AutoModelForCausalLM.from_pretrained(f"me/killed-{result['runs'] - 1}")
    assert model.config.hubprune["method"] == method[0]


CORPORA = {"general": token_ids(4, 24, seed=1), "domain": token_ids(4, 24, seed=2)}


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A tiny base model's folder; results are checked without a fresh process, which takes seconds each time."""
    monkeypatch.delitem(verifier.CHECKS, "reload")
    build("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def go(base, config=None, **keywords):
    return prune(base, None, config or PruningConfig("d-pruner"), CORPORA, progress=False, evaluation=None, **keywords)


def stop_after(monkeypatch, blocks):
    """Let a run fail once it has finished some blocks."""
    finish, done = WorkFolder.finish, []

    def counted(self, *args, **keywords):
        if len(done) == blocks:
            raise OSError(28, "No space left on device")
        done.append(finish(self, *args, **keywords))

    monkeypatch.setattr(WorkFolder, "finish", counted)


def test_a_model_by_its_name_is_pruned_into_a_folder(base, tmp_path):
    report = go(base, out=tmp_path / "out")
    assert report.verification.passed
    assert report.base.model_id == str(base)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = build("llama")
    prune(expected, None, PruningConfig("d-pruner"), CORPORA, progress=False)
    for (name, left), right in zip(expected.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(left, right), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_a_full_disk_loses_nothing(base, tmp_path, monkeypatch):
    go(base, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(OutputError, match="No space left on device.*make room"):
            go(base, out=tmp_path / "out")
    assert (tmp_path / ".out-run").is_dir()
    seen = []
    backward = Replay.backward
    monkeypatch.setattr(Replay, "backward", lambda self, index, *a: (seen.append(index), backward(self, index, *a))[1])
    go(base, out=tmp_path / "out")
    assert set(seen) == {0}  # blocks 2 and 1 were finished
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert not (tmp_path / ".out-run").exists()


@pytest.mark.parametrize("blocks", [1, 2, 4, 5])
@pytest.mark.parametrize(
    "config",
    [
        PruningConfig("d-pruner", application="compensate"),
        PruningConfig("d-pruner", scope="model"),
        PruningConfig("magnitude", scope="model"),
        PruningConfig("wanda", scope="model", application="compensate"),
        PruningConfig("wanda", pattern="2:4"),
    ],
    ids=lambda config: f"{config.method}-{config.scope or config.pattern}-{config.application}",
)
def test_every_kind_of_run_goes_on_to_the_same_bytes(base, config, blocks, tmp_path, monkeypatch):
    expected = go(base, config, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, blocks)
        try:
            go(base, config, out=tmp_path / "out")
        except OutputError:
            assert (tmp_path / ".out-run").is_dir()
    report = go(base, config, out=tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert report.matrices == expected.matrices


def test_a_run_that_lost_its_place_is_refused(base, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(OutputError):
            go(base, PruningConfig("wanda"), out=tmp_path / "out")
    for path in (tmp_path / ".out-run").glob("front-*"):
        path.unlink()
    with pytest.raises(OutputError, match="has lost what its sequences look like.*start over"):
        go(base, PruningConfig("wanda"), out=tmp_path / "out")


def test_damaged_files_of_the_base_are_named(base, tmp_path):
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match="damaged.*download them again"):
        go(base, out=tmp_path / "out")


def test_a_pruned_base_is_not_pruned_again(base, tmp_path):
    go(base, out=tmp_path / "out")
    with pytest.raises(UsageError, match="already pruned"):
        go(tmp_path / "out", out=tmp_path / "again")


def test_an_unfinished_run_about_something_else_is_refused_unless_it_is_given_up(base, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(OutputError):
            go(base, out=tmp_path / "out")
    other = PruningConfig("d-pruner", sparsity=0.7)
    with pytest.raises(UsageError, match=r"config\.sparsity was None and is 0\.7; .* \(--fresh, fresh=True\)"):
        go(base, other, out=tmp_path / "out")
    assert go(base, other, out=tmp_path / "out", fresh=True).totals.sparsity == pytest.approx(0.7, abs=1e-3)


def test_a_base_that_changed_meanwhile_is_noticed(base, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(OutputError):
            go(base, out=tmp_path / "out")
    build("llama").to(torch.bfloat16).save_pretrained(base)
    with pytest.raises(UsageError, match=r"base\.commit was"):
        go(base, out=tmp_path / "out")


def test_one_run_at_a_time_works_in_a_folder(tmp_path):
    with WorkFolder(tmp_path / "work", {}):
        with pytest.raises(OutputError, match="only one run at a time"):
            WorkFolder(tmp_path / "work", {})


def test_a_run_that_fails_before_anything_is_finished_leaves_nothing(base, tmp_path):
    corpora = {"general": token_ids(2, 24), "domain": token_ids(2, 24) + 1000}
    with pytest.raises(CorpusError, match="vocabulary"):
        prune(base, None, PruningConfig(), corpora, progress=False, evaluation=None, out=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({}, "needs out="),
        ({"out": "x", "criterion": Magnitude()}, "needs a method by its name"),
        ({"out": "x", "max_memory": "much"}, "max_memory is a size above 0"),
        ({"out": "x", "max_memory": "1MB"}, "max_memory must hold one block"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(base, tmp_path, monkeypatch, keywords, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said):
        go(base, **keywords)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_what_goes_with_a_folder_is_refused_for_a_model_in_memory(tmp_path):
    with pytest.raises(UsageError, match="out, max_memory goes with a model by its name"):
        prune(build("llama"), None, PruningConfig(), CORPORA, out=tmp_path, max_memory="1GiB")


def test_memory_decides_where_the_blocks_are(base, tmp_path, monkeypatch, caplog):
    """Between one block and all of them a run streams, and says so."""
    monkeypatch.setattr("hubprune.environment.resident_memory", lambda: 0)
    monkeypatch.setattr("hubprune.footprint.evaluation.MOST_LOGITS", 0)
    seen = []
    original = runs.produce
    monkeypatch.setattr(runs, "produce", lambda *a, **k: (seen.append(k["streamed"]), original(*a, **k))[1])
    plan = flow.prepare(Opening(str(base), None, {}), PruningConfig(), CORPORA, settings={}, evaluation=None)
    memory = peak_memory(plan)
    between = (memory.streamed() + memory.resident()) // 2
    assert memory.streamed() < between < memory.resident()
    go(base, out=tmp_path / "a", max_memory=between)
    go(base, out=tmp_path / "b", max_memory=memory.resident())
    go(base, out=tmp_path / "c")
    assert seen == [True, False, False]
    told = [record.message for record in caplog.records if record.name == "hubprune.runs"]
    assert [line.partition(":")[0] for line in told] == ["Streaming", "In memory"]  # where a limit was given
    assert all("(max_memory: " in line for line in told)
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}) == 1


def test_a_finished_model_that_was_taken_away_is_asked_for(base, tmp_path, monkeypatch):
    """As after a push that failed: the work folder still knows that the run is finished."""
    monkeypatch.setattr(WorkFolder, "remove", lambda self: self._lock.release())
    go(base, out=tmp_path / "out")
    go(base, out=tmp_path / "out")  # nothing is left to do
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    with pytest.raises(
        OutputError, match=r"the finished model is gone from .*out: put it back, or start over \(--fresh"
    ):
        go(base, out=tmp_path / "out")
    (tmp_path / "elsewhere").rename(tmp_path / "out")
    with pytest.raises(UsageError, match="about something else"):  # as it is with --push alone
        WorkFolder(runs.work_folder(tmp_path / "out"), {"config": "another"}, unpublished=True)
    report = go(base, PruningConfig("wanda"), out=tmp_path / "out")  # what is finished is in nobody's way
    assert report.method == "wanda"
