"""Jobs of the embedded Hub: what the ordinary client sends is run, shown, ended, and kept to its owner."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, JobHardware
from huggingface_hub.errors import HfHubHTTPError
from localhub_helpers import ROOT, ask

import hubprune
from hubprune.localhub import EmbeddedHub
from hubprune.localhub.jobspec import local_command

Api = Callable[[str | None], HfApi]

SECRET = "not to be seen"
SLEEP = "import time; print('asleep', flush=True); time.sleep(60)"
# Starts a process of its own that does not want to end, and says which.
STUBBORN = """
import subprocess, sys, time
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code])
print("child", child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def api(hub_api: Api) -> HfApi:
    return hub_api("me")


def run(api: HfApi, code: str, **options: Any) -> Any:
    """Submit Python code."""
    return api.run_job(image="python:3.12", command=["python", "-c", code], namespace="me", **options)


def ended(api: HfApi, job: Any) -> tuple[Any, list[str]]:
    """A job that has ended, and its log."""
    lines = list(api.fetch_job_logs(job_id=job.id, namespace=job.owner.name, follow=True))
    return api.inspect_job(job_id=job.id, namespace=job.owner.name), lines


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def child_of(hub: EmbeddedHub, job: Any) -> int:
    """The process that STUBBORN started."""
    log = wait_until(lambda: re.search(r"child (\d+)", ask(hub, f"/jobs/me/{job.id}", user="me").text))
    return int(log[1])


def test_command_runs_in_a_folder_of_its_own_with_its_variables_alone(
    hub: EmbeddedHub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVERS_OWN", "private")
    code = (
        "import json, os; from huggingface_hub import constants\n"
        "print(json.dumps([os.getcwd(), os.listdir(), constants.ENDPOINT, constants.HF_HOME]))\n"
        "print(os.environ['GREETING'], len(os.environ['WORD']), os.environ.get('SERVERS_OWN'), os.environ['JOB_ID'])\n"
        "print('told', os.environ['WORD'])\n"
    )
    job, lines = ended(api, run(api, code, env={"GREETING": "hello"}, secrets={"WORD": SECRET}, timeout="1.5m"))
    assert (job.status.stage, job.status.message) == ("COMPLETED", None)
    assert job.url == f"{hub.url}/jobs/me/{job.id}"
    assert (job.flavor, job.docker_image, job.command[0]) == ("cpu-basic", "python:3.12", "python")
    assert (job.environment, list(job.secrets)) == ({"GREETING": "hello"}, ["WORD"])
    assert (job.owner.name, job.initiator.name, job.owner.type) == ("me", "me", "user")
    assert job.created_at <= job.started_at <= job.finished_at
    said, facts, greeting, told = lines
    assert said == f"embedded Hub: run on this machine with {sys.executable}; no container"
    folder, files, endpoint, home = json.loads(facts)
    assert (files, endpoint) == (["tmp"], hub.url)
    assert Path(home).parent == Path(folder)
    assert not Path(folder).exists()
    assert greeting == f"hello {len(SECRET)} None {job.id}"
    assert told == "told ***"
    for path in (f"/api/jobs/me/{job.id}", f"/api/jobs/me/{job.id}/logs", "/api/jobs/me", f"/jobs/me/{job.id}"):
        assert SECRET not in ask(hub, path, user="me").text


def test_uv_job_runs_the_command_with_what_is_installed_here(api: HfApi) -> None:
    with pytest.warns(UserWarning, match="experimental"):
        job = api.run_uv_job("hubprune", script_args=["--version"], dependencies=["hubprune==9", "x"], namespace="me")
    job, lines = ended(api, job)
    assert job.status.stage == "COMPLETED"
    assert job.command == ["uv", "run", "--with", "hubprune==9", "--with", "x", "hubprune", "--version"]
    assert lines[0].endswith("; taken as they are here, not installed: hubprune==9, x")
    assert lines[1:] == [f"hubprune {hubprune.__version__}"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("python", "-c", "1"), [sys.executable, "-c", "1"]),
        (("uv", "run", "--python", "3.12", "-q", "python3", "x.py"), [sys.executable, "x.py"]),
        (("uv", "run", "pytest", "-q"), [str(Path(sys.executable).with_name("pytest")), "-q"]),
        (("uv", "run", "json", "--uv", "run"), ["json", "--uv", "run"]),
        (("uv", "run", "ensurepip", "-h"), [sys.executable, "-m", "ensurepip", "-h"]),
        (("/bin/echo", "uv", "run"), ["/bin/echo", "uv", "run"]),
    ],
)
def test_command_of_a_container_becomes_one_of_this_machine(command: tuple[str, ...], expected: list[str]) -> None:
    assert local_command(command)[0] == expected


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["python", "-c", "print('so far'); raise SystemExit(3)"], "Job failed with exit code: 3"),
        (["no-such-program"], "Job cannot be started: .*no-such-program"),
        (["uv", "run", "https://hub.example/x.py"], "Job cannot be started: uv run needs a command here"),
        (["uv", "run"], "Job cannot be started: uv run needs a command here"),
        (["python", "-c", "import os; os.kill(os.getpid(), 9)"], "Job failed with exit code: -9"),
    ],
)
def test_failure_is_told(api: HfApi, command: list[str], told: str) -> None:
    job, lines = ended(api, api.run_job(image="any", command=command, namespace="me"))
    assert job.status.stage == "ERROR"
    assert re.match(told, job.status.message)
    assert ("so far" in lines) == ("so far" in command[-1])


def test_time_limit_ends_all_processes(hub: EmbeddedHub, api: HfApi) -> None:
    job = run(api, STUBBORN, timeout=1)
    child = child_of(hub, job)
    job, _ = ended(api, job)
    assert (job.status.stage, job.status.message) == ("ERROR", "Job timeout: it was ended after 1 seconds")
    wait_until(lambda: not is_alive(child))


def test_cancelling_ends_all_processes(hub: EmbeddedHub, api: HfApi) -> None:
    job = run(api, STUBBORN)
    child = child_of(hub, job)
    assert api.inspect_job(job_id=job.id).status.stage == "RUNNING"
    api.cancel_job(job_id=job.id)
    job = api.inspect_job(job_id=job.id)
    assert (job.status.stage, job.status.message) == ("CANCELED", None)
    wait_until(lambda: not is_alive(child))
    api.cancel_job(job_id=job.id)
    assert api.inspect_job(job_id=job.id).status.stage == "CANCELED"


def test_what_a_job_leaves_running_ends_with_it(api: HfApi) -> None:
    code = STUBBORN.removesuffix("time.sleep(60)\n")
    job, lines = ended(api, run(api, code))
    assert job.status.stage == "COMPLETED"
    wait_until(lambda: not is_alive(int(lines[-1].split()[1])))


def test_log_is_followed_while_it_grows_and_can_be_cut(api: HfApi) -> None:
    job = run(api, "print(1); print(2); " + SLEEP)
    lines = []
    for line in api.fetch_job_logs(job_id=job.id, follow=True):
        lines.append(line)
        if line == "asleep":
            assert api.inspect_job(job_id=job.id).status.stage == "RUNNING"
            api.cancel_job(job_id=job.id)
    assert lines[1:] == ["1", "2", "asleep"]
    assert list(api.fetch_job_logs(job_id=job.id)) == lines
    assert list(api.fetch_job_logs(job_id=job.id, tail=2)) == ["2", "asleep"]


def test_jobs_are_listed_newest_first_and_by_stage_and_label(api: HfApi) -> None:
    first = run(api, "1", labels={"run": "list"})
    second = run(api, "raise SystemExit(1)", labels={"run": "list", "kind": "bad"})
    ended(api, first), ended(api, second)
    assert [job.id for job in api.list_jobs(namespace="me", labels={"run": "list"})] == [second.id, first.id]
    assert [job.id for job in api.list_jobs(namespace="me", labels={"run": "list", "kind": "bad"})] == [second.id]
    found = api.list_jobs(namespace="me", labels={"run": "list"}, status=["COMPLETED", "RUNNING"])
    assert [job.id for job in found] == [first.id]


def test_machines_are_those_that_the_client_knows(api: HfApi) -> None:
    assert {machine.name for machine in api.list_jobs_hardware()} == {flavor.value for flavor in JobHardware}


def test_only_who_owns_the_namespace_runs_and_sees_jobs(hub: EmbeddedHub, api: HfApi, hub_api: Api) -> None:
    job = run(api, "print('mine')")
    ended(api, job)
    body = {"command": ["true"]}
    for path in (f"/api/jobs/me/{job.id}", f"/api/jobs/me/{job.id}/logs", "/api/jobs/me", f"/jobs/me/{job.id}"):
        assert ask(hub, path).status == 401
        answer = ask(hub, path, user="guest")
        assert (answer.status, "mine" in answer.text) == (403, False)
    for path in ("/api/jobs/me", f"/api/jobs/me/{job.id}/cancel"):
        assert ask(hub, path, method="POST", data=body).status == 401
        assert ask(hub, path, method="POST", data=body, user="guest").status == 403
    assert ask(hub, "/api/jobs/me", headers={"Authorization": "Bearer hf_wrong"}).status == 401
    # A cookie, which a browser sends along with what a page elsewhere makes it ask for, only ever reads.
    cookie = {"Cookie": f"localhub_token={hub.token('me')}"}
    assert ask(hub, "/api/jobs/me", method="POST", data=body, headers=cookie).status == 401
    assert ask(hub, f"/jobs/me/{job.id}", headers=cookie).status == 200
    assert ask(hub, f"/api/jobs/guest/{job.id}", user="guest").status == 404
    shared, _ = ended(api, api.run_job(image="any", command=["true"], namespace="acme"))
    assert (shared.owner.name, shared.owner.type, shared.initiator.name) == ("acme", "org", "me")
    with pytest.raises(HfHubHTTPError, match="guest may not run or see jobs of acme"):
        hub_api("guest").inspect_job(job_id=shared.id, namespace="acme")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "command is not empty"),
        ({"command": "true"}, "arrays of text"),
        ({"command": ["a", 1]}, "arrays of text"),
        ({"command": ["a\0b"]}, "arrays of text"),
        ({"command": ["true"], "flavor": "cray"}, "flavor is one of cpu-basic"),
        ({"command": ["true"], "timeoutSeconds": -1}, "timeoutSeconds is a number above 0; got -1"),
        ({"command": ["true"], "timeoutSeconds": "2h"}, "got '2h'"),
        ({"command": ["true"], "secrets": ["a"]}, "secrets must be an object"),
        ({"command": ["true"], "environment": {"A B": "c"}}, "a variable name has letters"),
        ({"command": ["true"], "secrets": {"A": "b\0c"}}, "a value of secrets is text"),
        ({"command": ["true"], "volumes": [{}], "ssh": {"enabled": True}}, "leave out ssh, volumes"),
        ({"command": ["true"], "attempts": 3}, "leave out attempts"),
    ],
)
def test_job_that_cannot_be_run_is_refused(hub: EmbeddedHub, body: dict[str, Any], told: str) -> None:
    answer = ask(hub, "/api/jobs/me", method="POST", data=body, user="me")
    assert (answer.status, told in answer.json["error"]) == (400, True), answer.text


def test_page_shows_the_job_and_runs_nothing_of_its_log(hub: EmbeddedHub, api: HfApi) -> None:
    job, _ = ended(api, run(api, "print('<script>alert(1)</script>')", secrets={"WORD": SECRET}))
    text = ask(hub, f"/jobs/me/{job.id}", user="me").text
    assert "COMPLETED" in text
    assert "&lt;script&gt;alert(1)" in text
    assert "<script" not in text
    assert "WORD" in text
    assert ask(hub, "/jobs/me/0123", user="me").status == 404


def test_hub_without_jobs_answers_like_the_public_one_without_credit(tmp_path: Path) -> None:
    with EmbeddedHub(tmp_path, users={"me": "hf_test_me"}) as hub:
        api = HfApi(endpoint=hub.url, token="hf_test_me")
        with pytest.raises(HfHubHTTPError, match="serve it with --allow-jobs") as caught:
            run(api, "1")
        assert caught.value.response.status_code == 402
        assert ask(hub, "/api/jobs/me", user="me").status == 402


def test_stopping_the_hub_ends_its_jobs_and_those_who_follow(tmp_path: Path) -> None:
    logs: list[str] = []
    with EmbeddedHub(tmp_path, users={"me": "hf_test_me"}, allow_jobs=True) as hub:
        api = HfApi(endpoint=hub.url, token="hf_test_me")
        job = run(api, STUBBORN)
        child = child_of(hub, job)
        path = f"/api/jobs/me/{job.id}/logs"
        follower = threading.Thread(target=lambda: logs.append(ask(hub, path, user="me").text), daemon=True)
        follower.start()
        time.sleep(0.3)
        began = time.monotonic()
    assert time.monotonic() - began < 2
    follower.join(10)
    assert f"child {child}" in logs[0]
    assert not is_alive(child)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Hub served with jobs by the command line, and what it said."""
    words = ["hub", "serve", "hub", "--port", "0", "--user", "me:hf_test_me", "--allow-jobs"]
    with subprocess.Popen(
        [sys.executable, "-m", "hubprune", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as serving:
        assert serving.stdout is not None
        said = ""
        while "Ctrl+C" not in said:
            said += serving.stdout.readline()
            assert serving.poll() is None, said
        yield serving, said
        serving.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_served_hub_says_that_jobs_are_on_and_ends_them(
    served: tuple[subprocess.Popen[str], str], number: signal.Signals
) -> None:
    serving, said = served
    assert "Jobs are on: whoever has a token runs commands on this machine, with your rights." in said
    address = re.search(r"HF_ENDPOINT=(\S+)", said)
    assert address is not None
    api = HfApi(endpoint=address[1], token="hf_test_me")
    job = run(api, "import os; print('pid', os.getpid(), flush=True)\n" + SLEEP)
    log = iter(api.fetch_job_logs(job_id=job.id, follow=True))
    pid = int(next(line for line in log if line.startswith("pid ")).split()[1])
    assert is_alive(pid)
    serving.send_signal(number)
    serving.wait(20)
    assert not is_alive(pid)
