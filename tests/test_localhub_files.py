"""Reading files: headers, ranges, listings, and paths that try to get out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, HfFileSystem, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFolder
from localhub_helpers import ask

from hubprune.localhub import EmbeddedHub

Api = Callable[[str | None], HfApi]
TEXT = b"".join(b"line %d\n" % number for number in range(1000))
BINARY = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedHub]:
    """A Hub with small pages and one repository of 25 files in 5 folders."""
    with EmbeddedHub(tmp_path_factory.mktemp("paged"), users={"me": "hf_p"}, page_size=4) as hub:
        api = HfApi(endpoint=hub.url, token="hf_p")
        api.create_repo("me/many")
        files = [CommitOperationAdd(f"d{index % 5}/f {index:02d}.txt", b"%d" % index) for index in range(25)]
        api.create_commit("me/many", files, commit_message="many")
        yield hub


@pytest.fixture(scope="module")
def repo(hub_api: Api) -> str:
    """A data set with a text and a binary file."""
    api = hub_api("me")
    api.create_repo("me/reading", repo_type="dataset")
    files = [CommitOperationAdd("data/t.txt", TEXT), CommitOperationAdd("data/b.bin", BINARY)]
    api.create_commit("me/reading", files, commit_message="files", repo_type="dataset")
    return "/datasets/me/reading/resolve/main/data"


def test_head_has_the_headers_of_the_public_hub(hub: EmbeddedHub, hub_api: Api, repo: str) -> None:
    sha = hub_api("me").dataset_info("me/reading").sha
    text = ask(hub, f"{repo}/t.txt", method="HEAD")
    assert (text.status, text.body) == (200, b"")
    assert text.headers["X-Repo-Commit"] == sha
    assert int(text.headers["Content-Length"]) == len(TEXT)
    assert len(text.headers["ETag"].strip('"')) == 40
    assert text.headers["X-Linked-Size"] is None
    binary = ask(hub, f"{repo}/b.bin", method="HEAD")
    assert binary.headers["X-Linked-ETag"] == binary.headers["ETag"]
    assert int(binary.headers["X-Linked-Size"]) == len(BINARY)
    assert ask(hub, f"{repo}/t.txt", headers={"If-None-Match": text.headers["ETag"]}).status == 304


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-9", BINARY[:10]),
        ("bytes=1000-", BINARY[1000:]),
        ("bytes=-7", BINARY[-7:]),
        ("bytes=5-5", BINARY[5:6]),
    ],
)
def test_range_is_206_with_just_these_bytes(hub: EmbeddedHub, repo: str, asked: str, expected: bytes) -> None:
    answer = ask(hub, f"{repo}/b.bin", headers={"Range": asked})
    assert (answer.status, answer.body) == (206, expected)
    first = BINARY.index(expected) if asked != "bytes=-7" else len(BINARY) - 7
    first = {"bytes=1000-": 1000, "bytes=5-5": 5}.get(asked, first)
    assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(expected) - 1}/{len(BINARY)}"
    assert answer.headers["X-Repo-Commit"]


def test_range_past_the_end_is_416(hub: EmbeddedHub, repo: str) -> None:
    answer = ask(hub, f"{repo}/b.bin", headers={"Range": f"bytes={len(BINARY)}-"})
    assert answer.status == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(BINARY)}"


def test_interrupted_download_is_resumed(hub: EmbeddedHub, repo: str, tmp_path: Path) -> None:
    from huggingface_hub.file_download import http_get

    target = tmp_path / "b.bin"
    with target.open("wb") as file:
        file.write(BINARY[:5000])
        http_get(f"{hub.url}{repo}/b.bin", file, resume_size=5000, expected_size=len(BINARY))
    assert target.read_bytes() == BINARY


def test_missing_file_is_remembered_by_the_client(hub: EmbeddedHub, hub_api: Api, repo: str) -> None:
    api = hub_api("me")
    answer = ask(hub, f"{repo}/none.txt")
    assert (answer.status, answer.headers["X-Error-Code"]) == (404, "EntryNotFound")
    assert len(answer.headers["X-Repo-Commit"]) == 40
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("me/reading", "data/none.txt", repo_type="dataset")
    remembered = try_to_load_from_cache("me/reading", "data/none.txt", repo_type="dataset")
    assert remembered is not None
    assert not isinstance(remembered, str)
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download("me/reading", "data/t.txt", repo_type="dataset", revision="nowhere")


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/..%2f..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/hub.sqlite",
        "/%2Fetc%2Fpasswd",
        "/..%5c..%5chub.sqlite",
        "/%00",
        "/%252e%252e%252fhub.sqlite",
        "/data/%ff%fe",
        "/.git/config",
    ],
)
def test_path_that_tries_to_get_out_finds_nothing(hub: EmbeddedHub, repo: str, path: str) -> None:
    base = "/datasets/me/reading"
    for start in (f"{base}/resolve/main", f"{base}/raw/main", f"{base}/blob/main", f"/api{base}/tree/main"):
        answer = ask(hub, start + path)
        assert answer.status == 404, start
        assert b"root:" not in answer.body
        assert b"SQLite" not in answer.body
    assert ask(hub, f"{base}/resolve{path}/t.txt").status == 404


@pytest.mark.parametrize("repo_id", ["..%2f..", "%2e%2e/x", "me/..", "me/%00", "me%5cx/y"])
def test_repo_id_that_tries_to_get_out_is_missing(hub: EmbeddedHub, repo_id: str) -> None:
    for start in ("/api/models/", "/api/datasets/", "/"):
        assert ask(hub, start + repo_id, user="me").status == 404
    create = ask(hub, "/api/repos/create", method="POST", user="me", data={"name": repo_id, "organization": "me"})
    assert create.status == 400


def test_tree_listing_is_paged_and_recursive(paged: EmbeddedHub) -> None:
    api = HfApi(endpoint=paged.url, token="hf_p")
    top = list(api.list_repo_tree("me/many"))
    assert [item.path for item in top] == [".gitattributes", "d0", "d1", "d2", "d3", "d4"]
    assert isinstance(top[1], RepoFolder)
    everything = list(api.list_repo_tree("me/many", recursive=True))
    assert len(everything) == 31
    assert [item.path for item in everything] == sorted(item.path for item in everything)
    inside = list(api.list_repo_tree("me/many", "d3", expand=True))
    assert [item.path for item in inside] == [f"d3/f {index:02d}.txt" for index in range(3, 25, 5)]
    assert {item.last_commit.title for item in inside} == {"many"}
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("me/many", "d9"))
    first = ask(paged, "/api/models/me/many/tree/main?recursive=true&limit=3")
    assert len(first.json) == 3
    assert 'rel="next"' in first.headers["Link"]


def test_paths_info_leaves_out_what_is_missing(paged: EmbeddedHub) -> None:
    api = HfApi(endpoint=paged.url, token="hf_p")
    asked = ["d1/f 01.txt", "d2", "nowhere.txt"]
    found = api.get_paths_info("me/many", asked, expand=True)
    assert [item.path for item in found] == ["d1/f 01.txt", "d2"]
    assert found[0].last_commit.title == "many"
    assert found[0].size == 1


def test_last_commit_of_a_file_is_the_one_that_changed_it(hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/blame")
    for name, content in (("a", b"1"), ("b", b"1"), ("a", b"2")):
        api.upload_file(
            path_or_fileobj=content,
            path_in_repo=f"x/{name}.txt",
            repo_id="me/blame",
            commit_message=name + str(content),
        )
    found = {item.path: item.last_commit.title for item in api.list_repo_tree("me/blame", recursive=True, expand=True)}
    assert found == {
        ".gitattributes": "initial commit",
        "x": "ab'2'",
        "x/a.txt": "ab'2'",
        "x/b.txt": "bb'1'",
    }


def test_file_system_of_the_client_reads_parts(hub: EmbeddedHub, repo: str) -> None:
    fs = HfFileSystem(endpoint=hub.url, token=hub.token("me"))
    with fs.open("datasets/me/reading/data/b.bin", block_size=1000) as file:
        file.seek(50_000)
        assert file.read(10) == BINARY[50_000:50_010]
    assert fs.glob("datasets/me/reading/data/*.txt") == ["datasets/me/reading/data/t.txt"]


def test_files_of_users_are_never_served_as_scripts(hub: EmbeddedHub, hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/evil")
    for name in ("a.html", "a.svg", "a.js", "a.xhtml"):
        api.upload_file(path_or_fileobj=b"<script>alert(1)</script>", path_in_repo=name, repo_id="me/evil")
        answer = ask(hub, f"/me/evil/resolve/main/{name}")
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers.get_content_type() in ("text/plain", "image/svg+xml", "application/octet-stream")
