"""Jobs: commands that a user sends, each run as processes of this machine in a temporary folder.

Whoever may send a job runs what they like with the rights of the server, so a Hub has a `Runner` only where it was
asked for one. A job is kept in memory with its log until the server stops, which ends the processes too. Nothing is
installed: of `uv run --with PACKAGE COMMAND` only the command is run, with the server's own Python.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hubprune
from hubprune.errors import UsageError
from hubprune.localhub.jobspec import JobSpec, local_command
from hubprune.localhub.store import stamp

GRACE = 2.0
"""Seconds between asking processes to end and ending them."""
MAX_LINES = 100_000
"""Lines of a log that are kept."""

SHORTEST_HIDDEN = 6
"""Characters of the shortest secret that a log is cleared of; shorter ones would leave holes everywhere."""

_INHERITED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


class Job:
    """A job and its log.

    Attributes:
        id: 24 hexadecimal digits.
        namespace: User or organization it belongs to.
        user: Who sent it.
        spec: What it runs.
        stage: `SCHEDULING`, `RUNNING`, `COMPLETED`, `ERROR` or `CANCELED`.
        message: Why it failed.
        created: Seconds since 1970, as are `started` and `finished`.
        log: Its lines with their times; only ever grows.
        over: Whether the stage is final and the log complete.
    """

    def __init__(self, namespace: str, user: str, spec: JobSpec) -> None:
        self.id = secrets.token_hex(12)
        self.namespace = namespace
        self.user = user
        self.spec = spec
        self.stage = "SCHEDULING"
        self.message: str | None = None
        self.created = time.time()
        self.started: float | None = None
        self.finished: float | None = None
        self.log: list[tuple[str, str]] = []
        self.over = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._canceled = False
        self._thread: threading.Thread | None = None

    def start(self, environ: Mapping[str, str]) -> None:
        """Run it on a thread of its own.

        Args:
            environ: Variables that point clients at this Hub.
        """
        self._thread = threading.Thread(target=self._run, args=(environ,), name=f"job-{self.id}", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """End it, if it has not ended; returns when it has."""
        with self._lock:
            self._canceled = self._canceled or not self.over
            process = self._process
        if process is not None:
            _end(process)
        if self._thread is not None:
            self._thread.join()

    def write(self, text: str) -> None:
        """Add a line to the log."""
        for value in self.spec.secrets.values():
            text = text.replace(value, "***") if len(value) >= SHORTEST_HIDDEN else text
        if len(self.log) < MAX_LINES:
            self.log.append((stamp(time.time()), text))

    def _run(self, environ: Mapping[str, str]) -> None:
        stage, message = "ERROR", None
        try:
            with tempfile.TemporaryDirectory(prefix="localhub-job-", ignore_cleanup_errors=True) as folder:
                code = self._execute(Path(folder), environ)
            stage = "COMPLETED" if code == 0 else "ERROR"
            message = None if code == 0 else f"{type(self).__name__} failed with exit code: {code}"
        except subprocess.TimeoutExpired:
            message = f"{type(self).__name__} timeout: it was ended after {self.spec.timeout:g} seconds"
        except (OSError, ValueError, UsageError) as error:
            message = f"{type(self).__name__} cannot be started: {error}"
        with self._lock:
            self.stage, self.message = ("CANCELED", None) if self._canceled else (stage, message)
            self.finished = time.time()
            self.over = True

    def _fill(self, folder: Path) -> Path:
        """Put what it needs into its folder; returns where it runs."""
        return folder

    def _execute(self, folder: Path, environ: Mapping[str, str]) -> int:
        """Run the command in a folder and return its exit code."""
        self.started, self.stage = time.time(), "RUNNING"
        self.write(f"===== {type(self).__name__} started at {stamp(self.started)} =====")
        command, packages = local_command(self.spec.command)
        self.write(f"embedded Hub: run on this machine with {sys.executable}; no container" + _spared(packages))
        place = self._fill(folder)
        (folder / "tmp").mkdir()
        with self._lock:
            if self._canceled:
                return 1
            self._process = process = subprocess.Popen(
                command,
                cwd=place,
                env=self._environment(folder, environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        reader = threading.Thread(target=self._read, args=(process,), name=f"job-{self.id}-log", daemon=True)
        reader.start()
        try:
            return process.wait(self.spec.timeout)
        finally:
            _end(process)
            reader.join(GRACE)
            with self._lock:
                self._process = None  # its number may be another's soon

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.write(line.rstrip("\n"))

    def _environment(self, folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables of its processes: nothing of the server's own but what programs cannot do without."""
        kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return {
            **kept,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]),
            "PYTHONPATH": str(Path(hubprune.__file__).parents[1]),
            "HOME": str(folder),
            "HF_HOME": str(folder / "huggingface"),
            "TMPDIR": str(folder / "tmp"),
            "JOB_ID": self.id,
            **environ,
            **self.spec.environment,
            **self.spec.secrets,
        }


class Runner:
    """The jobs of a Hub.

    Args:
        environ: From the address of the Hub and a token, or None, to the variables that point clients at it.
    """

    def __init__(self, environ: Callable[[str, str | None], Mapping[str, str]]) -> None:
        self._environ = environ
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, namespace: str, user: str, spec: JobSpec, url: str) -> Job:
        """Start a job.

        Args:
            namespace: User or organization it belongs to.
            user: Who sends it.
            spec: What it runs.
            url: Address of the Hub.

        Raises:
            UsageError: The server is about to stop.
        """
        job = Job(namespace, user, spec)
        with self._lock:
            if self._closed:
                raise UsageError("this Hub is about to stop: send the job when it is back")
            self._jobs[job.id] = job
            job.start(self._environ(url, {**spec.environment, **spec.secrets}.get("HF_TOKEN")))
        return job

    def find(self, namespace: str, job_id: str) -> Job | None:
        """Return a job of a namespace, None where there is no such."""
        job = self._jobs.get(job_id)
        return job if job is not None and job.namespace == namespace else None

    def list(self, namespace: str) -> list[Job]:
        """Return the jobs of a namespace, the newest first."""
        with self._lock:
            return [job for job in reversed(self._jobs.values()) if job.namespace == namespace]

    def close(self) -> None:
        """End every job, and take no more."""
        with self._lock:
            self._closed = True
        with ThreadPoolExecutor() as pool:
            list(pool.map(Job.cancel, self._jobs.values()))


def _end(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it started; returns when it has ended."""
    if os.name == "nt":
        process.kill()
        process.wait()
        return
    _signal(process, signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        pass
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[Any], number: int) -> None:
    try:
        os.killpg(process.pid, number)  # the process leads a group of its own
    except (ProcessLookupError, PermissionError):  # it has ended
        pass


def _spared(packages: list[str]) -> str:
    return f"; taken as they are here, not installed: {', '.join(packages)}" if packages else ""
