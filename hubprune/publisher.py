"""A saved folder verified and sent in one commit: the repository is left in its old state or in the new one.

``publish_folder`` sends a folder; ``publish`` saves a model in memory first. A Space of the model follows in a
commit of its own: what goes wrong there leaves the model as it is.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hubprune import space_publisher
from hubprune.card import render_card
from hubprune.carddata import PrunedModelCardData
from hubprune.errors import HubPruneError, OutputError, SpaceError, UsageError
from hubprune.evalresults import PATHS
from hubprune.exportrecord import FORMATS, RECORD_NAME, ExportRecord, weights_sha256
from hubprune.facts import BaseFacts, Totals
from hubprune.figures import FIGURES, figures_in
from hubprune.hub import check_can_write, hub_errors, make_api
from hubprune.readme import join_own, read_readme
from hubprune.recipe import base_on_hub
from hubprune.report import REPORT_NAME, PruningReport, write_text
from hubprune.saving import README, TOKENIZER_FILES, WEIGHTS, save
from hubprune.uploads import UploadPlan
from hubprune.verifier import verify


@dataclass(frozen=True)
class _Remote:
    """A repository as it is before the push; all empty when there is none."""

    exists: bool = False
    has_branch: bool = True
    head: str | None = None
    files: frozenset[str] = frozenset()
    report: PruningReport | None = None
    readme: str | None = None
    exports: dict[str, ExportRecord] = field(default_factory=dict)


def publish(
    model: PreTrainedModel,
    repo_id: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    report: PruningReport | None = None,
    max_shard_size: str | int = "5GB",
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    space: bool | str = False,
    dry_run: bool = False,
    model_card: PrunedModelCardData | None = None,
    api: HfApi | None = None,
) -> CommitInfo | UploadPlan:
    """Save a pruned model into a temporary folder, verify it and push it; arguments as in ``publish_folder``.

    Args:
        model: The pruned model.
        repo_id: Repository to push to.
        tokenizer: Pushed with the model; ``model.tokenizer`` when None.
        report: The record of the run; ``model.hubprune_report`` when None.
        max_shard_size: Largest weight file.
        private: See ``publish_folder``, as all that follow.
        token: Token of the Hub.
        commit_message: Summary of the commit.
        commit_description: Its description.
        revision: Branch.
        create_pr: Open a pull request.
        space: Publish a Space of the model as well.
        dry_run: Upload nothing.
        model_card: What fills in or overrides fields of the model card; kept in the report.
        api: Client to use instead of one made from ``token``.

    Raises:
        UsageError: There is no report.
        HubPruneError: As ``save`` and ``publish_folder``.
    """
    report = report or getattr(model, "hubprune_report", None)
    if report is None:
        raise UsageError(
            "publishing needs the record of the run, and this model has none: give report=, as prune() returns it"
        )
    report.model_card = model_card or report.model_card
    api = api or make_api(token)
    _preflight(api, repo_id, report, token, revision, create_pr)
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    with tempfile.TemporaryDirectory(prefix="hubprune-") as temporary:
        folder = Path(temporary) / "model"
        save(model, folder, report=report, tokenizer=tokenizer, max_shard_size=max_shard_size, repo_id=repo_id)
        done = publish_folder(
            folder,
            repo_id,
            private=private,
            token=token,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            space=space,
            dry_run=dry_run,
            trust_remote_code=report.base.trust_remote_code,
            api=api,
        )
        sent = PruningReport.load(folder)
        report.verification, report.space = sent.verification, sent.space
        return done


def publish_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    space: bool | str = False,
    dry_run: bool = False,
    trust_remote_code: bool = False,
    max_memory: int | None = None,
    api: HfApi | None = None,
) -> CommitInfo | UploadPlan:
    """Verify a saved pruned model and push it in one commit.

    The README is merged with the repository's; the folder's own README becomes what is pushed. Weight and tokenizer
    files and figures of an earlier push that the folder no longer has are deleted in the same commit, as are exported
    graphs of other weights; other files stay.

    Args:
        folder: Folder written by ``save``.
        repo_id: Repository to push to; created when there is none.
        private: Whether a new repository is private; None for the owner's default.
        token: Token of the Hub.
        commit_message: Summary of the commit.
        commit_description: Its description.
        revision: Branch; created from the default one when there is none.
        create_pr: Open a pull request instead of writing to the branch.
        space: Publish a Space too that shows the model beside its base, after it and in a commit of its own: True for
            one of the same name, or its name.
        dry_run: Do everything but create and upload.
        trust_remote_code: Let the folder's own modelling code run, which the checks need where there is some.
        max_memory: Bytes that the checks may take for the reloaded model; None for what is free.
        api: Client to use instead of one made from ``token``.

    Returns:
        The commit, which is also the text of its URL; for a dry run the plan.

    Raises:
        AccessError: The Hub refuses: no write permission, or a paid feature.
        OutputError: The repository holds another model, or changed during the push.
        VerificationError: The folder does not hold what its report says; nothing was sent.
        SpaceError: The model was sent, its Space could not be; the message says how to go on.
        UsageError: The folder holds no report, or a Space is asked for with a pull request.
    """
    path = Path(folder)
    report = PruningReport.load(path)
    api = api or make_api(token)
    home = space_publisher.find_place(space, repo_id, create_pr=create_pr, api=api)
    remote = _preflight(api, repo_id, report, token, revision, create_pr)
    # A record that was sent elsewhere before names the Space of another repository.
    shown = home.space_id if home is not None and not dry_run else None
    report.space = shown or (remote.report.space if remote.report is not None else None)
    verify(path, report=report, trust_remote_code=trust_remote_code, max_memory=max_memory)
    _write_readme(path, repo_id, report, remote)
    files = _files(path)
    plan = UploadPlan(
        repo_id=repo_id,
        revision=revision,
        creates_repo=not remote.exists,
        files=tuple((name, (path / name).stat().st_size) for name in files),
        deletes=tuple(sorted({*_stale(remote.files, files), *_stale_graphs(path, remote, files)})),
    )
    if dry_run:
        return plan if home is None else replace(plan, space=space_publisher.plan_space(home, report, path))
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path / name) for name in files),
        *(CommitOperationDelete(path_in_repo=name) for name in plan.deletes),
    ]
    message = commit_message or (
        f"{report.base.model_id.rpartition('/')[2]} pruned with {report.method} ({100 * report.totals.sparsity:.4g} %)"
    )
    with _new_places(api, plan, remote, private) as head, hub_errors("push to", repo_id):
        try:
            commit = api.create_commit(
                repo_id,
                operations,
                commit_message=message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
                parent_commit=head,
            )
        except HfHubHTTPError as error:
            if error.response.status_code in (409, 412):
                raise OutputError(f"{repo_id} changed while the model was being pushed: push again") from error
            raise
        except ValueError as error:
            raise OutputError(f"{repo_id} refuses the push ({error}): mend the folder or the arguments") from error
    if home is not None:
        try:
            space_publisher.follow_model(home, report, commit, path, private=private, api=api)
        except SpaceError as error:
            if not home.exists:
                error.commit_url = str(_without_space(api, path, repo_id, report, remote, commit, revision).commit_url)
            raise
    return commit


def _without_space(
    api: HfApi,
    path: Path,
    repo_id: str,
    report: PruningReport,
    remote: _Remote,
    commit: CommitInfo,
    branch: str | None,
) -> CommitInfo:
    """Take the link to a Space that could not be made out of card and report; the newest commit."""
    report.space = remote.report.space if remote.report is not None else None
    report.save(path)
    _write_readme(path, repo_id, report, remote)
    told = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path / name) for name in (README, REPORT_NAME)]
    with suppress(HfHubHTTPError, OSError):  # then the card keeps a link that leads nowhere yet
        commit = api.create_commit(repo_id, told, commit_message="No Space", revision=branch, parent_commit=commit.oid)
    return commit


def check_push(
    repo_id: str,
    base: BaseFacts,
    parameters: int,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    space: bool | str = False,
    api: HfApi | None = None,
) -> bool:
    """Find out before a run whether its result can be pushed.

    Args:
        repo_id: Repository to push to.
        base: The model that is going to be pruned.
        parameters: Parameters of that model.
        token: Token of the Hub.
        revision: Branch.
        create_pr: Open a pull request instead of writing to the branch.
        space: Whether a Space of the model is going to be published too, or its name.
        api: Client to use instead of one made from ``token``.

    Returns:
        Whether the repository would be created.

    Raises:
        AccessError: The Hub refuses: no write permission, or a repository of somebody else.
        OutputError: The repository holds another model.
    """
    report, api = PruningReport(base=base, totals=Totals(parameters=parameters)), api or make_api(token)
    space_publisher.find_place(space, repo_id, create_pr=create_pr, api=api)
    return not _preflight(api, repo_id, report, token, revision, create_pr).exists


def _preflight(
    api: HfApi, repo_id: str, report: PruningReport, token: str | bool | None, revision: str | None, create_pr: bool
) -> _Remote:
    """Find out whether the push can succeed, before any work; a pull request needs no permission to write."""
    if create_pr:
        with hub_errors("look up", repo_id):
            exists = api.repo_exists(repo_id)
    else:
        exists = False
    if not exists:
        exists = check_can_write(repo_id, token=token, api=api)
    if not exists:
        return _Remote(has_branch=revision in (None, "main"))
    remote = _look(api, repo_id, revision)
    if not create_pr and remote.has_branch:
        _refuse_other_model(repo_id, report, remote)
    return remote


def _look(api: HfApi, repo_id: str, revision: str | None) -> _Remote:
    with hub_errors("read", repo_id):
        try:
            info, has_branch = api.model_info(repo_id, revision=revision), True
        except RevisionNotFoundError:
            info, has_branch = api.model_info(repo_id), False
        files = frozenset(sibling.rfilename for sibling in info.siblings or ())
        wanted = [name for name in (README, REPORT_NAME) if name in files]
        records = [f"{kind}/{RECORD_NAME}" for kind in FORMATS if f"{kind}/{RECORD_NAME}" in files]
        places = [Path(api.hf_hub_download(repo_id, name, revision=info.sha)).parent for name in records]
        paths = {name: Path(api.hf_hub_download(repo_id, name, revision=info.sha)) for name in wanted}
    try:
        texts = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
        report = PruningReport.from_dict(json.loads(texts[REPORT_NAME])) if REPORT_NAME in texts else None
    except ValueError as error:
        raise OutputError(
            f"{repo_id} holds {' or '.join(wanted)} in a form that cannot be read ({error}): mend it"
        ) from error
    exports = {place.name: record for place in places if (record := ExportRecord.load(place)) is not None}
    return _Remote(True, has_branch, info.sha, files, report, texts.get(README), exports)


def _refuse_other_model(repo_id: str, report: PruningReport, remote: _Remote) -> None:
    advice = "push to another repository, to another branch (revision=), or open a pull request (create_pr=True)"
    if remote.report is None:
        held = sorted(name for name in remote.files if name == "config.json" or WEIGHTS.fullmatch(name))
        if held:
            raise OutputError(f"{repo_id} holds a model that hubprune did not make ({held[0]}): {advice}")
        return
    old, new = remote.report, report
    renamed = base_on_hub(old) and base_on_hub(new) and old.base.model_id != new.base.model_id
    other = (old.base.model_type, old.totals.parameters) != (new.base.model_type, new.totals.parameters)
    if renamed or other:
        raise OutputError(f"{repo_id} holds a pruned {old.base.model_id}, not {new.base.model_id}: {advice}")


def _write_readme(folder: Path, repo_id: str, report: PruningReport, remote: _Remote) -> None:
    existing = join_own(remote.readme, read_readme(folder))
    write_text(folder / README, render_card(report, repo_id, existing, figures=figures_in(folder)))


def _files(folder: Path) -> list[str]:
    """Paths to upload; hidden files and caches stay behind, evaluation results do not."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(p.startswith(".") and p != ".eval_results" or p == "__pycache__" for p in parts)
        if path.is_file() and not hidden:
            found.append("/".join(parts))
    return found


def _stale(remote: frozenset[str], files: list[str]) -> tuple[str, ...]:
    """Files of an earlier push that would be loaded beside or instead of the new ones; its figures and results."""
    replaced = (
        {kind.path for kind in FIGURES} | PATHS | (TOKENIZER_FILES if "tokenizer_config.json" in files else set())
    )
    gone = remote.difference(files)
    return tuple(sorted(name for name in gone if WEIGHTS.fullmatch(name) or name in replaced))


def _stale_graphs(folder: Path, remote: _Remote, files: list[str]) -> set[str]:
    """Exported graphs that the folder replaces, or that are of other weights than it holds."""
    weights = weights_sha256(folder) if remote.exports else {}
    stale = {
        f"{kind}/{name}"
        for kind, record in remote.exports.items()
        if f"{kind}/{RECORD_NAME}" in files or record.weights != weights
        for name in (*record.files, RECORD_NAME)
    }
    return (stale & remote.files).difference(files)


@contextmanager
def _new_places(api: HfApi, plan: UploadPlan, remote: _Remote, private: bool | None) -> Iterator[str | None]:
    """Create the repository and the branch where they are missing; take them away again when the push fails.

    Yields:
        The commit that the push is based on.
    """
    repo_id, revision, head = plan.repo_id, plan.revision, remote.head
    made_repo = made_branch = False
    try:
        with hub_errors("create", repo_id):
            if not remote.exists:
                api.create_repo(repo_id, private=private)
                made_repo = True
                head = api.model_info(repo_id).sha
            if revision is not None and not remote.has_branch:
                api.create_branch(repo_id, branch=revision, revision=head)
                made_branch = True
        yield head
    except BaseException as error:
        try:
            # An answer can be lost after the commit has landed; then there is nothing to take away.
            landed = made_branch and api.model_info(repo_id, revision=revision).sha != head
            if made_repo and not landed and api.model_info(repo_id).sha == head:
                api.delete_repo(repo_id)
            elif made_branch and not landed and revision is not None:
                api.delete_branch(repo_id, branch=revision)
        except (HfHubHTTPError, OSError, HubPruneError) as left:
            error.add_note(f"what the push created in {repo_id} could not be removed ({left}): remove it by hand")
        raise
