"""The web pages: what is here, and what each repository holds. They only read; the clients write."""

from __future__ import annotations

import sqlite3
from typing import Any
from urllib.parse import quote

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from hubprune.localhub import cards, render, snippets, spaces, threads
from hubprune.localhub.auth import COOKIE, has_access
from hubprune.localhub.files import (
    MEDIA_TYPES,
    list_folder,
    media_type,
    no_entry,
    with_last_commit,
)
from hubprune.localhub.history import Commit, get_commit, list_refs, log, read_tree, resolve
from hubprune.localhub.info import MAX_README, describe, head, read_text, visible
from hubprune.localhub.markdown import render as render_markdown
from hubprune.localhub.store import Repo
from hubprune.localhub.web import Call, number, repo_routes, route

MAX_SHOWN = 200 << 10
"""Bytes of a text file that its page shows."""
_LEADS = {
    "models": "Weights, tokenizers and their cards.",
    "datasets": "Text to calibrate, train and evaluate with.",
    "spaces": "Apps; each page has the command that runs it on your machine.",
}


def home(call: Call) -> Response:
    """GET /: every repository, by type."""
    kinds = ("models", "datasets", "spaces")
    lead = "Models, data sets and Spaces on this machine, for the clients of the Hugging Face Hub."
    return _list_page(call, kinds, "What is here", lead, on=None)


def kind_list(call: Call) -> Response:
    """GET /models, /datasets, /spaces."""
    kind = call.param("type")
    return _list_page(call, (kind,), kind.capitalize(), _LEADS[kind], on=kind)


def namespace(call: Call) -> Response:
    """GET /{ns}: the repositories of a user or an organization."""
    name = call.param("ns")
    return _list_page(call, ("models", "datasets", "spaces"), name, f"Repositories of {name}.", on=None, owner=name)


def _list_page(
    call: Call, kinds: tuple[str, ...], heading: str, lead: str, *, on: str | None, owner: str | None = None
) -> Response:
    search = call.query("search") or ""
    groups = []
    with call.hub.store.read() as db:
        for kind in kinds:
            items = [
                _list_item(db, call, repo)
                for repo in visible(call, db, kind.removesuffix("s"))
                if owner in (None, repo.namespace) and search.lower() in repo.id.lower()
            ]
            items.sort(key=lambda item: (item["date"], item["path"]), reverse=True)
            if items:
                groups.append((kind.capitalize(), items))
    if owner is not None and not groups and owner not in call.hub.users.tokens:
        raise call.no_repo()
    return render.page(
        call.request, "list.html", call.user, heading=heading, lead=lead, groups=groups, search=search, on=on
    )


def _list_item(db: sqlite3.Connection, call: Call, repo: Repo) -> dict[str, Any]:
    info = describe(db, call.hub.blobs, repo, head(db, repo, None))
    card = info["cardData"]
    tags = list(dict.fromkeys([*cards.strings(card.get("pipeline_tag")), *cards.strings(card.get("tags"))]))
    return {
        "path": repo.path,
        "type": repo.type,
        "namespace": repo.namespace,
        "name": repo.name,
        # A seeded commit has a fixed date; when it came here says more.
        "date": max(info["lastModified"], repo.created),
        "facts": snippets.short_facts(repo, info),
        "badges": snippets.badges(repo),
        "tags": tags[:5],
    }


def card_page(call: Call) -> Response:
    """GET /{id}: the README and the facts."""
    repo = call.repo()
    with call.hub.store.read() as db:
        commit = head(db, repo, None)
        files = read_tree(db, commit) if commit else {}
        info = describe(db, call.hub.blobs, repo, commit)
        shared = _shared(db, call, repo, "card")
    text = read_text(call.hub.blobs, files.get("README.md"), MAX_README)
    card, body = cards.lenient(text)
    return render.page(
        call.request,
        "card.html",
        call.user,
        readme="" if shared["refused"] else _markdown(repo, "main", body),
        chips=snippets.chips(card),
        metadata=snippets.metadata_rows(card),
        facts=snippets.facts(repo, info),
        commands=snippets.commands(repo, info, files, call.url()),
        app=spaces.panel(call, repo),
        **shared,
    )


def files_page(call: Call) -> Response:
    """GET /{id}/tree/{rev}[/{path}]: a folder."""
    repo, revision = call.repo(), _revision(call)
    folder = call.param("path").strip("/") if "path" in call.request.path_params else ""
    with call.hub.store.read() as db:
        commit = head(db, repo, None if revision == "main" else revision)
        files = read_tree(db, commit) if commit else {}
        items = list_folder(files, folder, recursive=False)
        if commit and folder and not items:
            raise no_entry(folder, commit)
        history = [(step, read_tree(db, step)) for step in log(db, repo, commit)] if commit else []
        shared = _shared(db, call, repo, "files")
    rows = [
        {
            "path": item["path"],
            "name": item["path"].rpartition("/")[2],
            "folder": item["type"] == "directory",
            "lfs": "lfs" in item,
            "size": item["size"],
            "title": item["lastCommit"]["title"],
            "date": item["lastCommit"]["date"],
        }
        for item in with_last_commit(items, files, history)
    ]
    rows.sort(key=lambda row: (not row["folder"], row["path"]))
    crumbs = _crumbs(folder)
    return render.page(call.request, "files.html", call.user, items=rows, crumbs=crumbs, revision=revision, **shared)


def blob_page(call: Call) -> Response:
    """GET /{id}/blob/{rev}/{path}: a file."""
    repo, revision, path = call.repo(), _revision(call), call.param("path")
    with call.hub.store.read() as db:
        commit = resolve(db, repo, revision)
        entry = read_tree(db, commit).get(path)
        if entry is None:
            raise no_entry(path, commit)
        shared = _shared(db, call, repo, "files")
    text, image = None, path.rpartition(".")[2].lower() in MEDIA_TYPES and media_type(path).startswith("image/")
    if not shared["refused"] and not entry.lfs:
        text = call.hub.blobs.read(entry.sha256, MAX_SHOWN).decode("utf-8", "replace")
    elif not shared["refused"] and media_type(path).startswith("text/"):
        text = call.hub.blobs.read(entry.sha256, MAX_SHOWN).decode("utf-8", "replace")
    readme = None
    if text is not None and path.lower().endswith(".md"):
        readme = _markdown(repo, revision, cards.lenient(text)[1], path.rpartition("/")[0])
    return render.page(
        call.request,
        "blob.html",
        call.user,
        entry=entry,
        crumbs=_crumbs(path),
        revision=revision,
        raw=f"/{repo.path}/resolve/{quote(revision, safe='')}/{quote(path)}",
        readme=readme,
        image=image and not shared["refused"],
        text=text,
        cut=entry.size > MAX_SHOWN,
        **shared,
    )


def commits_page(call: Call) -> Response:
    """GET /{id}/commits/{rev}: the history."""
    repo = call.repo()
    with call.hub.store.read() as db:
        found = log(db, repo, resolve(db, repo, _revision(call)))
        shared = _shared(db, call, repo, "commits")
    return render.page(call.request, "commits.html", call.user, commits=found, **shared)


def commit_page(call: Call) -> Response:
    """GET /{id}/commit/{oid}: what a commit changed."""
    repo = call.repo()
    with call.hub.store.read() as db:
        commit = resolve(db, repo, call.param("oid"))
        before = read_tree(db, get_commit(db, repo, commit.parent)) if commit.parent else {}
        after = read_tree(db, commit)
        shared = _shared(db, call, repo, "commits")
    changed = [
        (path, _change(path in before, path in after), (before | after)[path].size)
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]
    return render.page(call.request, "commit.html", call.user, commit=commit, changed=changed, **shared)


def _change(before: bool, after: bool) -> str:
    if not after:
        return "deleted"
    return "changed" if before else "added"


def discussions_page(call: Call) -> Response:
    """GET /{id}/discussions: discussions and pull requests."""
    repo = call.repo()
    with call.hub.store.read() as db:
        found = threads.list_threads(db, repo)
        shared = _shared(db, call, repo, "discussions")
    return render.page(call.request, "discussions.html", call.user, threads=found, **shared)


def discussion_page(call: Call) -> Response:
    """GET /{id}/discussions/{num}: one of them, with the changes of a pull request."""
    repo = call.repo()
    with call.hub.store.read() as db:
        thread = threads.get_thread(db, repo, number(call.param("num"), 0))
        events = threads.events(db, repo, thread.num)
        shared = _shared(db, call, repo, "discussions")
        diff = threads.diff(db, call.hub.blobs, repo, thread) if thread.base and not shared["refused"] else ""
    return render.page(
        call.request,
        "discussion.html",
        call.user,
        thread=thread,
        events=[_event_row(repo, event) for event in events],
        diff=[(_diff_kind(line), line) for line in diff.splitlines()],
        **shared,
    )


def _event_row(repo: Repo, event: dict[str, Any]) -> dict[str, str]:
    data, html = event["data"], ""
    if event["type"] == "comment":
        what, html = "wrote", _markdown(repo, "main", data["latest"]["raw"])
    elif event["type"] == "commit":
        what = f"committed “{data['subject']}” ({data['oid'][:7]})"
    elif event["type"] == "title-change":
        what = f"renamed “{data['from']}” to “{data['to']}”"
    else:
        what = f"set the status to {data['status']}"
    return {"author": event["author"]["name"], "what": what, "date": event["createdAt"], "html": html}


def _diff_kind(line: str) -> str:
    return {"+": "add", "-": "del", "@": "at", "d": "at"}.get(line[:1], "same")


def login_form(call: Call) -> Response:
    """GET /login."""
    return render.page(call.request, "login.html", call.user, wrong=False)


def login(call: Call) -> Response:
    """POST /login: keep the token in a cookie."""
    token = call.form().get("token", [""])[0].strip()
    if call.hub.users.by_token(token) is None:
        return render.page(call.request, "login.html", None, 403, wrong=True)
    answer = RedirectResponse(call.url("/"), 303)
    # "lax": sent also when an app leads here to be signed in to, never with what a page elsewhere sends.
    answer.set_cookie(COOKIE, token, httponly=True, samesite="lax")
    return answer


def logout(call: Call) -> Response:
    """POST /logout: forget the token."""
    answer = RedirectResponse(call.url("/"), 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="lax")
    return answer


def _shared(db: sqlite3.Connection, call: Call, repo: Repo, tab: str) -> dict[str, Any]:
    """Return what the frame of every page of a repository needs."""
    commit: Commit | None = head(db, repo, None)
    asked = db.execute("SELECT status FROM access WHERE repo = ? AND user = ?", (repo.pk, call.user)).fetchone()
    pulls = sum(thread.live for thread in threads.list_threads(db, repo))
    base = f"/{repo.path}"
    has_main = "refs/heads/main" in list_refs(db, repo)
    tabs = [
        ("card", "Card", base, None),
        ("files", "Files", f"{base}/tree/main", len(read_tree(db, commit)) if commit else 0),
        ("commits", "Commits", f"{base}/commits/main", len(log(db, repo, commit)) if commit else 0),
        ("discussions", "Discussions", f"{base}/discussions", pulls or None),
    ]
    return {
        "repo": repo,
        "tab": tab,
        "on": f"{repo.type}s",
        "badges": snippets.badges(repo),
        "tabs": [item for item in tabs if has_main or item[0] != "commits"],
        "refused": not has_access(db, call.hub.users, call.user, repo),
        "pending": asked is not None and asked["status"] != "accepted",
    }


def _markdown(repo: Repo, revision: str, text: str, folder: str = "") -> str:
    at = quote(revision, safe="")
    return render_markdown(
        text, files_url=f"/{repo.path}/resolve/{at}", pages_url=f"/{repo.path}/blob/{at}", folder=folder
    )


def _revision(call: Call) -> str:
    return call.param("rev") if "rev" in call.request.path_params else "main"


def _crumbs(path: str) -> list[tuple[str, str]]:
    parts = path.split("/") if path else []
    return [(part, "/".join(parts[: index + 1])) for index, part in enumerate(parts)]


error_page = render.error_page
routes: list[Route] = [
    route("/", home, page=True),
    route("/login", login_form, page=True),
    route("/login", login, "POST", page=True),
    route("/logout", logout, "POST", page=True),
    route("/{type}", kind_list, page=True),
    *repo_routes("/tree/{rev}", files_page, page=True),
    *repo_routes("/tree/{rev}/{path:path}", files_page, page=True),
    *repo_routes("/blob/{rev}/{path:path}", blob_page, page=True),
    *repo_routes("/commits/{rev}", commits_page, page=True),
    *repo_routes("/commit/{oid}", commit_page, page=True),
    *repo_routes("/discussions", discussions_page, page=True),
    *repo_routes("/discussions/{num}", discussion_page, page=True),
    *repo_routes("", card_page, page=True),
    route("/{ns}", namespace, page=True),
]
