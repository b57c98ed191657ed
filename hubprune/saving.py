"""The folder a pruned model is loaded from, written beside its place and then moved: there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import logging

from hubprune import drawing, evalresults, figures
from hubprune.card import size
from hubprune.errors import OutputError, UsageError
from hubprune.page import write_page
from hubprune.readme import own_parts, read_readme
from hubprune.reloading import make_probe
from hubprune.report import REPORT_NAME, PruningReport, sync_folder, write_text

logger = logging.get_logger(__name__)

README = "README.md"
WEIGHTS = re.compile(r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")
TOKENIZER_FILES = frozenset(
    "tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json "
    "vocab.txt merges.txt spiece.model sentencepiece.bpe.model chat_template.jinja chat_template.json".split()
)
OUR_FILES = TOKENIZER_FILES | {"config.json", "generation_config.json", REPORT_NAME, README}
# Folders that hold files of ours among those of the user.
OUR_PARTS = {
    figures.FOLDER: tuple(kind.file for kind in figures.FIGURES),
    evalresults.FOLDER: tuple(Path(path).name for path in evalresults.PATHS),
}
SPARE_BYTES = 64 * 2**20  # tokenizer, report and card beside the weights


def save(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    report: PruningReport,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_shard_size: str | int = "5GB",
    repo_id: str | None = None,
) -> Path:
    """Save a pruned model so that the folder is there whole or not at all.

    Everything is written beside the folder and then moved into place. A folder of an earlier run is replaced; files in
    it that are not ours, and what a user wrote in its README, are kept.

    Args:
        model: The pruned model; its ``config.hubprune`` is set.
        folder: Where to write.
        report: The record of the run; gets a probe when it has none, and loses the stamp of earlier files.
        tokenizer: Saved with the model.
        max_shard_size: Largest weight file, as in ``save_pretrained``.
        repo_id: Repository that the card names.

    Returns:
        The folder.

    Raises:
        OutputError: The folder holds something else, cannot be written, or has no room.
        UsageError: The model is quantised or carries adapters.
    """
    target = Path(folder).resolve()
    _check_model(model)
    _check_target(target)
    if report.probe is None:
        report.probe = make_probe(model, tokenizer)
    report.verification = None
    model.config.hubprune = report.summary()
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target.parent, model)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}-new-", dir=target.parent))
        try:
            # The class' own method: a subclass may have replaced it by one that ends here.
            PreTrainedModel.save_pretrained(model, staged, max_shard_size=max_shard_size)
            complete(staged, target, report=report, tokenizer=tokenizer, model=model, repo_id=repo_id)
            aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            place(staged, target, aside)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return Path(folder)


def check_output(folder: str | os.PathLike[str], model: PreTrainedModel | None = None) -> None:
    """Find out before any work whether ``save`` will be able to write a folder; leaves nothing behind.

    Args:
        folder: Where the model is going to be saved.
        model: The model, to check that there is room for it.

    Raises:
        OutputError: The folder holds something else, cannot be written, or has no room.
        UsageError: The model is quantised or carries adapters.
    """
    target = Path(folder).resolve()
    _check_target(target)
    own_parts(read_readme(target))
    place = next(folder for folder in target.parents if folder.exists())
    with disk_errors(target):
        tempfile.TemporaryDirectory(prefix=f".{target.name}-new-", dir=place).cleanup()
        if model is not None:
            _check_model(model)
            _check_room(place, model)


def _check_model(model: PreTrainedModel) -> None:
    quantised = getattr(model.config, "quantization_config", None)
    if quantised is not None:
        raise UsageError(
            f"a pruned model is saved dense, and this one carries a quantization_config ({quantised!r:.80})"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UsageError("a pruned model is saved whole, and this one carries adapters: merge or unload them first")


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise OutputError(f"the output must be a folder, and {target} is a file: give another path")
    if os.path.ismount(target) or Path.cwd().is_relative_to(target):
        kind = "a mount point" if os.path.ismount(target) else "where this program runs"
        raise OutputError(f"the output folder is replaced as a whole, and {target} is {kind}: give a folder inside it")
    if target.is_dir() and any(target.iterdir()) and not (target / REPORT_NAME).is_file():
        raise OutputError(
            f"an output folder must be empty or hold a model pruned by hubprune, and {target} holds other files: "
            "give another folder"
        )


def _check_room(place: Path, model: PreTrainedModel) -> None:
    needed = sum(p.numel() * p.element_size() for p in model.parameters()) + SPARE_BYTES
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OutputError(
            f"saving needs {size(needed)}, and {place} has {size(free)} free: make room or give another folder"
        )


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn what the file system refuses inside the block into one error.

    Raises:
        OutputError: The folder cannot be written, or has no room.
    """
    try:
        yield
    except SafetensorError as error:
        raise OutputError(
            f"cannot write the weights to {target} ({error}): make room or give another folder"
        ) from error
    except OSError as error:
        remedies = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room")
        remedies |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable")
        remedy = remedies.get(error.errno or 0, "mend that")
        at = f" at {error.filename}" if error.filename and str(target) not in str(error.filename) else ""
        raise OutputError(
            f"cannot write {target} ({error.strerror or error}{at}): {remedy} or give another folder"
        ) from error


def write_config(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Write what ``save_pretrained`` writes besides the weights.

    Args:
        model: The model; its weights are not looked at.
        folder: An existing folder.
    """
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    if model.is_remote_code():
        custom_object_save(model, folder, config=cast(Any, model.config))
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def complete(
    staged: Path,
    target: Path,
    *,
    report: PruningReport,
    tokenizer: PreTrainedTokenizerBase | None,
    model: PreTrainedModel,
    repo_id: str | None,
) -> None:
    """Complete a folder that holds config and weights, so that it can take its place.

    Args:
        staged: The folder.
        target: Its place; what a user has put there goes along.
        report: The record of the run.
        tokenizer: Saved with the model.
        model: The model.
        repo_id: Repository that the card names.

    Raises:
        OSError: The folder cannot be written.
    """
    _record(staged, report, tokenizer, model, repo_id, read_readme(target))
    staged.chmod(0o755)  # temporary folders and safetensors are for their owner alone
    for path in staged.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    if target.is_dir():
        _keep_user_files(target, staged)


def write_record(
    folder: str | os.PathLike[str],
    report: PruningReport,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    model: PreTrainedModel | None = None,
) -> None:
    """Complete a folder that ``save_pretrained`` of transformers wrote: tokenizer, report, figures and card.

    Args:
        folder: The folder; what a user wrote in its README stays.
        report: The record of the run; gets a probe when it has none, and loses the stamp of earlier files.
        tokenizer: Saved with the model.
        model: The model that was saved; without it the report must hold a probe.

    Raises:
        OutputError: The folder cannot be written.
    """
    path = Path(folder)
    if report.probe is None and model is not None:
        report.probe = make_probe(model, tokenizer)
    report.verification = None
    with disk_errors(path):
        _record(path, report, tokenizer, model, None, read_readme(path))


def _record(
    folder: Path,
    report: PruningReport,
    tokenizer: PreTrainedTokenizerBase | None,
    model: PreTrainedModel | None,
    repo_id: str | None,
    existing: str | None,
) -> None:
    if model is not None:
        _name_plain_class(model, folder / "config.json")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    report.save(folder)
    if not drawing.has_matplotlib():
        logger.warning_once('The card has no figures: matplotlib draws them (pip install "hubprune[figures]").')
    write_page(report, folder, repo_id, existing)


def _name_plain_class(model: PreTrainedModel, config_file: Path) -> None:
    """Name the model class that others have: a user's subclass exists on one machine only."""
    known = ("transformers", "transformers_modules")
    name = next((c.__name__ for c in type(model).__mro__ if c.__module__.partition(".")[0] in known), None)
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if name is not None and config.get("architectures") != [name]:
        config["architectures"] = model.config.architectures = [name]
        write_text(config_file, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _keep_user_files(old: Path, staged: Path) -> None:
    for path in old.iterdir():
        if path.name in OUR_PARTS and path.is_dir():
            ours = shutil.ignore_patterns(*OUR_PARTS[path.name])
            shutil.copytree(path, staged / path.name, ignore=ours, dirs_exist_ok=True)
            continue
        if path.name in OUR_FILES or WEIGHTS.fullmatch(path.name) or (staged / path.name).exists():
            continue
        if path.is_dir():
            shutil.copytree(path, staged / path.name)
        else:
            shutil.copy2(path, staged / path.name)


def place(staged: Path, target: Path, aside: Path) -> None:
    """Move a folder to its place. On failure the one that was there is put back; after a crash it lies aside.

    Args:
        staged: The folder, on the same file system.
        target: Its place.
        aside: Where the one that is there goes meanwhile; removed afterwards.
    """
    if target.exists():
        aside.mkdir(exist_ok=True)
        target.rename(aside)  # onto an empty folder: atomic
    try:
        staged.rename(target)
    except BaseException:
        if not target.exists() and aside.exists():
            aside.rename(target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)
