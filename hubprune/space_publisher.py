"""The Space of a pruned model sent in one commit, after the model: whatever goes wrong here, the model stays valid."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from hubprune import figures
from hubprune.errors import AccessError, HubPruneError, OutputError, SpaceError, UsageError
from hubprune.hub import ResolvedRepo, check_can_write, hub_errors, local_path, read_report, resolve_model
from hubprune.recipe import HUB_ID
from hubprune.report import REPORT_NAME, PruningReport
from hubprune.space import DATA, write_space
from hubprune.uploads import UploadPlan

PRO = "https://huggingface.co/pro"
UNKNOWN = "0" * 40  # stands for the commit of a model that is not pushed yet


@dataclass(frozen=True)
class SpacePlace:
    """Where a Space goes.

    Attributes:
        space_id: Its repository.
        model: Repository of the pruned model.
        exists: Whether it is there already.
        head: Its newest commit; None where it is not there.
        files: What it holds.
        readme: Text of its README.
    """

    space_id: str
    model: str
    exists: bool = False
    head: str | None = None
    files: frozenset[str] = frozenset()
    readme: str | None = None


def find_place(space: bool | str, model: str, *, create_pr: bool = False, api: HfApi) -> SpacePlace | None:
    """Find out before any work whether the Space of a model can be published.

    Args:
        space: Name of the Space, True for that of the model, False for no Space.
        model: Repository of the pruned model.
        create_pr: Whether the model goes into a pull request.
        api: The client.

    Returns:
        The place; None where no Space is asked for.

    Raises:
        UsageError: The name is none of a repository, or the model goes into a pull request.
        AccessError: No permission to write.
        OutputError: There is such a Space, and hubprune did not make it.
    """
    if space is False:
        return None
    name = model if space is True else space
    if create_pr:
        raise UsageError(
            "a Space shows a commit that is published, and a pull request is none: publish the Space once it is merged"
        )
    if HUB_ID.fullmatch(name) is None:
        raise UsageError(f"a Space is named owner/name, got {name!r}: give such a name, or True for the model's")
    exists = check_can_write(name, api=api, repo_type="space")
    with hub_errors("read", name, "space", api=api):
        space_id, model = (one if "/" in one else f"{api.whoami()['name']}/{one}" for one in (name, model))
        if not exists:
            return SpacePlace(space_id, model)
        info = api.space_info(space_id)
        files = frozenset(sibling.rfilename for sibling in info.siblings or ())
        if "app.py" in files and DATA not in files:
            raise OutputError(f"{space_id} holds a Space that hubprune did not make (app.py): give another name")
        readme = None
        if "README.md" in files and DATA in files:
            path = api.hf_hub_download(space_id, "README.md", repo_type="space", revision=info.sha)
            readme = Path(path).read_text(encoding="utf-8")
    return SpacePlace(space_id, model, True, info.sha, files, readme)


def page(space_id: str) -> str:
    """Address of a Space's page."""
    return f"{constants.ENDPOINT}/spaces/{space_id}"


def plan_space(place: SpacePlace, report: PruningReport, model_folder: str | Path) -> UploadPlan:
    """Say what publishing a Space would do; its files are written and thrown away.

    Args:
        place: Where it would go.
        report: The record of the run.
        model_folder: Folder of the model, for its figures.
    """
    with tempfile.TemporaryDirectory(prefix="hubprune-") as folder:
        files = write_space(
            report,
            folder,
            model=place.model,
            commit=UNKNOWN,
            model_folder=model_folder,
            existing=place.readme,
        )
        return _plan(place, Path(folder), files)


def _plan(place: SpacePlace, folder: Path, files: list[str]) -> UploadPlan:
    stale = {kind.path for kind in figures.FIGURES} & place.files
    return UploadPlan(
        repo_id=place.space_id,
        revision=None,
        creates_repo=not place.exists,
        files=tuple((name, (folder / name).stat().st_size) for name in files),
        deletes=tuple(sorted(stale.difference(files))),
        kind="space",
    )


def follow_model(
    place: SpacePlace,
    report: PruningReport,
    commit: CommitInfo,
    model_folder: str | Path,
    *,
    private: bool | None = None,
    api: HfApi,
) -> CommitInfo:
    """Publish the Space of a model that was just pushed; its folder is kept where that fails.

    Args:
        place: Where it goes.
        report: The record of the run.
        commit: The model's commit.
        model_folder: Folder of the model, for its figures.
        private: Whether a new Space is private; None for what the model's repository is.
        api: The client.

    Raises:
        SpaceError: It could not be published; the model was, and the error says how to go on.
    """
    folder = Path(constants.HF_HOME) / "hubprune" / "spaces" / place.space_id.replace("/", "--")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        done = publish_space(place, report, commit.oid, folder, model_folder=model_folder, private=private, api=api)
    except HubPruneError as error:
        again = shlex.join(["hubprune", "space", place.model, "--push", place.space_id])
        preview = shlex.join(["hubprune", "space", place.model, "--preview"])
        reason = "; ".join([str(error), *getattr(error, "__notes__", ())])
        raise SpaceError(
            f"the model is published ({commit.commit_url}), its Space is not: {reason}; try it here with: {preview}; "
            f"finish with: {again}",
            commit.commit_url,
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    return done


def publish_space(
    place: SpacePlace,
    report: PruningReport,
    commit: str,
    folder: str | Path,
    *,
    model_folder: str | Path | None = None,
    private: bool | None = None,
    hardware: str | None = None,
    commit_message: str | None = None,
    api: HfApi,
) -> CommitInfo:
    """Write the folder of a Space and send it in one commit.

    Args:
        place: Where it goes.
        report: The record of the run.
        commit: Commit of the pruned model that the Space loads.
        folder: Where to write its files.
        model_folder: Folder of the model, for its figures.
        private: Whether a new Space is private; None for what the model's repository is.
        hardware: Hardware of a new Space, such as ``zero-a10g``; None for the Hub's free one.
        commit_message: Summary of the commit.
        api: The client.

    Returns:
        The commit.

    Raises:
        AccessError: The Hub refuses: no write permission, or a paid feature.
        OutputError: The folder cannot be written, or the Space changed meanwhile.
    """
    target, space_id = Path(folder), place.space_id
    files = write_space(
        report, target, model=place.model, commit=commit, model_folder=model_folder, existing=place.readme
    )
    plan = _plan(place, target, files)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=target / name) for name in files),
        *(CommitOperationDelete(path_in_repo=name) for name in plan.deletes),
    ]
    head, made = place.head, False
    try:
        with hub_errors("create the Space", space_id, "space", api=api):
            if not place.exists:
                hidden = private if private is not None else bool(api.model_info(place.model).private)
                options: dict[str, Any] = {} if hardware is None else {"space_hardware": hardware}
                api.create_repo(space_id, repo_type="space", space_sdk="gradio", private=hidden, **options)
                made = True
                head = api.space_info(space_id).sha
        with hub_errors("push the Space", space_id, "space", api=api):
            return api.create_commit(
                space_id,
                operations,
                repo_type="space",
                commit_message=commit_message or f"Show {place.model} at {commit[:7]} beside its base",
                parent_commit=head,
            )
    except BaseException as error:
        if made:
            _take_away(api, space_id, head, error)
        explained = _explained(error, space_id, target)
        if explained is None:
            raise
        for note in getattr(error, "__notes__", ()):
            explained.add_note(note)
        raise explained from error


def _take_away(api: HfApi, space_id: str, head: str | None, error: BaseException) -> None:
    """Remove a Space that was just created, unless the commit landed although its answer was lost."""
    try:
        if api.space_info(space_id).sha == head:
            api.delete_repo(space_id, repo_type="space")
    except (HfHubHTTPError, OSError, HubPruneError) as left:
        error.add_note(f"the empty Space {space_id} could not be removed ({left}): remove it by hand")


def _explained(error: BaseException, space_id: str, folder: Path) -> HubPruneError | None:
    """An error that says what is special about Spaces; None where nothing is."""
    cause = error.__cause__
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if status == 402:
        return AccessError(
            f"{error}. A Gradio Space, also on free hardware, takes a PRO subscription of its owner ({PRO}); "
            f"the files of {space_id} are kept in {folder}"
        )
    if status in (409, 412):
        return OutputError(f"the Space {space_id} changed while it was being pushed: push again")
    return None


@dataclass(frozen=True)
class Shown:
    """A pruned model that a Space can show.

    Attributes:
        report: The record of the run.
        model: Its repository; None for a folder.
        commit: The commit of it.
        folder: Where its figures are, and all of it where it is a folder.
    """

    report: PruningReport
    model: str | None
    commit: str | None
    folder: Path


def find_model(source: str, repo_id: str | None = None, *, revision: str | None = None, api: HfApi) -> Shown:
    """Find the model that a Space is to show.

    Args:
        source: Folder of a pruned model, or its repository.
        repo_id: Repository that holds the model of a folder; None for none.
        revision: Branch, tag or commit of the repository.
        api: The client.

    Raises:
        UsageError: The folder or repository holds no pruned model, or the repository another one than the folder.
        NotFoundError: There is neither.
        AccessError, OfflineError: As ``hub.resolve_model``.
    """
    folder = local_path(source)
    local = PruningReport.load(folder) if folder.is_dir() else None
    if local is not None and repo_id is None:
        return Shown(local, None, None, folder)
    name = repo_id or source
    repo = resolve_model(name, revision=revision, api=api)
    report = None if repo.local else read_report(repo, api=api)
    if report is None:
        raise UsageError(f"{name} holds no model pruned by hubprune: push it first (hubprune push DIR {name})")
    if local is not None and (local.created, local.totals) != (report.created, report.totals):
        raise UsageError(f"{name} holds another model than {folder}: push that one first (hubprune push DIR {name})")
    return Shown(report, name, repo.commit, folder if local is not None else _fetch_figure(repo, api))


def _fetch_figure(repo: ResolvedRepo, api: HfApi) -> Path:
    """Bring the figure of a model on the Hub here; the folder of its files in the cache."""
    with hub_errors("read", repo.repo_id, api=api):
        report = Path(api.hf_hub_download(repo.repo_id, REPORT_NAME, revision=repo.commit))
        there = api.list_repo_files(repo.repo_id, revision=repo.commit)
        for path in [kind.path for kind in figures.FIGURES if kind.path in there][:1]:
            api.hf_hub_download(repo.repo_id, path, revision=repo.commit)
    return report.parent
