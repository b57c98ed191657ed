"""What a repository is, as `model_info`, `dataset_info`, `space_info` and the lists show it."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterable
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse, Response

from hubprune.localhub import cards, gitids
from hubprune.localhub.blobs import BlobStore
from hubprune.localhub.history import Commit, Entry, RevisionMissing, list_repos, read_tree, resolve
from hubprune.localhub.repos import repo_json
from hubprune.localhub.settings import runtime
from hubprune.localhub.store import Repo
from hubprune.localhub.web import ApiError, Call, json_page, number, route

MAX_README = 4 << 20
"""Bytes of a README that are read."""
MAX_CONFIG = 1 << 20
MAX_HEADER = 25_000_000
"""Longest header of a safetensors file, in bytes (the limit of the format's own reader)."""
_LIST_FIELDS = (
    "_id id modelId author sha private gated disabled createdAt lastModified downloads likes trendingScore tags "
    "pipeline_tag library_name sdk"
).split()


def describe(
    db: sqlite3.Connection, blobs: BlobStore, repo: Repo, commit: Commit | None, *, sizes: bool = False
) -> dict[str, Any]:
    """Return everything known about a repository at a commit.

    Args:
        db: A connection.
        blobs: Where the contents are.
        repo: The repository.
        commit: The commit, None when the repository is empty.
        sizes: Give size and digest of each file.
    """
    files = read_tree(db, commit) if commit else {}
    card, _ = cards.lenient(read_text(blobs, files.get("README.md"), MAX_README))
    found: dict[str, Any] = {
        **repo_json(repo),
        "sha": commit.oid if commit else None,
        "lastModified": commit.date if commit else repo.created,
        "tags": cards.tags(card, files),
        "cardData": card,
        "siblings": [_sibling(entry, sizes) for entry in files.values()],
        "usedStorage": sum({entry.sha256: entry.size for entry in files.values()}.values()),
    }
    if repo.type == "model":
        found |= _model_fields(blobs, repo, files, card)
    if repo.type == "space":
        found |= {
            "sdk": card.get("sdk") or repo.sdk,
            "models": cards.strings(card.get("models")),
            "datasets": cards.strings(card.get("datasets")),
            "runtime": runtime(db, repo),
        }
    return found


def _model_fields(blobs: BlobStore, repo: Repo, files: dict[str, Entry], card: dict[str, Any]) -> dict[str, Any]:
    config = _config(read_text(blobs, files.get("config.json"), MAX_CONFIG))
    fields: dict[str, Any] = {
        "modelId": repo.id,
        "library_name": card.get("library_name") or ("transformers" if config else None),
        "pipeline_tag": card.get("pipeline_tag"),
        "config": config,
        "spaces": [],
    }
    if fields["library_name"] == "transformers":
        fields["transformersInfo"] = {"auto_model": "AutoModel", "pipeline_tag": card.get("pipeline_tag")}
    weights = [blobs.path(entry.sha256) for path, entry in files.items() if path.endswith(".safetensors")]
    counts = count_parameters(weights)
    if counts:
        fields["safetensors"] = {"parameters": counts, "total": sum(counts.values())}
    if card.get("model-index"):
        fields["model-index"] = card["model-index"]
    return fields


def read_text(blobs: BlobStore, entry: Entry | None, limit: int) -> str:
    """Return the beginning of a text file, `""` when there is none."""
    return "" if entry is None else blobs.read(entry.sha256, limit).decode("utf-8", "replace")


def _config(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text) if text else {}
    except ValueError:
        return {}
    keep = ("architectures", "model_type", "quantization_config")
    return {key: config[key] for key in keep if key in config} if isinstance(config, dict) else {}


def count_parameters(paths: Iterable[Path]) -> dict[str, int]:
    """Return how many values of each dtype safetensors files hold; files that are none are passed over."""
    total: dict[str, int] = {}
    for path in paths:
        for dtype, count in _dtype_counts(path).items():
            total[dtype] = total.get(dtype, 0) + count
    return total


@lru_cache(maxsize=4096)  # a blob never changes
def _dtype_counts(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= MAX_HEADER else {}
        for name, tensor in header.items():
            if name != "__metadata__":
                counts[str(tensor["dtype"])] = counts.get(str(tensor["dtype"]), 0) + prod(tensor["shape"])
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return counts


def _sibling(entry: Entry, sizes: bool) -> dict[str, Any]:
    item: dict[str, Any] = {"rfilename": entry.path}
    if sizes:
        item |= {"size": entry.size, "blobId": entry.oid}
        if entry.lfs:
            pointer = len(gitids.pointer_text(entry.sha256, entry.size))
            item["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": pointer}
    return item


def repo_info(call: Call) -> Response:
    """GET /api/{type}/{id}[/revision/{rev}]."""
    repo = call.repo()
    revision = call.param("rev") if "rev" in call.request.path_params else None
    with call.hub.store.read() as db:
        info = describe(db, call.hub.blobs, repo, head(db, repo, revision), sizes=call.flag("blobs"))
    wanted = call.queries("expand")
    if wanted:
        info = {key: info.get(key) for key in ("_id", "id", *wanted)}
    return JSONResponse(info)


def head(db: sqlite3.Connection, repo: Repo, revision: str | None) -> Commit | None:
    """Return the commit of a revision; without one, that of `main`, or None when nothing was committed."""
    if revision is not None:
        return resolve(db, repo, revision)
    try:
        return resolve(db, repo, "main")
    except RevisionMissing:
        return None


def visible(call: Call, db: sqlite3.Connection, repo_type: str | None = None) -> list[Repo]:
    """Return the repositories the caller may know of."""
    return [repo for repo in list_repos(db, repo_type) if not repo.private or call.sees(repo)]


def list_infos(call: Call) -> Response:
    """GET /api/models, /api/datasets, /api/spaces: filtered, sorted, one page."""
    with call.hub.store.read() as db:
        found = [
            describe(db, call.hub.blobs, repo, head(db, repo, None))
            for repo in visible(call, db, call.repo_type)
            if _name_matches(call, repo)
        ]
    found = [info for info in found if _content_matches(call, info)]
    key = call.query("sort") or "lastModified"
    if key not in ("lastModified", "createdAt", "downloads", "likes", "trendingScore"):
        raise ApiError(400, f"sort is lastModified, createdAt, downloads, likes or trendingScore; got {key!r}")
    found.sort(key=lambda info: (info[key], info["id"]), reverse=True)
    return json_page(call, [_listed(call, info) for info in found], number(call.query("limit"), 0))


def _name_matches(call: Call, repo: Repo) -> bool:
    author = call.query("author")
    words = [word for text in call.queries("search") for word in text.lower().split()]
    return (author is None or repo.namespace == author) and all(word in repo.id.lower() for word in words)


def _content_matches(call: Call, info: dict[str, Any]) -> bool:
    wanted = [tag for text in call.queries("filter") for tag in text.split(",") if tag]
    task, gated = call.query("pipeline_tag"), call.query("gated")
    return (
        all(tag in info["tags"] for tag in wanted)
        and (task is None or info.get("pipeline_tag") == task)
        and (gated is None or bool(info["gated"]) == (gated.lower() == "true"))
    )


def _listed(call: Call, info: dict[str, Any]) -> dict[str, Any]:
    wanted = call.queries("expand")
    if wanted:
        return {key: info.get(key) for key in ("_id", "id", *wanted)}
    if call.flag("full"):
        return info
    fields = [*_LIST_FIELDS, *(key for key in ("cardData", "config") if call.flag(key))]
    return {key: info[key] for key in fields if key in info}


def no_such_repo(call: Call) -> Response:
    """Answer for every other address below a repository type: ids without a namespace, unknown calls."""
    rest = call.param("rest").strip("/").split("/")
    if len(rest) > 2:
        call.named_repo(call.repo_type, "/".join(rest[:2]))
        raise ApiError(404, "the embedded Hub does not have this call")
    raise call.no_repo()


routes = [
    route("/api/{type}", list_infos),
    route("/api/{type}/{ns}/{name}", repo_info),
    route("/api/{type}/{ns}/{name}/revision/{rev}", repo_info),
]
fallback_routes = [route("/api/{type}/{rest:path}", no_such_repo, "GET", "POST", "PUT", "DELETE")]
