"""Runs ``hubprune`` again and again in processes that are killed; ``test_resume.py`` starts it in one of its own.

Everything is imported once, and each run is a fork of that: a real process, without the seconds that imports take.
Half of the kills come at a random time, half at one of the moments at which something is about to reach the disk or
the Hub, or has just done so.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub

from hubprune import publisher, runs, verifier
from hubprune.cli import main, running
from hubprune.estimate import Choice

MOMENTS: list[tuple[Any, str]] = [
    (os, "fsync"),
    (os, "replace"),
    (Path, "rename"),
    (runs.Shards, "create"),
    (runs.Shards, "write"),
    (runs.saving, "write_config"),
    (runs.saving, "complete"),
    (huggingface_hub.HfApi, "create_repo"),
    (huggingface_hub.HfApi, "create_commit"),
]


def stream_everything() -> None:
    """Leave the blocks of the tiny model on disk, and nearly all activations."""
    running.choose = lambda *_: Choice(True, 20_000, "the test says so")


def without_reload() -> None:
    """Leave out the check that starts a process and imports everything there."""
    del verifier.CHECKS["reload"]
    publisher.verify = verifier.verify


def watch(at: int, written: int) -> None:
    """Count the moments of a run, and end the process at one of them.

    Args:
        at: The moment; -1 for none.
        written: File descriptor that gets a byte at each.
    """
    passed = -1

    def step() -> None:
        nonlocal passed
        passed += 1
        os.write(written, b".")
        if passed == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            step()
            result = original(*args, **kwargs)
            step()
            return result

        return wrapped

    for owner, name in MOMENTS:
        setattr(owner, name, around(getattr(owner, name)))


def attempt(words: list[str], *, moment: int = -1, seconds: float | None = None) -> tuple[int | None, int]:
    """Run once in a process of its own.

    Args:
        words: The command line.
        moment: Where it kills itself; -1 for nowhere.
        seconds: When it is killed; None for never.

    Returns:
        Its exit code, None when it was killed; and how many moments it went through.
    """
    heard, written = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(heard)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        watch(moment, written)
        os._exit(main(words))
    os.close(written)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    moments = b""
    while part := os.read(heard, 65536):
        moments += part
    os.close(heard)
    status = os.waitpid(child, 0)[1]
    return (None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), len(moments)


def weights_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("model*"))}


def survive(words: list[str], folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill runs until enough were killed; each is repeated until it ends by itself."""
    random.seed(seed)
    started = time.perf_counter()
    code, moments = attempt([*words, "--out", str(folder / "whole"), "--push", "me/killed-whole"])
    duration = time.perf_counter() - started
    expected = weights_of(folder / "whole")
    killed, runs_done, at, problems = 0, 0, [], [] if code == 0 else [f"the first run ended with {code}"]
    while killed < kills and not problems:
        out = folder / f"run-{runs_done}"
        command = [*words, "--out", str(out), "--push", f"me/killed-{runs_done}"]
        code = None
        while code is None:
            enough = killed >= kills
            by_time = not enough and killed % 2 == 0
            seconds = random.uniform(0, duration) if by_time else None
            moment = random.randrange(moments) if not enough and not by_time else -1
            code, passed = attempt(command, moment=moment, seconds=seconds)
            if code is None:
                killed += 1
                at.append(f"{seconds:.2f} s" if by_time else f"moment {moment}")
        runs_done += 1
        if code != 0 or weights_of(out) != expected:
            problems.append(f"run {runs_done} ended with {code} after {at[-5:]}: {weights_of(out)}")
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        if left:
            problems.append(f"run {runs_done} left {left}")
    return {"killed": killed, "runs": runs_done, "moments": moments, "problems": problems, "expected": expected}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    without_reload()
    if given["streamed"]:
        stream_everything()
    print(json.dumps(survive(given["words"], Path(given["folder"]), given["kills"], given["seed"])))
