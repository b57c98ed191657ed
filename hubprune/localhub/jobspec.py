"""What a job is to run: read from what clients send, and turned into a command of this machine."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hubprune.errors import UsageError
from hubprune.localhub.ids import check_variable
from hubprune.localhub.settings import JOB_HARDWARE, MAX_VALUE

DEFAULT_TIMEOUT = 1800
"""Seconds after which a job is ended that asks for no other time (as on the public Hub)."""

_UNSUPPORTED = ("expose", "network", "ssh", "volumes")
_UV_VALUES = ("--with", "--python", "-p")
"""Options of `uv run` that take a value, of those that clients send."""


@dataclass(frozen=True)
class JobSpec:
    """What a job is to run.

    Attributes:
        command: Program and arguments.
        environment: Variables.
        secrets: Variables that no answer and no log shows.
        flavor: Machine asked for; it makes no difference here.
        timeout: Seconds after which it is ended.
        image: Container asked for; not used.
        labels: Labels of its sender.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    flavor: str = "cpu-basic"
    timeout: float = DEFAULT_TIMEOUT
    image: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def read_spec(body: Mapping[str, Any]) -> JobSpec:
    """Read what a job is to run.

    Raises:
        UsageError: It is not complete, or asks for what cannot be had here.
    """
    asked = [name for name in _UNSUPPORTED if body.get(name)]
    if asked or body.get("attempts") not in (None, 1):
        raise UsageError(f"a job runs once here, and by itself; leave out {', '.join(asked) or 'attempts'}")
    parts = [body.get("command") or [], body.get("arguments") or []]
    words = [word for part in parts if isinstance(part, list) for word in part]
    if not parts[0] or not words or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise UsageError("command and arguments are arrays of text, and the command is not empty")
    flavor, timeout = body.get("flavor") or "cpu-basic", body.get("timeoutSeconds") or DEFAULT_TIMEOUT
    if flavor not in JOB_HARDWARE:
        raise UsageError(f"flavor is one of {', '.join(JOB_HARDWARE)}; got {flavor!r:.60}")
    if not isinstance(timeout, int | float) or not 0 < timeout < 2**31:
        raise UsageError(f"timeoutSeconds is a number above 0; got {timeout!r:.60}")
    return JobSpec(
        command=tuple(words),
        environment=_variables(body, "environment"),
        secrets=_variables(body, "secrets"),
        flavor=str(flavor),
        timeout=float(timeout),
        image=body.get("dockerImage") or body.get("spaceId"),
        labels={str(key): str(value) for key, value in _mapping(body, "labels").items()},
    )


def _variables(body: Mapping[str, Any], kind: str) -> dict[str, str]:
    values = {check_variable(name): str(value) for name, value in _mapping(body, kind).items()}
    if any(len(value) > MAX_VALUE or "\0" in value for value in values.values()):
        raise UsageError(f"a value of {kind} is text of at most {MAX_VALUE} characters")
    return values


def _mapping(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name) or {}
    if not isinstance(value, dict):
        raise UsageError(f"{name} must be an object")
    return value


def local_command(command: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Turn the command of a job into one that runs here.

    Returns:
        The command, and the packages that it asked `uv` to install.

    Raises:
        UsageError: It is a script that would have to be fetched, or `uv` is given nothing to run.
    """
    words, packages = list(command), []
    if words[:2] == ["uv", "run"]:
        del words[:2]
        while words and words[0].startswith("-"):
            option = words.pop(0)
            value = words.pop(0) if option in _UV_VALUES and words else ""
            packages += [value] if option == "--with" else []
        if not words or re.match(r"https?://", words[0]):
            raise UsageError(f"uv run needs a command here, got {' '.join(command)!r}: send no script by its address")
    program, rest = words[0], words[1:]
    if program in ("python", "python3"):
        return [sys.executable, *rest], packages
    beside = shutil.which(program, path=str(Path(sys.executable).parent)) if "/" not in program else None
    if beside is None and _is_module(program):
        return [sys.executable, "-m", program, *rest], packages
    return [beside or program, *rest], packages


def _is_module(name: str) -> bool:
    """Whether a top-level package can be run with `python -m`; nothing of it is imported."""
    spec = find_spec(name) if name.isidentifier() else None
    return any((Path(place) / "__main__.py").is_file() for place in (spec and spec.submodule_search_locations) or ())
