"""Strangers who load a saved model, without the ten seconds that each needs to import torch and transformers.

One process imports them and nothing of hubprune, and forks for every question; the fork does what the process that
``reloading.ask_stranger`` starts would do. ``test_verifier``, the demo and the command line start real ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FORKS = """
import json, os, sys, traceback
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

for line in sys.stdin:
    code, request, out, err = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["-c", request]
        status = 1
        try:
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Strangers:
    """Asks forks of one process; it is started with the first question."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: str) -> subprocess.CompletedProcess[str]:
        """Do what ``reloading.ask_stranger`` does."""
        from hubprune.reloading import RELOAD

        if self._process is None:
            offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", FORKS],
                env={**os.environ, **offline},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            self._process.stdin.write(json.dumps([RELOAD, request, str(out), str(err)]) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            return subprocess.CompletedProcess([], code, out.read_text("utf-8"), err.read_text("utf-8"))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
