"""Repositories, revisions, trees and commits: what the database means.

Functions take an open connection, so that a caller decides what belongs to one transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields

from hubprune.errors import HubPruneError
from hubprune.localhub import gitids
from hubprune.localhub.ids import is_commit
from hubprune.localhub.store import Repo, epoch_seconds, now

MAIN = "refs/heads/main"
_REPO_COLUMNS = ", ".join(f"repos.{field.name}" for field in fields(Repo))


class RepoMissing(HubPruneError):
    """No such repository."""


class RevisionMissing(HubPruneError):
    """The repository has no such branch, tag, reference or commit."""


class ParentMoved(HubPruneError):
    """The branch is no longer at the commit that the caller built upon."""


@dataclass(frozen=True)
class Entry:
    """One file of a tree.

    Attributes:
        oid: Git id of the blob, or of the LFS pointer.
        sha256: Digest of the content; names the blob.
        size: Bytes.
        lfs: Whether clients see it as an LFS file.
    """

    path: str
    oid: str
    sha256: str
    size: int
    lfs: bool


@dataclass(frozen=True)
class Commit:
    """One commit of a repository."""

    oid: str
    parent: str | None
    tree: str
    title: str
    message: str
    author: str
    date: str


def entry_for(path: str, sha256: str, size: int, content: bytes | None) -> Entry:
    """Build the entry of a file; `content` is None for an LFS file."""
    if content is None:
        return Entry(path, gitids.blob_oid(gitids.pointer_text(sha256, size)), sha256, size, True)
    return Entry(path, gitids.blob_oid(content), sha256, size, False)


def find_repo(db: sqlite3.Connection, repo_type: str, namespace: str, name: str) -> Repo | None:
    """Return a repository by its id or by an id it had before it was moved."""
    key = (repo_type, namespace, name)
    row = db.execute(
        f"SELECT {_REPO_COLUMNS} FROM repos WHERE type = ? AND namespace = ? AND name = ?", key
    ).fetchone()
    if row is None:
        row = db.execute(
            f"SELECT {_REPO_COLUMNS} FROM moves JOIN repos ON repos.pk = moves.repo "
            "WHERE moves.type = ? AND moves.namespace = ? AND moves.name = ?",
            key,
        ).fetchone()
    return None if row is None else _repo(row)


def list_repos(db: sqlite3.Connection, repo_type: str | None = None) -> list[Repo]:
    """Return the repositories of a type, or all of them, oldest first."""
    rows = db.execute(f"SELECT {_REPO_COLUMNS} FROM repos WHERE ? IS NULL OR type = ? ORDER BY pk", (repo_type,) * 2)
    return [_repo(row) for row in rows]


def add_repo(
    db: sqlite3.Connection, repo_type: str, namespace: str, name: str, *, private: bool = False, sdk: str | None = None
) -> Repo:
    """Create an empty repository; the id must be free."""
    db.execute("DELETE FROM moves WHERE type = ? AND namespace = ? AND name = ?", (repo_type, namespace, name))
    db.execute(
        "INSERT INTO repos (type, namespace, name, private, sdk, created) VALUES (?, ?, ?, ?, ?, ?)",
        (repo_type, namespace, name, int(private), sdk, now()),
    )
    repo = find_repo(db, repo_type, namespace, name)
    if repo is None:
        raise RepoMissing(f"{namespace}/{name} was not created")
    return repo


def resolve(db: sqlite3.Connection, repo: Repo, revision: str) -> Commit:
    """Return the commit a revision names: branch, tag, `refs/...`, commit id or a unique prefix of 7 or more digits.

    Raises:
        RevisionMissing: Nothing has that name.
    """
    for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
        row = db.execute("SELECT oid FROM refs WHERE repo = ? AND ref = ?", (repo.pk, ref)).fetchone()
        if row is not None:
            return get_commit(db, repo, row["oid"])
    if is_commit(revision):
        return get_commit(db, repo, revision)
    if len(revision) >= 7 and all(digit in "0123456789abcdef" for digit in revision):
        rows = db.execute(
            "SELECT oid FROM commits WHERE repo = ? AND substr(oid, 1, ?) = ? LIMIT 2",
            (repo.pk, len(revision), revision),
        ).fetchall()
        if len(rows) == 1:
            return get_commit(db, repo, rows[0]["oid"])
    raise RevisionMissing(f"{repo.id} has no branch, tag or commit {revision!r}")


def get_commit(db: sqlite3.Connection, repo: Repo, oid: str) -> Commit:
    """Return a commit by its id.

    Raises:
        RevisionMissing: The repository has no such commit.
    """
    row = db.execute("SELECT * FROM commits WHERE repo = ? AND oid = ?", (repo.pk, oid)).fetchone()
    if row is None:
        raise RevisionMissing(f"{repo.id} has no commit {oid}")
    return Commit(**{field.name: row[field.name] for field in fields(Commit)})


def log(db: sqlite3.Connection, repo: Repo, commit: Commit) -> list[Commit]:
    """Return a commit and its ancestors, newest first."""
    rows = db.execute("SELECT * FROM commits WHERE repo = ?", (repo.pk,))
    known = {row["oid"]: Commit(**{field.name: row[field.name] for field in fields(Commit)}) for row in rows}
    found: list[Commit] = []
    step: str | None = commit.oid
    while step is not None:
        found.append(known[step])
        step = known[step].parent
    return found


def read_tree(db: sqlite3.Connection, commit: Commit) -> dict[str, Entry]:
    """Return the files of a commit by path, sorted by path."""
    rows = db.execute("SELECT * FROM trees WHERE tree = ? ORDER BY path", (commit.tree,))
    return {row["path"]: Entry(row["path"], row["oid"], row["sha256"], row["size"], bool(row["lfs"])) for row in rows}


def get_entry(db: sqlite3.Connection, commit: Commit, path: str) -> Entry | None:
    """Return one file of a commit."""
    row = db.execute("SELECT * FROM trees WHERE tree = ? AND path = ?", (commit.tree, path)).fetchone()
    return None if row is None else Entry(row["path"], row["oid"], row["sha256"], row["size"], bool(row["lfs"]))


def list_refs(db: sqlite3.Connection, repo: Repo) -> dict[str, str]:
    """Return every reference of a repository and the commit it names."""
    rows = db.execute("SELECT ref, oid FROM refs WHERE repo = ? ORDER BY ref", (repo.pk,))
    return {row["ref"]: row["oid"] for row in rows}


def set_ref(db: sqlite3.Connection, repo: Repo, ref: str, oid: str) -> None:
    """Create or move a reference."""
    db.execute("INSERT OR REPLACE INTO refs VALUES (?, ?, ?)", (repo.pk, ref, oid))


def write_commit(
    db: sqlite3.Connection,
    repo: Repo,
    ref: str,
    files: Mapping[str, Entry],
    *,
    title: str,
    message: str = "",
    author: str,
    date: str | None = None,
    root: bool = False,
) -> Commit:
    """Record a commit with these files on top of a reference and move the reference to it.

    Args:
        db: A connection in a write transaction.
        repo: The repository.
        ref: Full name, for example `refs/heads/main`; created when missing.
        files: The whole content, by path.
        title: First line of the message.
        message: The rest of the message.
        author: User name.
        date: As `store.stamp` writes it; the present by default.
        root: Make a commit without a parent, dropping the history of the reference.
    """
    parent = None if root else list_refs(db, repo).get(ref)
    date = date or now()
    tree = _write_tree(db, files.values())
    text = f"{title}\n\n{message}" if message else title
    oid = gitids.commit_oid(tree, parent, author, epoch_seconds(date), text)
    commit = Commit(oid, parent, tree, title, message, author, date)
    db.execute("INSERT OR IGNORE INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (repo.pk, *astuple(commit)))
    set_ref(db, repo, ref, oid)
    return commit


def _write_tree(db: sqlite3.Connection, entries: Iterable[Entry]) -> str:
    entries = list(entries)
    tree = gitids.folder_oids((entry.path, entry.oid) for entry in entries)[""]
    db.executemany(
        "INSERT OR IGNORE INTO trees VALUES (?, ?, ?, ?, ?, ?)",
        [(tree, entry.path, entry.oid, entry.sha256, entry.size, int(entry.lfs)) for entry in entries],
    )
    return tree


def _repo(row: sqlite3.Row) -> Repo:
    values = {field.name: row[field.name] for field in fields(Repo)}
    return Repo(**{**values, "private": bool(values["private"])})
