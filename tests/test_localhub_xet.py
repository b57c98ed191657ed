"""The binary formats of the xet upload, against bytes built by hand."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import lz4.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from localhub_helpers import ask

from hubprune.localhub import EmbeddedHub, Store
from hubprune.localhub.auth import Users
from hubprune.localhub.blobs import DigestMismatch
from hubprune.localhub.web import ApiError, Hub
from hubprune.localhub.xet import rebuild
from hubprune.localhub.xetformat import FilePlan, Segment, XetError, iter_chunks, read_shard, unpack_chunk

NAME = bytes(range(32))
TAG = b"HFRepoMetaData\0".ljust(32, b"U")


def pack(content: bytes, scheme: int) -> bytes:
    if scheme == 2:
        content_sorted = b"".join(content[group::4] for group in range(4))
    else:
        content_sorted = content
    data = content if scheme == 0 else lz4.frame.compress(content_sorted)
    size = len(content).to_bytes(3, "little")
    return b"\0" + len(data).to_bytes(3, "little") + bytes([scheme]) + size + data


def shard(segments: list[tuple[bytes, int, int, int]], sha256: bytes | None, *, verified: bool = True) -> bytes:
    flags = (1 << 31 if verified else 0) | (1 << 30 if sha256 else 0)
    out = [TAG + struct.pack("<QQ", 2, 0), NAME + struct.pack("<IIQ", flags, len(segments), 0)]
    out += [xorb + struct.pack("<4I", 0, size, first, end) for xorb, first, end, size in segments]
    out += [bytes(48) for _ in segments] if verified else []
    out += [sha256 + bytes(16)] if sha256 else []
    return b"".join([*out, b"\xff" * 32 + bytes(16)])


def word_order(digest: bytes) -> bytes:
    """Return a digest as the protocol stores it: each 8-byte word reversed."""
    return b"".join(digest[start : start + 8][::-1] for start in range(0, 32, 8))


@given(st.lists(st.tuples(st.binary(max_size=400), st.sampled_from([0, 1, 2])), max_size=6), st.data())
def test_chunks_come_back_whatever_their_scheme(chunks: list[tuple[bytes, int]], data: st.DataObject) -> None:
    xorb = b"".join(pack(content, scheme) for content, scheme in chunks) + b"XETBLOB footer"
    end = data.draw(st.integers(0, len(chunks)))
    first = data.draw(st.integers(0, end))
    found = list(iter_chunks(io.BytesIO(xorb), first, end))
    assert found == [content for content, _ in chunks[first:end]]


@pytest.mark.parametrize(
    "xorb",
    [
        b"",
        b"\0\1",
        b"\1" + pack(b"abc", 0)[1:],
        pack(b"abc", 0)[:-1],
        pack(b"abc" * 50, 1)[:-4],
        pack(b"abc", 0)[:4] + b"\7" + pack(b"abc", 0)[5:],
        pack(b"abcd", 1)[:5] + b"\3\0\0" + pack(b"abcd", 1)[8:],
        b"\0\xff\xff\xff\0\xff\xff\xff",
    ],
    ids=["empty", "short header", "version", "cut", "cut lz4", "scheme", "longer than said", "huge"],
)
def test_damaged_xorb_is_refused(xorb: bytes) -> None:
    with pytest.raises(XetError):
        list(iter_chunks(io.BytesIO(xorb), 0, 1))


def test_a_small_chunk_cannot_unpack_to_more_than_it_says() -> None:
    with pytest.raises(XetError, match="unpack to 10 bytes; got 11"):
        unpack_chunk(lz4.frame.compress(bytes(50_000_000)), 1, 10)


def test_shard_says_how_files_are_put_together() -> None:
    digest = hashlib.sha256(b"x").digest()
    [plan] = read_shard(shard([(NAME, 1, 3, 7)], word_order(digest)))
    assert plan.sha256 == digest.hex()
    assert plan.name == plan.segments[0].xorb == word_order(NAME).hex()
    assert plan.segments[0] == Segment(plan.name, 1, 3, 7)
    [bare] = read_shard(shard([(NAME, 0, 1, 1), (NAME, 0, 1, 1)], None, verified=False))
    assert (bare.sha256, len(bare.segments)) == (None, 2)


@pytest.mark.parametrize(
    "data", [b"", b"nonsense" * 20, shard([(NAME, 0, 1, 1)], None)[:-1], shard([(NAME, 3, 1, 1)], None)]
)
def test_damaged_shard_is_refused(data: bytes) -> None:
    with pytest.raises(XetError):
        read_shard(data)


@pytest.fixture
def hub_of_one(tmp_path: Path) -> Iterator[Hub]:
    """A Hub, not served, whose store has one xorb of two chunks."""
    store = Store(tmp_path)
    with store.blobs.receive() as incoming:
        incoming.write(pack(b"one ", 0) + pack(b"two", 1))
        store.blobs.adopt_xorb(incoming, "me", "a" * 64)
    yield Hub(store, Users({}))
    store.close()


def test_file_is_rebuilt_and_checked(hub_of_one: Hub) -> None:
    good = hashlib.sha256(b"one twoone ").hexdigest()
    segments = (Segment("a" * 64, 0, 2, 7), Segment("a" * 64, 0, 1, 4))
    assert rebuild(hub_of_one, "me", FilePlan("f", segments, good)) == good
    assert hub_of_one.blobs.read(good) == b"one twoone "
    with pytest.raises(DigestMismatch):
        rebuild(hub_of_one, "me", FilePlan("f", segments, "0" * 64))
    assert hub_of_one.blobs.size("0" * 64) is None
    with pytest.raises(ApiError, match="was not uploaded"):
        rebuild(hub_of_one, "guest", FilePlan("f", segments, None))
    with pytest.raises(ApiError, match="was not uploaded"):
        rebuild(hub_of_one, "me", FilePlan("f", (Segment("b" * 64, 0, 1, 4),), None))
    with pytest.raises(ApiError, match="must have 9 bytes"):
        rebuild(hub_of_one, "me", FilePlan("f", (Segment("a" * 64, 0, 1, 9),), None))
    assert list((hub_of_one.store.folder / "tmp").iterdir()) == []


def test_content_store_wants_its_own_token(hub: EmbeddedHub, hub_api: Callable[[str | None], object]) -> None:
    base = f"/cas/{hub.store.id}/me"
    for path in (f"{base}/v1/shards", f"{base}/v1/xorbs/default/{'0' * 64}"):
        assert ask(hub, path, method="POST", data=b"x").status == 401
        assert ask(hub, path, method="POST", data=b"x", user="me").status == 401
    hub_api("me").create_repo("me/token", exist_ok=True)  # type: ignore[attr-defined]
    given_token = ask(hub, "/api/models/me/token/xet-write-token/main", user="me")
    bearer = {"Authorization": f"Bearer {given_token.json['accessToken']}"}
    assert given_token.json["casUrl"] == hub.url + base == given_token.headers["X-Xet-Cas-Url"]
    assert ask(hub, f"{base}/v1/shards", method="POST", data=b"x", headers=bearer).status == 400
    for other in (f"/cas/{'0' * 16}/me", f"/cas/{hub.store.id}/guest"):
        assert ask(hub, f"{other}/v1/shards", method="POST", data=b"x", headers=bearer).status == 403
    assert ask(hub, f"{base}/v1/xorbs/default/..%2fx", method="POST", data=b"x", headers=bearer).status == 400
    forged = {"Authorization": bearer["Authorization"][:-2] + "AA"}
    assert ask(hub, f"{base}/v1/shards", method="POST", data=b"x", headers=forged).status == 401
    assert ask(hub, "/api/models/me/token/xet-write-token/main", user="guest").status == 403
    assert ask(hub, "/lfs/object?token=abc.def", method="PUT", data=b"x").status == 403
