"""Upload step one (which files, how) and step three (the commit itself)."""

from __future__ import annotations

import base64
import sqlite3
from typing import Any

from starlette.responses import JSONResponse, Response

from hubprune.localhub import threads
from hubprune.localhub.changes import Changes, PathMissing, apply_steps, is_lfs, read_changes
from hubprune.localhub.gitignore import matcher
from hubprune.localhub.history import (
    MAIN,
    Commit,
    Entry,
    ParentMoved,
    RevisionMissing,
    list_refs,
    read_tree,
    resolve,
    write_commit,
)
from hubprune.localhub.ids import check_path
from hubprune.localhub.info import read_text
from hubprune.localhub.store import Repo
from hubprune.localhub.web import ApiError, Call, route

MAX_PREUPLOAD = 1000
"""Most files of one preupload request."""
MAX_IGNORE = 64 << 10


def preupload(call: Call) -> Response:
    """POST /api/{type}/{id}/preupload/{rev}: how to upload each file, and what is there already."""
    repo, body = may_commit(call), call.json()
    asked = body.get("files")
    if not isinstance(asked, list) or len(asked) > MAX_PREUPLOAD:
        raise ApiError(400, f"files must be an array of at most {MAX_PREUPLOAD}")
    with call.hub.store.read() as db:
        files = _current(db, repo, call.param("rev"))
    ignore = body.get("gitIgnore")
    if not isinstance(ignore, str):
        ignore = read_text(call.hub.blobs, files.get(".gitignore"), MAX_IGNORE)
    ignored = matcher(ignore)
    return JSONResponse({"files": [_advice(item, files, ignored(str(item.get("path")))) for item in asked]})


def _advice(item: dict[str, Any], files: dict[str, Entry], ignored: bool) -> dict[str, Any]:
    path, size = check_path(item.get("path")), item.get("size")
    if not isinstance(size, int) or size < 0:
        raise ApiError(400, f"{path}: size must be a number of bytes")
    try:
        sample = base64.b64decode(item.get("sample") or "")
    except ValueError as error:
        raise ApiError(400, f"{path}: sample must be base64") from error
    lfs = is_lfs(path, size, sample)
    known = files.get(path)
    oid = None if known is None else known.sha256 if known.lfs else known.oid
    return {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": ignored, "oid": oid}


def _current(db: sqlite3.Connection, repo: Repo, revision: str) -> dict[str, Entry]:
    try:
        return read_tree(db, resolve(db, repo, revision))
    except RevisionMissing:
        if revision == "main":  # the first commit of an empty repository
            return {}
        raise


def may_commit(call: Call) -> Repo:
    """Return the repository when the caller may upload to the revision of the path.

    Who may write may; everyone who may read may open a pull request, and add to their own.
    """
    revision = call.param("rev")
    pull = call.flag("create_pr") or revision.startswith("refs/pr/")
    repo = call.repo(write=not pull, files=pull)
    user = call.signed_in()
    if pull and not call.owns(repo):
        call.needs("write-discussions")
    if revision.startswith("refs/pr/") and not call.flag("create_pr"):
        with call.hub.store.read() as db:
            thread = _pull_request(db, repo, revision)
        if not call.owns(repo) and thread.author != user:
            raise ApiError(403, f"only {thread.author} and who may write to {repo.id} can add to {revision}")
    return repo


def _pull_request(db: sqlite3.Connection, repo: Repo, revision: str) -> threads.Thread:
    digits = revision.removeprefix("refs/pr/")
    if not digits.isdecimal() or len(digits) > 9:
        raise RevisionMissing(f"{repo.id} has no {revision}")
    try:
        thread = threads.get_thread(db, repo, int(digits))
    except threads.ThreadError:
        thread = None
    if thread is None or thread.base is None:
        raise RevisionMissing(f"{repo.id} has no {revision}")
    if not thread.live:
        raise ApiError(409, f"pull request {thread.num} of {repo.id} is {thread.status}; open a new one")
    return thread


def commit(call: Call) -> Response:
    """POST /api/{type}/{id}/commit/{rev}[?create_pr=1]: all of it or nothing."""
    repo, user = may_commit(call), call.signed_in()
    changes = read_changes(call.received().path, call.hub.blobs)
    with call.hub.store.write() as db:
        try:
            done, thread = _write(db, repo, user, call.param("rev"), changes, new_pull=call.flag("create_pr"))
        except PathMissing as error:
            raise ApiError(404, str(error), "EntryNotFound") from error
    answer = {"success": True, "commitOid": done.oid, "commitUrl": call.url(f"/{repo.path}/commit/{done.oid}")}
    if thread is not None:
        answer["pullRequestUrl"] = call.url(f"/{repo.path}/discussions/{thread.num}")
    return JSONResponse(answer)


def _write(
    db: sqlite3.Connection, repo: Repo, user: str, revision: str, changes: Changes, *, new_pull: bool
) -> tuple[Commit, threads.Thread | None]:
    ref = _target(db, repo, revision)
    head = list_refs(db, repo).get(ref)
    parent = changes.parent
    if parent is not None and not (len(parent) >= 5 and (head or "").startswith(parent.lower())):
        raise ParentMoved(f"{ref} of {repo.id} is at {head}, not at the parentCommit {parent}; fetch and retry")
    thread = None
    if new_pull:
        if head is None:
            raise ApiError(409, f"{repo.id} is empty: a pull request needs a first commit to build upon")
        thread = threads.open_thread(
            db, repo, title=changes.title, author=user, description=changes.message, base=ref, status="open"
        )
        ref = thread.ref
    elif ref.startswith("refs/pr/"):
        thread = _pull_request(db, repo, ref)
    files = apply_steps(_current(db, repo, revision), changes)
    done = write_commit(db, repo, ref, files, title=changes.title, message=changes.message, author=user)
    if thread is not None:
        threads.note_commit(db, repo, thread, done)
    return done, thread


def _target(db: sqlite3.Connection, repo: Repo, revision: str) -> str:
    known = list_refs(db, repo)
    for ref in (f"refs/heads/{revision}", revision):
        if ref in known and not ref.startswith("refs/tags/"):
            return ref
    if revision == "main":
        return MAIN
    resolve(db, repo, revision)
    raise ApiError(400, f"a commit goes on top of a branch or a pull request; {revision} is neither")


routes = [
    route("/api/{type}/{ns}/{name}/preupload/{rev}", preupload, "POST"),
    route("/api/{type}/{ns}/{name}/commit/{rev}", commit, "POST", upload=may_commit),
]
