"""`hf prune`: the Hub's own command line finds and runs the installed command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HF = Path(sys.executable).with_name("hf")
# What an installation makes of the entry point.
SCRIPT = """\
#!{python}
import sys
from hubprune.cli.hf_extension import hf_prune
sys.exit(hf_prune())
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user with a home of their own, and the executable on the path."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "hf-prune").write_text(SCRIPT.format(python=sys.executable))
    (place / "hf-prune").chmod(0o755)
    return {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": f"{place}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
    }


def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(os.name == "nt" or not HF.exists(), reason="needs the hf command and a shebang")
def test_hf_runs_the_command_that_was_registered(environment: dict[str, str], tmp_path: Path) -> None:
    registered = run(environment, "hf-prune", "--register")
    assert registered.returncode == 0, registered.stderr
    refused = run(environment, str(HF), "prune", "a/b", "--method", "wnada", "--push", "me/x")
    assert refused.returncode == 2
    assert "did you mean 'wanda'" in refused.stderr
    told = run(environment, str(HF), "prune", "--help")
    assert told.returncode == 0
    assert "Prune a model for a domain" in told.stdout
    assert "Prune a model for a domain" in run(environment, str(HF), "--help").stdout
    assert run(environment, str(HF), "extensions", "remove", "prune").returncode == 0
    assert not (tmp_path / ".local/share/hf/extensions/hf-prune").exists()
