"""The documentation is built without a network and without a warning, and says what the source says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import hubprune
from hubprune import errors

ROOT = Path(__file__).resolve().parents[1]
# Refuses every connection of the process, by its module that Python imports at the start.
NO_NETWORK = """import socket

def refuse(*_):
    raise OSError("the network was asked for")

socket.socket.connect = refuse
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages, by name."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "start").mkdir()
    (folder / "start" / "sitecustomize.py").write_text(NO_NETWORK)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder / "start"), str(ROOT))), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder / "pages")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return {path.parent.name: path.read_text() for path in (folder / "pages").rglob("index.html")}


class Sources(HTMLParser):
    """Addresses that a page fetches by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "link", "iframe") and given.get("rel") != "canonical":
            self.found += [str(given[name]) for name in ("src", "href") if given.get(name)]


def test_pages_fetch_nothing_from_elsewhere(site: dict[str, str]) -> None:
    for page in site.values():
        reader = Sources()
        reader.feed(page)
        assert [address for address in reader.found if "//" in address] == []


def test_equations_are_mathml(site: dict[str, str]) -> None:
    assert site["methods"].count("<math") > 40
    assert "arithmatex" not in site["methods"]
    assert not re.search(
        r"\\(frac|lVert|operatorname|sum)", re.sub(r"<annotation.*?</annotation>", "", site["methods"])
    )


def test_every_method_is_explained(site: dict[str, str]) -> None:
    text = re.sub(r"<[^>]+>", "", site["methods"]).lower()
    from hubprune.presets import METHODS

    for name, method in METHODS.items():
        assert method.title.lower().removesuffix("-pruner") in text or name in text
        assert method.arxiv in text


def test_every_exported_name_has_its_docstring(site: dict[str, str]) -> None:
    for name in hubprune.__all__:
        if name != "__version__":
            assert f'id="hubprune.{hubprune._EXPORTS[name]}.{name}"' in site["api"]


def test_every_command_and_option_is_listed(site: dict[str, str]) -> None:
    text = re.sub(r"<[^>]+>", "", site["cli"])
    for words in (
        "hubprune prune",
        "hubprune hub serve",
        "--max-memory",
        "--model-card",
        "FRACTION",
        "Default: d-pruner",
    ):
        assert words in text


def test_every_error_has_its_messages(site: dict[str, str]) -> None:
    page = site["troubleshooting"]
    kinds = [kind.__name__ for kind in vars(errors).values() if getattr(kind, "__module__", "") == errors.__name__]
    kinds = [name for name in kinds if name.endswith("Error") and name != "HubPruneError"]
    assert [name for name in kinds if f'id="{name.lower()}"' not in page] == []
    text = re.sub(r"<[^>]+>|\s+", " ", page)
    assert "the result would be lost: give --out DIR or --push REPO, or --dry-run to check only" in text
