"""What must hold before anything is published, measured on the saved files instead of the model in memory.

Every check returns one sentence with what it measured, or fails with one; all failures are reported together.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from hubprune.architecture import Matrix, find_matrices
from hubprune.environment import free_memory
from hubprune.errors import VerificationError
from hubprune.exportrecord import exports_in, weights_sha256
from hubprune.facts import MatrixFacts, Verification
from hubprune.opening import Opening
from hubprune.quantized import verify_quantized
from hubprune.reloading import CheckFailed, reload, some
from hubprune.removal import kept_of
from hubprune.report import PruningReport
from hubprune.sparsity import parse_pattern
from hubprune.units import Group, find_groups
from hubprune.weights import Weights, blocks_on_disk, touched_by, weights_of

UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".joblib")
COMPRESSION_KEYS = ("quantization_config", "sparsity_config", "compression_config")


class _Saved:
    """A saved folder under inspection."""

    def __init__(self, folder: Path, report: PruningReport, trust_remote_code: bool, room: int) -> None:
        self.room = room
        self.folder = folder
        self.report = report
        self.trust_remote_code = trust_remote_code
        place = folder.resolve()
        # One name, so that what a killed check leaves is gone after the next.
        self.offload = place.parent / f".{place.name}-verify"

    @property
    def weight_files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))

    @functools.cached_property
    def opening(self) -> Opening:
        keywords = {"dtype": "auto", "trust_remote_code": self.trust_remote_code, "local_files_only": True}
        return Opening(str(self.folder), None, keywords)

    @functools.cached_property
    def weights(self) -> Weights:
        """The reloaded model, its blocks on disk: what is checked need not fit into memory."""
        return weights_of(self.opening.weights_on_disk(self.offload))

    @functools.cached_property
    def matrices(self) -> list[tuple[MatrixFacts, Matrix]]:
        """The report's matrices with those of the reloaded model."""
        if not self.report.matrices and not self.report.units:
            raise CheckFailed("the report lists no pruned matrix: prune again")
        found = {matrix.name: matrix for matrix in find_matrices(self.weights.model)}
        lost = [facts.name for facts in self.report.matrices if facts.name not in found]
        if lost:
            raise CheckFailed(f"the saved model has no {some(lost)}, which the report says were pruned")
        return [(facts, found[facts.name]) for facts in self.report.matrices]

    def pruned(self) -> Iterator[tuple[MatrixFacts, torch.Tensor]]:
        """Yield the report's matrices with the saved weights, ``(d_out, d_in)``, a block at a time."""
        for block, rows in itertools.groupby(self.matrices, key=lambda pair: pair[1].block):
            with self.weights.block(block):
                for facts, matrix in rows:
                    yield facts, matrix.view()

    def release(self) -> None:
        """Drop the reloaded model."""
        for name in ("matrices", "weights"):
            self.__dict__.pop(name, None)
        shutil.rmtree(self.offload, ignore_errors=True)


def _check_files(saved: _Saved) -> str:
    found = (p for p in saved.folder.rglob("*") if p.suffix in UNSAFE_SUFFIXES)
    # The weights of an OpenVINO graph are plain numbers, whatever their name.
    unsafe = sorted(str(p.relative_to(saved.folder)) for p in found if not p.with_suffix(".xml").is_file())
    if unsafe:
        raise CheckFailed(
            f"weights are published as safetensors only, and the folder holds {some(unsafe)}: remove them"
        )
    names = {path.name for path in saved.weight_files}
    index = saved.folder / "model.safetensors.index.json"
    if index.is_file():
        expected = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        expected = {"model.safetensors"}
    if names != expected:
        missing, stale = sorted(expected - names), sorted(names - expected)
        raise CheckFailed(
            f"the weight files do not fit together: missing {missing or 'none'}, left over {stale or 'none'}"
        )
    return f"{len(names)} safetensors file(s), no pickle"


def _check_config(saved: _Saved) -> str:
    nested = [saved.config, *(value for value in saved.config.values() if isinstance(value, dict))]
    left = [key for key in COMPRESSION_KEYS if any(key in part for part in nested)]
    if left:
        raise CheckFailed(
            f"config.json must be that of a plain dense model and has {', '.join(left)}: remove it; "
            "to see what a quantised model has kept, name the pruned one (--pruned, pruned=)"
        )
    names = saved.config.get("architectures") or []
    own_code = saved.trust_remote_code and saved.report.base.loader in (saved.config.get("auto_map") or {})
    if not names or not (own_code or all(hasattr(transformers, name) for name in names)):
        raise CheckFailed(f"architectures must name a class of transformers {transformers.__version__}, got {names}")
    if saved.config.get("hubprune") != json.loads(json.dumps(saved.report.summary())):
        raise CheckFailed("config.hubprune is not the summary of this report: save the model again")
    return f"architecture {names[0]}, no quantisation or sparsity format"


def _check_finite(saved: _Saved) -> str:
    count, bad = 0, []
    for path in saved.weight_files:
        with safe_open(path, framework="pt") as tensors:
            names = list(tensors.keys())
        for name in names:
            with safe_open(path, framework="pt") as tensors:  # anew: what was read stays mapped
                tensor = tensors.get_tensor(name)
            count += 1
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                bad.append(name)
            del tensor
    if bad:
        raise CheckFailed(f"NaN or infinity in {some(bad)}")
    return f"{count} tensors, all finite"


def _check_zeros(saved: _Saved) -> str:
    wrong, zeros = [], 0
    for facts, view in saved.pruned():
        found = int(torch.count_nonzero(view == 0))
        zeros += found
        if tuple(view.shape) != tuple(facts.shape):
            wrong.append(f"{facts.name} is {tuple(view.shape)}, reported {tuple(facts.shape)}")
        elif found != facts.zeros or found < facts.pruned:
            wrong.append(f"{facts.name} has {found} zeros, reported {facts.zeros} with {facts.pruned} pruned")
    totals, matrices = saved.report.totals, saved.report.matrices
    summed = (sum(m.numel for m in matrices), sum(m.pruned for m in matrices), zeros)
    if saved.report.units:  # biases are among the units, and what is cut out is not there any more
        summed = (totals.targeted, totals.pruned, zeros)
    if summed != (totals.targeted, totals.pruned, totals.zeros):
        reported = (totals.targeted, totals.pruned, totals.zeros)
        wrong.append(f"the totals (targeted, pruned, zeros) are {summed}, reported {reported}")
    if wrong:
        raise CheckFailed("; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""))
    return f"{zeros:,} zeros in {len(matrices)} matrices, each exactly as reported"


def _check_units(saved: _Saved) -> str | None:
    rows = saved.report.units
    if not rows:
        return None
    cut, wrong = saved.report.application == "remove", []
    if rows[0].unit == "layer":
        left = len(saved.weights.blocks)
        if left != rows[0].kept:
            raise CheckFailed(f"the saved model has {left} layers, reported {rows[0].kept}")
        return f"{left} of {rows[0].count} layers are left, as reported"
    kept = kept_of(rows)
    groups = {group.name: group for group in find_groups(saved.weights.model, dict.fromkeys(row.unit for row in rows))}
    for block, here in itertools.groupby(rows, key=lambda row: row.block):
        with saved.weights.block(block):
            for row in here:
                group = groups.get(row.name)
                if group is None or group.count != (row.kept if cut else row.count):
                    wrong.append(f"{row.name} has {group.count if group else 'no'} units, reported {row.kept}")
                elif not cut and any(bool(part.any()) for part in _parts(group, ~kept[row.name])):
                    wrong.append(f"{row.name} has weights in units that were removed")
    if wrong:
        raise CheckFailed(some(wrong))
    removed = sum(row.count - row.kept for row in rows)
    what = "cut out" if cut else "all zero"
    return f"{removed:,} units in {len(rows)} places are {what}, as reported"


def _parts(group: Group, gone: torch.Tensor) -> Iterator[torch.Tensor]:
    """The weights of some units of a group."""
    for each in group.slices:
        yield each.stored().index_select(each.axis, each.index[gone].flatten().to(each.stored().device))


def _check_groups(saved: _Saved) -> str | None:
    if saved.report.config.get("pattern") is None:
        return None
    pattern = parse_pattern(saved.report.config["pattern"])
    wrong, groups = [], 0
    for facts, view in saved.pruned():
        if view.shape[1] % pattern.group:
            raise CheckFailed(f"{facts.name} has {view.shape[1]} input columns, not divisible by {pattern.group}")
        kept = (view != 0).reshape(view.shape[0], -1, pattern.group).sum(-1)
        groups += kept.numel()
        broken = int(torch.count_nonzero(kept > pattern.keep))
        if broken:
            wrong.append(f"{facts.name} ({broken} groups)")
    if wrong:
        raise CheckFailed(f"more than {pattern.keep} of {pattern.group} weights are kept in {some(wrong)}")
    return f"{groups:,} groups of {pattern.group}, none with more than {pattern.keep} weights kept"


def _check_untouched(saved: _Saved) -> str:
    units = dict.fromkeys(row.unit for row in saved.report.units if row.unit != "layer")
    groups = find_groups(saved.weights.model, units) if units else []
    parts: list[Any] = [each for group in groups for each in group.slices] or [matrix for _, matrix in saved.matrices]
    digest = saved.weights.untouched_sha256(touched_by(parts))
    if digest != saved.report.untouched_sha256:
        raise CheckFailed(
            "embeddings, norms, biases, the head and ignored matrices must be the base's own, and their hash is "
            f"{digest[:12]} instead of {saved.report.untouched_sha256[:12] or 'one in the report'}"
        )
    return f"every parameter outside the pruned matrices is the base's own (sha256 {digest[:12]})"


def _check_reload(saved: _Saved) -> str:
    saved.release()
    places = None  # as anybody would load it, unless it is too large for that here
    if sum(path.stat().st_size for path in saved.weight_files) > saved.room:
        places = blocks_on_disk(saved.opening.outline)
    loader = saved.report.base.loader
    return reload(saved.folder, loader, saved.report.probe, saved.trust_remote_code, places, saved.offload)


def _check_exports(saved: _Saved) -> str | None:
    records = exports_in(saved.folder)
    stale = [name for name, record in records.items() if record.weights != weights_sha256(saved.folder)]
    if stale:
        raise CheckFailed(f"the graphs in {some(stale)} are of other weights: export again, or remove them")
    return f"the graphs in {some(list(records))} are of these weights" if records else None


CHECKS: dict[str, Callable[[_Saved], str | None]] = {
    "files": _check_files,
    "config": _check_config,
    "finite": _check_finite,
    "zeros": _check_zeros,
    "groups": _check_groups,
    "units": _check_units,
    "untouched": _check_untouched,
    "exports": _check_exports,
    "reload": _check_reload,
}


def verify(
    folder: str | os.PathLike[str],
    *,
    report: PruningReport | None = None,
    trust_remote_code: bool = False,
    max_memory: int | None = None,
    pruned: str | os.PathLike[str] | None = None,
) -> Verification:
    """Check a saved pruned model and write the stamp into its report.

    Of a model that was quantised after pruning, only zeros and groups are checked, and nothing is written.

    Args:
        folder: Where the model was saved.
        report: The run's report; read from the folder when None. The stamp is written into it as well.
        trust_remote_code: Let the folder's own modelling code run.
        max_memory: Bytes that the reloaded model may take; beyond it, or what is free, its blocks stay on disk.
        pruned: Where the folder holds a quantised model, the pruned one that it was made from.

    Returns:
        The stamp, with one sentence for each check.

    Raises:
        UsageError: The folder holds no report.
        VerificationError: Some checks failed; the message lists every one. The report says so too.
        OutputError: The stamp cannot be written.
    """
    path = Path(folder)
    if pruned is not None:
        return verify_quantized(path, os.fspath(pruned), trust_remote_code)
    report = PruningReport.load(path) if report is None else report
    saved = _Saved(path, report, trust_remote_code, min(free_memory(), max_memory or sys.maxsize))
    passed: dict[str, str] = {}
    failures = []
    for name, check in CHECKS.items():
        try:
            sentence = check(saved)
        except CheckFailed as error:
            failures.append(f"{name}: {error}")
        except Exception as error:  # a check that cannot be carried out has not passed, whatever stopped it
            message = re.sub(r"\s+", " ", str(error))
            failures.append(f"{name}: cannot be checked ({type(error).__name__}: {message:.300})")
        else:
            if sentence is not None:
                passed[name] = sentence
    saved.release()
    report.verification = Verification(passed, not failures, transformers.__version__)
    report.save(path)
    if failures:
        raise VerificationError(f"{path} does not hold what its report says. " + "; ".join(failures))
    return report.verification
