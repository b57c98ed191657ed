"""A commit as clients send it, one JSON object a line, turned into the files of the next tree."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubprune.errors import HubPruneError, UsageError
from hubprune.localhub.blobs import BlobStore
from hubprune.localhub.history import Entry, entry_for
from hubprune.localhub.ids import check_path, check_sha256

LFS_SUFFIXES = frozenset(
    "7z arrow bin bz2 ckpt ftz gguf gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth "
    "rar safetensors tar tflite tgz wasm xz zip zst".split()
)
MAX_REGULAR = 10 << 20
"""Bytes above which a file is stored as LFS whatever its name."""
POINTER = b"version https://git-lfs.github.com/spec/v1\n"


class PayloadError(UsageError):
    """A commit cannot be read, or would make a tree that cannot be."""


class PathMissing(HubPruneError):
    """A commit deletes a path that is not there."""


@dataclass
class Changes:
    """What a commit asks for.

    Attributes:
        title: First line of the message.
        message: The rest of the message.
        parent: Commit, or the start of one, at which the branch must be.
        steps: In order: an `Entry` to write, or `("file" | "folder", path)` to delete.
    """

    title: str = ""
    message: str = ""
    parent: str | None = None
    steps: list[Entry | tuple[str, str]] = field(default_factory=list)


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Tell whether a file is stored as LFS: by name, by size, or because it is not text."""
    if path.rpartition(".")[2].lower() in LFS_SUFFIXES or size > MAX_REGULAR or b"\0" in sample:
        return True
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        # The sample may end inside a character.
        return error.start < len(sample) - 3
    return False


def read_changes(payload: Path, blobs: BlobStore) -> Changes:
    """Read a commit and store the contents that it carries.

    Raises:
        PayloadError: A line cannot be read, or names an LFS file that was not uploaded.
        InvalidName: A path is not valid.
    """
    changes = Changes()
    for line in _lines(payload):
        key, value = line.get("key"), line.get("value")
        if not isinstance(value, dict):
            raise PayloadError("every line of a commit has a key and an object as value")
        if key == "header":
            changes.title = str(value.get("summary") or "").strip()
            changes.message = str(value.get("description") or "").strip()
            parent = value.get("parentCommit")
            changes.parent = None if parent is None else str(parent)
        elif key == "file":
            changes.steps.append(_regular(value, blobs))
        elif key == "lfsFile":
            changes.steps.append(_lfs(value, blobs))
        elif key in ("deletedFile", "deletedFolder"):
            path = check_path(str(value.get("path")).rstrip("/"))
            changes.steps.append(("file" if key == "deletedFile" else "folder", path))
        else:
            raise PayloadError(f"a commit has lines header, file, lfsFile, deletedFile, deletedFolder; got {key!r}")
    if not changes.title:
        raise PayloadError("a commit needs a header with a summary")
    return changes


def _lines(payload: Path) -> Iterator[dict[str, Any]]:
    with payload.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise PayloadError(f"every line of a commit is JSON: {error}") from error
            if not isinstance(value, dict):
                raise PayloadError("every line of a commit is a JSON object")
            yield value


def _regular(value: dict[str, Any], blobs: BlobStore) -> Entry:
    path, text = check_path(value.get("path")), value.get("content")
    if not isinstance(text, str) or value.get("encoding", "utf-8") not in ("base64", "utf-8"):
        raise PayloadError(f"{path}: the content must be text, its encoding base64 or utf-8")
    try:
        content = base64.b64decode(text, validate=True) if value.get("encoding") == "base64" else text.encode()
    except (binascii.Error, UnicodeEncodeError) as error:
        raise PayloadError(f"{path}: the content cannot be decoded: {error}") from error
    if content.startswith(POINTER):
        # Git could not tell the pointer from the file it stands for.
        raise PayloadError(f"{path} is an LFS pointer, not the file; fetch the content (git lfs pull) and upload that")
    return entry_for(path, blobs.put(content), len(content), content)


def _lfs(value: dict[str, Any], blobs: BlobStore) -> Entry:
    path, oid = check_path(value.get("path")), check_sha256(value.get("oid"))
    size = blobs.size(oid)
    if size is None or value.get("size", size) != size:
        raise PayloadError(f"{path}: upload the LFS object {oid} in full before the commit that names it")
    return entry_for(path, oid, size, None)


def apply_steps(files: Mapping[str, Entry], changes: Changes) -> dict[str, Entry]:
    """Return the files after a commit.

    Raises:
        PathMissing: A deleted path is not there.
        PayloadError: A path would be a file and a folder.
    """
    result = dict(files)
    for step in changes.steps:
        if isinstance(step, Entry):
            result[step.path] = step
            continue
        kind, path = step
        gone = [path] if kind == "file" else [name for name in result if name.startswith(f"{path}/")]
        if not gone or any(name not in result for name in gone):
            raise PathMissing(f"{path} cannot be deleted: there is no such {kind}")
        for name in gone:
            del result[name]
    folders = {folder for path in result for folder in _parents(path)}
    both = sorted(folders.intersection(result))
    if both:
        raise PayloadError(f"a path is a file or a folder, not both: {', '.join(both)}")
    return result


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
