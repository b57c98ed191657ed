"""What is left of the zeros after a user quantised a pruned model, whatever library did it.

A quantised layer stores codes and scales in a form of its library's own. What it multiplies by is found out by asking
it: run on the identity, a layer answers with its weights. Symmetric formats (int8 of bitsandbytes and torchao, nf4)
map zero to zero; a format with a zero point need not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from hubprune import hub
from hubprune.architecture import auto_class, find_matrices
from hubprune.errors import UnsupportedModelError, UsageError, VerificationError
from hubprune.facts import MatrixFacts, Verification
from hubprune.opening import Opening, no_conversion
from hubprune.report import PruningReport
from hubprune.sparsity import parse_pattern
from hubprune.weights import weights_of

ROWS = 1024  # rows of the identity that a layer is run on at a time


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


def verify_quantized(folder: Path, pruned: str, trust_remote_code: bool = False) -> Verification:
    """Check that a quantised model still has every zero of the pruned one, and its N:M groups.

    Args:
        folder: Where the quantised model was saved.
        pruned: Repository or folder of the pruned model that it was made from.
        trust_remote_code: Let the models' own code run.

    Returns:
        What was found, with one sentence for each check; nothing is written.

    Raises:
        UsageError: One of the two is not what it should be.
        UnsupportedModelError: transformers cannot load the quantised model.
        VerificationError: Zeros were lost.
    """
    opening = Opening(pruned, None, {"dtype": "auto", "trust_remote_code": trust_remote_code})
    report = hub.read_report(opening.repo)
    if report is None:
        raise UsageError(f"{pruned} holds no report of a pruning: give the pruned model that was quantised")
    model, device = _load(folder, trust_remote_code)
    method = getattr(model.config, "quantization_config", None)
    if method is None:
        raise UsageError(f"pruned= goes with a quantised model, and {folder} holds none: leave it out")
    kind = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", "")
    pattern = report.config.get("pattern")
    groups = None if pattern is None else parse_pattern(pattern)
    found = kept = counted = broken = 0
    lost = []
    for row, before in _zeros(opening, report):
        zero = effective_weight(_layer(model, row.name), row.shape[1], model.dtype, device) == 0
        missing = int((before.to(device) & ~zero).sum())
        found, kept = found + int(zero.sum()), kept + int(before.sum()) - missing
        lost += [f"{missing:,} in {row.name}"] if missing else []
        if groups is not None:
            filled = (~zero).reshape(zero.shape[0], -1, groups.group).sum(-1)
            counted, broken = counted + filled.numel(), broken + int((filled > groups.keep).sum())
    if lost or broken:
        more = f"; {broken:,} of {counted:,} groups hold more than {pattern}" if broken else ""
        raise VerificationError(
            f"{folder} is quantised ({_word(kind)}) and has not kept the zeros of {pruned}: "
            f"{', '.join(lost[:3])}{more}. "
            "Use a symmetric format, without a zero point"
        )
    checks = {
        "quantised": f"by {_word(kind)}; each layer was run on the identity, to see what it multiplies by",
        "zeros": f"all {kept:,} zeros of the pruned model in {len(report.matrices)} matrices kept, {found:,} in all",
    }
    if groups is not None:
        checks["groups"] = f"{counted:,} groups of {groups.group}, none with more than {groups.keep} weights kept"
    return Verification(checks, True, transformers.__version__)


def _word(kind: Any) -> str:
    return str(getattr(kind, "value", kind))


def _load(folder: Path, trust_remote_code: bool) -> tuple[Any, torch.device]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with no_conversion():
            loader = auto_class(AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))
            model = loader.from_pretrained(
                folder, device_map=str(device), trust_remote_code=trust_remote_code, local_files_only=True
            )
    except (ImportError, ValueError, OSError) as error:
        raise UnsupportedModelError(f"transformers does not load {folder}: {' '.join(str(error).split())}") from error
    return model.eval(), device


def _layer(model: nn.Module, name: str) -> nn.Module:
    """The layer that a matrix belongs to."""
    if "[" in name:
        raise UsageError(f"fused experts cannot be run by themselves, and {name} is one: their zeros are not checked")
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise UsageError(f"the quantised model has no {name}: give the pruned model that it was made from") from None


def _zeros(opening: Opening, report: PruningReport) -> Iterator[tuple[MatrixFacts, torch.Tensor]]:
    """Where the pruned model has zeros, matrix by matrix; its blocks stay on disk."""
    with tempfile.TemporaryDirectory(prefix="hubprune-quantised-") as offload:
        weights = weights_of(opening.weights_on_disk(offload))
        found = {matrix.name: matrix for matrix in find_matrices(weights.model)}
        for row in report.matrices:
            if row.name not in found:
                raise UsageError(f"{opening.name} has no {row.name}, which its report lists: prune again")
            with weights.block(found[row.name].block):
                yield row, found[row.name].view() == 0
