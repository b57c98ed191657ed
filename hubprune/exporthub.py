"""Exported graphs beside the weights they were made from: sent to the Hub in one commit, found in a folder or there.

In a repository they lie in ``onnx/`` or ``openvino/``, where transformers.js and others look for them. They are sent
only to a repository that holds the very weights they were made from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError

from hubprune.errors import NotFoundError, OutputError, UsageError
from hubprune.exportrecord import (
    FORMATS,
    GRAPHS,
    RECORD_NAME,
    SCHEMA_VERSION,
    ExportRecord,
    check_format,
)
from hubprune.hub import check_can_write, hub_errors, make_api, resolve_model
from hubprune.uploads import UploadPlan

RUNTIMES: dict[str, tuple[str, ...]] = {"onnx": ("onnxruntime",), "openvino": ("openvino",)}
MISSING = {False: (RemoteEntryNotFoundError,), True: (LocalEntryNotFoundError,)}  # by whether the network is off
SMALL_FILES = ("config.json", "generation_config.json")


def publish_export(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    token: str | bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    api: HfApi | None = None,
) -> CommitInfo | UploadPlan:
    """Send exported graphs to the repository of their model, into ``onnx/`` or ``openvino/``, in one commit.

    Graphs of the same weights that are there already stay; those of other weights are deleted in the same commit.

    Args:
        folder: Folder that ``export`` wrote.
        repo_id: Repository that holds the weights.
        token: Token of the Hub.
        commit_message: Summary of the commit.
        revision: Branch; None for the default one.
        create_pr: Open a pull request instead of writing to the branch.
        dry_run: Do everything but upload.
        api: Client to use instead of one made from ``token``.

    Returns:
        The commit, which is also the text of its URL; for a dry run the plan.

    Raises:
        UsageError: The folder holds no export.
        NotFoundError: There is no such repository or branch.
        AccessError: No permission to write.
        OutputError: The repository holds other weights, the folder was changed, or the repository is being changed.
    """
    place = Path(folder)
    record, format = _checked(place)
    api = api or make_api(token)
    advice = f"push the model first (hubprune push DIR {repo_id})"
    if not create_pr and not check_can_write(repo_id, token=token, api=api):
        raise NotFoundError(f"graphs are sent to the repository of their model, and there is no {repo_id}: {advice}")
    with hub_errors("read", repo_id, api=api):
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
    siblings = info.siblings or []
    held = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in siblings}
    _refuse_other_weights(record, held, repo_id, advice)
    there = _remote_record(api, repo_id, f"{format}/{RECORD_NAME}", info.sha, held)
    merged = ExportRecord(record.weights, dict(record.graphs))
    if there is not None and there.weights == record.weights:
        merged.graphs = {**there.graphs, **record.graphs}
    gone = sorted((there.files if there is not None else set()) - merged.files)
    text = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(merged)}, indent=2, ensure_ascii=False) + "\n"
    content = text.encode("utf-8")
    names = sorted(record.files | {name for name in SMALL_FILES if (place / name).is_file()})
    plan = UploadPlan(
        repo_id=repo_id,
        revision=revision,
        creates_repo=False,
        files=(
            *((f"{format}/{name}", (place / name).stat().st_size) for name in names),
            (f"{format}/{RECORD_NAME}", len(content)),
        ),
        deletes=tuple(f"{format}/{name}" for name in gone if f"{format}/{name}" in held),
    )
    if dry_run:
        return plan
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path_in_repo=f"{format}/{name}", path_or_fileobj=place / name) for name in names),
        CommitOperationAdd(path_in_repo=f"{format}/{RECORD_NAME}", path_or_fileobj=content),
        *(CommitOperationDelete(path_in_repo=name) for name in plan.deletes),
    ]
    message = (
        commit_message or f"Add the graph for {format}: {', '.join(graph.file for graph in record.graphs.values())}"
    )
    with hub_errors("push to", repo_id, api=api):
        try:
            return api.create_commit(
                repo_id,
                operations,
                commit_message=message,
                revision=revision,
                create_pr=create_pr,
                parent_commit=info.sha,
            )
        except HfHubHTTPError as error:
            if error.response.status_code in (409, 412):
                raise OutputError(f"{repo_id} changed while the graph was being pushed: push again") from error
            raise


def _refuse_other_weights(record: ExportRecord, held: Mapping[str, str | None], repo_id: str, advice: str) -> None:
    """Refuse a repository whose weights are not those that the graphs were made from."""
    weights = {name: digest for name, digest in held.items() if name.endswith(".safetensors") and "/" not in name}
    if weights != record.weights:
        raise OutputError(
            f"graphs are sent to the repository that holds the weights they were made from, and {repo_id} holds "
            f"{'others' if weights else 'none'}: {advice}, or export what it holds"
        )


def _checked(place: Path) -> tuple[ExportRecord, str]:
    """The record of a folder whose files are those it states, and their format."""
    record = ExportRecord.load(place)
    if record is None or not record.graphs:
        raise UsageError(f"{place} holds no export: give the folder that hubprune export has written")
    for graph in record.graphs.values():
        for name, count in graph.files.items():
            if not (place / name).is_file() or (place / name).stat().st_size != count:
                raise OutputError(f"{place / name} is not the file that was checked: export again")
    return record, next(iter(record.graphs.values())).format


def _remote_record(
    api: HfApi, repo_id: str, path: str, commit: str | None, held: dict[str, str | None]
) -> ExportRecord | None:
    if path not in held:
        return None
    with hub_errors("read", repo_id, api=api):
        return ExportRecord.load(Path(api.hf_hub_download(repo_id, path, revision=commit)).parent)


def find_export(
    place: str | os.PathLike[str],
    *,
    format: str | None = None,
    int8: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    api: HfApi | None = None,
) -> Path:
    """Find an exported graph in a folder or on the Hub, from where it is downloaded, and nothing else with it.

    Args:
        place: Folder that ``export`` wrote, that of the model it lies in, or a repository.
        format: ``"onnx"`` or ``"openvino"``; None for the one that is there, the former where both are.
        int8: The graph with 8-bit weights or the one in float32; None for the one that is there, the latter where both
            are.
        revision: Branch, tag or commit of the repository.
        token: Token of the Hub.
        api: Client to use instead of one made from ``token``.

    Returns:
        The file that a runtime opens, its weights and configs beside it.

    Raises:
        NotFoundError: There is no such graph.
        ConfigError: There is no such format.
        UsageError: The format's runtime is not installed.
        AccessError: The repository is private or gated.
    """
    for name in (format,) if format is not None else ():
        check_format(name, RUNTIMES)
    formats = FORMATS if format is None else (format,)
    folder = Path(place)
    if folder.is_dir():
        found = _choose({kind: [folder, folder / kind] for kind in formats}, int8)
    else:
        found = _download(str(place), formats, int8, revision, token, api or make_api(token))
    if found is None:
        which = {None: "graph", False: "graph in float32", True: "graph with 8-bit weights"}[int8]
        raise NotFoundError(f"{place} holds no {which} for {' or '.join(formats)}: make one with hubprune export")
    check_format(next(kind for kind, names in GRAPHS.items() if found.name in names), RUNTIMES)
    return found


def _choose(places: dict[str, list[Path]], int8: bool | None) -> Path | None:
    """The first graph that a record in one of the folders states."""
    for kind, folders in places.items():
        for folder in folders:
            record = ExportRecord.load(folder)
            for name in GRAPHS[kind]:
                graph = record.graphs.get(name) if record is not None else None
                if graph is not None and int8 in (None, graph.int8):
                    return folder / name
    return None


def _download(
    repo_id: str,
    formats: tuple[str, ...],
    int8: bool | None,
    revision: str | None,
    token: str | bool | None,
    api: HfApi,
) -> Path | None:
    repo = resolve_model(repo_id, revision=revision, token=token, api=api)

    def fetch(name: str) -> Path | None:
        """Bring one file into the cache; None where the repository, or without the network the cache, has none."""
        with hub_errors("read", repo_id, api=api), suppress(*MISSING[is_offline_mode()]):
            return Path(api.hf_hub_download(repo_id, name, revision=repo.commit))
        return None

    found = _choose({kind: [p.parent for p in [fetch(f"{kind}/{RECORD_NAME}")] if p] for kind in formats}, int8)
    record = ExportRecord.load(found.parent) if found is not None else None
    if found is not None and record is not None:
        for name in (*SMALL_FILES, *record.graphs[found.name].files):
            fetch(f"{found.parent.name}/{name}")
    return found
