"""Access to gated repositories: asking, listing, deciding."""

from __future__ import annotations

import secrets
import sqlite3
from typing import Any

from starlette.responses import JSONResponse, RedirectResponse, Response

from hubprune.localhub.ids import check_namespace
from hubprune.localhub.store import Repo, now
from hubprune.localhub.web import ApiError, Call, json_page, repo_routes, route

STATUSES = ("pending", "accepted", "rejected")


def ask_access(call: Call) -> Response:
    """POST /{id}/ask-access: granted at once when gating is automatic, else a request to the owner."""
    repo, user = call.repo(), call.signed_in()
    call.needs()
    if not repo.gated:
        raise ApiError(400, f"{repo.id} is not gated")
    with call.hub.store.write() as db:
        row = db.execute("SELECT status FROM access WHERE repo = ? AND user = ?", (repo.pk, user)).fetchone()
        status = row["status"] if row else "accepted" if repo.gated == "auto" else "pending"
        if row is None:
            _put(db, repo, user, status)
    if "text/html" in call.request.headers.get("accept", ""):
        return RedirectResponse(call.url(f"/{repo.path}"), 303)
    return JSONResponse({"status": status})


def listing(call: Call) -> Response:
    """GET /api/{type}/{id}/user-access-request/{status}."""
    repo, status = call.repo(write=True), call.param("status")
    if status not in STATUSES:
        raise ApiError(404, f"a status is one of {', '.join(STATUSES)}; got {status!r}")
    with call.hub.store.read() as db:
        rows = db.execute("SELECT * FROM access WHERE repo = ? AND status = ? ORDER BY created", (repo.pk, status))
        found = [_request_json(row) for row in rows]
    return json_page(call, found)


def handle(call: Call) -> Response:
    """POST /api/{type}/{id}/user-access-request/handle: accept, reject, or put back."""
    repo, body = call.repo(write=True), call.json()
    if body.get("status") not in STATUSES:
        raise ApiError(400, f"a status is one of {', '.join(STATUSES)}; got {body.get('status')!r}")
    with call.hub.store.write() as db:
        changed = db.execute(
            "UPDATE access SET status = ? WHERE repo = ? AND (user = ? OR id = ?)",
            (body["status"], repo.pk, str(body.get("user")), str(body.get("requestId"))),
        )
        if changed.rowcount == 0:
            raise ApiError(404, f"{repo.id} has no such access request")
    return JSONResponse({})


def grant(call: Call) -> Response:
    """POST /api/{type}/{id}/user-access-request/grant: give access without a request."""
    repo, user = call.repo(write=True), check_namespace(call.json().get("user"))
    if user not in call.hub.users.tokens:
        raise ApiError(404, f"there is no user {user}")
    with call.hub.store.write() as db:
        db.execute("DELETE FROM access WHERE repo = ? AND user = ?", (repo.pk, user))
        _put(db, repo, user, "accepted")
    return JSONResponse({})


def _put(db: sqlite3.Connection, repo: Repo, user: str, status: str) -> None:
    db.execute("INSERT INTO access VALUES (?, ?, ?, ?, ?)", (secrets.token_hex(12), repo.pk, user, status, now()))


def _request_json(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "requestId": row["id"],
        "user": {"user": row["user"], "fullname": row["user"], "email": None},
        "status": row["status"],
        "timestamp": row["created"],
    }


_BASE = "/api/{type}/{ns}/{name}/user-access-request"
routes = [
    *repo_routes("/ask-access", ask_access, "POST"),
    route(f"{_BASE}/handle", handle, "POST"),
    route(f"{_BASE}/grant", grant, "POST"),
    route(f"{_BASE}/{{status}}", listing),
]
