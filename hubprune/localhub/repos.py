"""Create, delete, move, duplicate and configure repositories; who am I; may I."""

from __future__ import annotations

import sqlite3
from typing import Any

from starlette.responses import JSONResponse, Response

from hubprune.localhub import cards
from hubprune.localhub.changes import LFS_SUFFIXES
from hubprune.localhub.history import (
    MAIN,
    Entry,
    add_repo,
    entry_for,
    find_repo,
    read_tree,
    resolve,
    write_commit,
)
from hubprune.localhub.ids import check_name, check_namespace, check_repo_id, check_repo_type
from hubprune.localhub.settings import HARDWARE, apply_space_options, hardware_list
from hubprune.localhub.store import Repo
from hubprune.localhub.web import ApiError, Call, route

GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES))


def whoami(call: Call) -> Response:
    """GET /api/whoami-v2: the user a token belongs to."""
    if call.user is None:
        raise ApiError(401, "Invalid username or password.")
    users, app = call.hub.users, call.grant is not None
    mine = [] if app else users.orgs_of(call.user)
    orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in mine]
    own = {"type": "access_token", "accessToken": {"displayName": "localhub", "role": "write"}}
    return JSONResponse(
        {
            "type": "user",
            "id": call.user,
            "name": call.user,
            "fullname": call.user,
            "email": None,
            "emailVerified": False,
            "isPro": call.user in users.pro,
            "canPay": False,
            "orgs": orgs,
            "auth": {"type": "oauth"} if app else own,
        }
    )


def user_overview(call: Call) -> Response:
    """GET /api/users/{user}/overview."""
    user = call.param("user")
    if user not in call.hub.users.tokens:
        raise ApiError(404, "This user does not exist")
    return JSONResponse({"user": user, "fullname": user, "type": "user", "isPro": user in call.hub.users.pro})


def create(call: Call) -> Response:
    """POST /api/repos/create: a new repository with one first commit."""
    user, body = call.signed_in(), call.json()
    repo_type = check_repo_type(body.get("type"))
    namespace = check_namespace(body.get("organization") or user)
    name = check_name(body.get("name"))
    _may_create(call, namespace)
    sdk = body.get("sdk") if repo_type == "space" else None
    if repo_type == "space" and sdk not in cards.SDKS:
        raise ApiError(400, f"a Space needs an sdk, one of {', '.join(cards.SDKS)}; got {sdk!r}")
    files = {".gitattributes": _text_entry(call, ".gitattributes", GITATTRIBUTES)}
    if repo_type == "space":
        head = f"---\ntitle: {name}\nsdk: {sdk}\n---\n"
        files["README.md"] = _text_entry(call, "README.md", head)
    with call.hub.store.write() as db:
        _must_be_free(call, db, repo_type, namespace, name)
        _may_host(call, sdk)
        repo = add_repo(db, repo_type, namespace, name, private=is_private(body) or False, sdk=sdk)
        _note_contribution(call, db, repo)
        if repo_type == "space":
            apply_space_options(db, repo, body)
        write_commit(db, repo, MAIN, files, title="initial commit", author=user)
    return JSONResponse({"url": call.url(f"/{repo.path}"), "name": repo.id, "id": repo.id})


def duplicate(call: Call) -> Response:
    """POST /api/{type}/{id}/duplicate: a copy of the files of a repository, without its history."""
    source, user, body = call.repo(files=True), call.signed_in(), call.json()
    namespace, name = check_repo_id(body.get("repository"))
    _may_create(call, namespace)
    private = is_private(body)
    with call.hub.store.write() as db:
        _must_be_free(call, db, source.type, namespace, name)
        _may_host(call, source.sdk)
        files = read_tree(db, resolve(db, source, "main"))
        copy = add_repo(
            db, source.type, namespace, name, private=source.private if private is None else private, sdk=source.sdk
        )
        _note_contribution(call, db, copy)
        if copy.type == "space":
            # Variables travel with the Space, secrets never do.
            db.execute(
                "INSERT INTO settings SELECT ?, kind, key, value, description, updated FROM settings "
                "WHERE repo = ? AND kind = 'variables'",
                (copy.pk, source.pk),
            )
            apply_space_options(db, copy, body)
        write_commit(db, copy, MAIN, files, title=f"Duplicate from {source.id}", author=user)
    return JSONResponse({"url": call.url(f"/{copy.path}"), "filesCopyPending": False})


def delete(call: Call) -> Response:
    """DELETE /api/repos/delete."""
    body = call.json()
    namespace = body.get("organization") or call.signed_in()
    repo = call.managed(
        call.named_repo(check_repo_type(body.get("type")), f"{namespace}/{body.get('name')}", write=True)
    )
    with call.hub.store.write() as db:
        db.execute("DELETE FROM repos WHERE pk = ?", (repo.pk,))
    return JSONResponse({})


def move(call: Call) -> Response:
    """POST /api/repos/move: rename or transfer; the old id keeps working until it is taken again."""
    body = call.json()
    repo = call.managed(call.named_repo(check_repo_type(body.get("type")), str(body.get("fromRepo")), write=True))
    namespace, name = check_repo_id(body.get("toRepo"))
    _may_create(call, namespace)
    with call.hub.store.write() as db:
        _must_be_free(call, db, repo.type, namespace, name)
        db.execute("DELETE FROM moves WHERE type = ? AND namespace = ? AND name = ?", (repo.type, namespace, name))
        db.execute("INSERT OR REPLACE INTO moves VALUES (?, ?, ?, ?)", (repo.type, repo.namespace, repo.name, repo.pk))
        db.execute("UPDATE repos SET namespace = ?, name = ? WHERE pk = ?", (namespace, name, repo.pk))
    return JSONResponse({"url": call.url(f"/{namespace}/{name}")})


def settings(call: Call) -> Response:
    """PUT /api/{type}/{id}/settings: visibility and gating."""
    repo, body = call.managed(call.repo(write=True)), call.json()
    private = is_private(body)
    gated = body.get("gated", repo.gated or False)
    if gated not in ("auto", "manual", False):
        raise ApiError(400, f"gated is 'auto', 'manual' or false; got {gated!r}")
    with call.hub.store.write() as db:
        db.execute(
            "UPDATE repos SET private = ?, gated = ? WHERE pk = ?",
            (int(repo.private if private is None else private), gated or "", repo.pk),
        )
    return JSONResponse({"private": repo.private if private is None else private, "gated": gated})


def auth_check(call: Call) -> Response:
    """GET /api/{type}/{id}/auth-check: may I read."""
    call.repo(files=True)
    return JSONResponse({"ok": True})


def auth_check_write(call: Call) -> Response:
    """GET /api/{type}/{id}/auth-check/write: may I write."""
    call.repo(write=True)
    return JSONResponse({"ok": True})


def validate_yaml(call: Call) -> Response:
    """POST /api/validate-yaml: check the metadata of a README."""
    body = call.json()
    content = body.get("content")
    if not isinstance(content, str):
        raise ApiError(400, "content must be the text of a README")
    errors, warnings = cards.problems(content, check_repo_type(body.get("repoType")))
    answer = {
        "errors": [{"message": message} for message in errors],
        "warnings": [{"message": message} for message in warnings],
    }
    return JSONResponse(answer, 400 if errors else 200)


def spaces_hardware(call: Call) -> Response:
    """GET /api/spaces/hardware: what a Space may ask for."""
    return JSONResponse(hardware_list(HARDWARE))


def is_private(body: dict[str, Any]) -> bool | None:
    """Return the visibility asked for: True for private, None when nothing was asked."""
    visibility = body.get("visibility")
    if visibility is not None:
        if visibility not in ("public", "private", "protected"):
            raise ApiError(400, f"visibility is public, private or protected; got {visibility!r}")
        return bool(visibility != "public")
    private = body.get("private")
    return None if private is None else bool(private)


def _may_create(call: Call, namespace: str) -> None:
    call.signed_in("manage-repos", "contribute-repos")
    own = call.grant is None or namespace == call.user  # an app acts for the user, not for organizations
    if not own or not call.hub.users.may_write(call.user, namespace):
        raise ApiError(403, f"You don't have the rights to create a repository under the namespace '{namespace}'")


def _note_contribution(call: Call, db: sqlite3.Connection, repo: Repo) -> None:
    """Remember that an app created a repository."""
    if call.grant is not None:
        db.execute("INSERT INTO contributions VALUES (?, ?)", (repo.pk, call.grant.client))


def _may_host(call: Call, sdk: str | None) -> None:
    if sdk in ("gradio", "docker") and call.user not in call.hub.users.pro:
        raise ApiError(
            402,
            f"Hosting a {sdk} Space needs a PRO subscription; use the static sdk, or run the app on your own machine",
        )


def _must_be_free(call: Call, db: sqlite3.Connection, repo_type: str, namespace: str, name: str) -> None:
    taken = find_repo(db, repo_type, namespace, name)
    if taken is not None and (taken.namespace, taken.name) == (namespace, name):
        raise ApiError(
            409,
            f"You already created this {repo_type} repo: {taken.id}",
            extra={"url": call.url(f"/{taken.path}")},
        )


def _text_entry(call: Call, path: str, text: str) -> Entry:
    content = text.encode()
    return entry_for(path, call.hub.blobs.put(content), len(content), content)


def repo_json(repo: Repo) -> dict[str, Any]:
    """Return the fields of a repository that need no look at its files."""
    return {
        "_id": f"{repo.pk:024x}",
        "id": repo.id,
        "author": repo.namespace,
        "private": repo.private,
        "gated": repo.gated or False,
        "disabled": False,
        "createdAt": repo.created,
        "downloads": 0,
        "likes": 0,
        "trendingScore": 0,
    }


routes = [
    route("/api/whoami-v2", whoami),
    route("/api/users/{user}/overview", user_overview),
    route("/api/repos/create", create, "POST"),
    route("/api/repos/delete", delete, "DELETE"),
    route("/api/repos/move", move, "POST"),
    route("/api/validate-yaml", validate_yaml, "POST"),
    route("/api/spaces/hardware", spaces_hardware),
    route("/api/{type}/{ns}/{name}/settings", settings, "PUT"),
    route("/api/{type}/{ns}/{name}/duplicate", duplicate, "POST"),
    route("/api/{type}/{ns}/{name}/auth-check", auth_check),
    route("/api/{type}/{ns}/{name}/auth-check/write", auth_check_write),
]
