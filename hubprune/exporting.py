"""A model to a graph in a folder: traced, written, checked against transformers, and only then put in its place."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file

from hubprune import graphcheck
from hubprune.architecture import check_supported, max_length
from hubprune.card import size
from hubprune.environment import free_memory
from hubprune.errors import ConfigError, OutputError, UnsupportedModelError, UsageError
from hubprune.exportrecord import (
    GRAPHS,
    PACKAGES,
    RECORD_NAME,
    ExportRecord,
    GraphFacts,
    check_format,
    weights_sha256,
)
from hubprune.opening import Opening
from hubprune.rounding import round_onnx, round_openvino
from hubprune.saving import SPARE_BYTES, disk_errors, place
from hubprune.session import open_session
from hubprune.tracing import SHORTEST, quiet, trace

# Copies of the weights in float32 that are in memory at once: the model, the graph, and the runtime that checks it.
COPIES = 3
FLOAT_BYTES = 4


def export(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    format: str = "onnx",
    int8: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> GraphFacts:
    """Turn a saved model into a graph for ONNX Runtime or OpenVINO, in float32 or with 8-bit weights.

    The graph is written only when its logits are those of transformers up to 1e-4 of the largest (8-bit weights: 0.2)
    and every weight matrix of the decoder blocks is in it bit for bit (with 8-bit weights, every zero is a zero).
    One graph serves the prompt and every token after it; ``ExportedModelForCausalLM`` generates with it. Where both
    were asked for, a folder holds a graph in float32 and one with 8-bit weights beside each other.

    Args:
        model: Folder of a saved model, pruned or not, zeros among its weights or smaller; or a repository on the Hub.
        out: Folder for the graph; None for ``onnx/`` or ``openvino/`` in the model's folder, where ``hubprune push``
            takes it along.
        format: ``"onnx"`` or ``"openvino"``.
        int8: Write the weights as 8-bit integers.
        revision: Branch, tag or commit of the repository.
        token: Token of the Hub.
        trust_remote_code: Run the code that the repository brings along.
        progress: Whether to show a progress bar, once it takes more than two seconds.

    Returns:
        What was written and what was measured on it.

    Raises:
        ConfigError: There is no such format, or nowhere to write.
        UsageError: The packages of the extra ``export`` are missing, or the model does not fit into memory.
        UnsupportedModelError: The model is no decoder language model, or cannot be traced.
        OutputError: The folder holds something else, cannot be written, or has no room.
        VerificationError: The graph is not what the model is; nothing was written.
    """
    check_format(format)
    source = os.fspath(model)
    target = _target(source, out, format)
    opening = Opening(source, revision, {"dtype": "float32", "token": token, "trust_remote_code": trust_remote_code})
    check_supported(opening.config, paired=False)
    _check_length(opening)
    needed = sum(p.numel() for p in opening.outline.parameters()) * FLOAT_BYTES
    _check_room(target, needed)
    started = time.monotonic()
    bar = tqdm(desc="Export", unit="step", total=3 + 2 * int8, disable=not progress, delay=2, leave=False)

    def step(name: str) -> None:
        bar.set_postfix_str(name)
        bar.update()

    with bar:
        loaded = opening.weights()
        step("loaded")
        with disk_errors(target), _staging(target) as staged:
            home = Path(source).resolve() if opening.repo.local else _snapshot(opening)
            weights = weights_sha256(home)
            old = ExportRecord.load(target)
            kept = dict(old.graphs) if old is not None and old.weights == weights else {}
            ready = _ready(target, kept.get(GRAPHS[format][0])) if int8 else None
            facts = _write(loaded, staged, format, ready=ready, int8=int8, step=step)
            seconds = round(time.monotonic() - started, 1)
            facts = replace(facts, seconds=seconds, created=datetime.now(UTC).isoformat(timespec="seconds"))
            _add_configs(staged, loaded, None if target.parent == home else opening)
            kept.pop(facts.file, None)
            _keep(target, staged, kept, old)
            ExportRecord(weights, {**kept, facts.file: facts}).save(staged)
            for path in (staged, *staged.iterdir()):
                path.chmod(0o755 if path.is_dir() else 0o644)
    return facts


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder beside a place, moved to it at the end of the block."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{target.name}-new-", dir=target.parent))
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    try:
        yield staged
        place(staged, target, aside)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        if target.exists() or not any(
            aside.iterdir()
        ):  # otherwise what was there could not be put back and lies aside
            shutil.rmtree(aside, ignore_errors=True)


def _target(source: str, out: str | os.PathLike[str] | None, format: str) -> Path:
    """Where to write; refuses a folder that holds anything but an export."""
    if out is None and not Path(source).is_dir():
        raise ConfigError(f"{source} is no folder that the graph could go into: say where to write it (out, --out)")
    target = Path(source) / format if out is None else Path(out)
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise OutputError(f"the output must be a folder, and {target} is a file: give another path")
    if target.is_dir() and any(target.iterdir()):
        record = ExportRecord.load(target)
        if record is None or any(graph.format != format for graph in record.graphs.values()):
            raise OutputError(
                f"an output folder must be empty or hold an export to {format}, and {target} holds other files: "
                "give another folder"
            )
    return target


def _check_length(opening: Opening) -> None:
    longest = max_length(opening.config)
    if longest is not None and longest < SHORTEST:
        raise UnsupportedModelError(
            f"a model is traced on {SHORTEST} tokens, and {opening.name} reads {longest}: give a model that reads more"
        )


def _check_room(target: Path, needed: int) -> None:
    memory, wanted = free_memory(), COPIES * needed
    if wanted > memory:
        raise UsageError(
            f"exporting holds the weights {COPIES} times in float32, {size(wanted)}, and {size(memory)} of memory are "
            "free: use a machine with more"
        )
    beside = next(folder for folder in target.parents if folder.exists())
    with disk_errors(target):
        free = shutil.disk_usage(beside).free
    if free < needed + SPARE_BYTES:
        raise OutputError(
            f"exporting writes {size(needed + SPARE_BYTES)}, and {beside} has {size(free)} free: make room or give "
            "another folder"
        )


def _ready(target: Path, facts: GraphFacts | None) -> Path | None:
    """A graph in float32 of the same weights that is there already; None where it has to be made."""
    if facts is None or any(
        not (target / name).is_file() or (target / name).stat().st_size != count for name, count in facts.files.items()
    ):
        return None
    return target / facts.file


def _write(
    model: PreTrainedModel,
    staged: Path,
    format: str,
    *,
    ready: Path | None,
    int8: bool,
    step: Callable[[str], None],
) -> GraphFacts:
    """Write the graph that was asked for into a folder, checked.

    Args:
        model: The model.
        staged: The folder.
        format: The format.
        ready: The graph in float32, where it need not be made.
        int8: Write the one with 8-bit weights.
        step: Told what is done.
    """
    full, small = (staged / name for name in GRAPHS[format])
    if ready is not None:
        full = ready
    else:
        _trace_into(model, full, format)
    step("traced")
    matrices, zeros = graphcheck.find_weights(model, full)
    checked = _compared(model, full, graphcheck.TOLERANCE)
    step("checked")
    added, chosen = 0, full
    if int8:
        (round_onnx if format == "onnx" else round_openvino)(full, small)
        step("rounded")
        added, chosen = graphcheck.compare_zeros(full, small), small
        checked = _compared(model, small, graphcheck.INT8_TOLERANCE)
        for file in _files_of(full) if ready is None else ():
            file.unlink()
        step("checked")
    return GraphFacts(
        format=format,
        files={file.name: file.stat().st_size for file in _files_of(chosen)},
        int8=int8,
        matrices=matrices,
        zeros=zeros,
        rounded_to_zero=added,
        versions={name: metadata.version(name) for name in ("torch", "transformers", *PACKAGES[format])},
        **checked,
    )


def _trace_into(model: PreTrainedModel, file: Path, format: str) -> None:
    program = trace(model, format)
    if format == "onnx":
        import onnx_ir

        onnx_ir.save(program, file, external_data=f"{file.name}_data")
    else:
        import openvino

        openvino.save_model(program, str(file), compress_to_fp16=False)


def _compared(model: PreTrainedModel, file: Path, tolerance: float) -> dict[str, Any]:
    difference, agreement, tokens = graphcheck.compare_logits(model, open_session(file))
    graphcheck.judge(file.name, difference, tolerance)
    return {"difference": difference, "agreement": agreement, "tokens": tokens, "tolerance": tolerance}


def _files_of(file: Path) -> list[Path]:
    """A graph's file and the one its weights are in."""
    weights = file.with_suffix(".bin") if file.suffix == ".xml" else file.with_name(f"{file.name}_data")
    return [file, *([weights] if weights.is_file() else [])]


def _add_configs(staged: Path, model: PreTrainedModel, opening: Opening | None) -> None:
    """Put beside the graph what it is loaded with: configs, and the tokenizer unless the model's folder has it."""
    model.config.save_pretrained(staged)
    if model.generation_config is not None:
        with quiet():
            model.generation_config.save_pretrained(staged)
    tokenizer = opening.find_tokenizer() if opening is not None else None
    if tokenizer is not None:
        tokenizer.save_pretrained(staged)


def _keep(target: Path, staged: Path, kept: Mapping[str, GraphFacts], old: ExportRecord | None) -> None:
    """Take over from an earlier export the graphs that still hold, and what is not ours."""
    held = {name for graph in kept.values() for name in graph.files}
    gone = {RECORD_NAME, *(old.files if old is not None else ())} - held
    for path in target.iterdir() if target.is_dir() else ():
        if path.name not in gone and not (staged / path.name).exists():
            (shutil.copytree if path.is_dir() else _link)(path, staged / path.name)


def _snapshot(opening: Opening) -> Path:
    """Where the cache has the files of a repository whose weights were just loaded."""
    found = cached_file(
        opening.name, CONFIG_NAME, revision=opening.repo.commit, local_files_only=True, **opening.cache
    )
    return Path(str(found)).parent


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that is not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
