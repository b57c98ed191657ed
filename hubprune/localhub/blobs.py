"""Content-addressed files in a folder, written atomically.

A blob is written under `tmp/`, flushed to the disk, then renamed to the place its SHA-256 names. A file that is in
place is therefore complete, whenever the process or the machine stops, and is never changed afterwards. Chunk
containers of the xet protocol (xorbs) are kept the same way under the name that the client gives them, since it refers
to them again when a later upload holds the same chunks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hubprune.localhub.ids import check_namespace, check_sha256

READ_SIZE = 1 << 20
"""Bytes read at a time."""
KEEP_UNFINISHED = 86_400
"""Seconds for which an unfinished upload is kept."""


class DigestMismatch(ValueError):
    """The content does not have the digest it was announced with."""


class Incoming:
    """A file being received; counts and hashes what is written.

    Attributes:
        path: Where the bytes are until the file is adopted.
        size: Bytes written so far.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.size = 0
        self._file = file
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes written so far, in hexadecimal."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def flush(self) -> None:
        """Make the bytes visible to a reader of `path`."""
        self._file.flush()


class BlobStore:
    """Blobs and xorbs in one folder.

    Args:
        folder: Created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs"
        self._xorbs = folder / "xorbs"
        self._parts = folder / "parts"
        self._tmp = folder / "tmp"
        for path in (self._blobs, self._xorbs, self._parts, self._tmp):
            path.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def receive(self) -> Iterator[Incoming]:
        """Open a temporary file, removed at the end unless it was adopted."""
        descriptor, name = tempfile.mkstemp(dir=self._tmp)
        path = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield Incoming(path, file)
        finally:
            path.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        """Return where a blob is, or would be."""
        check_sha256(sha256)
        return self._blobs / sha256[:2] / sha256[2:]

    def size(self, sha256: str) -> int | None:
        """Return the size of a blob in bytes, or None if the store does not have it."""
        return _size(self.path(sha256))

    def read(self, sha256: str, limit: int | None = None) -> bytes:
        """Return the content of a blob, or its first `limit` bytes."""
        with self.path(sha256).open("rb") as file:
            return file.read() if limit is None else file.read(limit)

    def put(self, content: bytes) -> str:
        """Store bytes and return their SHA-256."""
        with self.receive() as incoming:
            incoming.write(content)
            return self.adopt(incoming)

    def put_file(self, source: Path) -> str:
        """Store a copy of a file and return its SHA-256."""
        with self.receive() as incoming, source.open("rb") as file:
            while data := file.read(READ_SIZE):
                incoming.write(data)
            return self.adopt(incoming)

    def adopt(self, incoming: Incoming, sha256: str | None = None) -> str:
        """Move a received file to the place its digest names.

        Raises:
            DigestMismatch: The content has another digest than `sha256`.
        """
        found = incoming.sha256
        if sha256 is not None and sha256 != found:
            raise DigestMismatch(f"the content must have sha256 {sha256}, it has {found}")
        _settle(incoming, self.path(found))
        return found

    def xorb_path(self, owner: str, key: str) -> Path:
        """Return where a xorb is, or would be.

        Args:
            owner: User who sent it; what one user sends under a name is never taken for what another one meant.
            key: Its hash, 64 hexadecimal digits.
        """
        check_sha256(key)
        return self._xorbs / check_namespace(owner) / key[:2] / key[2:]

    def adopt_xorb(self, incoming: Incoming, owner: str, key: str) -> None:
        """Move a received file to the place of a xorb."""
        _settle(incoming, self.xorb_path(owner, key))

    def part_path(self, sha256: str, number: int) -> Path:
        """Return where one part of a multipart upload is, or would be."""
        check_sha256(sha256)
        return self._parts / sha256 / f"{number:05d}"

    def adopt_part(self, incoming: Incoming, sha256: str, number: int) -> None:
        """Move a received file to the place of one part."""
        _settle(incoming, self.part_path(sha256, number))

    def drop_parts(self, sha256: str, count: int) -> None:
        """Remove the parts of a finished multipart upload."""
        for number in range(1, count + 1):
            self.part_path(sha256, number).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another upload of the same content may still be writing parts
            self.part_path(sha256, 1).parent.rmdir()

    def sweep(self) -> None:
        """Remove what interrupted uploads left behind, once it is a day old: younger files may still be in use."""
        for path in (*self._tmp.iterdir(), *self._parts.glob("*/*")):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > KEEP_UNFINISHED:
                    path.unlink()


def _settle(incoming: Incoming, target: Path) -> None:
    incoming.flush()
    if _size(target) == incoming.size:
        return
    with incoming.path.open("rb") as file:
        os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(incoming.path, target)
    _sync_folder(target.parent)
    _sync_folder(target.parent.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; NTFS journals the rename itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
