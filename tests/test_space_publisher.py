"""The model is published first and its Space after it; what goes wrong with the Space leaves the model as it is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitInfo, HfApi, constants
from transformers import LlamaForCausalLM

from hubprune.errors import AccessError, OutputError, SpaceError, UsageError
from hubprune.publisher import UploadPlan, check_push, publish, publish_folder
from hubprune.report import PruningReport
from hubprune.saving import save
from hubprune.space import DATA
from hubprune.space_publisher import find_model, find_place, publish_space
from hubprune.verifier import CHECKS
from tests.pruned import prune_by_hand, tiny_model


@pytest.fixture(autouse=True)
def without_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check that starts a process; test_verify.py holds it."""
    monkeypatch.delitem(CHECKS, "reload")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture(scope="module")
def report(model: LlamaForCausalLM) -> PruningReport:
    return prune_by_hand(model)


@pytest.fixture
def folder(model: LlamaForCausalLM, report: PruningReport, tmp_path: Path) -> Path:
    return save(model, tmp_path / "model", report=report)


@pytest.fixture
def api(hub_api: Callable[..., HfApi]) -> HfApi:
    return hub_api("me")


@pytest.fixture
def name(hub: Any, hub_api: Callable[..., HfApi], request: pytest.FixtureRequest) -> Iterator[str]:
    """What model and Space are called, without their owner."""
    found = request.node.name[:60]
    yield found
    for user in ("me", "guest"):
        for kind in ("model", "space"):
            hub_api(user).delete_repo(f"{user}/{found}", repo_type=kind, missing_ok=True)


def data_of(api: HfApi, space_id: str) -> dict[str, Any]:
    return json.loads(Path(api.hf_hub_download(space_id, DATA, repo_type="space")).read_text())


def test_a_model_and_its_space_are_one_commit_each(
    model: LlamaForCausalLM, report: PruningReport, api: HfApi, name: str
) -> None:
    done = publish(model, f"me/{name}", report=report, space=True, private=True, api=api)
    assert isinstance(done, CommitInfo)
    info = api.space_info(f"me/{name}")
    assert (info.sdk, info.private) == ("gradio", True)
    for kind in ("model", "space"):
        assert len(api.list_repo_commits(f"me/{name}", repo_type=kind)) == 2  # the Hub's own first one and ours
    shown = data_of(api, f"me/{name}")["pruned"]
    assert (shown["repo"], shown["revision"]) == (f"me/{name}", done.oid)
    readme = Path(api.hf_hub_download(f"me/{name}", "README.md")).read_text()
    assert f"https://huggingface.co/spaces/me/{name}" in readme
    assert report.space == f"me/{name}"
    assert "app.py" not in api.list_repo_files(f"me/{name}")


def test_pushing_again_moves_the_space_to_the_new_commit(folder: Path, api: HfApi, name: str) -> None:
    first = publish_folder(folder, f"me/{name}", space=f"me/{name}", api=api)
    readme = Path(api.hf_hub_download(f"me/{name}", "README.md", repo_type="space")).read_text()
    api.upload_file(
        path_or_fileobj=f"{readme}\n## Web\n".encode(),
        path_in_repo="README.md",
        repo_id=f"me/{name}",
        repo_type="space",
    )
    (folder / "notes.txt").write_text("new")
    second = publish_folder(folder, f"me/{name}", space=True, api=api)
    assert isinstance(first, CommitInfo)
    assert isinstance(second, CommitInfo)
    assert data_of(api, f"me/{name}")["pruned"]["revision"] == second.oid != first.oid
    assert "## Web" in Path(api.hf_hub_download(f"me/{name}", "README.md", repo_type="space")).read_text()


def test_without_pro_the_model_is_there_and_the_error_says_how_to_go_on(
    folder: Path, hub_api: Callable[..., HfApi], name: str
) -> None:
    guest, repo_id = hub_api("guest"), f"guest/{name}"
    with pytest.raises(SpaceError) as caught:
        publish_folder(folder, repo_id, space=True, api=guest)
    message = str(caught.value)
    assert "402" in message
    assert "PRO subscription" in message
    assert "hf_" not in message
    assert "model.safetensors" in guest.list_repo_files(repo_id)
    card = Path(guest.hf_hub_download(repo_id, "README.md")).read_text(encoding="utf-8")
    assert "the Space" not in card  # which there is not
    assert PruningReport.load(folder).space is None
    assert caught.value.commit_url.endswith(str(guest.model_info(repo_id).sha))
    assert not guest.repo_exists(repo_id, repo_type="space")
    kept = Path(constants.HF_HOME) / "hubprune" / "spaces" / repo_id.replace("/", "--")
    assert str(kept) in message
    assert (kept / "app.py").is_file()
    # What the message says leads on: the model is found by its name, with the commit that was pushed.
    finish = shlex.split(message.partition("finish with: ")[2])
    assert finish == ["hubprune", "space", repo_id, "--push", repo_id]
    assert find_model(repo_id, api=guest).commit == guest.model_info(repo_id).sha


def test_a_push_that_fails_takes_the_new_space_away_again(
    folder: Path, api: HfApi, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_folder(folder, f"me/{name}", api=api)
    create = api.create_commit

    def fails(repo_id: str, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("repo_type") == "space":
            raise ConnectionError("the line went dead")
        return create(repo_id, *args, **kwargs)

    monkeypatch.setattr(api, "create_commit", fails)
    shown = find_model(str(folder), f"me/{name}", api=api)
    place = find_place(f"me/{name}", f"me/{name}", api=api)
    assert place is not None
    with pytest.raises(Exception, match="out of reach"):
        publish_space(place, shown.report, str(shown.commit), folder.parent / "space", api=api)
    assert not api.repo_exists(f"me/{name}", repo_type="space")


def test_a_dry_run_lists_both_and_sends_nothing(folder: Path, api: HfApi, name: str) -> None:
    plan = publish_folder(folder, f"me/{name}", space=f"me/{name}-demo", dry_run=True, api=api)
    assert isinstance(plan, UploadPlan)
    assert plan.space is not None
    assert {"app.py", "README.md", DATA} < {file for file, _ in plan.space.files}
    assert f"space me/{name}-demo, new: 9 files" in str(plan)
    assert not api.repo_exists(f"me/{name}")
    assert not api.repo_exists(f"me/{name}-demo", repo_type="space")
    assert PruningReport.load(folder).space is None


def test_what_cannot_work_is_refused_before_the_model_is_pushed(
    folder: Path, report: PruningReport, api: HfApi, name: str
) -> None:
    api.create_repo(f"me/{name}", repo_type="space", space_sdk="static")
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="app.py", repo_id=f"me/{name}", repo_type="space")
    for space, error, words in (
        (f"me/{name}", OutputError, "holds a Space that hubprune did not make"),
        ("guest/x", AccessError, "me may not create it"),
        ("a b", UsageError, "named owner/name, got 'a b'"),
    ):
        with pytest.raises(error, match=words):
            publish_folder(folder, f"me/{name}-model", space=space, api=api)
        with pytest.raises(error, match=words):
            check_push(f"me/{name}-model", report.base, report.totals.parameters, space=space, api=api)
    with pytest.raises(UsageError, match="a pull request is none"):
        publish_folder(folder, f"me/{name}-model", space=True, create_pr=True, api=api)
    assert not api.repo_exists(f"me/{name}-model")


def test_the_model_of_a_folder_must_be_the_one_in_the_repository(folder: Path, api: HfApi, name: str) -> None:
    publish_folder(folder, f"me/{name}", api=api)
    assert find_model(str(folder), f"me/{name}", api=api).commit == api.model_info(f"me/{name}").sha
    other = PruningReport.load(folder)
    other.created = "2027-01-01T00:00:00+00:00"
    other.save(folder)
    with pytest.raises(UsageError, match="holds another model than"):
        find_model(str(folder), f"me/{name}", api=api)
    assert find_model(str(folder), api=api).commit is None


def test_a_repository_without_a_pruned_model_has_no_space(api: HfApi, name: str) -> None:
    api.create_repo(f"me/{name}")
    with pytest.raises(UsageError, match="holds no model pruned by hubprune"):
        find_model(f"me/{name}", api=api)
