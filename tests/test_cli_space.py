"""``hubprune space`` and ``--space``: what they write, publish and say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubprune.cli import main
from hubprune.cli import space as command
from hubprune.errors import HubPruneError
from hubprune.report import PruningReport
from hubprune.saving import save
from hubprune.space import DATA
from hubprune.verifier import CHECKS
from tests.pruned import prune_by_hand, tiny_model

MODEL = "me/cli-space"
APP = """import os, pathlib
pathlib.Path("seen").write_text(" ".join(os.environ.get(n, "-") for n in ("PRUNED_MODEL", "GRADIO_SERVER_PORT")))
"""


@pytest.fixture(autouse=True)
def without_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check that starts a process."""
    monkeypatch.delitem(CHECKS, "reload")


@pytest.fixture(scope="module")
def folder(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model()
    return save(model, tmp_path_factory.mktemp("cli-space") / "model", report=prune_by_hand(model))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "hf_test_" not in out + err
        return code, out, err

    return run


def test_a_folder_becomes_the_folder_of_a_space(call: Any, folder: Path, tmp_path: Path) -> None:
    code, out, err = call("space", folder, "--out", tmp_path / "space")
    assert (code, out.replace("\n", "")) == (0, str(tmp_path / "space")), err
    data = json.loads((tmp_path / "space" / DATA).read_text())
    assert (data["pruned"]["repo"], data["base"]["repo"]) == (None, "org/base")


def test_push_sends_both_and_space_alone_finishes_what_is_missing(
    call: Any, folder: Path, hub: Any, hub_api: Callable[..., HfApi], tmp_path: Path
) -> None:
    api, token = hub_api("me"), ("--token", hub.token("me"))
    code, out, err = call("push", folder, MODEL, "--space", "--dry-run", *token)
    assert code == 0, err
    assert f"space {MODEL}, new: " in out
    code, out, err = call("push", folder, MODEL, "--space", *token)
    assert code == 0, err
    assert out.splitlines()[1] == f"{hub.url}/spaces/{MODEL}"
    assert api.space_info(MODEL).sdk == "gradio"
    api.delete_repo(MODEL, repo_type="space")
    again = ("space", MODEL, "--push", MODEL, "--out", tmp_path / "space", "--hardware", "zero-a10g", *token)
    code, out, err = call(*again, "--dry-run")
    assert (code, api.repo_exists(MODEL, repo_type="space")) == (0, False), err
    assert out.startswith(f"space {MODEL}, new: ")
    code, out, err = call(*again)
    assert code == 0, err
    assert out.splitlines()[1] == f"{hub.url}/spaces/{MODEL}"
    data = json.loads(Path(api.hf_hub_download(MODEL, DATA, repo_type="space")).read_text())
    assert data["pruned"]["revision"] == api.model_info(MODEL).sha
    assert api.get_space_runtime(MODEL).requested_hardware == "zero-a10g"


def test_without_pro_the_command_keeps_the_folder_and_names_the_preview(
    call: Any, folder: Path, hub: Any, hub_api: Callable[..., HfApi], tmp_path: Path
) -> None:
    token = ("--token", hub.token("guest"))
    assert call("push", folder, "guest/cli-space", *token)[0] == 0
    code, _, err = call("space", folder, "--push", "guest/cli-space", "--out", tmp_path / "space", *token)
    assert (code, err.count("\n")) == (2, 1)
    assert "PRO subscription" in err
    assert err.rstrip().endswith(f"try it here with: hubprune space {folder} --preview")
    assert (tmp_path / "space" / "app.py").is_file()
    code, _, err = call("push", folder, "guest/cli-space", "--space", *token)
    assert (code, err.count("\n")) == (2, 1)
    assert err.rstrip().endswith("finish with: hubprune space guest/cli-space --push guest/cli-space")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dry-run"], "go with --push SPACE"),
        (["--hardware", "t4-small"], "go with --push SPACE"),
        (["--push", "nobody-has-this/x"], "check"),
    ],
)
def test_mistakes_are_one_line(call: Any, folder: Path, words: list[str], message: str) -> None:
    code, out, err = call("space", folder, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_preview_needs_gradio(call: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = call("space", folder, "--preview")
    assert (code, 'pip install "hubprune[demo]"' in err) == (2, True)


def test_the_app_finds_the_model_of_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    shown: Any = SimpleNamespace(model=None, folder=folder)
    command.run_app(tmp_path, shown, 7999, None)
    assert (tmp_path / "seen").read_text() == f"{folder.resolve()} 7999"
    (tmp_path / "app.py").write_text("raise SystemExit(3)")
    with pytest.raises(HubPruneError, match="ended with code 3"):
        command.run_app(tmp_path, shown, 7999, None)


def test_dry_run_of_prune_says_that_a_space_would_follow(hub: Any) -> None:
    import typer

    from hubprune.cli.app import build
    from hubprune.cli.prune import read_request

    prune = typer.main.get_command(build()).commands["prune"]  # type: ignore[attr-defined]
    words = ["org/base", "--method", "magnitude", "--push", "me/x", "--space"]
    assert read_request(prune.make_context("prune", words)).publishing["space"] is True


def test_help_reads_no_template(folder: Path) -> None:
    code = "import sys; from hubprune.cli import main; main(['space', '--help']); "
    code += "print({'torch', 'jinja2'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("set()")


def test_card_of_a_model_with_a_space_links_to_it(folder: Path) -> None:
    from hubprune.card import render_card

    report = PruningReport.load(folder)
    report.space = "me/x"
    assert "https://huggingface.co/spaces/me/x" in render_card(report)
    report.space = None
    assert "huggingface.co/spaces" not in render_card(report)
