"""Templates to responses, and how sizes, dates and counts are written."""

from __future__ import annotations

import time
from functools import lru_cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from hubprune.localhub.store import epoch_seconds
from hubprune.localhub.web import ApiError

_SPANS = ((31_536_000, "year"), (2_592_000, "month"), (86_400, "day"), (3_600, "hour"), (60, "minute"))
# Nothing but the page itself, its images and its forms: a page of this Hub asks no other host for anything.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; form-action 'self'{}; base-uri 'none'; "
    "frame-ancestors 'none'"
)


def page(
    request: Request, template: str, user: str | None, status: int = 200, *, form_action: str = "", **values: Any
) -> HTMLResponse:
    """Return a page made from a template of `html/`.

    Args:
        request: What is answered.
        template: File in `html/`.
        user: Who is signed in.
        status: HTTP status.
        form_action: Origin of another server that a form of the page may lead to.
        values: What the template shows.
    """
    text = (
        _templates()
        .get_template(template)
        .render(user=user, style=_style(), endpoint=str(request.base_url).rstrip("/"), **{"on": None, **values})
    )
    headers = {
        "Content-Security-Policy": _POLICY.format(f" {form_action}" if form_action else ""),
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(text, status, headers)


def error_page(request: Request, error: ApiError) -> HTMLResponse:
    """Return an error as a page."""
    missing = error.code in ("RepoNotFound", "EntryNotFound", "RevisionNotFound") or error.status == 404
    message = str(error)
    if error.code == "RepoNotFound":
        message = "There is no such repository, or it is private and you are not signed in as someone who may see it."
    return page(
        request,
        "error.html",
        None,
        404 if missing else error.status,
        heading="Not found" if missing else "This did not work",
        message=message,
        number=error.status,
    )


def human_bytes(size: int) -> str:
    """Return a number of bytes as people read it."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def human_count(count: int) -> str:
    """Return a number of parameters as people read it."""
    for limit, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return str(count)


def ago(date: str) -> str:
    """Return how long ago a date of the store was."""
    seconds = max(0, int(time.time()) - epoch_seconds(date))
    for span, unit in _SPANS:
        if seconds >= span:
            count = seconds // span
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


@lru_cache(maxsize=1)
def _templates() -> Environment:
    folder = files("hubprune.localhub") / "html"
    env = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "ago": ago,
        "bytes": human_bytes,
        "quote": lambda text: quote(text, errors="surrogatepass"),
        "part": lambda text: quote(text, safe=""),
    }
    return env


@lru_cache(maxsize=1)
def _style() -> Markup:
    return Markup((files("hubprune.localhub") / "html" / "style.css").read_text("utf-8"))  # noqa: S704
