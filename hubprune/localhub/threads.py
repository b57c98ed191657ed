"""Discussions and pull requests in the database, and how a pull request is merged."""

from __future__ import annotations

import difflib
import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hubprune.errors import HubPruneError
from hubprune.localhub.blobs import BlobStore
from hubprune.localhub.history import Commit, Entry, get_commit, list_refs, read_tree, set_ref, write_commit
from hubprune.localhub.store import Repo, now

MAX_DIFF = 256 << 10
"""Largest text file that a diff shows, in bytes."""
_LIVE = ("draft", "open")


class ThreadError(HubPruneError):
    """A discussion or pull request is missing or not in the state for what was asked.

    Args:
        status: HTTP status that says so.
        message: What the rule is.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Thread:
    """A discussion, or a pull request when it has a base.

    Attributes:
        status: `draft` (a pull request without a commit), `open`, `closed` or `merged`.
        base: Reference a pull request is to be merged into.
        base_oid: Commit of the base at which it began.
        merged_oid: Commit by which it was merged.
    """

    num: int
    title: str
    author: str
    status: str
    created: str
    base: str | None
    base_oid: str | None
    merged_oid: str | None

    @property
    def ref(self) -> str:
        """Reference of the commits of a pull request."""
        return f"refs/pr/{self.num}"

    @property
    def live(self) -> bool:
        """Whether it is neither closed nor merged."""
        return self.status in _LIVE


def open_thread(
    db: sqlite3.Connection, repo: Repo, *, title: str, author: str, description: str, base: str | None, status: str
) -> Thread:
    """Open a discussion, or a pull request onto the reference `base`."""
    num = db.execute("SELECT COALESCE(MAX(num), 0) + 1 FROM discussions WHERE repo = ?", (repo.pk,)).fetchone()[0]
    base_oid = list_refs(db, repo)[base] if base else None
    db.execute(
        "INSERT INTO discussions VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (repo.pk, num, title, author, status, now(), base, base_oid),
    )
    thread = get_thread(db, repo, num)
    if base_oid:
        set_ref(db, repo, thread.ref, base_oid)
    add_comment(db, repo, num, author, description)
    return thread


def get_thread(db: sqlite3.Connection, repo: Repo, num: int) -> Thread:
    """Return a discussion or pull request.

    Raises:
        ThreadError: 404, there is none with this number.
    """
    row = db.execute("SELECT * FROM discussions WHERE repo = ? AND num = ?", (repo.pk, num)).fetchone()
    if row is None:
        raise ThreadError(404, f"{repo.id} has no discussion {num}")
    return _thread(row)


def list_threads(db: sqlite3.Connection, repo: Repo) -> list[Thread]:
    """Return the discussions and pull requests, newest first."""
    rows = db.execute("SELECT * FROM discussions WHERE repo = ? ORDER BY num DESC", (repo.pk,))
    return [_thread(row) for row in rows]


def _thread(row: sqlite3.Row) -> Thread:
    return Thread(**{field.name: row[field.name] for field in fields(Thread)})


def add_event(
    db: sqlite3.Connection, repo: Repo, num: int, kind: str, author: str, data: Mapping[str, Any]
) -> dict[str, Any]:
    """Record what happened in a discussion and return it as clients read it."""
    event = (secrets.token_hex(12), repo.pk, num, kind, author, now(), json.dumps(data))
    db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", event)
    return {"id": event[0], "type": kind, "author": {"name": author}, "createdAt": event[5], "data": dict(data)}


def add_comment(db: sqlite3.Connection, repo: Repo, num: int, author: str, text: str) -> dict[str, Any]:
    """Record a comment."""
    return add_event(db, repo, num, "comment", author, comment_data(text, edited=False))


def comment_data(text: str, *, edited: bool) -> dict[str, Any]:
    """Return the data of a comment."""
    return {"edited": edited, "hidden": False, "latest": {"raw": text}}


def events(db: sqlite3.Connection, repo: Repo, num: int) -> list[dict[str, Any]]:
    """Return what happened in a discussion, oldest first, as clients read it."""
    rows = db.execute("SELECT * FROM events WHERE repo = ? AND num = ? ORDER BY rowid", (repo.pk, num))
    return [
        {
            "id": row["id"],
            "type": row["type"],
            "author": {"name": row["author"]},
            "createdAt": row["created"],
            "data": json.loads(row["data"]),
        }
        for row in rows
    ]


def set_status(db: sqlite3.Connection, repo: Repo, thread: Thread, status: str, author: str) -> dict[str, Any]:
    """Open or close a discussion.

    Raises:
        ThreadError: 409, it was merged.
    """
    if thread.status == "merged":
        raise ThreadError(409, f"pull request {thread.num} of {repo.id} is merged; its status is final")
    db.execute("UPDATE discussions SET status = ? WHERE repo = ? AND num = ?", (status, repo.pk, thread.num))
    return add_event(db, repo, thread.num, "status-change", author, {"status": status})


def set_title(db: sqlite3.Connection, repo: Repo, thread: Thread, title: str, author: str) -> dict[str, Any]:
    """Rename a discussion."""
    db.execute("UPDATE discussions SET title = ? WHERE repo = ? AND num = ?", (title, repo.pk, thread.num))
    return add_event(db, repo, thread.num, "title-change", author, {"from": thread.title, "to": title})


def note_commit(db: sqlite3.Connection, repo: Repo, thread: Thread, commit: Commit) -> None:
    """Record a commit made to a pull request; a draft becomes open."""
    db.execute(
        "UPDATE discussions SET status = 'open' WHERE repo = ? AND num = ? AND status = 'draft'", (repo.pk, thread.num)
    )
    add_event(db, repo, thread.num, "commit", commit.author, {"subject": commit.title, "oid": commit.oid})


def changes(db: sqlite3.Connection, repo: Repo, thread: Thread) -> dict[str, tuple[Entry | None, Entry | None]]:
    """Return what a pull request changes: before and after, by path."""
    before = read_tree(db, get_commit(db, repo, str(thread.base_oid)))
    after = read_tree(db, get_commit(db, repo, list_refs(db, repo)[thread.ref]))
    return {
        path: (before.get(path), after.get(path))
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    }


def conflicts(db: sqlite3.Connection, repo: Repo, thread: Thread) -> list[str]:
    """Return the paths that both the pull request and its base have changed, differently."""
    head = list_refs(db, repo).get(str(thread.base))
    current = read_tree(db, get_commit(db, repo, head)) if head else {}
    return [
        path for path, (before, after) in changes(db, repo, thread).items() if current.get(path) not in (before, after)
    ]


def merge(db: sqlite3.Connection, repo: Repo, thread: Thread, author: str) -> Commit:
    """Bring the changes of a pull request into its base as one commit.

    Raises:
        ThreadError: 409, it is not open or conflicts with the base.
    """
    head = list_refs(db, repo).get(str(thread.base))
    if thread.base is None or head is None or not thread.live:
        raise ThreadError(409, f"discussion {thread.num} of {repo.id} is not an open pull request onto a branch")
    in_conflict = conflicts(db, repo, thread)
    if in_conflict:
        raise ThreadError(409, f"pull request {thread.num} conflicts with {thread.base} in: {', '.join(in_conflict)}")
    files = read_tree(db, get_commit(db, repo, head))
    for path, (_, after) in changes(db, repo, thread).items():
        if after is None:
            files.pop(path, None)
        else:
            files[path] = after
    commit = write_commit(db, repo, thread.base, files, title=f"{thread.title} (#{thread.num})", author=author)
    db.execute(
        "UPDATE discussions SET status = 'merged', merged_oid = ? WHERE repo = ? AND num = ?",
        (commit.oid, repo.pk, thread.num),
    )
    add_event(db, repo, thread.num, "status-change", author, {"status": "merged"})
    return commit


def diff(db: sqlite3.Connection, blobs: BlobStore, repo: Repo, thread: Thread) -> str:
    """Return the changes of a pull request as a unified diff."""
    lines: list[str] = []
    for path, (before, after) in changes(db, repo, thread).items():
        lines.append(f"diff --git a/{path} b/{path}\n")
        old, new = (_text_lines(blobs, entry) for entry in (before, after))
        if old is None or new is None:
            lines.append(f"Binary files a/{path} and b/{path} differ\n")
        else:
            names = ("/dev/null" if before is None else f"a/{path}", "/dev/null" if after is None else f"b/{path}")
            lines += [line if line.endswith("\n") else f"{line}\n" for line in difflib.unified_diff(old, new, *names)]
    return "".join(lines)


def _text_lines(blobs: BlobStore, entry: Entry | None) -> list[str] | None:
    if entry is None:
        return []
    if entry.lfs or entry.size > MAX_DIFF:
        return None
    try:
        return blobs.read(entry.sha256).decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return None
