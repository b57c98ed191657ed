"""What hubprune finds on this machine: versions, tokens, the Hub, disk, memory, accelerators, optional packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hubprune import __version__
from hubprune.card import size
from hubprune.environment import accelerators, free_memory, total_memory
from hubprune.errors import AccessError, HubPruneError
from hubprune.hub import make_api
from hubprune.huberrors import LOG_IN, hub_errors

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from packaging.requirements import Requirement

Status = Literal["ok", "info", "warning", "problem"]

PACKAGE = "hubprune"
FEW_BYTES = 2 * 2**30  # of free disk or memory: less is not enough for any but tiny models
# What each extra is for; the others bring tools of development.
EXTRAS = {
    "peft": "recovery with adapters",
    "figures": "figures of a card",
    "demo": "the demo, the embedded Hub, previews of Spaces",
    "eval": "tasks of lm-evaluation-harness",
    "export": "graphs for ONNX Runtime and OpenVINO",
    "optimum": "optimum-cli prune",
}
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: What it belongs to: ``versions``, ``hub``, ``disk``, ``memory``, ``accelerators`` or ``extras``.
        name: What it is.
        status: ``ok``; ``info`` for what may be so; ``warning``; ``problem`` for what keeps hubprune from working.
        value: What was found. Never a token.
        remedy: What to do about it; empty where nothing is to be done.
    """

    group: str
    name: str
    status: Status
    value: str
    remedy: str = ""


def examine(token: str | bool | None = None, *, api: HfApi | None = None) -> list[Finding]:
    """Look at everything; one request to the Hub, unless the network is switched off.

    Args:
        token: Token of the Hub; None for that of the user who is logged in.
        api: Client to use instead of one made from ``token``.

    Returns:
        The findings, in groups.
    """
    client = api or make_api(token)
    return [*_versions(), *_hub(client), *_disk(), *_memory(), *_accelerators(), *_extras()]


def healthy(findings: list[Finding]) -> bool:
    """Whether nothing keeps hubprune from working."""
    return all(finding.status != "problem" for finding in findings)


def _requirements() -> list[Requirement]:
    """What the installed package asks for, extras included; nothing where it runs without being installed."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Requirement(line) for line in lines]


def _asked(requirements: list[Requirement], extra: str) -> Iterator[Requirement]:
    """What an extra asks for, other extras that it names included; the package itself for an empty name."""
    for requirement in requirements:
        if (
            extra
            and requirement.marker is None
            or requirement.marker
            and not requirement.marker.evaluate({"extra": extra})
        ):
            continue
        if requirement.name == PACKAGE:
            for other in sorted(requirement.extras):
                yield from _asked(requirements, other)
        else:
            yield requirement


def _wrong(requirement: Requirement) -> str:
    """Why a requirement is not met; empty where it is."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
    met = requirement.specifier.contains(version, prereleases=True)
    return "" if met else f"{version}, needs {requirement.specifier}"


def _versions() -> Iterator[Finding]:
    yield Finding("versions", PACKAGE, "ok", f"{__version__} in {Path(__file__).parent}")
    yield Finding("versions", "python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    for requirement in _asked(_requirements(), ""):
        wrong = _wrong(requirement)
        if wrong:
            install = f"pip install '{requirement.name}{requirement.specifier}'"
            yield Finding("versions", requirement.name, "problem", wrong, install)
        else:
            yield Finding("versions", requirement.name, "ok", importlib.metadata.version(requirement.name))


def _hub(api: HfApi) -> Iterator[Finding]:
    from huggingface_hub import constants, is_offline_mode

    places = [name for name in TOKEN_VARIABLES if os.environ.get(name)]
    places += [constants.HF_TOKEN_PATH] if Path(constants.HF_TOKEN_PATH).is_file() else []
    given = isinstance(api.token, str)
    found = [*(["given with --token"] if given else []), *places]
    if found:
        yield Finding("hub", "token", "ok", f"there is one: {', '.join(found)}")
    else:
        yield Finding("hub", "token", "info", "none: public models can be read, nothing can be pushed", LOG_IN)
    if is_offline_mode():
        yield Finding("hub", api.endpoint, "info", "not asked: the network is switched off (HF_HUB_OFFLINE)")
        return
    yield _reached(api, bool(found) and api.token is not False)


def _reached(api: HfApi, as_user: bool) -> Finding:
    """Ask the Hub who we are, or without a token whether it answers."""
    from huggingface_hub.utils import get_session

    try:
        with hub_errors("ask", "the Hub who you are", api=api):
            if not as_user:
                get_session().get(f"{api.endpoint}/api/models?limit=1", timeout=10).raise_for_status()
                return Finding("hub", api.endpoint, "ok", "answers; nobody is logged in")
            me = api.whoami()
    except AccessError as error:
        return Finding("hub", api.endpoint, "problem", f"answers, and refuses the token ({error})", LOG_IN)
    except HubPruneError as error:
        remedy = "check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use the cache"
        return Finding("hub", api.endpoint, "problem", str(error), remedy)
    role = me.get("auth", {}).get("accessToken", {}).get("role", "unknown")
    pro = "PRO" if me.get("isPro") else "no PRO subscription, which Gradio Spaces and jobs take"
    says = f"answers: you are {me['name']} ({pro}), the token may {role}"
    if role == "read":
        return Finding("hub", api.endpoint, "warning", says, "to push, take a token with the role 'write'")
    return Finding("hub", api.endpoint, "ok", says)


def _disk() -> Iterator[Finding]:
    from huggingface_hub import constants

    for name, place in (("cache", Path(constants.HF_HUB_CACHE)), ("working folder", Path.cwd())):
        remedy = "set HF_HOME to a folder with room" if name == "cache" else "work in another folder"
        there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(there).free
        try:
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            yield Finding("disk", name, "problem", f"{place} cannot be written ({error.strerror})", remedy)
            continue
        enough = free >= FEW_BYTES
        value = f"{size(free)} free in {place}"
        yield Finding("disk", name, "ok" if enough else "warning", value, "" if enough else remedy)


def _memory() -> Iterator[Finding]:
    free, total = free_memory(), total_memory()
    enough = free >= FEW_BYTES
    remedy = "" if enough else "end other programs, or leave blocks on disk with --max-memory"
    yield Finding("memory", "memory", "ok" if enough else "warning", f"{size(free)} free of {size(total)}", remedy)


def _accelerators() -> Iterator[Finding]:
    try:
        found = accelerators()
    except (ImportError, OSError) as error:  # a library of the system that torch needs is not there
        yield Finding("accelerators", "torch", "problem", f"cannot be loaded ({error})", "install torch again")
        return
    for name, value in found:
        yield Finding("accelerators", name, "ok", value)
    if not found:
        yield Finding("accelerators", "none", "info", "models run on the processor")


def _extras() -> Iterator[Finding]:
    requirements = _requirements()
    for extra, purpose in EXTRAS.items() if requirements else ():
        asked = list(_asked(requirements, extra))
        wrong = [f"{requirement.name} ({why})" for requirement in asked if (why := _wrong(requirement))]
        install = f"pip install '{PACKAGE}[{extra}]'"
        if wrong:
            yield Finding("extras", extra, "info", f"{purpose}: {', '.join(wrong)}", install)
        else:
            yield Finding("extras", extra, "ok", purpose)
