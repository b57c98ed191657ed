"""The two binary formats of the xet protocol that an upload is made of.

A *xorb* is a row of chunks, each with an 8-byte header and compressed on its own; what follows the last chunk (a
footer) repeats facts about them and is not needed. A *shard* says how files are put together: for each file a list of
segments, each a range of chunks of one xorb, and the SHA-256 of the whole. Integers are little-endian; a hash is four
64-bit words, written in hexadecimal word by word.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import lz4.frame

from hubprune.errors import UsageError

MAX_CHUNK = 8 << 20
"""Largest chunk accepted, in bytes; clients make chunks of at most 128 KiB."""
MAX_SHARD = 256 << 20
"""Largest shard accepted, in bytes."""

_CHUNK_HEADER = 8
_STORED, _LZ4, _GROUPED_LZ4 = 0, 1, 2
_SHARD_TAG = b"HFRepoMetaData\0"
_RECORD = 48
"""Bytes of every record of a shard."""
_BOOKEND = b"\xff" * 32
_HAS_VERIFICATION = 1 << 31
_HAS_METADATA = 1 << 30


class XetError(UsageError):
    """A xorb or a shard cannot be read."""


@dataclass(frozen=True)
class Segment:
    """A range of chunks of a xorb: `first` included, `end` excluded, `size` bytes in all."""

    xorb: str
    first: int
    end: int
    size: int


@dataclass(frozen=True)
class FilePlan:
    """How a file is put together; `sha256` is None when the client did not state it."""

    name: str
    segments: tuple[Segment, ...]
    sha256: str | None


def hash_text(raw: bytes) -> str:
    """Return a hash of 32 bytes as the protocol writes it in addresses."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def iter_chunks(file: IO[bytes], first: int, end: int) -> Iterator[bytes]:
    """Yield the content of the chunks `first` to `end` (excluded) of a xorb.

    Raises:
        XetError: The xorb is damaged or has fewer chunks.
    """
    for index in range(end):
        header = file.read(_CHUNK_HEADER)
        if len(header) < _CHUNK_HEADER or header[0] != 0:
            raise XetError(f"a xorb must have a chunk of version 0 at index {index}; got header {header.hex()!r}")
        packed = int.from_bytes(header[1:4], "little")
        scheme = header[4]
        size = int.from_bytes(header[5:8], "little")
        if size > MAX_CHUNK or packed > MAX_CHUNK:
            raise XetError(f"a chunk must have at most {MAX_CHUNK} bytes; got {size}, packed {packed}")
        if index < first:
            file.seek(packed, 1)
            continue
        data = file.read(packed)
        if len(data) != packed:
            raise XetError(f"a xorb ends inside its chunk {index}")
        yield unpack_chunk(data, scheme, size)


def unpack_chunk(data: bytes, scheme: int, size: int) -> bytes:
    """Return the content of one chunk.

    Args:
        data: Bytes as they are in the xorb.
        scheme: 0 stored, 1 LZ4, 2 LZ4 of the bytes sorted by their position modulo four.
        size: Length of the content in bytes.

    Raises:
        XetError: The scheme is unknown, or the content has another length.
    """
    if scheme == _STORED:
        content = data
    elif scheme in (_LZ4, _GROUPED_LZ4):
        content = _lz4(data, size)
    else:
        raise XetError(f"a chunk is stored, LZ4 or grouped LZ4 (0, 1, 2); got {scheme}")
    if len(content) != size:
        raise XetError(f"a chunk must unpack to {size} bytes; got {len(content)}")
    return _ungroup(content) if scheme == _GROUPED_LZ4 else content


def _lz4(data: bytes, size: int) -> bytes:
    unpacker = lz4.frame.LZ4FrameDecompressor()
    try:
        # One byte more than promised shows a chunk that is too long without unpacking all of it.
        return bytes(unpacker.decompress(data, max_length=size + 1))
    except RuntimeError as error:
        raise XetError(f"a chunk cannot be unpacked: {error}") from error


def _ungroup(content: bytes) -> bytes:
    size = len(content)
    result = bytearray(size)
    start = 0
    for group in range(4):
        count = (size - group + 3) // 4
        result[group::4] = content[start : start + count]
        start += count
    return bytes(result)


def read_shard(data: bytes) -> list[FilePlan]:
    """Return the plans of the files that a shard describes.

    Raises:
        XetError: It is not a shard, or it is cut short.
    """
    if data[: len(_SHARD_TAG)] != _SHARD_TAG:
        raise XetError("a shard begins with its tag; these bytes are something else")
    records = _Records(data)
    plans = []
    while (record := records.take())[:32] != _BOOKEND:
        flags, count = struct.unpack_from("<II", record, 32)
        segments = tuple(_segment(records.take()) for _ in range(count))
        if flags & _HAS_VERIFICATION:
            records.skip(count)
        sha256 = hash_text(records.take()[:32]) if flags & _HAS_METADATA else None
        plans.append(FilePlan(hash_text(record[:32]), segments, sha256))
    return plans


def _segment(record: bytes) -> Segment:
    _, size, first, end = struct.unpack_from("<4I", record, 32)
    if first > end:
        raise XetError(f"a segment ends after it begins; got chunks {first} to {end}")
    return Segment(hash_text(record[:32]), first, end, size)


class _Records:
    """The 48-byte records after the 48-byte header."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = _RECORD

    def take(self) -> bytes:
        record = self._data[self._position : self._position + _RECORD]
        if len(record) < _RECORD:
            raise XetError("a shard ends inside its list of files")
        self._position += _RECORD
        return record

    def skip(self, count: int) -> None:
        self._position += _RECORD * count
