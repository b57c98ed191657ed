"""Several pruned models read side by side, from their reports and weight files alone: one matrix at a time.

What was removed of single weights is where the files hold zeros; which units were removed is in the report. No model
is built, except for the names that transformers stores the experts of a mixture under.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm
from transformers.core_model_loading import revert_weight_conversion

from hubprune import hub
from hubprune.errors import UsageError
from hubprune.facts import MatrixFacts, UnitFacts
from hubprune.opening import Opening
from hubprune.report import PruningReport
from hubprune.similarity import Comparison, Place, Run

Masks = list[torch.Tensor | None]
"""What each run removed in one place, True for removed; None where it removed nothing."""


class _Pruned:
    """One of the models that are compared."""

    def __init__(self, name: str, keywords: Mapping[str, Any]) -> None:
        at = re.fullmatch(r"([^@]+)@([^@]+)", name) if not hub.local_path(name).is_dir() else None
        self.name = name
        self.opening = Opening(at[1] if at else name, at[2] if at else None, keywords)
        report = hub.read_report(self.opening.repo, token=keywords.get("token"), **self.opening.cache)
        if report is None or not (report.matrices or report.units):
            raise UsageError(
                f"what is compared are models pruned by hubprune, and {name} has no record of what was removed: give "
                "the folder or repository that hubprune wrote"
            )
        self.report: PruningReport = report
        self.matrices = {row.name: row for row in report.matrices}
        self.units = {(row.name, row.unit): row for row in report.units}

    @cached_property
    def files(self) -> dict[str, Path]:
        """Where each tensor lies; the weight files are downloaded when this is first asked for."""
        found = {}
        for path in self.opening.weight_files():
            try:
                with safe_open(path, framework="pt") as tensors:
                    found.update(dict.fromkeys(tensors.keys(), path))
            except SafetensorError as error:
                raise UsageError(f"{path} is damaged ({error}): get a sound copy of {self.name}") from error
        return found

    def removed(self, tensor: str) -> torch.Tensor:
        """Where a stored tensor is zero."""
        # Files that come from a base of another layout may lack its outermost prefix, or have one more.
        ends = [tensor] if tensor in self.files else [n for n in self.files if _same_end(n, tensor)]
        if len(ends) != 1:
            raise UsageError(
                f"the report of {self.name} says that {tensor} was pruned, and its weight files do not hold it: give "
                "the folder or repository as hubprune wrote it"
            )
        with safe_open(self.files[ends[0]], framework="pt") as tensors:  # anew: what was read stays mapped
            return tensors.get_tensor(ends[0]) == 0


def compare(
    runs: Sequence[str | os.PathLike[str]],
    *,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> Comparison:
    """Compare what several runs on the same base removed.

    Args:
        runs: Two or more models pruned by hubprune: folders, or repositories (``owner/name``, ``owner/name@branch``).
        token: Token of the Hub.
        trust_remote_code: Let a repository's own code run, where its experts are stored under names of its own.
        progress: Whether to show a progress bar.

    Returns:
        The comparison: Jaccard indices over all, by layer and by type, and what chance alone would give.

    Raises:
        UsageError: The runs cannot be compared: fewer than two, another base, other shapes, single weights against
            units, or no place that all of them pruned.
        AccessError, NotFoundError, OfflineError: A repository cannot be read.
    """
    names = [os.fspath(run) for run in runs]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"a comparison needs two runs or more, each named once, got {', '.join(names) or 'none'}")
    keywords = {"trust_remote_code": trust_remote_code, **({"token": token} if token is not None else {})}
    models = [_Pruned(name, keywords) for name in names]
    for other in models[1:]:
        _check_alike(models[0], other)
    by_units = bool(models[0].report.units)
    return Comparison(
        base=models[0].report.base.model_id,
        unit="units" if by_units else "weights",
        runs=tuple(
            Run(label, model.report.method, model.report.pattern)
            for label, model in zip(_labels(names), models, strict=True)
        ),
        places=tuple(_units(models) if by_units else _weights(models, progress)),
    )


def _same_end(one: str, other: str) -> bool:
    """Whether one dotted name is the end of the other."""
    return f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}")


def _labels(names: Sequence[str]) -> list[str]:
    """Names without what lies before their last slash, where they can be told apart without."""
    last = [Path(name).name or name for name in names]
    return last if len(set(last)) == len(last) else list(names)


def _check_alike(one: _Pruned, other: _Pruned) -> None:
    """Refuse two runs whose masks cannot be laid upon each other.

    Raises:
        UsageError: Says why.
    """
    left, right = one.report, other.report
    # A base is known by its name, or by its weights: what pruning left alone is hashed.
    same_weights = left.untouched_sha256 == right.untouched_sha256 != ""
    if not same_weights and left.base.model_id != right.base.model_id:
        raise UsageError(
            f"runs are compared on one base, and {one.name} was made from {left.base.model_id}, {other.name} from "
            f"{right.base.model_id}: compare runs on the same base"
        )
    kinds = ["units" if report.units else "single weights" for report in (left, right)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"single weights and whole units cannot be compared, and {one.name} removed {kinds[0]}, {other.name} "
            f"{kinds[1]}: compare runs that removed the same"
        )
    if left.units:
        sizes: list[dict[Any, Any]] = [{key: row.count for key, row in m.units.items()} for m in (one, other)]
    else:
        sizes = [{key: tuple(row.shape) for key, row in m.matrices.items()} for m in (one, other)]
    common = [key for key in sizes[0] if key in sizes[1]]
    for key in common:
        if sizes[0][key] != sizes[1][key]:
            raise UsageError(
                f"runs are compared place by place, and {key if isinstance(key, str) else key[0]} has {sizes[0][key]} "
                f"in {one.name}, {sizes[1][key]} in {other.name}: compare runs on the same base"
            )
    if not common:
        raise UsageError(
            f"{one.name} and {other.name} pruned nothing of the same kind: compare runs with the same targets"
        )


def _units(models: Sequence[_Pruned]) -> Iterable[Place]:
    """Compare the units that the reports name."""
    rows: dict[tuple[str, str], UnitFacts] = {}
    for model in models:
        rows = {**model.units, **rows}
    found: dict[tuple[int, str], Place] = {}
    for key, row in sorted(rows.items(), key=lambda item: item[1].block):
        masks: Masks = []
        for model in models:
            mask = torch.zeros(row.count, dtype=torch.bool)
            if key in model.units:
                mask[model.units[key].removed_indices] = True
            masks.append(mask)
        _add(found, Place(row.block, row.unit, row.count, _shared(masks), row.weights))
    return found.values()


def _weights(models: Sequence[_Pruned], progress: bool) -> Iterable[Place]:
    """Compare the zeros in the weight files."""
    rows: dict[str, MatrixFacts] = {}
    for model in models:
        rows = {**model.matrices, **rows}
    parameters: dict[str, list[MatrixFacts]] = {}
    for row in rows.values():
        bare, bracket, _ = row.name.partition("[")
        parameters.setdefault(bare if bracket else f"{bare}.weight", []).append(row)
    found: dict[tuple[int, str], Place] = {}
    for model in models:
        assert model.files  # all are fetched before the first is read
    order = sorted(parameters.items(), key=lambda item: item[1][0].block)
    for parameter, of in tqdm(order, desc="Comparing", unit="matrix", disable=not progress, delay=1):
        pruned = [any(row.name in model.matrices for row in of) for model in models]
        for tensor in [parameter] if parameter.endswith(".weight") else _stored_as(models[0].opening, parameter):
            masks = [model.removed(tensor) if there else None for model, there in zip(models, pruned, strict=True)]
            shapes = {mask.shape for mask in masks if mask is not None}
            if len(shapes) > 1:
                raise UsageError(
                    f"runs are compared place by place, and {tensor} is {' and '.join(str(tuple(s)) for s in shapes)} "
                    "in their files: compare runs on the same base"
                )
            _add(found, Place(of[0].block, of[0].kind, shapes.pop().numel(), _shared(masks)))
    return found.values()


def _stored_as(opening: Opening, parameter: str) -> list[str]:
    """Names of the tensors that transformers stores a parameter of all experts as."""
    shape = opening.outline.get_parameter(parameter).to("meta")
    return list(revert_weight_conversion(opening.outline, {parameter: shape}))


def _shared(masks: Masks) -> tuple[tuple[int, ...], ...]:
    """How many each two masks have in common."""

    def both(left: torch.Tensor | None, right: torch.Tensor | None) -> int:
        return 0 if left is None or right is None else int((left & right).sum())

    return tuple(tuple(both(left, right) for right in masks) for left in masks)


def _add(found: dict[tuple[int, str], Place], place: Place) -> None:
    """Add a place to what is known of its block and kind."""
    key = place.block, place.kind
    if key in found:
        known = found[key]
        pairs = [zip(*rows, strict=True) for rows in zip(known.shared, place.shared, strict=True)]
        shared = tuple(tuple(sum(pair) for pair in row) for row in pairs)
        place = Place(place.block, place.kind, known.count + place.count, shared, place.weights)
    found[key] = place
