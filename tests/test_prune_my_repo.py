"""The Space prune-my-repo without a browser: what it lets a visitor ask for, and what it keeps to itself."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi

import hubprune
from hubprune.localhub import EmbeddedHub, cards
from hubprune.localhub.grants import Asked
from hubprune.presets import CORPORA, METHODS

FOLDER = Path(__file__).resolve().parents[1] / "spaces" / "prune-my-repo"
BASE, GENERAL, MEDICAL = "hubprune-demo/tiny-base", "hubprune-demo/general", "hubprune-demo/medical"
Api = Callable[[str | None], HfApi]


@pytest.fixture(scope="module")
def space() -> Iterator[SimpleNamespace]:
    """The modules of the Space, imported as its own process would."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in ("wanted", "work", "ask", "app")})
    finally:
        sys.path.remove(str(FOLDER))
        for name in {"wanted", "work", "ask", "show", "app"} - before:
            sys.modules.pop(name, None)


@pytest.fixture
def wanted(space: SimpleNamespace) -> Any:
    return space.wanted.Wanted(BASE, MEDICAL, GENERAL, "d-pruner", 0.5, samples=4, length=32)


def test_its_files_say_what_a_space_needs() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert cards.problems(text, "space") == ([], [])
    head = cards.split(text)[0]
    assert head["hf_oauth"] is True
    # Nothing that lets it touch what a visitor had before.
    assert head["hf_oauth_scopes"] == ["gated-repos", "contribute-repos", "jobs"]
    assert (FOLDER / "requirements.txt").read_text().split() == [f"hubprune[figures]=={hubprune.__version__}"]
    assert head["sdk_version"] == version("gradio")


def test_what_it_offers_is_what_hubprune_has(space: SimpleNamespace) -> None:
    offered = space.wanted
    assert {*offered.DOMAINS, *offered.GENERAL} == set(CORPORA)
    for name, way in offered.WAYS.items():
        method = METHODS[name]
        assert way.sparsity == method.sparsity
        assert way.shrinks == (method.application == "remove")
        assert way.texts or not method.corpora
        assert {label for label in method.corpora if label != "any"} <= set(way.texts)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"base": ""}, "choose a model"),
        ({"base": "--out=/tmp/x"}, "choose a model"),
        ({"base": "../../etc"}, "choose a model"),
        ({"base": "a/b/c"}, "choose a model"),
        ({"base": "spaces/prune-my-repo"}, "choose a model"),  # a folder of this machine, where the tests run
        ({"domain": "/etc/passwd"}, "choose domain text"),
        ({"domain": "org/rows.jsonl"}, "choose domain text"),
        ({"domain": "medical+~/notes.txt"}, "choose domain text"),
        ({"general": "--token=x"}, "choose general text"),
        ({"method": "trust"}, "choose a method"),
        ({"sparsity": 0.99}, "the fraction"),
        ({"samples": 100_000}, "at most 512 sequences"),
        ({"length": 8192}, "at most 512 sequences"),
        ({"name": "../x"}, "a name has letters"),
        ({"place": "h200x8"}, "choose where"),
    ],
)
def test_what_could_harm_is_refused(
    wanted: Any, space: SimpleNamespace, changed: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    wanted.check()
    with pytest.raises(space.wanted.Refused, match=reason):
        replace(wanted, **changed).check()


def test_data_sets_are_named_as_hubprune_reads_them(wanted: Any) -> None:
    for text in ("medical", "org/a", "org/a@v1:cfg:train?lang=de", "org/a:x+org/b"):
        replace(wanted, domain=text).check()


def test_the_command_holds_what_was_asked_and_no_token(wanted: Any) -> None:
    assert wanted.arguments("me", None) == [
        "prune",
        BASE,
        "--method=d-pruner",
        "--sparsity=0.5",
        f"--general={GENERAL}",
        f"--domain={MEDICAL}",
        "--num-samples=4",
        "--sequence-length=32",
        "--push=me/tiny-base-medical-d-pruner-50",
        "--public",
    ]
    job = replace(wanted, method="magnitude", name="mine", private=True, space=True).arguments("me", "a10g-large")
    assert job[-5:] == ["--push=me/mine", "--job=a10g-large", "--timeout=3h", "--private", "--space"]
    assert not any(word.startswith(("--general", "--domain")) for word in job)


def test_small_models_stay_here_and_large_ones_take_a_job(wanted: Any, space: SimpleNamespace) -> None:
    place, refused = space.wanted.choose_place, space.wanted.Refused
    assert place(wanted, 1_000_000, True, False) is None
    assert place(wanted, 1_000_000, False, True) == "cpu-upgrade"
    assert place(wanted, 7_000_000_000, True, True) == "a10g-large"
    assert place(replace(wanted, place="a100-large"), 7_000_000_000, True, True) == "a100-large"
    for changed, parameters, may, reason in (
        ({}, 7_000_000_000, False, "was not allowed to run jobs"),
        ({}, 70_000_000_000, True, "on a machine of yours"),
        ({"place": "here"}, 7_000_000_000, True, "too large for this Space"),
        ({"place": "t4-medium"}, 7_000_000_000, True, "choose a10g-large"),
    ):
        with pytest.raises(refused, match=reason):
            place(replace(wanted, **changed), parameters, True, may)


def test_output_is_read_as_a_terminal_shows_it(space: SimpleNamespace) -> None:
    output = space.work.Output("hf_secret")
    output.feed("one\r\n\x1b[1mtwo\x1b[0m hf_sec")
    output.feed("ret three\r\nPruning:  10%|█   | 1/10\rPruning:  50%|██  | 5/10\r")
    output.feed("New Data Upload               : | |  0.00B\nerror: mend it")
    output.close()
    assert output.lines == ["one", "two hf_… three", "error: mend it"]
    assert (output.label, output.fraction, output.error) == ("Pruning", 0.5, "mend it")


def follow(space: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, code: str, **more: Any) -> Iterator[Any]:
    """Follow a program in the place of the command."""
    monkeypatch.setattr(space.work, "COMMAND", (sys.executable, "-c", code))
    return space.work.follow([], "hf_secret", **more)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_run_knows_its_token_and_no_secret_of_the_space(
    space: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OAUTH_CLIENT_SECRET", "of the space")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_space")
    code = "import os, sys; print(os.getcwd()); print(os.environ, file=sys.stderr); sys.exit(3)"
    *_, last = follow(space, monkeypatch, code)
    folder, *told = last.output.lines
    assert last.code == 3
    assert "hf_…" in "".join(told)  # it has the token, and what it says of it is not shown
    assert "hf_secret" not in "".join(told)
    assert "of the space" not in "".join(told)
    assert "hf_of_the_space" not in "".join(told)
    assert not Path(folder).exists()


def test_a_run_ends_when_it_takes_too_long_or_nobody_listens(
    space: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space.work, "POLL", 0.05)
    sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    *_, last = follow(space, monkeypatch, sleeper, limit=1)
    assert last.late
    assert last.code != 0
    running = follow(space, monkeypatch, sleeper)
    while not (lines := next(running).output.lines):
        pass
    assert is_alive(int(lines[0]))
    running.close()
    time.sleep(0.05)
    assert not is_alive(int(lines[0]))


def test_a_visitor_has_one_run_at_a_time(space: SimpleNamespace) -> None:
    with space.app.one_run_of("me"):
        with space.app.one_run_of("guest"):
            pass
        with pytest.raises(space.wanted.Refused, match="under way"), space.app.one_run_of("me"):
            pass
    with space.app.one_run_of("me"):
        pass


def test_who_is_not_logged_in_may_look_but_starts_nothing(space: SimpleNamespace, demo_hub: EmbeddedHub) -> None:
    assert space.ask.secret(None) is False  # never the Space's own token
    typed = SimpleNamespace(input_value="tiny-b")
    assert space.ask.search_models(typed, None)["choices"] == [BASE]
    texts = space.ask.search_domains(SimpleNamespace(input_value="medical"), None)["choices"]
    assert texts[0] == ("Medical", "medical")
    assert MEDICAL in texts
    ((said, log),) = space.app.start(BASE, MEDICAL, GENERAL, "wanda", 0.5, 4, 32, "", 0, 0, "here", None, None)
    assert "Log in with Hugging Face first" in said
    assert log == ""


def test_rows_are_shown_as_they_are_read(space: SimpleNamespace, demo_hub: EmbeddedHub) -> None:
    rows = space.ask.preview(BASE, MEDICAL, GENERAL, "d-pruner", None)
    assert rows.count('<li class="domain">') == rows.count('<li class="general">') == 2
    assert space.ask.preview(BASE, MEDICAL, GENERAL, "wanda", None).count("<li") == 2
    assert "cannot read org/absent" in space.ask.preview(BASE, "org/absent", GENERAL, "wanda", None)
    assert "&lt;b&gt;" in space.app.notice("<b>")


def test_the_estimate_is_that_of_the_run(space: SimpleNamespace, demo_hub: EmbeddedHub) -> None:
    *_, last = space.app.estimate(BASE, MEDICAL, GENERAL, "wanda-sp", 0.25, 4, 32, "automatic", None)
    found = hubprune.plan(
        BASE,
        config=hubprune.PruningConfig("wanda-sp", sparsity=0.25),
        corpora={"domain": MEDICAL},
        num_samples=4,
        sequence_length=32,
        evaluation=None,
        progress=False,
        timed=False,
    )
    assert found.seconds is None
    assert found.left < found.parameters == 1_049_728
    assert f"1.05M → {found.left / 1000:.3g}k" in last
    assert "Runs on <b>this Space</b>" in last
    *_, refused = space.app.estimate("org/absent", MEDICAL, GENERAL, "wanda", 0.5, 4, 32, "automatic", None)
    assert "notice bad" in refused


def test_a_job_ends_with_a_model_and_its_space_in_the_visitors_account(
    space: SimpleNamespace, demo_hub: EmbeddedHub, hub_api: Api
) -> None:
    scopes = ("openid", "profile", *cards.split((FOLDER / "README.md").read_text("utf-8"))[0]["hf_oauth_scopes"])
    client = demo_hub.grants.register("prune-my-repo", "prune-my-repo", ["http://app"], scopes)
    code = demo_hub.grants.issue_code(Asked(client.id, "http://app", scopes, "state"), "me")
    traded = demo_hub.grants.trade(client, code, "http://app", "")
    assert traded is not None
    token = SimpleNamespace(token=traded[0], scope=" ".join(scopes))
    profile = SimpleNamespace(username="me")
    assert "me/from-the-page-by-job" not in space.ask.history(profile, token)
    run = space.app.start(
        BASE, MEDICAL, GENERAL, "wanda", 0.5, 4, 32, "from-the-page-by-job", True, True, "cpu-upgrade", profile, token
    )
    shown = list(run)
    said, log = shown[-1]
    assert "Published" in said, log
    assert "Job on cpu-upgrade" in shown[-2][0]
    assert "job completed" in log
    assert not any(traded[0] in text for moment in shown for text in moment)
    info = hub_api("me").model_info("me/from-the-page-by-job")
    assert info.private
    assert info.card_data is not None
    assert info.card_data.base_model == BASE
    beside = hub_api("me").space_info("me/from-the-page-by-job")
    assert beside.private
    assert {"app.py", "space.json", "requirements.txt"} <= {file.rfilename for file in beside.siblings or ()}
    assert space.app.JOBS == {}
    mine = space.ask.history(profile, token)
    assert "me/from-the-page-by-job" in mine
    assert "private" in mine


def test_who_stops_a_job_cancels_it(space: SimpleNamespace, demo_hub: EmbeddedHub, hub_api: Api) -> None:
    token = SimpleNamespace(token=demo_hub.token("me"), scope="jobs")
    profile = SimpleNamespace(username="me")
    run = space.app.start(
        BASE, MEDICAL, GENERAL, "wanda", 0.5, 4, 32, "stopped-by-me", True, False, "cpu-upgrade", profile, token
    )
    while "me" not in space.app.JOBS:
        next(run)
    owner, number = space.app.JOBS["me"]
    run.close()
    assert "the job was cancelled" in space.app.stop(profile, token)
    job = hub_api("me").inspect_job(job_id=number, namespace=owner)
    assert job.status.stage == "CANCELED"
    assert not hub_api("me").repo_exists("me/stopped-by-me")
    assert space.app.stop(profile, token) == space.app.notice("Stopped.")
