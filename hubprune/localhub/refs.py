"""Branches, tags and the list of commits."""

from __future__ import annotations

import sqlite3

from starlette.responses import JSONResponse, Response

from hubprune.localhub.history import MAIN, list_refs, log, read_tree, resolve, set_ref, write_commit
from hubprune.localhub.ids import check_branch
from hubprune.localhub.store import Repo
from hubprune.localhub.web import ApiError, Call, json_page, route

COMMITS_PAGE = 50
"""Most commits of one page."""


def refs(call: Call) -> Response:
    """GET /api/{type}/{id}/refs."""
    repo = call.repo()
    with call.hub.store.read() as db:
        known = list_refs(db, repo)

    def below(prefix: str, strip: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(strip), "ref": ref, "targetCommit": oid}
            for ref, oid in known.items()
            if ref.startswith(prefix)
        ]

    answer = {
        "branches": below("refs/heads/", "refs/heads/"),
        "converts": below("refs/convert/", "refs/convert/"),
        "tags": below("refs/tags/", "refs/tags/"),
    }
    if call.flag("include_prs"):
        answer["pullRequests"] = below("refs/pr/", "refs/")
    return JSONResponse(answer)


def create_branch(call: Call) -> Response:
    """POST /api/{type}/{id}/branch/{name}: from a revision, `main` by default."""
    repo, branch = call.repo(write=True), check_branch(call.param("branch"))
    body = call.json()
    with call.hub.store.write() as db:
        _must_be_new(call, db, repo, f"refs/heads/{branch}")
        start = resolve(db, repo, str(body.get("startingPoint") or "main"))
        if body.get("emptyBranch"):
            write_commit(
                db, repo, f"refs/heads/{branch}", {}, title="initial commit", author=call.signed_in(), root=True
            )
        else:
            set_ref(db, repo, f"refs/heads/{branch}", start.oid)
    return JSONResponse({}, 201)


def create_tag(call: Call) -> Response:
    """POST /api/{type}/{id}/tag/{rev}."""
    repo, body = call.repo(write=True), call.json()
    tag = check_branch(body.get("tag"), "tag")
    with call.hub.store.write() as db:
        _must_be_new(call, db, repo, f"refs/tags/{tag}")
        set_ref(db, repo, f"refs/tags/{tag}", resolve(db, repo, call.param("rev")).oid)
    return JSONResponse({}, 201)


def delete_branch(call: Call) -> Response:
    """DELETE /api/{type}/{id}/branch/{name}."""
    return _delete(call, f"refs/heads/{call.param('branch')}")


def delete_tag(call: Call) -> Response:
    """DELETE /api/{type}/{id}/tag/{name}."""
    return _delete(call, f"refs/tags/{call.param('rev')}")


def _delete(call: Call, ref: str) -> Response:
    repo = call.repo(write=True)
    if ref == MAIN:
        raise ApiError(403, "the branch main cannot be deleted")
    with call.hub.store.write() as db:
        if db.execute("DELETE FROM refs WHERE repo = ? AND ref = ?", (repo.pk, ref)).rowcount == 0:
            raise ApiError(404, f"{repo.id} has no {ref}", "RevisionNotFound")
    return JSONResponse({})


def _must_be_new(call: Call, db: sqlite3.Connection, repo: Repo, ref: str) -> None:
    if ref in list_refs(db, repo):
        raise ApiError(409, f"{ref} exists already in {repo.id}", extra={"url": call.url(f"/{repo.path}")})


def commits(call: Call) -> Response:
    """GET /api/{type}/{id}/commits/{rev}: newest first."""
    repo = call.repo()
    with call.hub.store.read() as db:
        found = log(db, repo, resolve(db, repo, call.param("rev")))
    formatted = "formatted" in call.queries("expand")
    return json_page(
        call,
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "date": commit.date,
                "authors": [{"user": commit.author, "avatar": ""}],
                **({"formatted": {"title": commit.title, "message": commit.message}} if formatted else {}),
            }
            for commit in found
        ],
        COMMITS_PAGE,
    )


def super_squash(call: Call) -> Response:
    """POST /api/{type}/{id}/super-squash/{branch}: replace the history of a branch with one commit."""
    repo, branch = call.repo(write=True), check_branch(call.param("branch"))
    title = str(call.json().get("message") or f"Super-squash branch '{branch}'")
    with call.hub.store.write() as db:
        files = read_tree(db, resolve(db, repo, branch))
        write_commit(db, repo, f"refs/heads/{branch}", files, title=title, author=call.signed_in(), root=True)
    return JSONResponse({})


_BASE = "/api/{type}/{ns}/{name}"
routes = [
    route(f"{_BASE}/refs", refs),
    route(f"{_BASE}/branch/{{branch}}", create_branch, "POST"),
    route(f"{_BASE}/branch/{{branch}}", delete_branch, "DELETE"),
    route(f"{_BASE}/tag/{{rev}}", create_tag, "POST"),
    route(f"{_BASE}/tag/{{rev}}", delete_tag, "DELETE"),
    route(f"{_BASE}/commits/{{rev}}", commits),
    route(f"{_BASE}/super-squash/{{branch}}", super_squash, "POST"),
]
