"""Files over HTTP: content with ranges, folder listings, paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Scope

from hubprune.localhub import gitids
from hubprune.localhub.history import Commit, Entry, RevisionMissing, get_entry, log, read_tree, resolve
from hubprune.localhub.ids import InvalidName, check_path
from hubprune.localhub.store import Repo
from hubprune.localhub.web import ApiError, Call, header_text, json_page, repo_routes, route

EXPANDED_PAGE = 50
"""Most items of one page of a listing that asks for the last commit of each file."""
MEDIA_TYPES = {
    "gif": "image/gif",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "png": "image/png",
    "svg": "image/svg+xml",
    "wav": "audio/wav",
    "webp": "image/webp",
}
TEXT_SUFFIXES = frozenset(
    "c cff cfg css csv gitattributes gitignore go h html ini ipynb jinja js json jsonl lock log md mk py rs rst sh "
    "toml tsv txt xml yaml yml".split()
)


class BlobResponse(FileResponse):
    """A blob; ranges, conditions and HEAD are Starlette's."""

    chunk_size = 1 << 20

    def set_stat_headers(self, stat_result: Any) -> None:
        """Set the length only: the digest is the ETag, and the date of the file in the store means nothing."""
        self.headers.setdefault("content-length", str(stat_result.st_size))
        self.headers.setdefault("last-modified", "Thu, 01 Jan 1970 00:00:00 GMT")

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Send the blob, or 304 when the client has it."""
        conditions = dict(scope["headers"]).get(b"if-none-match", b"").decode("latin-1")
        if self.headers["etag"] in [tag.strip() for tag in conditions.split(",")]:
            await Response(status_code=304, headers={"ETag": self.headers["etag"]})(scope, receive, send)
            return
        await super().__call__(scope, receive, send)


def media_type(path: str) -> str:
    """Return the media type a file is served with.

    Files come from users, so nothing is served as a type in which a browser would run scripts.
    """
    suffix = path.rpartition("/")[2].rpartition(".")[2].lower()
    if suffix in MEDIA_TYPES:
        return MEDIA_TYPES[suffix]
    return "text/plain; charset=utf-8" if suffix in TEXT_SUFFIXES else "application/octet-stream"


def resolve_file(call: Call) -> Response:
    """GET, HEAD /{id}/resolve/{rev}/{path}: the content of a file."""
    repo = call.repo(files=True)
    path = call.param("path")
    with call.hub.store.read() as db:
        commit = resolve(db, repo, call.param("rev"))
        try:
            entry = get_entry(db, commit, check_path(path))
        except InvalidName:
            entry = None
    if entry is None:
        # Clients remember a missing file only when they know at which commit it is missing.
        raise no_entry(path, commit)
    headers = {
        "X-Repo-Commit": commit.oid,
        "ETag": f'"{entry.sha256 if entry.lfs else entry.oid}"',
        "Cache-Control": "no-cache",
        "Content-Disposition": f"inline; filename*=UTF-8''{_quoted_name(path)}",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
        "X-Content-Type-Options": "nosniff",
    }
    if entry.lfs:
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(entry.size)}
    return BlobResponse(call.hub.blobs.path(entry.sha256), headers=headers, media_type=media_type(path))


def resolve_bare(call: Call) -> Response:
    """GET, HEAD /{name}/resolve/...: an id without a namespace, which this Hub does not have."""
    raise call.no_repo()


def no_entry(path: str, commit: Commit) -> ApiError:
    """Return the answer for a path that a commit does not have."""
    return ApiError(
        404,
        f"{header_text(path)!r:.200} does not exist at {commit.oid}",
        "EntryNotFound",
        headers={"X-Repo-Commit": commit.oid},
    )


def _quoted_name(path: str) -> str:
    return quote(path.rpartition("/")[2], safe="!#$&+^`|~")


def tree(call: Call) -> Response:
    """GET /api/{type}/{id}/tree/{rev}[/{path}]: a folder, or all below it."""
    repo = call.repo()
    folder = call.param("path").strip("/") if "path" in call.request.path_params else ""
    with call.hub.store.read() as db:
        commit = resolve(db, repo, call.param("rev"))
        files = read_tree(db, commit)
        items = list_folder(files, folder, recursive=call.flag("recursive"))
        if folder and not items:
            raise no_entry(folder, commit)
        if call.flag("expand"):
            return json_page(call, with_last_commit(items, files, _trees(db, repo, commit)), EXPANDED_PAGE)
    return json_page(call, items, _limit(call))


def _limit(call: Call) -> int:
    text = call.query("limit")
    return int(text) if text is not None and text.isdecimal() and 0 < len(text) < 9 else call.hub.page_size


def paths_info(call: Call) -> Response:
    """POST /api/{type}/{id}/paths-info/{rev}: some files and folders; missing ones are left out."""
    repo = call.repo()
    if call.request.headers.get("content-type", "").startswith("application/json"):
        body = call.json()
        asked, expand = [str(path) for path in body.get("paths", [])], body.get("expand") is True
    else:
        form = call.form()
        asked, expand = form.get("paths", []), form.get("expand", [""])[0].lower() in ("1", "true")
    with call.hub.store.read() as db:
        commit = resolve(db, repo, call.param("rev"))
        files = read_tree(db, commit)
        known = {item["path"]: item for item in list_folder(files, "", recursive=True)}
        items = [known[path] for path in dict.fromkeys(path.strip("/") for path in asked) if path in known]
        if expand:
            items = with_last_commit(items, files, _trees(db, repo, commit))
    return JSONResponse(items)


def list_folder(files: Mapping[str, Entry], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Return the files and folders of a folder as clients read them, sorted by path.

    Args:
        files: Every file of the commit, by path.
        folder: Path of the folder; `""` is the root.
        recursive: Include what is below its folders.
    """
    oids = gitids.folder_oids((entry.path, entry.oid) for entry in files.values())
    start = f"{folder}/" if folder else ""
    below = [path for path in (*files, *oids) if path and path.startswith(start) and path != folder]
    shown = sorted(path for path in below if recursive or "/" not in path[len(start) :])
    return [
        file_json(files[path]) if path in files else {"type": "directory", "oid": oids[path], "size": 0, "path": path}
        for path in shown
    ]


def file_json(entry: Entry) -> dict[str, Any]:
    """Return a file as listings show it."""
    item: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": entry.path}
    if entry.lfs:
        pointer = len(gitids.pointer_text(entry.sha256, entry.size))
        item["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": pointer}
    return item


def with_last_commit(
    items: Iterable[dict[str, Any]], files: Mapping[str, Entry], history: Sequence[tuple[Commit, Mapping[str, Entry]]]
) -> list[dict[str, Any]]:
    """Add to each item the commit that last changed it, and a scan status (nothing is scanned here).

    Args:
        items: From `list_folder`.
        files: The files of the newest commit.
        history: Commits with their files, newest first.
    """
    changed: dict[str, Commit] = {}
    for index, (commit, tree) in enumerate(history):
        before = history[index + 1][1] if index + 1 < len(history) else {}
        for path in {*tree, *before}:
            if tree.get(path) != before.get(path):
                while path:  # a file changes every folder above it
                    changed.setdefault(path, commit)
                    path = path.rpartition("/")[0]
    answer = []
    for item in items:
        last = changed[item["path"]]
        extra: dict[str, Any] = {"lastCommit": {"id": last.oid, "title": last.title, "date": last.date}}
        if item["path"] in files:
            extra["securityFileStatus"] = {"status": "unscanned", "avScan": None, "pickleImportScan": None}
        answer.append({**item, **extra})
    return answer


def _trees(db: Any, repo: Repo, commit: Commit) -> list[tuple[Commit, Mapping[str, Entry]]]:
    try:
        return [(step, read_tree(db, step)) for step in log(db, repo, commit)]
    except KeyError as error:
        raise RevisionMissing(f"{repo.id} has lost commit {error}") from error


routes = [
    *repo_routes("/resolve/{rev}/{path:path}", resolve_file),
    *repo_routes("/raw/{rev}/{path:path}", resolve_file),
    route("/{name}/resolve/{rev}/{path:path}", resolve_bare),
    route("/api/{type}/{ns}/{name}/tree/{rev}", tree),
    route("/api/{type}/{ns}/{name}/tree/{rev}/{path:path}", tree),
    route("/api/{type}/{ns}/{name}/paths-info/{rev}", paths_info, "POST"),
]
