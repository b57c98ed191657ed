"""Runs ``hubprune`` again and again in processes that are killed; ``test_resume.py`` starts it in one of its own.

Everything is imported once, and each run is a fork of that: a real process, without the seconds that imports take.
Half of the kills come at a random time, half at one of the moments at which something is about to reach the disk or
the Hub, or has just done so: all kinds of moments in turn, one of each drawn by chance.
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


def watch(kind: int, number: int, written: int) -> None:
    """Note the moments of a run, and end the process at one of them.

    Args:
        kind: The kind of that moment, a number in ``MOMENTS``; -1 for none.
        number: Which of its kind, from 0.
        written: File descriptor that gets the kind of each as a byte.
    """
    passed = [0] * len(MOMENTS)

    def step(now: int) -> None:
        os.write(written, bytes([now]))
        passed[now] += 1
        if (now, passed[now] - 1) == (kind, number):
            os.kill(os.getpid(), signal.SIGKILL)

    def around(original: Callable[..., Any], now: int) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            step(now)
            result = original(*args, **kwargs)
            step(now)
            return result

        return wrapped

    for now, (owner, name) in enumerate(MOMENTS):
        setattr(owner, name, around(getattr(owner, name), now))


def attempt(
    words: list[str], *, moment: tuple[int, int] = (-1, -1), seconds: float | None = None
) -> tuple[int | None, bytes]:
    """Run once in a process of its own.

    Args:
        words: The command line.
        moment: Where it kills itself: the kind of moment, and which of its kind.
        seconds: When it is killed; None for never.

    Returns:
        Its exit code, None when it was killed; and the kinds of the moments that it went through.
    """
    heard, written = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(heard)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        watch(*moment, written)
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
    return (None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), moments


def weights_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("model*"))}


def survive(words: list[str], folder: Path, kills: int, seed: int, first: int) -> dict[str, Any]:
    """Kill runs until enough were killed; each is repeated until it ends by itself.

    Kinds of moments have their turns from ``first`` on.
    """
    random.seed(seed)
    started = time.perf_counter()
    code, moments = attempt([*words, "--out", str(folder / "whole"), "--push", "me/killed-whole"])
    duration = time.perf_counter() - started
    expected = weights_of(folder / "whole")
    killed, runs_done, at, problems = 0, 0, [], [] if code == 0 else [f"the first run ended with {code}"]
    kinds = sorted(set(moments), key=lambda kind: (kind - first) % len(MOMENTS))
    hit: list[int] = []
    while killed < kills and not problems:
        out = folder / f"run-{runs_done}"
        command = [*words, "--out", str(out), "--push", f"me/killed-{runs_done}"]
        code = None
        while code is None:
            enough = killed >= kills
            by_time = not enough and killed % 2 == 0
            seconds = random.uniform(0, duration) if by_time else None
            moment = (-1, -1)
            if not enough and not by_time:
                kind = kinds[len(hit) % len(kinds)]
                moment = kind, random.randrange(moments.count(kind))
            code, _ = attempt(command, moment=moment, seconds=seconds)
            if code is None and not by_time:
                hit.append(kind)
            if code is None:
                killed += 1
                at.append(f"{seconds:.2f} s" if by_time else f"{MOMENTS[moment[0]][1]} {moment[1]}")
        runs_done += 1
        if code != 0 or weights_of(out) != expected:
            problems.append(f"run {runs_done} ended with {code} after {at[-5:]}: {weights_of(out)}")
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        if left:
            problems.append(f"run {runs_done} left {left}")
    return {
        "killed": killed,
        "runs": runs_done,
        "moments": len(moments),
        "hit": [MOMENTS[kind][1] for kind in hit],
        "problems": problems,
    }


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    without_reload()
    if given["streamed"]:
        stream_everything()
    print(json.dumps(survive(given["words"], Path(given["folder"]), given["kills"], given["seed"], given["first"])))
