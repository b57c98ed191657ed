"""The command as a process of its own, followed until it ends: what it says, how far it is, and nothing secret."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

COMMAND = (sys.executable, "-m", "hubprune")
RUN_SECONDS = float(os.environ.get("RUN_SECONDS", 7200))
POLL = 0.5  # seconds between two looks
GRACE = 5.0  # seconds between asking a process to end and ending it
MAX_LINES = 500  # of the log that are kept
ROWS, COLUMNS = 40, 58  # as wide as the log on the page

# All that the command gets from this process; secrets of the Space stay out of it.
INHERITED = (
    "PATH LANG LC_ALL LD_LIBRARY_PATH PYTHONPATH CUDA_VISIBLE_DEVICES OMP_NUM_THREADS HF_ENDPOINT NO_PROXY no_proxy "
    "HF_HUB_DISABLE_TELEMETRY DISABLE_SAFETENSORS_CONVERSION HUBPRUNE_JOB_REQUIREMENT"
).split()
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BAR = re.compile(r"^\s*(?P<label>[^|]*?)\s*:?\s+(?P<percent>\d{1,3})%\s*\|")
JOB = re.compile(r"^job on \S+: \S+/jobs/([\w.-]+)/([\w-]+)$")
OTHER_BAR = re.compile(r":\s+\S*\|")  # one without a percentage


@dataclass
class Output:
    """What a command has said so far.

    Attributes:
        secret: What is left out of it.
        lines: Its lines, without those that only show progress.
        job: Owner and number of the job that it submitted; None without one.
        label: What it is doing, as its last progress bar says.
        fraction: How much of that is done.
    """

    secret: str
    lines: list[str] = field(default_factory=list)
    job: tuple[str, str] | None = None
    label: str = ""
    fraction: float | None = None
    _rest: str = ""

    def feed(self, text: str) -> None:
        """Take what a terminal would get."""
        *whole, self._rest = re.split(r"\r\n|\r|\n", self._rest + text)
        for line in whole:
            self._take(line)

    def close(self) -> None:
        """Take the last line, which has no end."""
        self._take(self._rest)
        self._rest = ""

    def _take(self, line: str) -> None:
        line = ESCAPE.sub("", line).replace(self.secret, "hf_…").rstrip()
        bar = BAR.match(line)
        if bar is not None:
            self.label, self.fraction = bar["label"].strip() or self.label, min(int(bar["percent"]), 100) / 100
        elif line.strip() and not OTHER_BAR.search(line):
            submitted = JOB.match(line)
            self.job = self.job if submitted is None else (submitted[1], submitted[2])
            self.lines = [*self.lines, line][-MAX_LINES:]

    @property
    def error(self) -> str:
        """What the command says is wrong; its last line where it says nothing."""
        said = next((line for line in reversed(self.lines) if line.startswith("error: ")), None)
        return said.removeprefix("error: ") if said else (self.lines or ["it left no message"])[-1].strip()


@dataclass(frozen=True)
class Moment:
    """A run at one moment.

    Attributes:
        output: What it has said.
        seconds: Since when it runs.
        code: Its exit code; None while it goes on.
        late: Whether it was ended because it took too long.
    """

    output: Output
    seconds: float
    code: int | None = None
    late: bool = False


def follow(arguments: Sequence[str], token: str, limit: float | None = RUN_SECONDS) -> Iterator[Moment]:
    """Run ``hubprune`` and yield how it stands, twice a second, until it has ended.

    The process, all that it started and its folder go when nobody listens any more.

    Args:
        arguments: What follows ``hubprune``.
        token: The visitor's, for this process alone; it stands in no argument and no file.
        limit: Seconds after which it is ended; None for a job, which the Hub ends.
    """
    with tempfile.TemporaryDirectory(prefix="prune-my-repo-", ignore_cleanup_errors=True) as folder:
        output, decode = Output(token), codecs.getincrementaldecoder("utf-8")("replace").decode
        reader, writer = pty.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        started = time.monotonic()
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=folder,
            env=_environment(Path(folder), token),
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            start_new_session=True,
        )
        os.close(writer)
        late = False
        try:
            while _listen(reader, output, decode):
                seconds = time.monotonic() - started
                if limit is not None and seconds > limit:
                    late = True
                    _end(process)
                yield Moment(output, seconds)
            output.close()
            yield Moment(output, time.monotonic() - started, process.wait(GRACE), late)
        finally:
            _end(process)
            os.close(reader)


def _listen(reader: int, output: Output, decode: Callable[[bytes], str]) -> bool:
    """Take what the command says within a moment; whether it goes on."""
    end = time.monotonic() + POLL
    while (left := end - time.monotonic()) > 0:
        if not select.select([reader], [], [], left)[0]:
            continue
        try:
            data = os.read(reader, 65536)
        except OSError:  # how Linux says that nobody holds the other end any more
            return False
        if not data:
            return False
        output.feed(decode(data))
    return True


def _environment(folder: Path, token: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    return {
        **kept,
        "HOME": str(folder / "home"),
        "HF_HOME": str(folder / "home" / "huggingface"),
        "HF_TOKEN": token,
        "MPLCONFIGDIR": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "NO_COLOR": "1",
        "TERM": "dumb",
        "COLUMNS": str(COLUMNS),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)  # it leads a group of its own
            process.wait(GRACE)
        except (ProcessLookupError, PermissionError):
            return
        except subprocess.TimeoutExpired:
            continue
