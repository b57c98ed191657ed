"""Apps of Spaces on the embedded Hub: started and stopped from their page, told who they are, gone with the Hub."""

from __future__ import annotations

import html
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubprune.errors import UsageError
from hubprune.localhub import EmbeddedHub

# Serves what it knows, without gradio, which takes seconds to load.
APP = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({**os.environ, "cwd": sorted(os.listdir()), "cookie": self.headers["Cookie"]}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
print("the secret is", os.environ.get("KEY_TO_IT", ""), flush=True)
if os.path.exists("broken"): sys.exit(3)
http.server.HTTPServer(("127.0.0.1", int(os.environ["GRADIO_SERVER_PORT"])), Handler).serve_forever()
"""
README = "---\nsdk: gradio\nhf_oauth: {oauth}\nhf_oauth_scopes: [contribute-repos]\n---\n# A Space\n"
USERS = {"me": "hf_spaces_me", "guest": "hf_spaces_guest"}
PATIENCE = 30.0


class Visitor:
    """Somebody with a browser who is signed in, or not."""

    def __init__(self, hub: EmbeddedHub, user: str | None) -> None:
        self.hub = hub
        self.headers = {"Cookie": f"localhub_token={USERS[user]}"} if user else {}

    def page(self, path: str) -> str:
        request = urllib.request.Request(self.hub.url + path, headers=self.headers)
        return str(urllib.request.urlopen(request, timeout=30).read().decode())

    def press(self, path: str, ticket: str) -> int:
        body = urllib.parse.urlencode({"ticket": ticket}).encode()
        try:
            return int(
                urllib.request.urlopen(urllib.request.Request(self.hub.url + path, data=body), timeout=30).status
            )
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def ticket(self, path: str) -> str:
        found = re.search(r'name="ticket" value="([^"]+)"', self.page(path))
        assert found
        return found[1]

    def wait(self, path: str, text: str) -> str:
        end = time.monotonic() + PATIENCE
        while text not in (page := self.page(path)):
            assert time.monotonic() < end, page
            time.sleep(0.05)
        return page


@pytest.fixture(scope="module")
def spaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedHub]:
    root = tmp_path_factory.mktemp("spaces")
    for name, oauth in (("plain", "false"), ("login", "true"), ("broken", "false")):
        folder = root / "seed" / "spaces" / "org" / name
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(README.format(oauth=oauth))
        (folder / "app.py").write_text(APP)
    (root / "seed/spaces/org/broken/broken").write_text("")
    with EmbeddedHub(root / "hub", users=USERS, pro={"me"}, seed=[root / "seed"], allow_spaces=True) as hub:
        yield hub


def app_of(page: str) -> tuple[str, int]:
    """The address of a running app, and its port."""
    found = re.search(r'href="(http://space-\d+\.localhost:(\d+))"', page)
    assert found, page
    return found[1], int(found[2])


def told(port: int, **headers: str) -> dict[str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers=headers)
    found: dict[str, str] = json.loads(urllib.request.urlopen(request, timeout=30).read())
    return found


def test_an_app_starts_and_stops_from_its_page(spaces: EmbeddedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_SERVER", "private")
    path, me = "/spaces/org/plain", Visitor(spaces, "me")
    page = me.page(path)
    assert "Start the app" in page
    assert HfApi(endpoint=spaces.url).space_info("org/plain").runtime.stage == "STOPPED"
    assert me.press(f"{path}/start", me.ticket(path)) == 200
    address, port = app_of(me.wait(path, "Open the app"))
    assert address.startswith("http://space-")  # a name of its own: the Hub's cookie stays with the Hub
    env = told(port)
    assert env["cwd"] == ["README.md", "app.py"]
    assert (env["SPACE_ID"], env["SYSTEM"], env["HF_ENDPOINT"]) == ("org/plain", "spaces", spaces.url)
    assert not {"OF_THE_SERVER", "HF_TOKEN", "OAUTH_CLIENT_SECRET"} & set(env)
    assert HfApi(endpoint=spaces.url).get_space_runtime("org/plain").stage == "RUNNING"
    assert me.press(f"{path}/stop", me.ticket(path)) == 200
    assert "Start the app" in me.page(path)
    with pytest.raises(urllib.error.URLError):
        told(port)


def test_an_app_with_a_login_button_is_a_client_of_the_hub(spaces: EmbeddedHub) -> None:
    path, guest = "/spaces/org/login", Visitor(spaces, "guest")
    guest.press(f"{path}/start", guest.ticket(path))
    address, port = app_of(guest.wait(path, "Open the app"))
    env = told(port)
    assert env["OPENID_PROVIDER_URL"] == spaces.url
    assert env["OAUTH_SCOPES"] == "openid profile contribute-repos"
    client = spaces.grants.client(env["OAUTH_CLIENT_ID"])
    assert client is not None
    assert client.secret == env["OAUTH_CLIENT_SECRET"]
    assert client.leads_to(f"{address}/login/callback?_target_url=/")
    guest.press(f"{path}/stop", guest.ticket(path))
    assert spaces.grants.client(env["OAUTH_CLIENT_ID"]) is None
    # What the app made stays its own when it is started again.
    guest.press(f"{path}/start", guest.ticket(path))
    guest.wait(path, "Open the app")
    assert spaces.grants.client(env["OAUTH_CLIENT_ID"]) is not None
    guest.press(f"{path}/stop", guest.ticket(path))


def test_why_an_app_ended_is_shown_to_who_started_it_without_secrets(spaces: EmbeddedHub) -> None:
    with spaces.store.write() as db:
        pk = db.execute("SELECT pk FROM repos WHERE name = 'broken'").fetchone()[0]
        row = (pk, "secrets", "KEY_TO_IT", "abracadabra", None, "2026-01-01T00:00:00.000Z")
        db.execute("INSERT INTO settings VALUES (?, ?, ?, ?, ?, ?)", row)
    path, me = "/spaces/org/broken", Visitor(spaces, "me")
    me.press(f"{path}/start", me.ticket(path))
    page = html.unescape(me.wait(path, "runtime error"))
    assert "App failed with exit code: 3" in page
    assert "the secret is ***" in page
    assert "abracadabra" not in page
    assert "the secret is" not in Visitor(spaces, "guest").page(path)


def test_only_the_page_that_the_hub_made_for_a_user_starts_an_app(spaces: EmbeddedHub) -> None:
    path, me = "/spaces/org/plain", Visitor(spaces, "me")
    nobody = Visitor(spaces, None)
    assert "ticket" not in nobody.page(path)
    assert "Sign in to start it" in nobody.page(path)
    assert me.press(f"{path}/start", "") == 403
    assert me.press(f"{path}/start", me.ticket("/spaces/org/login")) == 403
    assert "Start the app" in me.page(path)


def test_apps_end_with_the_hub_and_run_only_where_they_may(
    tmp_path: Path, hub: EmbeddedHub, hub_api: Callable
) -> None:
    folder = tmp_path / "seed" / "spaces" / "org" / "plain"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(README.format(oauth="false"))
    (folder / "app.py").write_text(APP)
    with EmbeddedHub(tmp_path / "hub", users=USERS, seed=[tmp_path / "seed"], allow_spaces=True) as running:
        me = Visitor(running, "me")
        me.press("/spaces/org/plain/start", me.ticket("/spaces/org/plain"))
        port = app_of(me.wait("/spaces/org/plain", "Open the app"))[1]
        assert told(port)["SPACE_ID"] == "org/plain"
    with pytest.raises(urllib.error.URLError):
        told(port)
    hub_api("me").create_repo("me/not-here", repo_type="space", space_sdk="gradio", exist_ok=True)
    assert "Start the app" not in Visitor(hub, None).page("/spaces/me/not-here")
    assert Visitor(hub, None).press("/spaces/me/not-here/start", "") == 402
    with pytest.raises(UsageError, match="127.0.0.1"):
        EmbeddedHub(tmp_path / "open", host="0.0.0.0", allow_spaces=True).prepare()
