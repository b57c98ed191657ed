"""What the doctor says of this machine is so, no token is shown, and the exit code says whether things work."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from packaging.requirements import Requirement

from hubprune import doctor, environment
from hubprune.cli import main
from hubprune.doctor import Finding, examine, healthy
from hubprune.localhub import EmbeddedHub

TOKEN = "hf_test_me"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")


def named(found: list[Finding], group: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in found if finding.group == group}


def test_versions_disk_memory_and_accelerators_are_those_of_this_machine(hub_api: Callable[..., HfApi]) -> None:
    found = examine(api=hub_api("me"))
    assert healthy(found)
    assert named(found, "versions")["transformers"].value == importlib.metadata.version("transformers")
    assert {"cache", "working folder"} == set(named(found, "disk"))
    assert str(Path.cwd()) in named(found, "disk")["working folder"].value
    assert f"of {environment.total_memory() / 2**30:,.1f} GiB" in named(found, "memory")["memory"].value
    assert named(found, "accelerators")
    assert list(named(found, "extras")) == list(doctor.EXTRAS)


def test_who_one_is_and_what_the_token_may(hub: EmbeddedHub, hub_api: Callable[..., HfApi]) -> None:
    me, guest, nobody = (named(examine(api=hub_api(user)), "hub")[hub.url] for user in ("me", "guest", None))
    assert me.value.startswith("answers: you are me (PRO)")
    assert "no PRO" in guest.value
    assert (nobody.status, nobody.value) == ("ok", "answers; nobody is logged in")


def test_a_token_that_may_only_read_is_said(hub_api: Callable[..., HfApi], monkeypatch: pytest.MonkeyPatch) -> None:
    api = hub_api("me")
    answer = {"name": "me", "auth": {"accessToken": {"role": "read"}}}
    monkeypatch.setattr(api, "whoami", lambda: answer)
    (finding,) = [one for one in examine(api=api) if one.name == api.endpoint]
    assert (finding.status, "role 'write'" in finding.remedy) == ("warning", True)


@pytest.mark.parametrize(
    ("endpoint", "token", "words"),
    [("http://127.0.0.1:9", TOKEN, "out of reach"), (None, "hf_wrong", "refuses the token")],
)
def test_a_hub_that_does_not_answer_or_refuses_is_a_problem(
    hub: EmbeddedHub, endpoint: str | None, token: str, words: str
) -> None:
    found = examine(api=HfApi(endpoint=endpoint or hub.url, token=token))
    (finding,) = [one for one in found if one.status == "problem"]
    assert words in finding.value
    assert not healthy(found)


def test_a_missing_package_and_a_wrong_version_are_said(
    hub_api: Callable[..., HfApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "no-such-package>=1",
        "pytest<1",
        "numpy",
        'hubprune[figures] ; extra == "demo"',
        'nix ; extra == "figures"',
    ]
    monkeypatch.setattr(doctor, "_requirements", lambda: [Requirement(line) for line in lines])
    found = examine(api=hub_api(None))
    versions = named(found, "versions")
    assert (versions["no-such-package"].status, versions["no-such-package"].value) == ("problem", "missing")
    assert versions["pytest"].value.endswith("needs <1")
    assert versions["numpy"].status == "ok"
    demo = named(found, "extras")["demo"]
    assert (demo.status, demo.remedy) == ("info", "pip install 'hubprune[demo]'")
    assert demo.value.endswith("nix (missing)")


def test_the_switched_off_network_is_no_problem(
    hub_api: Callable[..., HfApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    found = examine(api=hub_api("me"))
    assert healthy(found)
    assert "switched off" in named(found, "hub")[hub_api("me").endpoint].value


def test_command_prints_a_table_or_json_without_the_token(
    hub: EmbeddedHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["doctor"]) == 0
    table = capsys.readouterr().out
    assert "HF_TOKEN" in table
    assert main(["doctor", "--json", "--token", TOKEN]) == 0
    printed = capsys.readouterr().out
    said = json.loads(printed)
    assert said["healthy"] is True
    assert {finding["group"] for finding in said["findings"]} == set(
        "versions hub disk memory accelerators extras".split()
    )
    assert TOKEN not in table + printed


def test_command_ends_with_one_where_something_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [Finding("disk", "cache", "problem", "cannot be written", "make it writable")]
    monkeypatch.setattr(doctor, "examine", lambda token: wrong)
    assert main(["doctor"]) == 1
    assert "PROBLEM" in capsys.readouterr().out
