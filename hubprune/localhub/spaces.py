"""The settings of a Space over HTTP. A Space does not run here; its page says how to run it."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub.settings import (
    delete_setting,
    public_settings,
    put_setting,
    runtime,
    set_hardware,
    set_sleep_time,
)
from hubprune.localhub.store import Repo
from hubprune.localhub.web import Call, Handler, route


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
    with call.hub.store.read() as db:
        return JSONResponse(runtime(db, repo))


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


_BASE = "/api/spaces/{ns}/{name}"
routes: list[Route] = [
    *(route(f"{_BASE}/{kind}", _kind_handler(kind), "GET", "POST", "DELETE") for kind in ("variables", "secrets")),
    route(f"{_BASE}/runtime", get_runtime),
    route(f"{_BASE}/hardware", hardware, "POST"),
    route(f"{_BASE}/sleeptime", sleep_time, "POST"),
    route(f"{_BASE}/pause", _stage_handler("PAUSED"), "POST"),
    route(f"{_BASE}/restart", _stage_handler("STOPPED"), "POST"),
]
