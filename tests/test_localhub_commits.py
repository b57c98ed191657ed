"""Uploads, commits, branches, tags and pull requests, through the real client."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RevisionNotFoundError,
)
from localhub_helpers import ask, run_client

from hubprune.localhub import EmbeddedHub

Api = Callable[[str | None], HfApi]


def weights(seed: int, count: int = 300_000) -> bytes:
    """Values that xet stores with its byte-grouped compression."""
    return (np.random.default_rng(seed).normal(size=count) * 0.02).astype(np.float32).tobytes()


def noise(seed: int, size: int) -> bytes:
    """Bytes that cannot be compressed."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


@pytest.mark.parametrize(
    "content",
    [weights(0), noise(1, 1_500_000), bytes(1_000_000), b"text " * 200_000, b"\0", weights(2) + noise(3, 100_001)],
    ids=["floats", "noise", "zeros", "text", "one byte", "mixed"],
)
def test_default_client_uploads_by_xet(hub_api: Api, content: bytes) -> None:
    api = hub_api("me")
    api.create_repo("me/xet", exist_ok=True)
    api.upload_file(path_or_fileobj=content, path_in_repo="file.bin", repo_id="me/xet")
    [info] = api.get_paths_info("me/xet", "file.bin")
    assert info.lfs.sha256 == hashlib.sha256(content).hexdigest()
    assert Path(api.hf_hub_download("me/xet", "file.bin")).read_bytes() == content


def test_a_client_that_remembers_its_chunks_sends_only_new_ones(hub: EmbeddedHub, hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/again")
    first = weights(7, 1_000_000)
    second = first[:3_000_000] + noise(8, 50_000) + first[3_000_000:]

    def stored() -> int:
        return sum(path.stat().st_size for path in (hub.folder / "xorbs").rglob("*") if path.is_file())

    api.upload_file(path_or_fileobj=first, path_in_repo="a.bin", repo_id="me/again")
    before = stored()
    api.upload_file(path_or_fileobj=second, path_in_repo="a.bin", repo_id="me/again")
    assert stored() - before < len(second) / 2
    assert Path(api.hf_hub_download("me/again", "a.bin")).read_bytes() == second


def test_lfs_upload_without_xet_basic_and_multipart(tmp_path: Path) -> None:
    code = """
        import os, pathlib
        import numpy as np
        from huggingface_hub import HfApi
        from huggingface_hub.utils._runtime import is_xet_available
        assert not is_xet_available()
        api = HfApi()
        api.create_repo("me/lfs")
        small = np.random.default_rng(0).bytes(40_000)
        large = np.random.default_rng(1).bytes(250_001)
        pathlib.Path("folder/sub").mkdir(parents=True)
        pathlib.Path("folder/small.bin").write_bytes(small)
        pathlib.Path("folder/sub/large.bin").write_bytes(large)
        pathlib.Path("folder/README.md").write_text("---\\nlicense: mit\\n---\\n# hi")
        pathlib.Path("folder/empty.txt").write_text("")
        first = api.upload_folder(repo_id="me/lfs", folder_path="folder")
        same = api.upload_folder(repo_id="me/lfs", folder_path="folder")
        assert first.oid == same.oid, "unchanged files make no commit"
        local = pathlib.Path(api.snapshot_download("me/lfs"))
        assert (local / "small.bin").read_bytes() == small
        assert (local / "sub/large.bin").read_bytes() == large
        assert (local / "empty.txt").read_bytes() == b""
        print(api.model_info("me/lfs").sha == first.oid)
    """
    with EmbeddedHub(tmp_path / "hub", users={"me": "hf_a"}, lfs_part_size=100_000) as hub:
        assert run_client(hub, code, tmp_path, HF_HUB_DISABLE_XET="1").split() == ["True"]
        assert not any((hub.folder / "parts").iterdir())


def test_upload_folder_is_one_commit_and_unchanged_files_are_not_sent(hub_api: Api, tmp_path: Path) -> None:
    api = hub_api("me")
    api.create_repo("me/folder")
    (tmp_path / "sub").mkdir()
    (tmp_path / "model.safetensors").write_bytes(noise(4, 50_000))
    (tmp_path / "sub" / "a.txt").write_text("a")
    (tmp_path / "old.log").write_text("ignored")
    (tmp_path / ".gitignore").write_text("*.log\n")
    done = api.upload_folder(repo_id="me/folder", folder_path=tmp_path)
    assert [commit.title for commit in api.list_repo_commits("me/folder")] == [
        "Upload folder using huggingface_hub",
        "initial commit",
    ]
    assert set(api.list_repo_files("me/folder")) == {".gitattributes", ".gitignore", "model.safetensors", "sub/a.txt"}
    assert api.upload_folder(repo_id="me/folder", folder_path=tmp_path).oid == done.oid


def test_delete_patterns_and_operations_in_one_commit(hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/ops")
    add = [CommitOperationAdd(f"d/{name}.txt", name.encode()) for name in "abc"]
    add.append(CommitOperationAdd("w.bin", noise(5, 2000)))
    api.create_commit("me/ops", add, commit_message="four files", commit_description="why")
    api.create_commit(
        "me/ops",
        [
            CommitOperationDelete("d/", is_folder=True),
            CommitOperationCopy("w.bin", "copy/w.bin"),
            CommitOperationAdd("d2.txt", b"d"),
        ],
        commit_message="change",
    )
    assert set(api.list_repo_files("me/ops")) == {".gitattributes", "w.bin", "copy/w.bin", "d2.txt"}
    assert api.list_repo_commits("me/ops")[1].message == "why"
    with pytest.raises(EntryNotFoundError):
        api.delete_file("not-there.txt", "me/ops")
    with pytest.raises(BadRequestError, match="a file or a folder"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="d2.txt/x.txt", repo_id="me/ops")
    api.super_squash_history("me/ops")
    assert len(api.list_repo_commits("me/ops")) == 1
    assert len(api.list_repo_files("me/ops")) == 4


def test_parent_commit_is_an_optimistic_lock(hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/lock")
    start = api.model_info("me/lock").sha

    def add(name: str) -> str:
        operation = CommitOperationAdd(f"{name}.txt", name.encode())
        return str(api.create_commit("me/lock", [operation], commit_message=name, parent_commit=start).oid)

    first = add("one")
    with pytest.raises(HfHubHTTPError) as error:
        add("two")
    assert error.value.response.status_code == 412
    assert api.model_info("me/lock").sha == first
    assert "two.txt" not in api.list_repo_files("me/lock")


def send_commit(hub: EmbeddedHub, repo: str, name: str, parent: str | None) -> int:
    content = base64.b64encode(name.encode()).decode()
    header = {"summary": name, "description": "", **({"parentCommit": parent} if parent else {})}
    lines = [
        {"key": "header", "value": header},
        {"key": "file", "value": {"path": f"{name}.txt", "content": content, "encoding": "base64"}},
    ]
    payload = "\n".join(json.dumps(line) for line in lines).encode()
    return ask(hub, f"/api/models/{repo}/commit/main", method="POST", user="me", data=payload).status


def in_threads(count: int, work: Callable[[int], None]) -> None:
    gate = threading.Barrier(count)

    def run(index: int) -> None:
        gate.wait()
        work(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_of_commits_at_once_on_one_parent_exactly_one_wins(hub: EmbeddedHub, hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/race")
    start = api.model_info("me/race").sha
    found: list[int] = []
    in_threads(6, lambda index: found.append(send_commit(hub, "me/race", f"n{index}", start)))
    assert sorted(found) == [200, 412, 412, 412, 412, 412]
    assert len(api.list_repo_commits("me/race")) == 2


def test_commits_at_once_without_a_parent_all_arrive_in_one_line(hub: EmbeddedHub, hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/queue")
    found: list[int] = []
    in_threads(8, lambda index: found.append(send_commit(hub, "me/queue", f"n{index}", None)))
    assert found == [200] * 8
    assert len(api.list_repo_commits("me/queue")) == 9
    assert {f"n{index}.txt" for index in range(8)} <= set(api.list_repo_files("me/queue"))


def test_commit_that_names_a_missing_object_changes_nothing(hub: EmbeddedHub, hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/atomic")
    before = api.model_info("me/atomic").sha
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": "a.txt", "content": "YQ==", "encoding": "base64"}},
        {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}},
    ]
    payload = "\n".join(json.dumps(line) for line in lines).encode()
    answer = ask(hub, "/api/models/me/atomic/commit/main", method="POST", user="me", data=payload)
    assert answer.status == 400
    assert "upload the LFS object" in answer.json["error"]
    assert api.model_info("me/atomic").sha == before


@pytest.mark.parametrize(
    "lines",
    [
        [{"key": "file", "value": {"path": "a.txt", "content": "YQ==", "encoding": "base64"}}],
        [{"key": "header", "value": {"summary": "x"}}, {"key": "explode", "value": {}}],
        [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": {"path": "../a", "content": ""}}],
        [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": {"path": "/a", "content": ""}}],
        [{"key": "header", "value": {"summary": "x"}}, {"key": "deletedFolder", "value": {"path": "../.."}}],
        [
            {"key": "header", "value": {"summary": "x"}},
            {"key": "file", "value": {"path": "a", "content": "version https://git-lfs.github.com/spec/v1\noid x"}},
        ],
        [{"key": "header", "value": {"summary": "\ud800"}}],
        ["nothing"],
    ],
)
def test_malformed_commit_is_refused(hub: EmbeddedHub, hub_api: Api, lines: list[object]) -> None:
    hub_api("me").create_repo("me/malformed", exist_ok=True)
    payload = "\n".join(json.dumps(line) for line in lines).encode()
    answer = ask(hub, "/api/models/me/malformed/commit/main", method="POST", user="me", data=payload)
    assert answer.status == 400


def test_branches_and_tags(hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/refs")
    first = api.upload_file(path_or_fileobj=b"1", path_in_repo="v.txt", repo_id="me/refs").oid
    api.create_branch("me/refs", branch="feature/one")
    api.create_tag("me/refs", tag="v1", tag_message="first")
    api.upload_file(path_or_fileobj=b"2", path_in_repo="v.txt", repo_id="me/refs", revision="feature/one")
    assert Path(api.hf_hub_download("me/refs", "v.txt", revision="feature/one")).read_bytes() == b"2"
    assert Path(api.hf_hub_download("me/refs", "v.txt", revision="v1")).read_bytes() == b"1"
    assert Path(api.hf_hub_download("me/refs", "v.txt", revision=first[:8])).read_bytes() == b"1"
    refs = api.list_repo_refs("me/refs")
    assert {ref.name for ref in refs.branches} == {"main", "feature/one"}
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", first)]
    with pytest.raises(HfHubHTTPError) as error:
        api.create_branch("me/refs", branch="feature/one")
    assert error.value.response.status_code == 409
    api.create_branch("me/refs", branch="feature/one", exist_ok=True)
    with pytest.raises(HfHubHTTPError):
        api.create_tag("me/refs", tag="v1")
    api.create_branch("me/refs", branch="old", revision="v1")
    assert api.model_info("me/refs", revision="old").sha == first
    api.delete_branch("me/refs", branch="old")
    api.delete_tag("me/refs", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("me/refs", revision="v1")
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/refs", revision="nowhere")
    with pytest.raises(HfHubHTTPError):
        api.delete_branch("me/refs", branch="main")


def test_pull_request_by_commit_and_by_folder(hub_api: Api, tmp_path: Path) -> None:
    api, guest = hub_api("me"), hub_api("guest")
    api.create_repo("me/pulls")
    api.upload_file(path_or_fileobj=b"one\n", path_in_repo="a.txt", repo_id="me/pulls")
    change = CommitOperationAdd("a.txt", b"two\n")
    opened = guest.create_commit("me/pulls", [change], commit_message="better", create_pr=True)
    assert (opened.pr_num, opened.pr_revision) == (1, "refs/pr/1")
    assert Path(api.hf_hub_download("me/pulls", "a.txt", revision="refs/pr/1")).read_bytes() == b"two\n"
    assert Path(api.hf_hub_download("me/pulls", "a.txt")).read_bytes() == b"one\n"
    details = api.get_discussion_details("me/pulls", 1)
    assert (details.status, details.target_branch, details.conflicting_files) == ("open", "refs/heads/main", [])
    assert "-one\n+two" in details.diff
    (tmp_path / "w.bin").write_bytes(noise(6, 3000))
    second = guest.upload_folder(repo_id="me/pulls", folder_path=tmp_path, create_pr=True)
    assert second.pr_num == 2
    with pytest.raises(HfHubHTTPError) as error:
        guest.merge_pull_request("me/pulls", 1)
    assert error.value.response.status_code == 403
    api.merge_pull_request("me/pulls", 1, comment="thanks")
    api.merge_pull_request("me/pulls", 2)
    assert Path(api.hf_hub_download("me/pulls", "a.txt")).read_bytes() == b"two\n"
    assert "w.bin" in api.list_repo_files("me/pulls")
    merged = api.get_discussion_details("me/pulls", 1)
    assert (merged.status, merged.merge_commit_oid is not None) == ("merged", True)
    refs = api.list_repo_refs("me/pulls", include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1", "refs/pr/2"]
    with pytest.raises(HfHubHTTPError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/pulls", revision="refs/pr/1")


def test_conflicting_pull_request_is_not_merged(hub_api: Api) -> None:
    api, guest = hub_api("me"), hub_api("guest")
    api.create_repo("me/conflict")
    guest.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="me/conflict", create_pr=True)
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="me/conflict")
    assert api.get_discussion_details("me/conflict", 1).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError, match="conflicts") as error:
        api.merge_pull_request("me/conflict", 1)
    assert error.value.response.status_code == 409
    guest.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="me/conflict", revision="refs/pr/1")
    api.merge_pull_request("me/conflict", 1)


def test_discussions(hub_api: Api) -> None:
    api, guest = hub_api("me"), hub_api("guest")
    api.create_repo("me/talk")
    opened = guest.create_discussion("me/talk", "A question", description="Why?")
    reply = api.comment_discussion("me/talk", opened.num, "Because.")
    assert reply.content == "Because."
    api.edit_discussion_comment("me/talk", opened.num, reply.id, "Since it is so.")
    guest.rename_discussion("me/talk", opened.num, "An old question")
    api.change_discussion_status("me/talk", opened.num, "closed", comment="done")
    details = api.get_discussion_details("me/talk", opened.num)
    assert (details.title, details.status) == ("An old question", "closed")
    assert [event.type for event in details.events] == [
        "comment",
        "comment",
        "title-change",
        "comment",
        "status-change",
    ]
    assert [item.num for item in api.get_repo_discussions("me/talk", discussion_status="closed")] == [1]
    assert list(api.get_repo_discussions("me/talk", discussion_type="pull_request")) == []
    with pytest.raises(HfHubHTTPError):
        api.get_discussion_details("me/talk", 99)
    with pytest.raises(HfHubHTTPError):
        guest.edit_discussion_comment("me/talk", opened.num, reply.id, "mine now")
