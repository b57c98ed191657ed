"""Helpers of the tests of the embedded Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubprune.localhub import EmbeddedHub

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    headers: Any
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    hub: EmbeddedHub,
    path: str,
    *,
    method: str = "GET",
    user: str | None = None,
    data: Any = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Send one request as it is written, without a client that would tidy the path."""
    body = data if data is None or isinstance(data, bytes) else json.dumps(data).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    if user:
        sent["Authorization"] = f"Bearer {hub.token(user)}"
    request = urllib.request.Request(hub.url + path, data=body, method=method, headers=sent)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def run_client(hub: EmbeddedHub, code: str, tmp_path: Path, *, user: str | None = "me", **env: str) -> str:
    """Run Python code in a process whose clients use the Hub; return what it prints."""
    return run_command(hub, [sys.executable, "-c", textwrap.dedent(code)], tmp_path, user=user, **env)


def run_command(hub: EmbeddedHub, command: list[str], tmp_path: Path, *, user: str | None = "me", **env: str) -> str:
    """Run a command whose clients use the Hub, with caches of its own; return what it prints."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        command,
        env={
            **inherited,
            **hub.env(user),
            "HF_HOME": str(tmp_path / "hf-home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **env,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
