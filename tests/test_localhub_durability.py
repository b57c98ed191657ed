"""What was acknowledged is there after a restart, also after a kill; seeding; opening."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from localhub_helpers import ROOT, ask

from hubprune.errors import OutputError, UsageError
from hubprune.localhub import EmbeddedHub, Store, parse_users, seed_folder

SERVER = """
import sys
import time
from hubprune.localhub import serve
serve(sys.argv[1], port=int(sys.argv[2]), users={"me": "hf_a"}, pro={"me"})
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(folder: Path, port: int) -> subprocess.Popen[str]:
    """Start a server process and wait for the last line that it prints before it serves."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Press"):
            break
    assert f"export HF_ENDPOINT=http://127.0.0.1:{port}" in "".join(lines), "".join(lines)
    return process


def stop(process: subprocess.Popen[str], how: signal.Signals) -> str:
    process.send_signal(how)
    rest, _ = process.communicate(timeout=20)
    return rest


def test_pushed_files_survive_kill_minus_nine(tmp_path: Path) -> None:
    folder, port = tmp_path / "hub", free_port()
    content = os.urandom(300_000)
    process = start_server(folder, port)
    try:
        api = HfApi(endpoint=f"http://127.0.0.1:{port}", token="hf_a")
        api.create_repo("me/kept")
        oid = api.upload_file(path_or_fileobj=content, path_in_repo="w.bin", repo_id="me/kept").oid
    finally:
        stop(process, signal.SIGKILL)
    for name, age in (("old", 2 * 86_400), ("young", 60)):
        (folder / "tmp" / name).write_bytes(b"cut short")
        os.utime(folder / "tmp" / name, (time.time() - age,) * 2)
    process = start_server(folder, port)
    try:
        assert api.model_info("me/kept").sha == oid
        assert Path(api.hf_hub_download("me/kept", "w.bin", force_download=True)).read_bytes() == content
        assert [path.name for path in (folder / "tmp").iterdir()] == ["young"]
        api.upload_file(path_or_fileobj=b"more", path_in_repo="more.txt", repo_id="me/kept")
    finally:
        said = stop(process, signal.SIGINT)
    assert "Stopped." in said
    assert process.returncode == 0


def test_everything_is_there_again_with_the_next_start(tmp_path: Path) -> None:
    users = {"me": "hf_a", "guest": "hf_b"}
    with EmbeddedHub(tmp_path, users=users, pro={"me"}) as hub:
        api = HfApi(endpoint=hub.url, token="hf_a")
        api.create_repo("me/space", repo_type="space", space_sdk="gradio", private=True)
        api.add_space_variable("me/space", "A", "1")
        api.create_repo("me/data", repo_type="dataset")
        api.upload_file(
            path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/data", repo_type="dataset", create_pr=True
        )
        before = api.dataset_info("me/data").sha
    with EmbeddedHub(tmp_path, users=users, pro={"me"}) as hub:
        api = HfApi(endpoint=hub.url, token="hf_a")
        assert api.get_space_variables("me/space")["A"].value == "1"
        assert api.space_info("me/space").private
        assert api.dataset_info("me/data").sha == before
        api.merge_pull_request("me/data", 1, repo_type="dataset")
        assert "x.txt" in api.list_repo_files("me/data", repo_type="dataset")


def test_seeding_is_idempotent_and_its_commits_are_the_same_everywhere(tmp_path: Path) -> None:
    source = tmp_path / "seed"
    model = source / "models" / "org" / "model"
    (model / "sub").mkdir(parents=True)
    (model / "README.md").write_text("---\nlicense: mit\n---\n# hi\n")
    (model / "sub" / "w.safetensors").write_bytes(os.urandom(1000))
    space = source / "spaces" / "org" / "app"
    space.mkdir(parents=True)
    (space / "README.md").write_text("---\nsdk: static\n---\n")
    (space / ".git").mkdir()
    (space / ".git" / "config").write_text("not content")
    shas = []
    for name in ("one", "two"):
        store = Store(tmp_path / name)
        assert seed_folder(store, source) == ["models/org/model", "spaces/org/app"]
        assert seed_folder(store, source) == []
        store.close()
        with EmbeddedHub(tmp_path / name, seed=[source]) as hub:
            api = HfApi(endpoint=hub.url, token=False)
            shas.append(api.model_info("org/model").sha)
            assert len(api.list_repo_commits("org/model")) == 1
            assert api.list_repo_files("org/app", repo_type="space") == ["README.md"]
            assert api.space_info("org/app").sdk == "static"
            with pytest.raises(Exception, match="401"):
                api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="org/model")
    assert shas[0] == shas[1]
    (model / "README.md").write_text("# changed\n")
    with EmbeddedHub(tmp_path / "one", seed=[source]) as hub:
        api = HfApi(endpoint=hub.url, token=False)
        assert len(api.list_repo_commits("org/model")) == 2


def test_folder_that_cannot_be_seeded_or_used_says_why(tmp_path: Path) -> None:
    store = Store(tmp_path / "hub")
    with pytest.raises(UsageError, match="models/<namespace>/<name>"):
        seed_folder(store, tmp_path)
    pointer = tmp_path / "seed" / "models" / "a" / "b" / "w.bin"
    pointer.parent.mkdir(parents=True)
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UsageError, match="LFS pointer"):
        seed_folder(store, tmp_path / "seed")
    store.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="must be writable"):
        Store(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "hub.sqlite").write_text("not a database, but long enough to be looked at " * 20)
    with pytest.raises(OutputError, match="database of the Hub"):
        Store(tmp_path / "other")


def test_port_in_use_is_one_clear_error(tmp_path: Path, hub: EmbeddedHub) -> None:
    with pytest.raises(OutputError, match="choose another port"):
        EmbeddedHub(tmp_path, port=hub.port).prepare()


def test_users_are_read_from_the_command_line() -> None:
    assert parse_users(["me:hf_a:pro", "guest:hf_b"]) == ({"me": "hf_a", "guest": "hf_b"}, {"me"})
    for bad in (["me"], ["me:"], [":x"], ["me:x:gold"], ["me:x", "me:y"]):
        with pytest.raises(UsageError, match="NAME:TOKEN") as error:
            parse_users(bad)
        assert "gold" not in str(error.value)
    with pytest.raises(UsageError, match="a token of their own"):
        EmbeddedHub("x", users={"a": "same", "b": "same"})
    with pytest.raises(UsageError, match="not declared: b"):
        EmbeddedHub("x", users={"a": "t"}, pro={"b"})


def test_only_this_machine_is_served_unless_asked(hub: EmbeddedHub, tmp_path: Path) -> None:
    assert hub.url.startswith("http://127.0.0.1:")
    assert ask(hub, "/", headers={"Host": "evil.example"}).status == 421
    assert ask(hub, "/", headers={"Host": f"localhost:{hub.port}"}).status == 200
    with EmbeddedHub(tmp_path, host="0.0.0.0") as public:
        public.host = "127.0.0.1"
        assert ask(public, "/", headers={"Host": "box.example"}).status == 200


def test_environment_for_a_client_process(hub: EmbeddedHub) -> None:
    env = hub.env("me")
    assert (env["HF_ENDPOINT"], env["HF_TOKEN"]) == (hub.url, hub.token("me"))
    assert "HF_TOKEN" not in hub.env(None)
    with pytest.raises(UsageError, match="the users of this Hub are me, guest"):
        hub.env("nobody")


def test_import_is_light() -> None:
    code = (
        "import sys, hubprune.localhub; print({'starlette', 'uvicorn', 'jinja2', 'sqlite3', 'lz4'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
