"""From an HTTP request to a plain function and back.

A handler is a function `(call: Call) -> Response` that runs in a worker thread, so that it may use SQLite and the
disk freely. The body is received before: small ones in memory, uploads in a temporary file. What a handler raises
becomes the status and the headers that clients of the public Hub look at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubprune.errors import HubPruneError
from hubprune.localhub.apps import Apps
from hubprune.localhub.auth import COOKIE, Users, has_access
from hubprune.localhub.blobs import BlobStore, DigestMismatch, Incoming
from hubprune.localhub.grants import CHANGES, READS, Grant, Grants
from hubprune.localhub.history import ParentMoved, RepoMissing, RevisionMissing, find_repo
from hubprune.localhub.ids import InvalidName, check_repo_id
from hubprune.localhub.runner import Runner
from hubprune.localhub.store import Repo, Store
from hubprune.localhub.threads import ThreadError

MAX_BODY = 16 << 20
"""Largest body held in memory, in bytes."""
PREFIXES = {"model": "", "dataset": "/datasets", "space": "/spaces"}


class ApiError(Exception):
    """An answer that is not a success.

    Args:
        status: HTTP status.
        message: What the rule is and what to do.
        code: Value of `X-Error-Code`: `RepoNotFound`, `RevisionNotFound`, `EntryNotFound`, `GatedRepo`.
        extra: Further fields of the JSON body.
        headers: Further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        extra: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.extra = extra or {}
        self.headers = headers or {}


@dataclass
class Hub:
    """What every handler needs.

    Attributes:
        page_size: Most items of one answer of a paginated list.
        lfs_part_size: Bytes above which an LFS upload is split into parts of this size.
        runner: Runs jobs; None for a Hub that takes none.
        apps: Runs Spaces; None for a Hub that runs none.
        grants: What users allowed apps to do.
    """

    store: Store
    users: Users
    page_size: int = 1000
    lfs_part_size: int = 64 << 20
    runner: Runner | None = None
    apps: Apps | None = None
    grants: Grants = field(default_factory=Grants)

    @property
    def blobs(self) -> BlobStore:
        """The blob folder of the store."""
        return self.store.blobs


class Call:
    """One request, with its body received.

    Attributes:
        hub: The Hub that serves it.
        user: Who asks, None when anonymous.
        grant: What an app may do in the user's name; None when it is the user.
        body: Body in memory; empty for an upload.
        upload: Body in a temporary file, for handlers that take uploads.
    """

    def __init__(self, request: Request, body: bytes = b"", upload: Incoming | None = None) -> None:
        self.request = request
        self.hub: Hub = request.app.state.hub
        self.body = body
        self.upload = upload
        self.grant: Grant | None = None
        self.user = self._identify()

    def _identify(self) -> str | None:
        header = self.request.headers.get("authorization", "")
        scheme, _, token = header.partition(" ")
        if scheme.lower() == "bearer":
            user = self.hub.users.by_token(token.strip())
            if user is None:
                self.grant = self.hub.grants.by_token(token.strip())
                user = self.grant.user if self.grant is not None else None
            if user is None:
                raise ApiError(401, "Invalid credentials in Authorization header")
            return user
        # The cookie of the sign-in page only ever reads: a page elsewhere cannot make a browser write with it.
        cookie = self.request.cookies.get(COOKIE, "")
        reads = self.request.method in ("GET", "HEAD") or self.request.url.path.endswith("/ask-access")
        return self.hub.users.by_token(cookie) if cookie and reads else None

    def param(self, name: str) -> str:
        """Return a part of the path, decoded."""
        return unquote(str(self.request.path_params[name]), errors="surrogateescape")

    def query(self, name: str, default: str | None = None) -> str | None:
        """Return a query parameter."""
        return self.request.query_params.get(name, default)

    def queries(self, name: str) -> list[str]:
        """Return every value of a query parameter, also written `name[]`."""
        params = self.request.query_params
        return params.getlist(name) + params.getlist(f"{name}[]")

    def flag(self, name: str) -> bool:
        """Tell whether a query parameter is switched on."""
        return (self.query(name) or "").lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object; an empty body or `null` is an empty object."""
        try:
            value = json.loads(self.body) if self.body.strip() else {}
        except ValueError as error:
            raise ApiError(400, f"the body must be JSON: {error}") from error
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ApiError(400, "the body must be a JSON object")
        return value

    def form(self) -> dict[str, list[str]]:
        """Return the body as the fields of a form."""
        fields: dict[str, list[str]] = {}
        for key, value in parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True):
            fields.setdefault(key, []).append(value)
        return fields

    def url(self, path: str = "") -> str:
        """Return the absolute address of a path of this Hub."""
        return str(self.request.base_url).rstrip("/") + path

    def received(self) -> Incoming:
        """Return the uploaded body."""
        if self.upload is None:
            raise ApiError(400, "this address takes an upload")
        return self.upload

    @property
    def repo_type(self) -> str:
        """Type of the repository that the path names."""
        return self.param("type").removesuffix("s") if "type" in self.request.path_params else "model"

    def signed_in(self, *scopes: str) -> str:
        """Return the user.

        Args:
            scopes: Of an app, one of these is asked for.

        Raises:
            ApiError: 401, the request is anonymous; 403, the app may not do this.
        """
        if self.user is None:
            raise ApiError(401, "Invalid username or password.", headers={"WWW-Authenticate": "Bearer"})
        if scopes:
            self.needs(*scopes)
        return self.user

    def repo(self, *, write: bool = False, files: bool = False) -> Repo:
        """Return the repository that the path names.

        Args:
            write: The caller wants to change it.
            files: The caller wants the content of its files; a gated repository refuses who has no access.

        Raises:
            ApiError: 401 or 404 when it does not exist or is private, 401 or 403 when it may not be used so.
        """
        return self.named_repo(self.repo_type, f"{self.param('ns')}/{self.param('name')}", write=write, files=files)

    def named_repo(self, repo_type: str, repo_id: str, *, write: bool = False, files: bool = False) -> Repo:
        """Return a repository by type and id; see `repo`."""
        try:
            namespace, name = check_repo_id(repo_id)
        except InvalidName:
            raise self.no_repo() from None
        with self.hub.store.read() as db:
            repo = find_repo(db, repo_type, namespace, name)
            if repo is None or (repo.private and not self.sees(repo)):
                raise self.no_repo()
            if write and not self.owns(repo):
                self.signed_in()
                if self.grant is not None and repo.namespace == self.user:
                    self.needs(*CHANGES)
                raise ApiError(403, f"you have no write access to {repo.id}; use a token of {repo.namespace}")
            if files and not (has_access(db, self.hub.users, self.user, repo) and self._opens_gated(repo)):
                page = self.url(f"/{repo.path}")
                raise ApiError(
                    401 if self.user is None else 403,
                    f"Access to {repo.type} {repo.id} is restricted: sign in and ask for access on {page}",
                    "GatedRepo",
                )
        return repo

    def owns(self, repo: Repo) -> bool:
        """Tell whether the caller may write to a repository."""
        return self._reaches(repo, CHANGES)

    def sees(self, repo: Repo) -> bool:
        """Tell whether the caller may know of a repository that is private."""
        return self._reaches(repo, READS)

    def _reaches(self, repo: Repo, scopes: Sequence[str]) -> bool:
        """Tell whether a repository is the caller's; for an app also: one it may use so, or one it created."""
        if self.grant is None:
            return self.hub.users.may_write(self.user, repo.namespace)
        return repo.namespace == self.grant.user and (self.grant.allows(*scopes) or self.contributed(repo))

    def contributed(self, repo: Repo) -> bool:
        """Tell whether the app that asks created a repository, and may use those that it did."""
        if self.grant is None or not self.grant.allows("contribute-repos"):
            return False
        with self.hub.store.read() as db:
            row = db.execute("SELECT client FROM contributions WHERE repo = ?", (repo.pk,)).fetchone()
        return row is not None and row["client"] == self.grant.client

    def managed(self, repo: Repo) -> Repo:
        """Return a repository that the caller may write to, if an app may also delete or move it."""
        if not self.contributed(repo):
            self.needs("manage-repos")
        return repo

    def _opens_gated(self, repo: Repo) -> bool:
        return not repo.gated or self.grant is None or self.grant.allows("gated-repos") or self.sees(repo)

    def needs(self, *scopes: str) -> None:
        """Refuse an app to whom none of these scopes was granted; without any it refuses every app.

        Raises:
            ApiError: 403.
        """
        if self.grant is not None and not self.grant.allows(*scopes):
            what = f"one of the scopes {', '.join(scopes)}" if scopes else "the user's own token"
            raise ApiError(403, f"an app needs {what} for this; it was granted {' '.join(sorted(self.grant.scopes))}")

    def no_repo(self) -> ApiError:
        """Return the answer for a repository that is missing, or that the caller must not know of."""
        return ApiError(401 if self.user is None else 404, "Repository not found", "RepoNotFound")


Handler = Callable[[Call], Response]
Guard = Callable[[Call], object]


def route(
    path: str,
    handler: Handler,
    *methods: str,
    upload: Guard | None = None,
    page: bool = False,
    call: type[Call] = Call,
) -> Route:
    """Make a route to a handler.

    Args:
        path: As Starlette writes it; `{type}` matches `models`, `datasets` and `spaces`.
        handler: Runs in a worker thread.
        methods: HTTP methods, GET (and HEAD) when none is given.
        upload: Receive the body in a temporary file, once this check has passed.
        page: Answer errors with a page instead of JSON.
        call: Kind of call, for addresses with another way to say who asks.
    """

    async def endpoint(request: Request) -> Response:
        try:
            if upload is not None:
                await run_in_threadpool(lambda: upload(call(request)))
                with request.app.state.hub.blobs.receive() as incoming:
                    async for data in request.stream():
                        await run_in_threadpool(incoming.write, data)
                    incoming.flush()
                    return await run_in_threadpool(lambda: handler(call(request, upload=incoming)))
            body = await _read_body(request)
            return await run_in_threadpool(lambda: handler(call(request, body)))
        except ClientDisconnect:
            return Response(status_code=400)
        except (ApiError, HubPruneError, DigestMismatch, UnicodeError) as error:
            refused = as_api_error(error)
            return request.app.state.error_page(request, refused) if page else error_response(refused)

    made = Route(path, endpoint, methods=list(methods) or ["GET"])
    pattern = made.path_regex.pattern.replace("(?P<type>[^/]+)", "(?P<type>models|datasets|spaces)")
    made.path_regex = re.compile(pattern)
    return made


def repo_routes(path: str, handler: Handler, *methods: str, page: bool = False) -> list[Route]:
    """Make the routes of a path outside the API: `/ns/name...`, `/datasets/ns/name...`, `/spaces/ns/name...`."""
    return [
        route("/{type}/{ns}/{name}" + path, handler, *methods, page=page),
        route("/{ns}/{name}" + path, handler, *methods, page=page),
    ]


async def _read_body(request: Request) -> bytes:
    received = bytearray()
    async for data in request.stream():
        received += data
        if len(received) > MAX_BODY:
            raise ApiError(413, f"the body must be at most {MAX_BODY} bytes")
    return bytes(received)


def as_api_error(error: Exception) -> ApiError:
    """Return the answer for an error of the layers below."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RevisionMissing):
        return ApiError(404, str(error), "RevisionNotFound")
    if isinstance(error, RepoMissing):
        return ApiError(404, str(error), "RepoNotFound")
    if isinstance(error, ParentMoved):
        return ApiError(412, str(error))
    if isinstance(error, ThreadError):
        return ApiError(error.status, str(error))
    return ApiError(400, str(error))


def error_response(error: ApiError) -> JSONResponse:
    """Return an error as JSON, with the headers that clients look at."""
    headers = {"X-Error-Message": header_text(str(error)), **error.headers}
    if error.code:
        headers["X-Error-Code"] = error.code
    return JSONResponse({"error": str(error), **error.extra}, error.status, headers)


def header_text(text: str) -> str:
    """Return text that may stand in a header: one line of ASCII."""
    return " ".join(text.split()).encode("ascii", "replace").decode()


def json_page(call: Call, items: Sequence[Any], size: int | None = None) -> JSONResponse:
    """Return one page of a list, with a `Link` to the next one."""
    size = max(1, min(size or call.hub.page_size, call.hub.page_size))
    start = number(call.query("cursor"), 0)
    headers = {}
    if start + size < len(items):
        params = [(key, value) for key, value in call.request.query_params.multi_items() if key != "cursor"]
        params.append(("cursor", str(start + size)))
        raw_path = call.request.scope["raw_path"].decode("ascii")
        headers["Link"] = f'<{call.url(raw_path)}?{urlencode(params)}>; rel="next"'
    return JSONResponse(list(items[start : start + size]), headers=headers)


def number(text: str | None, default: int) -> int:
    """Return a non-negative number of a query.

    Raises:
        ApiError: 400, it is not one.
    """
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 9:
        raise ApiError(400, f"a number is expected; got {text!r:.40}")
    return int(text)
