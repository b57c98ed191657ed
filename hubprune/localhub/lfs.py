"""The Git LFS batch call with basic and multipart uploads, and downloads for Git clients.

Links carry a signed statement of what may be sent, since clients put content without their token.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from starlette.responses import JSONResponse, Response

from hubprune.localhub.auth import sign, verify
from hubprune.localhub.files import BlobResponse
from hubprune.localhub.grants import CHANGES
from hubprune.localhub.ids import check_sha256
from hubprune.localhub.web import ApiError, Call, repo_routes, route

LFS_TYPE = "application/vnd.git-lfs+json"
MAX_OBJECTS = 1000


def batch(call: Call) -> Response:
    """POST /{id}.git/info/lfs/objects/batch: where to send or fetch each object."""
    body = call.json()
    operation, objects = body.get("operation"), body.get("objects")
    if operation not in ("upload", "download") or not isinstance(objects, list) or len(objects) > MAX_OBJECTS:
        raise ApiError(400, f"operation is upload or download, objects an array of at most {MAX_OBJECTS}")
    name = call.param("name")
    if not name.endswith(".git"):
        raise call.no_repo()
    repo_id = f"{call.param('ns')}/{name.removesuffix('.git')}"
    if operation == "upload":
        call.signed_in(*CHANGES, "contribute-repos", "write-discussions")
    repo = call.named_repo(call.repo_type, repo_id, files=True)
    parts = operation == "upload" and "multipart" in (body.get("transfers") or [])
    answers = [_object(call, item, operation, multipart=parts) for item in objects]
    multipart = any("chunk_size" in item.get("actions", {}).get("upload", {}).get("header", {}) for item in answers)
    return JSONResponse(
        {"transfer": "multipart" if multipart else "basic", "objects": answers, "repo": repo.id}, media_type=LFS_TYPE
    )


def _object(call: Call, item: Any, operation: str, *, multipart: bool) -> dict[str, Any]:
    if not isinstance(item, dict) or not isinstance(item.get("size"), int) or item["size"] < 0:
        raise ApiError(400, "every object has an oid and a size")
    oid, size = check_sha256(item.get("oid")), item["size"]
    answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
    present = call.hub.blobs.size(oid)
    if operation == "download":
        if present is None:
            return {"oid": oid, "size": size, "error": {"code": 404, "message": "the object does not exist"}}
        return {**answer, "actions": {"download": {"href": _link(call, "object", oid, size), "header": {}}}}
    if present == size:
        return answer
    upload: dict[str, Any] = {"href": _link(call, "object", oid, size), "header": {}}
    part_size = call.hub.lfs_part_size
    if multipart and size > part_size:
        numbers = range(1, ceil(size / part_size) + 1)
        urls = {f"{number:05d}": _link(call, "part", oid, size, part=number) for number in numbers}
        complete = _link(call, "complete", oid, size, parts=len(numbers))
        upload = {"href": complete, "header": {"chunk_size": str(part_size), **urls}}
    verify_action = {"href": _link(call, "verify", oid, size), "header": {}}
    return {**answer, "actions": {"upload": upload, "verify": verify_action}}


def _link(call: Call, action: str, oid: str, size: int, **facts: int) -> str:
    token = sign(call.hub.store.key, action=action, oid=oid, size=size, **facts)
    return call.url(f"/lfs/{action}?token={token}")


def _permit(call: Call, action: str) -> dict[str, Any]:
    facts = verify(call.hub.store.key, call.query("token") or "")
    if facts is None or facts.get("action") != action:
        raise ApiError(403, "this link is not valid, or no longer; ask the batch call for a new one")
    return facts


def _may_put_object(call: Call) -> None:
    _permit(call, "object")


def _may_put_part(call: Call) -> None:
    _permit(call, "part")


def put_object(call: Call) -> Response:
    """PUT of a whole object."""
    facts, incoming = _permit(call, "object"), call.received()
    if incoming.size != facts["size"]:
        raise ApiError(400, f"the object must have {facts['size']} bytes; got {incoming.size}")
    call.hub.blobs.adopt(incoming, str(facts["oid"]))
    return Response(status_code=200, headers={"ETag": f'"{facts["oid"]}"'})


def get_object(call: Call) -> Response:
    """GET of a whole object."""
    facts = _permit(call, "object")
    path = call.hub.blobs.path(str(facts["oid"]))
    if not path.exists():
        raise ApiError(404, "the object was announced but not uploaded yet")
    return BlobResponse(path, headers={"ETag": f'"{facts["oid"]}"'}, media_type="application/octet-stream")


def put_part(call: Call) -> Response:
    """PUT of one part of a multipart upload."""
    facts, incoming = _permit(call, "part"), call.received()
    if incoming.size > call.hub.lfs_part_size:
        raise ApiError(400, f"a part must have at most {call.hub.lfs_part_size} bytes; got {incoming.size}")
    call.hub.blobs.adopt_part(incoming, str(facts["oid"]), int(facts["part"]))
    return Response(status_code=200, headers={"ETag": f'"{incoming.sha256}"'})


def complete(call: Call) -> Response:
    """POST that ends a multipart upload: join the parts and check the digest."""
    facts = _permit(call, "complete")
    oid, count, blobs = str(facts["oid"]), int(facts["parts"]), call.hub.blobs
    with blobs.receive() as incoming:
        for number in range(1, count + 1):
            path = blobs.part_path(oid, number)
            if not path.exists():
                raise ApiError(400, f"part {number} of {count} is missing")
            with path.open("rb") as file:
                while data := file.read(1 << 20):
                    incoming.write(data)
        blobs.adopt(incoming, oid)
    blobs.drop_parts(oid, count)
    return JSONResponse({"success": True})


def verify_object(call: Call) -> Response:
    """POST after an upload: is the object there in full."""
    facts = _permit(call, "verify")
    if call.hub.blobs.size(str(facts["oid"])) != facts["size"]:
        raise ApiError(404, "the object is not there in full; upload it again")
    return JSONResponse({"message": "success"})


routes = [
    *repo_routes("/info/lfs/objects/batch", batch, "POST"),
    route("/lfs/object", put_object, "PUT", upload=_may_put_object),
    route("/lfs/object", get_object),
    route("/lfs/part", put_part, "PUT", upload=_may_put_part),
    route("/lfs/complete", complete, "POST"),
    route("/lfs/verify", verify_object, "POST"),
]
