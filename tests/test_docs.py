"""The README and the pages in docs/ say what is so: links lead somewhere, examples run, the file tree is complete.

A Python example marked ``python run`` is run as it stands, against a Hub that holds the demo world: each in names and
a folder of its own, one after the other in another process. The file tree is the block under the heading "File tree":
one line a file, two spaces of indentation a level, the name first, then what it is. A folder that is opened in it is
shown whole.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import hubprune

if TYPE_CHECKING:
    from hubprune.localhub import EmbeddedHub

ROOT = Path(__file__).resolve().parents[1]
RULES = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
IGNORED = [".git", *(rule.strip("/") for rule in RULES if rule and not rule.startswith("#"))]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(body, info.split(), id=f"{page.name}-{number}")
    for page in PAGES
    for number, (info, body) in enumerate(
        re.findall(r"^```(python[^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )
]
TEXT = (".css", ".html", ".jinja", ".md", ".py", ".toml", ".txt", ".yml", ".yaml", ".sh", "Makefile", "run")
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"]) + r")\b")


def shown(folder: Path) -> list[Path]:
    """The entries of a folder that belong to the project."""
    return [path for path in sorted(folder.iterdir()) if not any(fnmatch(path.name, pattern) for pattern in IGNORED)]


def project_files(folder: Path = ROOT) -> list[Path]:
    return [file for path in shown(folder) for file in (project_files(path) if path.is_dir() else [path])]


def tree_entries() -> list[str]:
    """Paths in the README's file tree, folders with a slash at the end."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## File tree\n.*?^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block, "README.md has no block under the heading 'File tree'"
    entries: list[str] = []
    stack: list[str] = []
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        assert len(line.split()) > 1, f"the file tree does not say what {name} is"
        stack[depth:] = [name]
        entries.append("".join(stack))
    return entries


def test_every_entry_of_the_file_tree_exists() -> None:
    entries = tree_entries()
    wrong = [e for e in entries if not ((ROOT / e).is_dir() if e.endswith("/") else (ROOT / e).is_file())]
    assert wrong == []
    assert len(entries) == len(set(entries))


def test_file_tree_shows_the_root_the_package_and_every_opened_folder_whole() -> None:
    entries = set(tree_entries())
    opened = {ROOT, ROOT / "hubprune", *((ROOT / entry).parent for entry in entries)}
    expected = {
        path.relative_to(ROOT).as_posix() + ("/" if path.is_dir() else "")
        for folder in opened
        for path in shown(folder)
    }
    assert sorted(expected - entries) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)", text)
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


RUN_EACH = """
import json, os, sys, tempfile, traceback
failed = {}
for code in json.load(sys.stdin):
    os.chdir(tempfile.mkdtemp(dir=sys.argv[1]))
    try:
        exec(compile(code, "<example>", "exec"), {"__name__": "__main__"})
    except BaseException:
        failed[code] = traceback.format_exc()
with open(sys.argv[2], "w") as file:
    json.dump(failed, file)
"""


@pytest.fixture(scope="module")
def failures(demo_hub: EmbeddedHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong in the examples that are run, by their code."""
    folder = tmp_path_factory.mktemp("examples")
    command = [sys.executable, "-c", RUN_EACH, str(folder), str(folder / "failed.json")]
    codes = json.dumps([block.values[0] for block in BLOCKS if "run" in block.values[1]])
    env = {**os.environ, **demo_hub.env("me"), "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=env, cwd=folder, input=codes, capture_output=True, text=True, timeout=580, check=True)
    return dict(json.loads((folder / "failed.json").read_text("utf-8")))


@pytest.mark.parametrize(("code", "words"), BLOCKS)
def test_python_example_is_python_and_runs_where_it_says_so(
    code: str, words: list[str], request: pytest.FixtureRequest
) -> None:
    ast.parse(code)
    if "run" in words:
        assert request.getfixturevalue("failures").get(code) is None


def test_nothing_is_left_unfinished() -> None:
    left = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in project_files()
        if path.name.endswith(TEXT)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert left == []


def test_changelog_has_this_version() -> None:
    assert f"\n## [{hubprune.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
