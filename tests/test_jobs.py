"""``hubprune prune --job``: what is refused, what is sent, and a job that is really run by the embedded Hub."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from huggingface_hub import HfApi
from huggingface_hub import errors as client
from huggingface_hub.utils import httpx

import hubprune
from hubprune import jobs
from hubprune.cli import main
from hubprune.cli.app import build
from hubprune.cli.prune import read_request
from hubprune.errors import (
    AccessError,
    ConfigError,
    HubPruneError,
    JobError,
    NotFoundError,
    OfflineError,
    UsageError,
)
from hubprune.huberrors import job_errors
from hubprune.jobs import JobPlan, follow, submit
from hubprune.localhub import EmbeddedHub
from hubprune.report import PruningReport
from tests.localhub_helpers import ROOT

Call = Callable[..., tuple[int, str, str]]

BASE = "hubprune-demo/tiny-base"
TEXT = "hubprune-demo/medical"
PLAIN = ("prune", BASE, "--method", "magnitude", "--eval", "none", "--push", "me/job", "--job", "cpu-basic")


@pytest.fixture
def call(demo_hub: EmbeddedHub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command as `me`; returns exit code, output and errors, in which no token may stand."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HF_TOKEN", demo_hub.token("me"))

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert "hf_test_" not in out + err
        return code, out, err

    return run


@pytest.fixture
def nothing_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No job may be submitted."""
    monkeypatch.setattr(HfApi, "run_uv_job", lambda *_, **__: pytest.fail("a job was submitted"))


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job prints its arguments instead of pruning."""
    monkeypatch.setattr(jobs, "COMMAND", "echo")


def line(result: tuple[int, str, str]) -> str:
    """The one line in which a mistake was told."""
    code, out, err = result
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def planned(result: tuple[int, str, str]) -> list[str]:
    """The words of the job, of a dry run."""
    code, out, err = result
    assert (code, err) == (0, ""), err
    assert "Nothing was submitted" in out
    words = re.search(r"would run  +(hubprune .*(?:\n {10,}\S.*)*)", out)
    assert words is not None
    return shlex.split(re.sub(r"\n +", "", words[1]))


# A whole job


def test_job_prunes_and_pushes_and_its_token_is_seen_nowhere(
    call: Call, demo_hub: EmbeddedHub, hub_api: Callable[..., HfApi], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    code, out, err = call(
        *PLAIN[:6], "--sparsity", "0.5", "--push", "me/by-job", "--job", "cpu-basic", "--timeout", "5m"
    )
    assert (code, err) == (0, ""), out + err
    lines = out.splitlines()
    match = re.fullmatch(rf"job on cpu-basic: ({demo_hub.url}/jobs/me/([0-9a-f]+))", lines[0])
    assert match is not None
    words = ["prune", BASE, "--method=magnitude", "--sparsity=0.5", "--eval=none", "--push=me/by-job"]
    assert shlex.split(lines[1]) == ["hubprune", *words]
    assert re.search(r"sparsity of the targeted weights +50\.00 % of ", out)
    assert "100%" not in out  # no progress bars
    assert lines[-1] == f"job completed: {demo_hub.url}/me/by-job"
    api = hub_api("me")
    job = api.inspect_job(job_id=match[2])
    assert job.command == ["uv", "run", "--with", f"hubprune=={hubprune.__version__}", "hubprune", *words]
    assert (job.status.stage, job.flavor, job.url) == ("COMPLETED", "cpu-basic", match[1])
    assert list(job.secrets or ()) == ["HF_TOKEN"]
    assert job.environment == {"COLUMNS": "200", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONUNBUFFERED": "1"}
    assert demo_hub.token("me") not in repr(job)
    model = AutoModelForCausalLM.from_pretrained("me/by-job", cache_dir=tmp_path)
    zeros = (model.model.layers[0].mlp.up_proj.weight == 0).float().mean()
    assert zeros == pytest.approx(0.5, abs=1e-3)
    report = PruningReport.load(Path(api.hf_hub_download("me/by-job", "hubprune_report.json")).parent)
    assert report.base.model_id == BASE


# What is refused before anything is sent


@pytest.mark.usefixtures("nothing_sent")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--job", "a10g-lage"], "the Hub has no machine 'a10g-lage': did you mean 'a10g-large'"),
        (["--job", "moon"], "known: a100-large, "),
        (["--job", "t4-small", "--timeout", "2"], "a timeout is a number above 0 with s, m, h or d, got '2'"),
        (["--job", "t4-small", "--timeout", "0h"], "got '0h': write 2h for two hours"),
        (["--job", "t4-small", "--timeout", "two hours"], "got 'two hours'"),
        (["--job", "t4-small", "--out", "x"], "got --out x: give --push REPO alone"),
        (["--timeout", "2h"], "--timeout goes with --job FLAVOR"),
        (["--job", "t4-small", "--sparsity", "2"], "sparsity must be"),
        (
            ["--job", "t4-small", "--commit-message", "As in run.yaml"],
            "takes the word '--commit-message=As in run.yaml'",
        ),
        (["--job", "t4-small", "--commit-message", "x" * 300], "for a file of this machine"),
        (["--job", "t4-small", "--domain", "notes.txt"], "a job sees nothing of this machine, got notes.txt"),
        (["--job", "t4-small", "--domain", "./notes"], "got ./notes"),
        (["--job", "t4-small", "--general", f"{TEXT}+/data/rows"], "got /data/rows"),
        (["--job", "t4-small", "--eval", "a=~/rows.csv.gz"], "got ~/rows.csv.gz: push it to the Hub"),
        (["--job", "t4-small", "--eval", "a=folder/rows"], "got folder/rows"),
    ],
)
def test_mistake_is_told_before_anything_is_sent(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], told: str
) -> None:
    (tmp_path / "folder" / "rows").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert told in line(call("prune", BASE, "--method", "magnitude", "--push", "me/job", *words))


@pytest.mark.usefixtures("nothing_sent")
def test_every_reason_against_a_job_is_told_at_once(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "run.yaml").write_text("domain: [a text of my own]\nmethod: wanda\n")
    words = ("prune", BASE, "--config", tmp_path / "run.yaml", "--job", "moon", "--timeout", "soon", "--out", tmp_path)
    told = line(call(*words))
    for reason in ("give --push REPO", "got --out", "several processes", "(domain)", "'moon'", "'soon'"):
        assert reason in told, reason


@pytest.mark.usefixtures("nothing_sent")
@pytest.mark.parametrize("base", ["./model", "/model", "~/model", "here/model"])
def test_folder_of_this_machine_is_no_base(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: str
) -> None:
    (tmp_path / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert f"got {base}: push it to the Hub and name the repository" in line(call("prune", base, *PLAIN[2:]))


@pytest.mark.usefixtures("nothing_sent")
def test_hub_is_asked_before_a_machine_is_paid_for(
    call: Call, demo_hub: EmbeddedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no model at" in line(call("prune", "me/absent", *PLAIN[2:]))
    assert "no such branch" in line(call(*PLAIN, "--revision", "v9"))
    assert "there is no data set at" in line(call(*PLAIN, "--domain", "me/absent"))
    assert "me may not create it" in line(call(*PLAIN, "--push", "guest/x"))
    assert "valid" in line(call(*PLAIN, "--token", "hf_wrong"))
    monkeypatch.delenv("HF_TOKEN")
    assert "it needs a token and there is none" in line(call(*PLAIN))


def test_word_that_is_a_file_here_is_no_word_of_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    JobPlan(("prune", "wanda"), "t4-small")
    for name in ("wanda", "hubprune"):
        (tmp_path / name).write_text("")
        with pytest.raises(ConfigError, match=f"takes the word '{name}' for a file"):
            JobPlan(("prune", "wanda"), "t4-small")
        (tmp_path / name).unlink()


@pytest.mark.parametrize("timeout", ["90s", "1.5h", "30m", "2d", None])
def test_times_that_the_hub_takes_are_taken(timeout: str | None) -> None:
    assert JobPlan(("prune",), "cpu-basic", timeout).timeout == timeout


def test_what_is_installed_is_this_version_or_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert JobPlan((), "cpu-basic").requirement == f"hubprune=={hubprune.__version__}"
    monkeypatch.setenv("HUBPRUNE_JOB_REQUIREMENT", "hubprune @ git+https://hub.example/hubprune")
    assert JobPlan((), "cpu-basic").requirement == "hubprune @ git+https://hub.example/hubprune"
    monkeypatch.setenv("HUBPRUNE_JOB_REQUIREMENT", "hubprune @ git+https://me:word@hub.example/hubprune")
    with pytest.raises(ConfigError, match="holds a password") as caught:
        JobPlan((), "cpu-basic")
    assert "me:word" not in str(caught.value)


# The words of the job


@pytest.mark.usefixtures("nothing_sent")
def test_dry_run_says_what_would_be_submitted(call: Call) -> None:
    code, out, err = call(*PLAIN, "--timeout", "2h", "--dry-run")
    assert (code, err) == (0, "")
    facts = dict(re.findall(r"^  (\S.*?)  +(.*?) *$", out, re.MULTILINE))
    assert facts == {
        "would run on": "cpu-basic",
        "for at most": "2h",
        "would install": f"hubprune=={hubprune.__version__}",
        "would run": f"hubprune prune {BASE} --method=magnitude --eval=none --push=me/job",
        "would push to": "me/job, a new repository",
    }


@pytest.mark.usefixtures("nothing_sent")
def test_job_is_given_the_same_request(call: Call, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        f"method: d-pruner\nsparsity: 0.7\nscope: matrix\ngeneral: {TEXT}\ndomain: legal\nnsamples: 5\n"
        f"ignore: [x, o_proj]\neval: {{held: '{TEXT}:default:test', seen: {TEXT}}}\ndevice_map: cpu\nprivate: no\n"
        "job: t4-small\n"
    )
    words = [
        *("prune", BASE, "--config", tmp_path / "run.yaml", "--pattern", "2:4", "--domain", TEXT, "--seed", "3"),
        *("--option", "general_weight=3", "--option", "form=paper", "--targets", "q_proj", "--targets", "re:.* proj"),
        *("--no-packing", "--trust-remote-code", "--create-pr", "--push", "me/job", "--commit-message", "It's done"),
    ]
    job = planned(call(*words, "--dry-run"))

    def read(*given: object) -> Any:
        command = typer.main.get_command(build()).commands["prune"]  # type: ignore[attr-defined]
        return read_request(command.make_context("prune", [str(word) for word in given]))

    assert read(*job[2:]) == read(*words[1:])
    assert "--device-map=cpu" in job
    assert not any("run.yaml" in word or "job" in word.partition("=")[0] for word in job)


@pytest.mark.usefixtures("nothing_sent")
def test_gpu_that_is_paid_for_is_used(call: Call) -> None:
    words = [*PLAIN[:-1], "a10g-large", "--dry-run"]
    assert planned(call(*words))[-1] == "--device-map=auto"
    assert "--device-map=auto" not in planned(call(*words, "--device-map", "cpu"))
    assert "--device-map=auto" not in planned(call(*PLAIN, "--dry-run"))


def test_token_among_the_words_is_refused(demo_hub: EmbeddedHub, call: Call) -> None:
    token = demo_hub.token("me")
    told = line(call(*PLAIN, "--commit-message", f"By {token}", "--token", token))
    assert "one holds your token: leave it out" in told


# How a job ends


@pytest.mark.usefixtures("echo")
def test_token_given_on_the_command_line_goes_along_as_a_secret_only(
    call: Call, demo_hub: EmbeddedHub, hub_api: Callable[..., HfApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    code, out, err = call(*PLAIN, "--token", demo_hub.token("me"))
    assert (code, err) == (0, "")
    assert out.splitlines()[-2:] == [
        f"prune {BASE} --method=magnitude --eval=none --push=me/job",
        f"job completed: {demo_hub.url}/me/job",
    ]


def test_job_that_fails_is_an_error_with_its_page(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "COMMAND", "false")
    code, out, err = call(*PLAIN)
    assert code == 2
    url = re.match(r"job on cpu-basic: (\S+)\n", out)
    assert url is not None
    assert err == (
        "error: the job ended as ERROR (Job failed with exit code: 1) without its result: mend what its log says, "
        f"{url[1]}, or give it more time with --timeout\n"
    )


def test_job_that_takes_too_long_or_is_cancelled_is_an_error(
    hub_api: Callable[..., HfApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "COMMAND", "python")
    api = hub_api("me")
    words = ("-c", "import os, time; print(os.environ['HF_TOKEN'][:3], 'asleep', flush=True); time.sleep(60)")
    job = submit(JobPlan(words, "cpu-basic", "1s"), api=api)
    with pytest.raises(JobError, match=r"ended as ERROR \(Job timeout"):
        follow(job, api=api, show=print)
    job = submit(JobPlan(words, "cpu-basic"), api=api)
    with pytest.raises(JobError, match=f"ended as CANCELED without its result: .*{job.id}"):
        follow(job, api=api, show=lambda text: "asleep" in text and api.cancel_job(job_id=job.id))


def test_log_is_shown_without_the_token(hub_api: Callable[..., HfApi], monkeypatch: pytest.MonkeyPatch) -> None:
    api, shown = hub_api("me"), []
    monkeypatch.setattr(HfApi, "fetch_job_logs", lambda *_, **__: [f"token {api.token}, and hf_home"])
    monkeypatch.setattr(jobs, "COMMAND", "true")
    follow(submit(JobPlan((), "cpu-basic"), api=api), api=api, show=shown.append)
    assert shown == ["token hf_..., and hf_home"]


@pytest.mark.usefixtures("echo")
def test_interrupted_and_lost_jobs_go_on(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(error: BaseException) -> tuple[int, str, str]:
        def refuse(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(HfApi, "fetch_job_logs", refuse)
        return call(*PLAIN)

    def remedy(out: str) -> str:
        job_id = out.partition("/jobs/me/")[2].split()[0]
        return f"the job goes on: see it with hf jobs logs -f {job_id}, end it with hf jobs cancel {job_id}"

    code, out, err = stop(KeyboardInterrupt())
    assert (code, err) == (130, f"{remedy(out)}\ninterrupted\n")
    code, out, err = stop(httpx.ConnectError("no route"))
    assert code == 2
    assert "is out of reach" in err
    assert err.endswith(f"; {remedy(out)}\n")


def test_hub_without_jobs_is_one_clear_line_and_torch_stays_out(tmp_path: Path) -> None:
    with EmbeddedHub(tmp_path / "hub", users={"me": "hf_test_me"}) as hub:
        api = HfApi(endpoint=hub.url, token="hf_test_me")
        api.create_repo("me/base")
        words = ["prune", "me/base", *PLAIN[2:]]
        code = (
            f"import sys; from hubprune.cli import main; code = main({words!r})\n"
            "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; sys.exit(code)"
        )
        env = {**os.environ, **hub.env("me"), "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr == (
        "error: cannot run a job on cpu-basic: the Hub answers 402 (this Hub runs no jobs; serve it with "
        "--allow-jobs); a job needs credit or a plan that pays for it (https://huggingface.co/docs/hub/jobs-pricing) "
        "and a token that may run jobs: get them, or leave --job out to run here\n"
    )


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (401, AccessError, "log in (hf auth login, HF_TOKEN or token=...) with a token that is valid"),
        (402, AccessError, "a job needs credit or a plan"),
        (403, AccessError, "a token that may run jobs"),
        (404, NotFoundError, "this Hub has no jobs, or not this one: check HF_ENDPOINT"),
        (429, OfflineError, "try again later"),
        (503, OfflineError, "try again later"),
        (400, HubPruneError, "the Hub answers 400 (said hf_...)"),
    ],
)
def test_answers_about_jobs_are_told_with_the_remedy(status: int, kind: type[HubPruneError], told: str) -> None:
    response = httpx.Response(status, request=httpx.Request("POST", "https://hub.example/api/jobs/me"))
    api = HfApi(endpoint="https://hub.example")
    with pytest.raises(kind) as caught, job_errors("run a job", api=api):
        raise client.HfHubHTTPError("no", response=response, server_message="said hf_Secret")
    assert told in str(caught.value)
    assert "Secret" not in str(caught.value)


@pytest.mark.parametrize("error", [httpx.ConnectError("x"), client.OfflineModeIsEnabled("x"), TimeoutError()])
def test_hub_out_of_reach_is_told(error: Exception) -> None:
    with pytest.raises(OfflineError, match="https://hub.example is out of reach, or the network is switched off"):
        with job_errors("run a job", api=HfApi(endpoint="https://hub.example")):
            raise error


def test_without_a_token_there_is_no_job(hub_api: Callable[..., HfApi]) -> None:
    with pytest.raises(AccessError, match="needs a token and there is none"):
        submit(JobPlan((), "cpu-basic"), api=hub_api(None))
    with pytest.raises(UsageError, match="one holds your token"):
        submit(JobPlan((f"x{hub_api('me').token}",), "cpu-basic"), api=hub_api("me"))


def test_hub_serve_hands_the_choice_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("hubprune.localhub.server.serve", lambda *_, allow_jobs, **__: asked.append(allow_jobs))
    assert main(["hub", "serve", str(tmp_path)]) == 0
    assert main(["hub", "serve", str(tmp_path), "--allow-jobs"]) == 0
    assert asked == [False, True]
