"""Processes without the ten seconds that each needs to import torch and transformers: forks of one that has.

The one process imports them and nothing of hubprune. ``Forks.ask`` does what ``reloading.ask_stranger`` does;
``test_verifier``, the demo and the command line start real processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# Reads jobs, a line each: code, and what each process that runs it gets. Answers with their exit codes.
SERVER = """
import json, os, sys, traceback
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

def run(code, arguments, environment, out, err):
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["-c", *arguments]
    os.environ.update(environment)
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()

for line in sys.stdin:
    code, processes = json.loads(line)
    children = []
    for given in processes:
        child = os.fork()
        if child == 0:
            os._exit(run(code, *given))
        children.append(child)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


class Forks:
    """Runs code in forks of one process, which is started with the first job."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(
        self, code: str, arguments: Sequence[str], environments: Sequence[Mapping[str, str]] = ({},)
    ) -> list[subprocess.CompletedProcess[str]]:
        """Run code in several forks at once, until all have ended.

        Args:
            code: Python; it finds its arguments in ``sys.argv``.
            arguments: The same for each.
            environments: What each has in its environment beside what is there: as many forks as there are of these.
        """
        if self._process is None:
            offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            command = [sys.executable, "-P", "-c", SERVER]
            environment = {**os.environ, **offline}
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            printed = [(Path(folder, f"out-{n}"), Path(folder, f"err-{n}")) for n in range(len(environments))]
            processes = [
                (list(arguments), dict(environment), str(out), str(err))
                for environment, (out, err) in zip(environments, printed, strict=True)
            ]
            self._process.stdin.write(json.dumps([code, processes]) + "\n")
            self._process.stdin.flush()
            codes = json.loads(self._process.stdout.readline())
            return [
                subprocess.CompletedProcess([], code, out.read_text("utf-8"), err.read_text("utf-8"))
                for code, (out, err) in zip(codes, printed, strict=True)
            ]

    def ask(self, request: str) -> subprocess.CompletedProcess[str]:
        """Do what ``reloading.ask_stranger`` does."""
        from hubprune.reloading import RELOAD

        (answer,) = self.run(RELOAD, [request])
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
