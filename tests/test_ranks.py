"""A run spread over processes: shares, sums, the same masks as one process, and what happens when one dies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hubprune import ranks
from hubprune.cli import main
from hubprune.demo import GENERAL_ID, MEDICAL_ID, MODEL_ID
from tests.families import build
from tests.forks import Forks

ROOT = Path(__file__).resolve().parents[1]

# What every process runs: prune tiny models on its part of fixed tokens, keep the scores, and measure.
WORK = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from hubprune import PruningConfig, perplexity, prune, ranks
from hubprune.calibration import corpus_from_tokens
from hubprune.criterion import load_criterion
from tests.families import build, token_ids

def work(method, family, out):
    model = build(family)
    config = PruningConfig(method, sparsity=0.5, batch_size=2)
    criterion, scores = load_criterion(config), []

    class Watched(type(criterion)):
        scope, application = config.resolved_pattern().scope, config.resolved_application()

        def scores(self, *given):
            scores.append(super().scores(*given))
            return scores[-1]

    criterion.__class__ = Watched
    corpora = {"general": token_ids(6, 12), "domain": token_ids(7, 12, seed=1)}
    report = prune(model, None, config, corpora, criterion=criterion, progress=False)
    found = perplexity(model, corpus_from_tokens(token_ids(5, 10, seed=2), "x"), batch_size=1, progress=False)
    held = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    held |= {f"score {i}": score.contiguous() for i, score in enumerate(scores)}
    held["perplexity"] = torch.tensor([found.perplexity, found.stderr, found.windows], dtype=torch.float64)
    held["processes"] = torch.tensor(report.hardware["processes"])
    save_file(held, Path(out) / f"{method}-{ranks.rank()}.safetensors")

ranks.start()
for run in sys.argv[2:]:
    work(*run.split(","), sys.argv[1])
ranks.finish()
"""
RUNS = {"d-pruner": "llama", "sparsegpt": "qwen2", "wanda": "mixtral"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def group(forks: Forks, code: str, processes: int, *arguments: str) -> tuple[list[int], list[str]]:
    """Run the processes of a group as a launcher does; their exit codes, and what each printed."""
    same = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    places = [{**same, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    done = forks.run(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}", arguments, places)
    return [process.returncode for process in done], [process.stdout + process.stderr for process in done]


@pytest.fixture(scope="module")
def groups(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By the number of processes, the folder that they left the models of all runs in."""
    folders = {}
    for processes in (1, 2, 3):
        folders[processes] = tmp_path_factory.mktemp("group")
        codes, printed = group(forks, WORK, processes, str(folders[processes]), *map(",".join, RUNS.items()))
        assert codes == [0] * processes, printed
    return folders


@pytest.mark.parametrize("method", RUNS)
def test_one_two_and_three_processes_agree(method: str, groups: dict[int, Path]) -> None:
    held = {
        processes: [load_file(folder / f"{method}-{rank}.safetensors") for rank in range(processes)]
        for processes, folder in groups.items()
    }
    (alone,) = held.pop(1)
    for processes, everywhere in held.items():
        for other in everywhere:
            assert other.keys() == alone.keys()
            assert int(other["processes"]) == processes
            assert all(torch.equal(other[name], everywhere[0][name]) for name in other), (
                "processes ended with other weights"
            )
        agreed = total = 0
        for name, tensor in alone.items():
            mine = everywhere[0][name]
            if name == "perplexity":
                torch.testing.assert_close(mine, tensor, rtol=1e-4, atol=0)
            elif name.startswith("score") and method != "sparsegpt":  # its scores come from weights repaired before
                torch.testing.assert_close(mine, tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max()))
            elif tensor.is_floating_point():
                agreed += int(((mine == 0) == (tensor == 0)).sum())
                total += tensor.numel()
        assert agreed / total >= 0.9999


# Every process removes units of a tiny model, repairs the rest, and keeps the weights and what was chosen.
UNIT_WORK = """
import dataclasses, json
from pathlib import Path
import torch
from safetensors.torch import save_file
from hubprune import PruningConfig, prune, ranks
from hubprune.calibration import corpus_from_tokens
from tests.families import build, token_ids

ranks.start()
corpora = {"general": token_ids(6, 12), "domain": token_ids(7, 12, seed=1)}
task = dataclasses.replace(corpus_from_tokens(token_ids(6, 16, seed=3), "task"), answers=(12,) * 6)
for method in sys.argv[2:]:
    model = build("llama")
    config = PruningConfig(method, sparsity=0.25, application="compensate", batch_size=2)
    report = prune(model, None, config, {"task": task} if method == "attribution" else corpora, progress=False)
    name = Path(sys.argv[1]) / f"{method}-{ranks.rank()}"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, f"{name}.safetensors")
    told = [[row.removed_indices, row.overlap, row.reached, row.fewer] for row in report.units]
    Path(f"{name}.json").write_text(json.dumps(told))
ranks.finish()
"""
UNIT_METHODS = ("cus-prun", "mutual-information", "attribution", "wanda-sp", "taylor")


def test_units_are_the_same_for_one_and_two_processes(forks: Forks, tmp_path: Path) -> None:
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        codes, said = group(forks, UNIT_WORK, processes, str(tmp_path / str(processes)), *UNIT_METHODS)
        assert codes == [0] * processes, said
    for method in UNIT_METHODS:
        alone, first, second = (tmp_path / name for name in (f"1/{method}-0", f"2/{method}-0", f"2/{method}-1"))
        chosen = [json.loads(path.with_suffix(".json").read_text()) for path in (alone, first, second)]
        assert chosen[0] == chosen[1] == chosen[2]
        one, two, other = (load_file(path.with_suffix(".safetensors")) for path in (alone, first, second))
        for name, tensor in one.items():
            assert torch.equal(two[name], other[name])
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)


def test_shares_are_consecutive_even_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "size", lambda: 3)
    parts = []
    for mine in range(3):
        monkeypatch.setattr(ranks, "rank", lambda mine=mine: mine)
        parts.append(ranks.share(range(8)))
    assert [list(part) for part in parts] == [[0, 1], [2, 3, 4], [5, 6, 7]]


def test_one_process_alone_sends_nothing() -> None:
    tensor = torch.ones(2)
    assert ranks.add_up(tensor) is tensor
    assert ranks.copy_from_first(tensor) is tensor
    assert ranks.gather((1, 2)) == [1, 2]
    assert ranks.in_first(lambda: "done") == "done"


def test_a_process_that_dies_ends_the_run_with_a_clear_message(forks: Forks) -> None:
    code = (
        "import os, torch\nfrom hubprune import ranks\nfrom hubprune.errors import ProcessError\nranks.start()\n"
        "ranks.wait()\nif ranks.rank() == 1: os._exit(9)\n"
        "try:\n    ranks.add_up(torch.ones(3))\nexcept ProcessError as error:\n    print(error, flush=True)\n"
        "    os._exit(2)\n"
    )
    codes, said = group(forks, code, 2)
    assert codes == [2, 9]
    assert "process 0 cannot add up statistics with the others, one of them has ended" in said[0]
    assert "start the run again" in said[0]


# What every process runs: prune a model by its name into a folder; one process may end after some blocks.
FOLDER_WORK = """
import os, sys
from hubprune import PruningConfig, prune, ranks, verifier
from hubprune.errors import ProcessError
from hubprune.work import WorkFolder
from tests.families import token_ids

base, out, victim = sys.argv[1:4]
del verifier.CHECKS["reload"]  # it starts a process that imports everything
ranks.start()
finish, done = WorkFolder.finish, []

def counted(self, *given, **named):
    finish(self, *given, **named)
    done.append(1)
    if str(ranks.rank()) == victim and len(done) == 2:
        os._exit(9)

WorkFolder.finish = counted
corpora = {"general": token_ids(5, 12), "domain": token_ids(5, 12, seed=1)}
try:
    prune(base, None, PruningConfig("d-pruner"), corpora, out=out, evaluation=None, progress=False)
    print(len(done), "blocks")
except ProcessError as error:
    print(error, flush=True)
    os._exit(2)
ranks.finish()
"""


def test_a_run_that_lost_a_process_goes_on_when_it_is_started_again(forks: Forks, tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "base")

    def go(out: str, victim: str = "") -> tuple[list[int], list[str]]:
        return group(forks, FOLDER_WORK, 2, str(tmp_path / "base"), str(tmp_path / out), victim)

    assert go("whole")[0] == [0, 0]
    codes, said = go("lost", victim="1")
    assert codes == [2, 9], said
    assert "one of them has ended" in said[0]
    codes, said = go("lost")
    assert codes == [0, 0], said
    assert "1 blocks" in said[0]  # two of three were finished
    assert (tmp_path / "lost/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_too_little_text_for_so_many_processes_is_refused(forks: Forks) -> None:
    code = (
        "from hubprune import PruningConfig, prune, ranks\nfrom hubprune.errors import ConfigError\n"
        "from tests.families import build, token_ids\nranks.start()\n"
        "try:\n    prune(build('llama'), None, PruningConfig('wanda'), {'domain': token_ids(1, 8)}, progress=False)\n"
        "except ConfigError as error:\n    print(error)\nranks.finish()\n"
    )
    for said in group(forks, code, 2)[1]:
        assert "the domain corpus has 1 for 2 processes: give more text" in said


def test_a_launcher_starts_processes_that_prune_as_one_does(demo_hub, tmp_path: Path) -> None:
    """The first process alone writes, verifies and shows the result."""
    options = f"prune {MODEL_ID} --method d-pruner --sparsity 0.5 --general {GENERAL_ID} --domain {MEDICAL_ID}".split()
    options += "--num-samples 6 --sequence-length 64 --dtype float32 --evaluation none".split()
    assert main([*options, "--out", str(tmp_path / "one"), "--token", demo_hub.token("me")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "--master-port", str(free_port()), "-m", "hubprune", *options, "--out", str(tmp_path / "two")],
        env={**os.environ, **demo_hub.env("me"), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("verified") == 1, done.stdout
    reports = [json.loads((tmp_path / name / "hubprune_report.json").read_text("utf-8")) for name in ("one", "two")]
    assert [report["hardware"]["processes"] for report in reports] == [1, 2]
    assert all(report["verification"]["passed"] for report in reports)
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two"))
    same = sum(int(((one[name] == 0) == (two[name] == 0)).sum()) for name in one)
    assert same / sum(tensor.numel() for tensor in one.values()) >= 0.9999
