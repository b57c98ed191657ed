"""The xet upload: a token, xorbs, then shards from which the files are put together and checked.

Downloads stay plain HTTP, so only the write side exists. Xorbs are kept after the files are made: a client remembers
what it sent to an address and later sends only new chunks. The address holds the id of the store and the user, so that
a client never takes another store for this one, and never builds on what somebody else sent.
"""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from hubprune.localhub.auth import expiry, sign, verify
from hubprune.localhub.commits import may_commit
from hubprune.localhub.ids import check_sha256
from hubprune.localhub.web import ApiError, Call, Hub, route
from hubprune.localhub.xetformat import MAX_SHARD, FilePlan, iter_chunks, read_shard


def write_token(call: Call) -> Response:
    """GET /api/{type}/{id}/xet-write-token/{rev}: who may commit may upload."""
    repo = may_commit(call)
    until = expiry()
    token = sign(call.hub.store.key, action="xet", repo=repo.pk, user=call.signed_in(), exp=until)
    address = call.url(f"/cas/{call.hub.store.id}/{call.signed_in()}")
    return JSONResponse(
        {"casUrl": address, "accessToken": token, "exp": until},
        headers={"X-Xet-Cas-Url": address, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(until)},
    )


class _CasCall(Call):
    """A call to the content store: its bearer token is the one that `write_token` gave, not a user's."""

    def _identify(self) -> str | None:
        token = self.request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        facts = verify(self.hub.store.key, token)
        if facts is None or facts.get("action") != "xet":
            raise ApiError(401, "the upload token is not valid, or no longer")
        if (self.param("store"), self.param("owner")) != (self.hub.store.id, facts["user"]):
            raise ApiError(403, "the upload token is for another address")
        return str(facts["user"])


def _permit(call: Call) -> None:
    call.signed_in()


def put_xorb(call: Call) -> Response:
    """POST v1/xorbs/default/{hash}."""
    key, blobs = check_sha256(call.param("hash")), call.hub.blobs
    known = blobs.xorb_path(call.signed_in(), key).exists()
    if not known:
        blobs.adopt_xorb(call.received(), call.signed_in(), key)
    return JSONResponse({"was_inserted": not known})


def put_shard(call: Call) -> Response:
    """POST v1/shards: put together and check every file that the shard describes."""
    incoming = call.received()
    if incoming.size > MAX_SHARD:
        raise ApiError(413, f"a shard must be at most {MAX_SHARD} bytes")
    for plan in read_shard(incoming.path.read_bytes()):
        rebuild(call.hub, call.signed_in(), plan)
    return JSONResponse({"result": 1})


def rebuild(hub: Hub, owner: str, plan: FilePlan) -> str:
    """Put a file together from the xorbs that a user sent, store it, and return its SHA-256.

    Raises:
        ApiError: 400, a xorb was not uploaded.
        XetError: A xorb does not hold what the plan says.
        DigestMismatch: The file has another digest than the client stated.
    """
    if plan.sha256 is not None and hub.blobs.size(plan.sha256) is not None:
        return plan.sha256
    with hub.blobs.receive() as incoming:
        for segment in plan.segments:
            path, before = hub.blobs.xorb_path(owner, segment.xorb), incoming.size
            if not path.exists():
                raise ApiError(400, f"xorb {segment.xorb} was not uploaded")
            with path.open("rb") as file:
                for content in iter_chunks(file, segment.first, segment.end):
                    incoming.write(content)
            if incoming.size - before != segment.size:
                raise ApiError(400, f"a segment of {segment.xorb} must have {segment.size} bytes")
        return hub.blobs.adopt(incoming, plan.sha256)


_CAS = "/cas/{store}/{owner}"
routes = [
    route("/api/{type}/{ns}/{name}/xet-write-token/{rev}", write_token),
    route(f"{_CAS}/v1/xorbs/default/{{hash}}", put_xorb, "POST", upload=_permit, call=_CasCall),
    route(f"{_CAS}/v1/shards", put_shard, "POST", upload=_permit, call=_CasCall),
]
