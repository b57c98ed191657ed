"""Discussions and pull requests over HTTP."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from starlette.responses import JSONResponse, Response

from hubprune.localhub import threads
from hubprune.localhub.history import MAIN
from hubprune.localhub.store import Repo
from hubprune.localhub.threads import Thread
from hubprune.localhub.web import ApiError, Call, number, route

PAGE = 50
"""Discussions of one page."""


def create(call: Call) -> Response:
    """POST /api/{type}/{id}/discussions: a discussion, or with `pullRequest` a draft onto `main`."""
    repo, user, body = call.repo(), call.signed_in("write-discussions"), call.json()
    pull = body.get("pullRequest") is True
    with call.hub.store.write() as db:
        thread = threads.open_thread(
            db,
            repo,
            title=_text(body, "title"),
            author=user,
            description=str(body.get("description") or ""),
            base=MAIN if pull else None,
            status="draft" if pull else "open",
        )
    return JSONResponse({**_summary(repo, thread), "url": call.url(f"/{repo.path}/discussions/{thread.num}")})


def listing(call: Call) -> Response:
    """GET /api/{type}/{id}/discussions: filtered, one page."""
    repo = call.repo()
    with call.hub.store.read() as db:
        found = threads.list_threads(db, repo)
    kind, status, author = call.query("type"), call.query("status"), call.query("author")
    found = [
        thread
        for thread in found
        if (kind in (None, "all") or (thread.base is not None) == (kind == "pull_request"))
        and (status in (None, "all") or thread.live == (status == "open"))
        and author in (None, thread.author)
    ]
    start = number(call.query("p"), 0) * PAGE
    shown = [_summary(repo, thread) for thread in found[start : start + PAGE]]
    return JSONResponse({"discussions": shown, "count": len(found), "start": start, "numClosedDiscussions": 0})


def details(call: Call) -> Response:
    """GET /api/{type}/{id}/discussions/{num}[?diff=1]."""
    repo = call.repo()
    with call.hub.store.read() as db:
        thread = _named(call, db, repo)
        answer: dict[str, Any] = {**_summary(repo, thread), "events": threads.events(db, repo, thread.num)}
        if thread.base is not None:
            answer["changes"] = {"base": thread.base}
            if thread.merged_oid:
                answer["changes"]["mergeCommitId"] = thread.merged_oid
            answer["filesWithConflicts"] = threads.conflicts(db, repo, thread) if thread.live else []
            if call.flag("diff"):
                answer["diff"] = threads.diff(db, call.hub.blobs, repo, thread)
    return JSONResponse(answer)


def comment(call: Call) -> Response:
    """POST .../comment."""
    repo, user = call.repo(), call.signed_in("write-discussions")
    with call.hub.store.write() as db:
        thread = _named(call, db, repo)
        event = threads.add_comment(db, repo, thread.num, user, _text(call.json(), "comment"))
    return JSONResponse({"newMessage": event})


def edit_comment(call: Call) -> Response:
    """POST .../comment/{id}/edit: by its author only."""
    repo, user = call.repo(), call.signed_in("write-discussions")
    data = threads.comment_data(_text(call.json(), "content"), edited=True)
    with call.hub.store.write() as db:
        thread = _named(call, db, repo)
        changed = db.execute(
            "UPDATE events SET data = ? WHERE id = ? AND repo = ? AND num = ? AND type = 'comment' AND author = ?",
            (json.dumps(data), call.param("comment"), repo.pk, thread.num, user),
        )
        if changed.rowcount == 0:
            raise ApiError(403, "only an existing comment of your own can be edited")
        events = threads.events(db, repo, thread.num)
    return JSONResponse({"updatedComment": next(event for event in events if event["id"] == call.param("comment"))})


def rename(call: Call) -> Response:
    """POST .../title."""
    repo, user = call.repo(), call.signed_in("write-discussions")
    with call.hub.store.write() as db:
        thread = _own(call, db, repo)
        event = threads.set_title(db, repo, thread, _text(call.json(), "title"), user)
    return JSONResponse({"newTitle": event})


def status(call: Call) -> Response:
    """POST .../status: open or close."""
    repo, user, body = call.repo(), call.signed_in("write-discussions"), call.json()
    if body.get("status") not in ("open", "closed"):
        raise ApiError(400, f"a status is open or closed; got {body.get('status')!r}")
    with call.hub.store.write() as db:
        thread = _own(call, db, repo)
        if body.get("comment"):
            threads.add_comment(db, repo, thread.num, user, str(body["comment"]))
        event = threads.set_status(db, repo, thread, body["status"], user)
    return JSONResponse({"newStatus": event})


def merge(call: Call) -> Response:
    """POST .../merge: by who may write to the repository."""
    repo, user, body = call.repo(write=True), call.signed_in(), call.json()
    with call.hub.store.write() as db:
        thread = _named(call, db, repo)
        if body.get("comment"):
            threads.add_comment(db, repo, thread.num, user, str(body["comment"]))
        commit = threads.merge(db, repo, thread, user)
    return JSONResponse({"mergeCommitId": commit.oid})


def _summary(repo: Repo, thread: Thread) -> dict[str, Any]:
    return {
        "num": thread.num,
        "title": thread.title,
        "author": {"name": thread.author},
        "createdAt": thread.created,
        "status": thread.status,
        "repo": {"name": repo.id, "type": repo.type},
        "isPullRequest": thread.base is not None,
    }


def _named(call: Call, db: sqlite3.Connection, repo: Repo) -> Thread:
    return threads.get_thread(db, repo, number(call.param("num"), 0))


def _own(call: Call, db: sqlite3.Connection, repo: Repo) -> Thread:
    thread = _named(call, db, repo)
    if thread.author != call.user and not call.owns(repo):
        raise ApiError(403, f"only {thread.author} and who may write to {repo.id} can change discussion {thread.num}")
    return thread


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ApiError(400, f"{key} must be text")
    return value.strip()


_BASE = "/api/{type}/{ns}/{name}/discussions"
routes = [
    route(_BASE, listing),
    route(_BASE, create, "POST"),
    route(f"{_BASE}/{{num}}", details),
    route(f"{_BASE}/{{num}}/comment", comment, "POST"),
    route(f"{_BASE}/{{num}}/comment/{{comment}}/edit", edit_comment, "POST"),
    route(f"{_BASE}/{{num}}/title", rename, "POST"),
    route(f"{_BASE}/{{num}}/status", status, "POST"),
    route(f"{_BASE}/{{num}}/merge", merge, "POST"),
]
