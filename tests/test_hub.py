"""What is read from the Hub is pinned and may be read; what is refused is refused early, with the way out."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubprune.errors import AccessError, HubPruneError, NotFoundError, OfflineError, UsageError
from hubprune.facts import BaseFacts
from hubprune.hub import ResolvedRepo, check_can_write, make_api, read_report, resolve_dataset, resolve_model
from hubprune.localhub import EmbeddedHub
from hubprune.report import REPORT_NAME, PruningReport
from tests.localhub_helpers import ask, run_client

Api = Callable[[str | None], HfApi]
LOG_IN = "log in (hf auth login, HF_TOKEN or token=...)"
CARD = {"license": "mit", "language": ["en"]}


@pytest.fixture(scope="module", autouse=True)
def repos(hub: EmbeddedHub, hub_api: Api) -> Iterator[None]:
    """An open, a private and a gated model of `me`, and a gated data set."""
    api = hub_api("me")
    made = [
        ("me/read-open", "model"),
        ("me/read-private", "model"),
        ("me/read-gated", "model"),
        ("me/read-gated", "dataset"),
    ]
    for name, kind in made:
        api.create_repo(name, repo_type=kind, private=name.endswith("private"))
    api.upload_file(
        path_or_fileobj=f"---\n{json.dumps(CARD)}\n---\n# Open\n".encode(),
        path_in_repo="README.md",
        repo_id="me/read-open",
    )
    api.create_tag("me/read-open", tag="v1")
    api.create_branch("me/read-open", branch="next")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="me/read-open", revision="next")
    for name, kind in made[2:]:
        api.update_repo_settings(name, repo_type=kind, gated="manual")
    yield
    for name, kind in made:
        api.delete_repo(name, repo_type=kind)


def refused(kind: type[HubPruneError], read: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        read()
    assert type(caught.value) is kind
    return str(caught.value)


# Reading


def test_a_name_stands_for_one_commit(hub_api: Api) -> None:
    api = hub_api(None)
    commits = {branch.name: branch.target_commit for branch in api.list_repo_refs("me/read-open").branches}
    assert commits["main"] != commits["next"]
    found = resolve_model("me/read-open", api=api)
    assert found == ResolvedRepo("me/read-open", "model", None, commits["main"], card=CARD)
    assert resolve_model("me/read-open", revision="v1", api=api).commit == commits["main"]
    assert resolve_model("me/read-open", revision="next", api=api).commit == commits["next"]
    assert resolve_model("me/read-open", revision=commits["next"], api=api).commit == commits["next"]


def test_a_folder_stands_for_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == ResolvedRepo(str(tmp_path), local=True)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert resolve_dataset(str(tmp_path)) == ResolvedRepo(
        str(tmp_path), "dataset", local=True, card={"license": "mit"}
    )


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere/x", "/nowhere", "~/nowhere", "~nobody-here/x"])
def test_a_folder_that_is_missing_is_not_asked_of_the_hub(name: str) -> None:
    assert refused(NotFoundError, lambda: resolve_model(name)) == (
        f"there is no folder {name}; check the path, or name a repository, 'owner/name'"
    )


@pytest.mark.parametrize("name", ["", "a/b/c", "my model", "a--b", "org/"])
def test_a_name_of_another_form_is_refused(name: str, hub_api: Api) -> None:
    assert refused(UsageError, lambda: resolve_model(name, api=hub_api("me"))) == (
        f"cannot read {name}: that is neither a folder nor the name of a repository, 'owner/name'; check it"
    )


def test_a_revision_that_is_missing_is_told_apart(hub: EmbeddedHub, hub_api: Api) -> None:
    message = refused(NotFoundError, lambda: resolve_model("me/read-open", revision="v9", api=hub_api("me")))
    page = f"{hub.url}/me/read-open"
    assert message == f"cannot read me/read-open: it has no such branch, tag or commit; {page} lists what it has"


def test_a_private_repository_looks_like_none(hub: EmbeddedHub, hub_api: Api) -> None:
    assert resolve_model("me/read-private", api=hub_api("me")).private
    for name in ("me/read-private", "me/read-nothing"):
        page = f"{hub.url}/{name}"
        assert refused(NotFoundError, lambda name=name: resolve_model(name, api=hub_api("guest"))) == (
            f"cannot read {name}: there is no model at {page} that your token may see; check name and token"
        )
        assert refused(AccessError, lambda name=name: resolve_model(name, api=hub_api(None))) == (
            f"cannot read {name}: there is no public model at {page}; check the name, or {LOG_IN} if it is private"
        )


@pytest.mark.parametrize(("resolve", "path"), [(resolve_model, ""), (resolve_dataset, "datasets/")])
def test_a_gated_repository_is_open_to_those_who_were_let_in(
    hub: EmbeddedHub, hub_api: Api, resolve: Callable[..., ResolvedRepo], path: str
) -> None:
    kind = "dataset" if path else "model"
    assert resolve("me/read-gated", api=hub_api("me")).gated
    for user in ("guest", None):
        assert refused(AccessError, lambda user=user: resolve("me/read-gated", api=hub_api(user))) == (
            f"cannot read me/read-gated: it is gated; ask for access at {hub.url}/{path}me/read-gated and {LOG_IN} "
            "as a user who has it"
        )
    ask(hub, f"/{path}me/read-gated/ask-access", method="POST", user="guest")
    hub_api("me").accept_access_request("me/read-gated", "guest", repo_type=kind)
    assert resolve("me/read-gated", api=hub_api("guest")).gated


def test_a_token_that_is_wrong_is_told_and_not_shown(hub: EmbeddedHub) -> None:
    api = HfApi(endpoint=hub.url, token="hf_wrongwrongwrong")
    for read in (resolve_model, check_can_write):
        message = refused(AccessError, lambda read=read: read("me/read-open", api=api))
        assert "the Hub answers 401" in message
        assert message.endswith(f"; {LOG_IN} with a token that is valid")
        assert "wrongwrong" not in message


def test_a_hub_that_is_down_is_out_of_reach() -> None:
    api = HfApi(endpoint="http://127.0.0.1:9", token="hf_any")
    for what, read in (("read", resolve_model), ("push to", check_can_write)):
        assert refused(OfflineError, lambda read=read: read("me/read-open", api=api)) == (
            f"cannot {what} me/read-open: http://127.0.0.1:9/me/read-open is out of reach; check the network, or set "
            "HF_HUB_OFFLINE=1 to use what is in the cache"
        )


def test_the_client_says_who_it_is() -> None:
    api = make_api("hf_any")
    assert (api.library_name, api.token) == ("hubprune", "hf_any")


ONLINE = """
from hubprune.hub import resolve_model
print(resolve_model("me/read-open").commit)
print(resolve_model("me/read-open", revision="next").commit)
"""
OFFLINE = """
from hubprune.errors import OfflineError
from hubprune.hub import resolve_dataset, resolve_model
found = resolve_model("me/read-open")
print(found.commit)
print(resolve_model("me/read-open", revision="next").commit)
assert resolve_model("me/read-open", revision=found.commit).commit == found.commit
assert found.card == {"license": "mit", "language": ["en"]}, found.card
for read, name, revision in (
    (resolve_model, "me/read-nothing", None), (resolve_model, "me/read-open", "v1"), (resolve_dataset, "me/x", None)
):
    try:
        read(name, revision=revision)
    except OfflineError as error:
        print(error)
"""


def test_without_a_network_the_cache_is_asked(hub: EmbeddedHub, tmp_path: Path) -> None:
    online = run_client(hub, ONLINE, tmp_path, user=None).splitlines()
    offline = run_client(hub, OFFLINE, tmp_path, user=None, HF_HUB_OFFLINE="1").splitlines()
    assert offline[:2] == online
    reason = "the network is switched off (HF_HUB_OFFLINE) and the cache does not hold it; run once with the network"
    assert offline[2:] == [f"cannot read {name}: {reason}" for name in ("me/read-nothing", "me/read-open", "me/x")]


# The report of a pruned model


def test_the_report_of_a_repository_is_read_at_its_commit(hub_api: Api, tmp_path: Path) -> None:
    api = hub_api("me")
    before = resolve_model("me/read-private", api=api)
    assert read_report(before, api=api) is None
    report = PruningReport(base=BaseFacts("org/base"))
    api.upload_file(path_or_fileobj=report.to_json().encode(), path_in_repo=REPORT_NAME, repo_id="me/read-private")
    assert read_report(before, api=api) is None
    assert read_report(resolve_model("me/read-private", api=api), api=api) == report


def test_the_report_of_a_folder_is_read(tmp_path: Path) -> None:
    repo = resolve_model(str(tmp_path))
    assert read_report(repo) is None
    (tmp_path / REPORT_NAME).write_text("{")
    with pytest.raises(UsageError, match="is not valid JSON"):
        read_report(repo)
    report = PruningReport(created="today")
    report.save(tmp_path)
    assert read_report(repo) == report


def test_a_report_that_may_not_be_read_is_not_taken_for_none(hub_api: Api) -> None:
    repo = resolve_model("me/read-gated", api=hub_api("me"))
    with pytest.raises(AccessError, match="^cannot read the report of me/read-gated: it is gated; ask for access at"):
        read_report(repo, api=hub_api(None))


# Writing


@pytest.mark.parametrize(
    ("repo_id", "exists"), [("me/read-open", True), ("me/new", False), ("acme/new", False), ("new", False)]
)
def test_own_places_can_be_written(repo_id: str, exists: bool, hub_api: Api) -> None:
    assert check_can_write(repo_id, api=hub_api("me")) is exists


@pytest.mark.parametrize("repo_id", ["guest/new", "me/read-private", "acme/new"])
def test_nothing_is_created_in_places_of_others(repo_id: str, hub_api: Api) -> None:
    user, own = ("me", "me or acme") if repo_id == "guest/new" else ("guest", "guest")
    assert refused(AccessError, lambda: check_can_write(repo_id, api=hub_api(user))) == (
        f"cannot push to {repo_id}: {user} may not create it; push to a repository of {own}"
    )


def test_a_repository_of_another_cannot_be_written(hub_api: Api) -> None:
    message = refused(AccessError, lambda: check_can_write("me/read-open", api=hub_api("guest")))
    assert message.startswith("cannot push to me/read-open: the Hub answers 403 (")
    assert message.endswith("); take a token that may do this, or a repository of your own")


def test_writing_needs_a_token_and_a_name(hub: EmbeddedHub, hub_api: Api) -> None:
    for api in (hub_api(None), HfApi(endpoint=hub.url)):  # told to use none, and nobody logged in
        assert refused(AccessError, lambda api=api: check_can_write("me/new", api=api)) == (
            f"cannot push to me/new: it needs a token and there is none; {LOG_IN}"
        )
    with pytest.raises(UsageError, match="cannot push to a/b/c: that is neither a folder nor the name"):
        check_can_write("a/b/c", api=hub_api("me"))


def test_a_token_that_may_only_read_is_found_out(hub_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api = hub_api("me")
    me = {**api.whoami(), "auth": {"accessToken": {"role": "read"}}}
    monkeypatch.setattr(api, "whoami", lambda: me)
    assert refused(AccessError, lambda: check_can_write("me/new", api=api)) == (
        "cannot push to me/new: the token may only read; make one with the role 'write'"
    )


def test_an_organization_that_one_may_only_read_is_no_place_to_write(
    hub_api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = hub_api("me")
    me = {**api.whoami(), "orgs": [{"name": "acme", "roleInOrg": "read"}, {"name": "labs", "roleInOrg": "write"}]}
    monkeypatch.setattr(api, "whoami", lambda: me)
    assert check_can_write("labs/new", api=api) is False
    with pytest.raises(AccessError, match="me may not create it; push to a repository of me or labs"):
        check_can_write("acme/new", api=api)


def test_pushing_without_a_network_is_refused(hub: EmbeddedHub, tmp_path: Path) -> None:
    code = """
        from hubprune.errors import OfflineError
        from hubprune.hub import check_can_write
        try:
            check_can_write("me/new")
        except OfflineError as error:
            print(error)
    """
    said = run_client(hub, textwrap.dedent(code), tmp_path, HF_HUB_OFFLINE="1")
    assert said.startswith("cannot push to me/new: the network is switched off (HF_HUB_OFFLINE)")
