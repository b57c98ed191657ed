"""The application: every module's routes, tried in order."""

from __future__ import annotations

from email.utils import formatdate
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubprune.localhub import (
    commits,
    discussions,
    files,
    gating,
    info,
    jobs,
    lfs,
    oauth,
    pages,
    refs,
    repos,
    spaces,
    xet,
)
from hubprune.localhub.web import Hub


class _RawPath:
    """Route on the path as it was sent, so that `refs%2Fpr%2F1` stays one part of it.

    Also refuses requests that name another host, when `hosts` says which ones are meant: a page elsewhere whose name
    was pointed at this machine must not read what is here.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if self._hosts is not None and host.rpartition("@")[2].rsplit(":", 1)[0] not in self._hosts:
                refusal = PlainTextResponse("this Hub is served to its own machine only", 421)
                await refusal(scope, receive, send)
                return
            raw = scope["raw_path"].decode("latin-1")
            parts = (unquote(part, errors="surrogateescape") for part in raw.split("/"))
            scope = {**scope, "path": "/".join(part.replace("%", "%25").replace("/", "%2F") for part in parts)}
        await self._app(scope, receive, _dated(send))


def _dated(send: Send) -> Send:
    """Add the time of an answer. The server's own is up to two seconds old, and clients cut logs of jobs by it."""

    async def dated(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"date", formatdate(usegmt=True).encode())]}
        await send(message)

    return dated


def _not_found(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "Not found"}, getattr(error, "status_code", 404))


def build_app(hub: Hub, hosts: frozenset[str] | None = None) -> ASGIApp:
    """Return the ASGI application of a Hub.

    Args:
        hub: Store, users and limits.
        hosts: Host names under which it may be asked; None for any.
    """
    routes = [
        *oauth.routes,
        *repos.routes,
        *spaces.routes,
        *jobs.routes,
        *gating.routes,
        *discussions.routes,
        *commits.routes,
        *xet.routes,
        *lfs.routes,
        *refs.routes,
        *files.routes,
        *info.routes,
        *info.fallback_routes,
        *pages.routes,
    ]
    app = Starlette(routes=routes, exception_handlers={404: _not_found, 405: _not_found})
    app.router.redirect_slashes = False
    app.state.hub = hub
    app.state.error_page = pages.error_page
    return _RawPath(app, hosts)
