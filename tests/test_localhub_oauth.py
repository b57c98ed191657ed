"""Signing in to apps with the embedded Hub: what is checked on the way, and what an app's token cannot do."""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from joserfc import jwt
from joserfc.jwk import KeySet
from localhub_helpers import Answer, ask

from hubprune.localhub import EmbeddedHub
from hubprune.localhub.grants import Client, challenge_of

Api = Callable[[str | None], HfApi]
BACK = "http://space-1.localhost:7860/login/callback"


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def send(address: str, fields: dict[str, str] | None = None, **headers: str) -> Answer:
    """A request as a browser or an app's server sends it, redirections not followed."""
    body = None if fields is None else urllib.parse.urlencode(fields).encode()
    request = urllib.request.Request(address, data=body, headers=headers)
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=30) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


class App:
    """An app of the Hub, and what its users do with it."""

    def __init__(self, hub: EmbeddedHub, client: Client) -> None:
        self.hub, self.client = hub, client

    def page(self, *, cookie: str = "", **changed: str) -> Answer:
        asked = {
            "response_type": "code",
            "client_id": self.client.id,
            "redirect_uri": f"{BACK}?_target_url=/",
            "scope": "openid profile contribute-repos",
            "state": "s1",
        }
        query = urllib.parse.urlencode({name: value for name, value in {**asked, **changed}.items() if value})
        return send(f"{self.hub.url}/oauth/authorize?{query}", **({"Cookie": cookie} if cookie else {}))

    def decide(self, page: Answer, decision: str = "agree", token: str | None = None) -> Answer:
        ticket = re.search(r'name="asked" value="([^"]+)"', page.text)
        assert ticket, page.text
        fields = {"asked": ticket[1], "decision": decision, **({"token": token} if token else {})}
        return send(f"{self.hub.url}/oauth/authorize", fields)

    def code(self, **asked: str) -> str:
        answer = self.decide(self.page(**asked), token=self.hub.token("me"))
        return led_back(answer)["code"]

    def trade(self, code: str, **changed: str) -> Answer:
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": f"{BACK}?_target_url=/",
            "client_id": self.client.id,
            "client_secret": self.client.secret,
        }
        return send(f"{self.hub.url}/oauth/token", {**fields, **changed})

    def api(self, scopes: str) -> HfApi:
        """A client with a token of these scopes."""
        token = self.trade(self.code(scope=scopes)).json["access_token"]
        return HfApi(endpoint=self.hub.url, token=token)


def led_back(answer: Answer) -> dict[str, str]:
    """What the app is told at the end of a sign-in."""
    assert answer.status == 303
    address = answer.headers["Location"]
    assert address.startswith(f"{BACK}?_target_url=/&")
    return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(address).query))


@pytest.fixture
def app(hub: EmbeddedHub) -> Iterator[App]:
    scopes = ["read-repos", "gated-repos", "contribute-repos", "write-repos", "manage-repos", "jobs"]
    yield App(hub, hub.grants.register("app-1", "Prune <it>", [BACK], scopes))
    hub.grants.forget("app-1")


def test_the_page_says_who_asks_for_what(app: App) -> None:
    page = app.page(scope="openid profile contribute-repos jobs")
    assert page.status == 200
    assert "Prune &lt;it&gt;" in page.text
    assert "space-1.localhost:7860" in page.text
    assert "Create repositories, and use those that this app created" in page.text
    assert "Run jobs in your name" in page.text
    # A form of the page leads to the app at the end, and nowhere else.
    assert "form-action 'self' http://space-1.localhost:7860;" in page.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]


def test_signing_in_gives_a_token_and_an_identity(app: App) -> None:
    facts = send(f"{app.hub.url}/.well-known/openid-configuration").json
    code = app.code(nonce="n1")
    basic = base64.b64encode(f"{app.client.id}:{app.client.secret}".encode()).decode()
    fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": f"{BACK}?_target_url=/"}
    answer = send(facts["token_endpoint"], fields, Authorization=f"Basic {basic}")
    assert answer.status == 200
    given = answer.json
    assert given["scope"] == "openid profile contribute-repos"
    keys = KeySet.import_key_set(send(facts["jwks_uri"]).json)
    claims = jwt.decode(given["id_token"], keys).claims
    assert (claims["iss"], claims["aud"], claims["nonce"]) == (app.hub.url, app.client.id, "n1")
    told = send(facts["userinfo_endpoint"], Authorization=f"Bearer {given['access_token']}").json
    assert told["preferred_username"] == claims["preferred_username"] == "me"
    assert HfApi(endpoint=app.hub.url, token=given["access_token"]).whoami()["name"] == "me"
    assert "d" not in send(facts["jwks_uri"]).json["keys"][0]  # the private half stays here


def test_a_user_who_is_signed_in_needs_no_token(app: App) -> None:
    signed_in = send(f"{app.hub.url}/login", {"token": app.hub.token("guest")})
    cookie = signed_in.headers["Set-Cookie"].partition(";")[0]
    page = app.page(cookie=cookie)
    assert "Agree as guest" in page.text
    given = app.trade(led_back(app.decide(page))["code"]).json
    assert HfApi(endpoint=app.hub.url, token=given["access_token"]).whoami()["name"] == "guest"


def test_state_comes_back_also_with_a_refusal(app: App) -> None:
    told = led_back(app.decide(app.page(state="a b&c"), "refuse"))
    assert (told["error"], told["state"]) == ("access_denied", "a b&c")


def test_a_wrong_token_is_told_and_leads_nowhere(app: App) -> None:
    answer = app.decide(app.page(), token="hf_guessed")
    assert answer.status == 403
    assert "No user of this Hub has that token." in answer.text


@pytest.mark.parametrize(
    "changed",
    [
        {"client_id": "app-2"},
        {"redirect_uri": "http://evil.example/login/callback"},
        {"redirect_uri": "http://space-1.localhost:7861/login/callback"},
        {"redirect_uri": f"{BACK}/../../elsewhere"},
        {"redirect_uri": f"{BACK}#part"},
    ],
)
def test_an_unknown_app_or_address_gets_no_redirection(app: App, changed: dict[str, str]) -> None:
    page = app.page(**changed)
    assert page.status == 400
    assert "Location" not in page.headers


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"state": ""}, "invalid_request"),
        ({"code_challenge": "x", "code_challenge_method": "plain"}, "invalid_request"),
        ({"scope": "openid write-discussions"}, "invalid_scope"),
    ],
)
def test_other_mistakes_are_told_to_the_app(app: App, changed: dict[str, str], error: str) -> None:
    assert led_back(app.page(**changed))["error"] == error


def test_a_form_that_the_hub_did_not_make_is_refused(app: App) -> None:
    ticket = base64.urlsafe_b64encode(json.dumps({"action": "consent", "user": "me", "exp": 2**40}).encode()).decode()
    answer = send(f"{app.hub.url}/oauth/authorize", {"asked": f"{ticket}.{ticket}", "decision": "agree"})
    assert answer.status == 400


def test_a_code_works_once_for_its_app_and_address_only(app: App) -> None:
    code = app.code()
    assert app.trade(code).status == 200
    assert app.trade(code).json["error"] == "invalid_grant"
    other = App(app.hub, app.hub.grants.register("app-2", "Other", [BACK], ["contribute-repos"]))
    assert other.trade(app.code()).json["error"] == "invalid_grant"
    assert app.trade(app.code(), redirect_uri=BACK).json["error"] == "invalid_grant"
    wrong = app.trade(app.code(), client_secret="guessed")
    assert (wrong.status, wrong.json["error"]) == (401, "invalid_client")
    app.hub.grants.forget("app-2")


def test_a_challenge_asks_for_its_word(app: App) -> None:
    asked = {"code_challenge": challenge_of("word" * 12), "code_challenge_method": "S256"}
    assert app.trade(app.code(**asked), code_verifier="word" * 12).status == 200
    assert app.trade(app.code(**asked), code_verifier="other" * 12).json["error"] == "invalid_grant"
    assert app.trade(app.code(**asked)).json["error"] == "invalid_grant"
    # A word without a challenge could be somebody else's code put into this sign-in.
    assert app.trade(app.code(), code_verifier="word" * 12).json["error"] == "invalid_grant"


def test_a_token_of_an_app_ends(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubprune.localhub.grants.TOKEN_LIFETIME", -1)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        app.api("openid").whoami()


def write(api: HfApi, repo_id: str) -> None:
    api.create_commit(repo_id, [CommitOperationAdd("a.txt", b"a")], commit_message="a")


def test_without_a_scope_an_app_only_knows_who_one_is(app: App, hub_api: Api) -> None:
    hub_api("me").create_repo("me/kept-from-apps", private=True, exist_ok=True)
    hub_api("me").create_repo("me/open-to-all", exist_ok=True)
    api = app.api("openid profile")
    assert api.model_info("me/open-to-all").id == "me/open-to-all"
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/kept-from-apps")
    assert "me/kept-from-apps" not in [found.id for found in api.list_models(author="me")]
    for act in (
        lambda: write(api, "me/open-to-all"),
        lambda: api.create_repo("me/new"),
        lambda: api.delete_repo("me/open-to-all"),
        lambda: api.update_repo_settings("me/open-to-all", private=True),
        lambda: api.create_discussion("me/open-to-all", title="t", description="d"),
        lambda: api.create_commit(
            "me/open-to-all", [CommitOperationAdd("a.txt", b"a")], commit_message="a", create_pr=True
        ),
        lambda: api.run_job(image="python:3.12", command=["python", "-c", "1"], namespace="me"),
    ):
        with pytest.raises(HfHubHTTPError, match="403"):
            act()


def test_an_app_that_may_contribute_reaches_what_it_created(app: App, hub_api: Api) -> None:
    hub_api("me").create_repo("me/older", exist_ok=True)
    api = app.api("openid contribute-repos")
    api.create_repo("me/made-by-app", private=True)
    write(api, "me/made-by-app")
    assert api.list_repo_files("me/made-by-app") == [".gitattributes", "a.txt"]
    api.auth_check("me/made-by-app", write=True)
    with pytest.raises(HfHubHTTPError, match="403"):
        write(api, "me/older")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.delete_repo("me/older")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("acme/for-the-company")  # the user is a member, the app is not asked there
    assert api.whoami()["orgs"] == []
    other = App(app.hub, app.hub.grants.register("app-3", "Other", [BACK], ["contribute-repos"]))
    with pytest.raises(RepositoryNotFoundError):
        other.api("openid contribute-repos").model_info("me/made-by-app")
    app.hub.grants.forget("app-3")
    api.delete_repo("me/made-by-app")


def test_scopes_say_whether_to_read_write_or_manage(app: App, hub_api: Api) -> None:
    hub_api("me").create_repo("me/of-the-user", private=True, exist_ok=True)
    reads = app.api("openid read-repos")
    assert reads.model_info("me/of-the-user").private
    with pytest.raises(HfHubHTTPError, match="403"):
        write(reads, "me/of-the-user")
    writes = app.api("openid write-repos")
    write(writes, "me/of-the-user")
    with pytest.raises(HfHubHTTPError, match="403"):
        writes.delete_repo("me/of-the-user")
    with pytest.raises(HfHubHTTPError, match="403"):
        writes.create_repo("me/another")
    app.api("openid manage-repos").delete_repo("me/of-the-user")


def test_gated_files_and_jobs_have_scopes_of_their_own(app: App, hub_api: Api) -> None:
    owner = hub_api("guest")
    owner.create_repo("guest/gated", exist_ok=True)
    owner.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="guest/gated")
    owner.update_repo_settings("guest/gated", gated="auto")
    ask(app.hub, "/guest/gated/ask-access", method="POST", user="me")
    with pytest.raises(HfHubHTTPError, match="403"):
        app.api("openid").auth_check("guest/gated")
    app.api("openid gated-repos").auth_check("guest/gated")
    job = app.api("openid jobs").run_job(image="python:3.12", command=["python", "-c", "1"], namespace="me")
    assert job.owner.name == "me"
