"""Names, Git ids, ignore patterns: the pure parts of the embedded Hub."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubprune.localhub import gitids
from hubprune.localhub.changes import is_lfs
from hubprune.localhub.gitignore import matcher
from hubprune.localhub.ids import InvalidName, check_branch, check_path, check_repo_id, check_variable

BAD_PATHS = [
    "",
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a/..",
    "./a",
    "a//b",
    "a/",
    "a\\b",
    "..\\x",
    "a\0b",
    "a\nb",
    ".git/config",
    "x/.GIT/hooks",
    "\ud800",
    "x" * 2000,
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_path_that_could_leave_a_repository_is_refused(path: str) -> None:
    with pytest.raises(InvalidName):
        check_path(path)


@given(st.text())
def test_path_is_either_refused_or_stays_inside(path: str) -> None:
    try:
        checked = check_path(path)
    except InvalidName:
        return
    inside = Path("/hub/repo", checked)
    assert ".." not in inside.parts
    assert inside.is_relative_to("/hub/repo")
    assert inside != Path("/hub/repo")


@pytest.mark.parametrize(
    "repo_id",
    ["a", "a/b/c", "/b", "a/", "../b", "a/..", "a/b.git", "a b/c", "a/-b", "api/x", "datasets/x", "a/b\0", 3],
)
def test_repo_id_must_be_two_plain_names(repo_id: object) -> None:
    with pytest.raises(InvalidName):
        check_repo_id(repo_id)


def test_valid_names_pass() -> None:
    assert check_repo_id("Salesforce/wikitext-2.raw_v1") == ("Salesforce", "wikitext-2.raw_v1")
    assert check_branch("feature/one") == "feature/one"
    assert check_path("data/über uns.txt") == "data/über uns.txt"


@pytest.mark.parametrize("branch", ["", "refs/heads/x", "a..b", "/a", "a/", "a.lock", "0" * 40, "a b", "-a", "a@{1}"])
def test_branch_git_would_refuse_is_refused(branch: str) -> None:
    with pytest.raises(InvalidName):
        check_branch(branch)


def test_variable_is_the_name_of_an_environment_variable() -> None:
    assert check_variable("HF_TOKEN") == "HF_TOKEN"
    with pytest.raises(InvalidName, match="no leading digit"):
        check_variable("1X")


def test_git_gives_the_same_ids(tmp_path: Path) -> None:
    """The reference is Git itself: a commit of nested files, with names that sort differently as folders."""
    files = {"a.txt": b"1\n", "a/b.txt": b"2\n", "a/c/d.bin": b"\0\1", "a-b": b"", "z/é.txt": b"x"}
    env = {
        "GIT_AUTHOR_NAME": "me",
        "GIT_AUTHOR_EMAIL": "me@localhub",
        "GIT_AUTHOR_DATE": "1700000000 +0000",
        "GIT_COMMITTER_NAME": "me",
        "GIT_COMMITTER_EMAIL": "me@localhub",
        "GIT_COMMITTER_DATE": "1700000000 +0000",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "PATH": "/usr/bin:/bin:/usr/local/bin",
        "HOME": str(tmp_path),
    }

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=tmp_path, env=env, capture_output=True, check=True).stdout.decode()

    for path, content in files.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    git("init", "-q")
    git("config", "core.autocrlf", "false")
    git("add", ".")
    git("commit", "-q", "--cleanup=verbatim", "-m", "title\n\nbody")
    oids = gitids.folder_oids((path, gitids.blob_oid(content)) for path, content in files.items())
    assert oids[""] == git("rev-parse", "HEAD^{tree}").strip()
    assert oids["a/c"] == git("rev-parse", "HEAD:a/c").strip()
    message = git("log", "-1", "--format=%B", "--no-patch").removesuffix("\n")
    assert gitids.commit_oid(oids[""], None, "me", 1_700_000_000, message) == git("rev-parse", "HEAD").strip()


@pytest.mark.parametrize(
    ("patterns", "ignored", "kept"),
    [
        ("*.log", ["a.log", "x/y.log"], ["a.txt", "log"]),
        ("/build", ["build", "build/x"], ["x/build"]),
        ("cache/", ["cache/x", "a/cache/y"], ["cache"]),
        ("*.bin\n!keep.bin", ["a.bin"], ["keep.bin"]),
        ("docs/**/*.pdf", ["docs/a.pdf", "docs/x/y/a.pdf"], ["a.pdf"]),
        ("file[0-9].txt", ["file1.txt"], ["filex.txt"]),
        ("# comment\n\n?.py", ["a.py"], ["ab.py"]),
    ],
)
def test_gitignore_patterns(patterns: str, ignored: list[str], kept: list[str]) -> None:
    decide = matcher(patterns)
    assert [path for path in ignored + kept if decide(path)] == ignored


def test_what_is_stored_as_lfs() -> None:
    assert is_lfs("model.safetensors", 10, b"abc")
    assert is_lfs("notes.txt", 11 << 20, b"abc")
    assert is_lfs("image.png", 10, b"\x89PNG\0")
    assert not is_lfs("notes.txt", 600, "é".encode()[:1].join([b"a" * 511, b""]))
    assert not is_lfs("README.md", 10, b"# hi")
