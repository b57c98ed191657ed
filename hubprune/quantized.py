"""What is left of the zeros after a user quantised a pruned model, whatever library did it.

A quantised layer stores codes and scales in a form of its library's own. What it multiplies by is found out by asking
it: run on the identity, a layer answers with its weights. Symmetric formats (int8 of bitsandbytes and torchao, nf4) map
zero to zero; a format with a zero point need not.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from hubprune import hub
from hubprune.architecture import find_matrices
from hubprune.errors import UnsupportedModelError, UsageError, VerificationError
from hubprune.facts import Verification
from hubprune.opening import Opening, no_conversion
from hubprune.report import REPORT_NAME, PruningReport
from hubprune.sparsity import parse_pattern
from hubprune.weights import weights_of

ROWS = 1024  # rows of the identity that a layer is run on at a time


def is_quantized(folder: Path) -> bool:
    """Whether a folder holds a quantised model."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("quantization_config"))


def effective_weight(layer: nn.Module, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """What a linear layer multiplies by, asked of the layer itself.

    Args:
        layer: The layer, in whatever form.
        width: Its input width.
        dtype: Type of the inputs.
        device: Where the layer is.

    Returns:
        ``(d_out, d_in)``.
    """
    with torch.no_grad():
        bias: Any = layer(torch.zeros(1, width, dtype=dtype, device=device))
        parts = []
        for start in range(0, width, ROWS):
            rows = torch.arange(start, min(start + ROWS, width), device=device)
            parts.append(layer(nn.functional.one_hot(rows, width).to(dtype)) - bias)
    return torch.cat(parts).T


def verify_quantized(
    folder: Path, report: PruningReport | None, pruned: str | None, trust_remote_code: bool = False
) -> Verification:
    """Check that a quantised model still has the zeros of the pruned one, and its N:M groups.

    Args:
        folder: Where the quantised model was saved.
        report: The record of the pruning; None for the one in the folder, or that of the pruned model.
        pruned: Repository or folder of the pruned model: its zeros are then compared one by one.
        trust_remote_code: Let the folder's own modelling code run.

    Returns:
        What was found, with one sentence for each check; nothing is written.

    Raises:
        UsageError: There is no report.
        UnsupportedModelError: transformers cannot load it.
        VerificationError: Zeros were lost.
    """
    report = report or _report(folder, pruned)
    model, device = _load(folder, trust_remote_code)
    method = model.config.quantization_config
    kind = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", "")
    pattern = report.config.get("pattern")
    groups = parse_pattern(pattern) if pattern is not None else None
    zeros = seen = broken = counted = 0
    lost: list[str] = []
    with _originals(pruned, report, trust_remote_code) as originals:
        for row, before in zip(report.matrices, originals, strict=False):
            weight = effective_weight(_layer(model, row.name), row.shape[1], model.dtype, device)
            zero = weight == 0
            found = int(zero.sum())
            zeros += found
            seen += row.zeros
            missing = row.zeros - found if before is None else int((before.to(device) & ~zero).sum())
            if missing > 0:
                lost.append(f"{missing:,} in {row.name}")
            if groups is not None:
                kept = (~zero).reshape(zero.shape[0], -1, groups.group).sum(-1)
                counted += kept.numel()
                broken += int((kept > groups.keep).sum())
    if lost or broken:
        wrong = [f"zeros: {', '.join(lost[:3])} of the pruned model are zero no more"] if lost else []
        wrong += [f"groups: {broken:,} of {counted:,} hold more than {pattern}"] if broken else []
        raise VerificationError(
            f"{folder} is quantised ({kind}) and has not kept what was pruned. {'; '.join(wrong)}: use a symmetric "
            "format, without a zero point"
        )
    how = "compared one by one with the pruned model" if pruned else "as many as the report says"
    checks = {"zeros": f"all {seen:,} zeros in {len(report.matrices)} matrices kept ({zeros:,} found, {how})"}
    if groups is not None:
        checks["groups"] = f"{counted:,} groups of {groups.group}, none with more than {groups.keep} weights kept"
    checks["quantised"] = f"by {kind}, read back by running each layer on the identity"
    return Verification(checks, True, transformers.__version__)


def _report(folder: Path, pruned: str | None) -> PruningReport:
    if (folder / REPORT_NAME).is_file():
        return PruningReport.load(folder)
    if pruned is None:
        raise UsageError(
            f"{folder} is quantised and holds no {REPORT_NAME}: say what it was made from (--pruned, pruned=), or copy "
            "the report there"
        )
    found = hub.read_report(Opening(pruned, None, {}).repo)
    if found is None:
        raise UsageError(f"{pruned} holds no report of a pruning: give the model that was quantised")
    return found


def _load(folder: Path, trust_remote_code: bool) -> tuple[Any, torch.device]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with no_conversion():
            model = AutoModelForCausalLM.from_pretrained(
                folder, device_map=str(device), trust_remote_code=trust_remote_code, local_files_only=True
            )
    except (ImportError, ValueError, OSError) as error:
        raise UnsupportedModelError(f"transformers does not load {folder}: {' '.join(str(error).split())}") from error
    return model.eval(), device


def _layer(model: nn.Module, name: str) -> nn.Module:
    """The layer that a matrix belongs to.

    Raises:
        UsageError: It cannot be run by itself, or is not there.
    """
    if "[" in name:
        raise UsageError(f"fused experts cannot be run by themselves, and {name} is one: their zeros are not checked")
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise UsageError(f"the quantised model has no {name}, which the report lists: give its own report") from None


@contextmanager
def _originals(
    pruned: str | None, report: PruningReport, trust_remote_code: bool
) -> Iterator[Iterator[torch.Tensor | None]]:
    """Where the pruned model has zeros, matrix by matrix in the order of the report; None for each without it."""
    if pruned is None:
        yield itertools.repeat(None)
        return
    with tempfile.TemporaryDirectory(prefix="hubprune-quantised-") as offload:
        opening = Opening(pruned, None, {"dtype": "auto", "trust_remote_code": trust_remote_code})
        weights = weights_of(opening.weights_on_disk(offload))
        found = {matrix.name: matrix for matrix in find_matrices(weights.model)}

        def walk() -> Iterator[torch.Tensor]:
            for row in report.matrices:
                if row.name not in found:
                    raise UsageError(
                        f"{pruned} has no {row.name}, which the report lists: give the model of the report"
                    )
                with weights.block(found[row.name].block):
                    yield found[row.name].view() == 0

        yield walk()
