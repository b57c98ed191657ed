"""The settings of a Space over HTTP, and starting and stopping its app where the Hub runs apps."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from hubprune.localhub import cards
from hubprune.localhub.apps import Content
from hubprune.localhub.auth import sign, verify
from hubprune.localhub.history import read_tree
from hubprune.localhub.info import MAX_README, head, read_text
from hubprune.localhub.settings import (
    delete_setting,
    public_settings,
    put_setting,
    runtime,
    set_hardware,
    set_sleep_time,
)
from hubprune.localhub.store import Repo
from hubprune.localhub.web import ApiError, Call, Handler, route

LOG_LINES = 40
"""Last lines of an app's log that its page shows."""


def _space(call: Call, *, write: bool = True) -> Repo:
    return call.named_repo("space", f"{call.param('ns')}/{call.param('name')}", write=write)


def _kind_handler(kind: str) -> Handler:
    def handler(call: Call) -> Response:
        """GET, POST, DELETE /api/spaces/{id}/variables and /secrets; only who may write sees the names."""
        repo = _space(call)
        if call.request.method == "POST":
            with call.hub.store.write() as db:
                put_setting(db, repo, kind, call.json())
        elif call.request.method == "DELETE":
            with call.hub.store.write() as db:
                delete_setting(db, repo, kind, call.json().get("key"))
        with call.hub.store.read() as db:
            return JSONResponse(public_settings(db, repo, kind))

    return handler


def get_runtime(call: Call) -> Response:
    """GET /api/spaces/{id}/runtime."""
    repo = _space(call, write=False)
    app = call.hub.apps.find(repo) if call.hub.apps else None
    with call.hub.store.read() as db:
        return JSONResponse(runtime(db, repo) | ({"stage": app.state} if app else {}))


def hardware(call: Call) -> Response:
    """POST /api/spaces/{id}/hardware."""
    repo, body = _space(call), call.json()
    with call.hub.store.write() as db:
        set_hardware(db, repo, body.get("flavor"))
        if body.get("sleepTimeSeconds") is not None:
            set_sleep_time(db, repo, body["sleepTimeSeconds"])
        return JSONResponse(runtime(db, repo))


def sleep_time(call: Call) -> Response:
    """POST /api/spaces/{id}/sleeptime."""
    repo = _space(call)
    with call.hub.store.write() as db:
        set_sleep_time(db, repo, call.json().get("seconds"))
        return JSONResponse(runtime(db, repo))


def _stage_handler(stage: str) -> Handler:
    def handler(call: Call) -> Response:
        """POST /api/spaces/{id}/pause and /restart."""
        repo = _space(call)
        with call.hub.store.write() as db:
            db.execute("UPDATE repos SET stage = ? WHERE pk = ?", (stage, repo.pk))
            return JSONResponse(runtime(db, repo))

    return handler


def panel(call: Call, repo: Repo) -> dict[str, Any] | None:
    """Return what the page of a Space shows of its app; None where the Hub runs none, or not this one."""
    if call.hub.apps is None or repo.type != "space" or repo.sdk != "gradio":
        return None
    app = call.hub.apps.find(repo)
    state = app.state if app else "STOPPED"
    mine = app is not None and call.user is not None and (call.owns(repo) or app.user == call.user)
    return {
        "state": state,
        "url": app.url if app and state == "RUNNING" else None,
        "alive": state in ("RUNNING", "APP_STARTING"),
        "log": [line for _, line in app.log[-LOG_LINES:]] if app and mine and state != "RUNNING" else [],
        "message": app.message if app else None,
        "ticket": sign(call.hub.store.key, action="app", repo=repo.pk, user=call.user) if call.user else None,
    }


def _app_handler(act: str) -> Handler:
    def handler(call: Call) -> Response:
        """POST /spaces/{id}/start and /stop: by whoever was signed in on the page that has the button."""
        given = call.form().get("ticket", [""])[0]
        facts = verify(call.hub.store.key, given)
        if call.hub.apps is None:
            raise ApiError(402, "this Hub runs no Spaces; serve it with --allow-spaces")
        if facts is None or facts.get("action") != "app":
            raise ApiError(403, "sign in, load the page of the Space again and use its button")
        call.user = str(facts["user"])
        repo = call.named_repo("space", f"{call.param('ns')}/{call.param('name')}", files=True)
        if repo.pk != facts["repo"]:
            raise ApiError(403, "that button is of another Space: load the page again")
        if act == "start":
            call.hub.apps.start(_content(call, repo), call.user, call.url(), call.hub.store.key)
        else:
            call.hub.apps.stop(repo)
        return RedirectResponse(call.url(f"/{repo.path}"), 303)

    return handler


def _content(call: Call, repo: Repo) -> Content:
    with call.hub.store.read() as db:
        commit = head(db, repo, None)
        files = read_tree(db, commit) if commit else {}
        rows = db.execute("SELECT kind, key, value FROM settings WHERE repo = ?", (repo.pk,)).fetchall()
    kinds: dict[str, dict[str, str]] = {"variables": {}, "secrets": {}}
    for row in rows:
        kinds[row["kind"]][row["key"]] = row["value"]
    return Content(
        repo,
        tuple((path, call.hub.blobs.path(entry.sha256)) for path, entry in files.items()),
        cards.lenient(read_text(call.hub.blobs, files.get("README.md"), MAX_README))[0],
        kinds["variables"],
        kinds["secrets"],
    )


_BASE = "/api/spaces/{ns}/{name}"
routes: list[Route] = [
    *(route(f"{_BASE}/{kind}", _kind_handler(kind), "GET", "POST", "DELETE") for kind in ("variables", "secrets")),
    route(f"{_BASE}/runtime", get_runtime),
    route(f"{_BASE}/hardware", hardware, "POST"),
    route(f"{_BASE}/sleeptime", sleep_time, "POST"),
    route(f"{_BASE}/pause", _stage_handler("PAUSED"), "POST"),
    route(f"{_BASE}/restart", _stage_handler("STOPPED"), "POST"),
    *(route(f"/spaces/{{ns}}/{{name}}/{act}", _app_handler(act), "POST", page=True) for act in ("start", "stop")),
]
