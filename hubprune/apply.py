"""The only place that writes weights: to zero, to repair those that stay, and copies of what was worked out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hubprune import masks
from hubprune.sparsity import NM, WeightPattern
from hubprune.stats import damped_cholesky

Selector = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
ScoreSpan = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def zero(weight: torch.Tensor, keep: torch.Tensor) -> None:
    """Set the weights that are not kept to zero; the others are left alone.

    Args:
        weight: ``(d_out, d_in)``, written in place.
        keep: Boolean ``(d_out, d_in)``, True = keep.
    """
    weight.masked_fill_(~keep, 0)


def zero_lines(weight: torch.Tensor, axis: int, lines: torch.Tensor) -> None:
    """Set rows or columns to zero.

    Args:
        weight: Any shape, written in place.
        axis: The axis along which lines are counted.
        lines: Their positions.
    """
    weight.index_fill_(axis, lines.to(weight.device), 0)


def fold(weight: torch.Tensor, hessian: torch.Tensor, gone: torch.Tensor, damping: float) -> float:
    """Let the columns that stay make up for those that go, by least squares on the layer's inputs.

    With the second moment C of the inputs, the removed inputs D are predicted from the kept ones S by
    ``B = C_DS (C_SS + ridge)^-1``, and ``W_S += W_D B`` leaves the smallest squared error of the output.

    Args:
        weight: ``(d_out, d_in)``, written in place; removed columns are set to zero.
        hessian: Second moment of the inputs, ``(d_in, d_in)``, up to a factor.
        gone: The columns that go, boolean ``(d_in,)``.
        damping: The ridge, as a fraction of the mean diagonal; raised tenfold when the factorisation fails.

    Returns:
        The damping that was needed.

    Raises:
        NumericalError: It fails even with the largest damping tried.
    """
    stay = ~gone
    between = hessian[gone][:, stay]
    factor, used = damped_cholesky(hessian[stay][:, stay], damping)
    folded = torch.cholesky_solve(between.T, factor)  # (kept, removed)
    repaired = weight[:, stay].float() + weight[:, gone].float() @ folded.T
    weight[:, stay] = repaired.to(weight.dtype)
    weight[:, gone] = 0
    return used


def copy(weight: torch.Tensor, source: torch.Tensor) -> None:
    """Take over weights that another process decided on; nothing is copied onto itself.

    Args:
        weight: Written in place.
        source: The same shape and type.
    """
    if source is not weight:
        weight.copy_(source)


def retype(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring the parameters of a model into another type; buffers stay as they are, and what is tied stays tied."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def compensate(
    weight: torch.Tensor, factor: torch.Tensor, dead: torch.Tensor, select: Selector, *, span: int, block_size: int
) -> torch.Tensor:
    """Remove weights and repair the remaining ones by SparseGPT's column sweep (arXiv:2301.00774, algorithm 1).

    Columns are visited from left to right. The error of each removed weight, divided by the Cholesky factor's
    diagonal, is spread over the columns to its right; updates beyond the current block are held back and applied at
    its end. A column that saw no input on the calibration text is set to zero.

    Args:
        weight: ``(d_out, d_in)`` of any float type, written in place; the sweep itself runs in float32.
        factor: Upper Cholesky factor of the inverse Hessian, ``(d_in, d_in)``.
        dead: Boolean ``(d_in,)``, True where the calibration text gave no input.
        select: Called as ``select(weights, diagonal, start)`` at the first column of each span, with the current
            weights ``(d_out, span)``, the factor's diagonal ``(span,)`` and the column; returns the keep mask of the
            span.
        span: Columns chosen at once; divides ``block_size``.
        block_size: Columns between two lazy updates.

    Returns:
        The keep mask, boolean ``(d_out, d_in)``.
    """
    current = weight.float().clone()
    current[:, dead] = 0
    keep = torch.ones_like(current, dtype=torch.bool)
    columns = current.shape[1]
    for start in range(0, columns, block_size):
        end = min(start + block_size, columns)
        block = current[:, start:end].clone()
        upper = factor[start:end, start:end]
        errors = torch.zeros_like(block)
        for j in range(end - start):
            if j % span == 0:
                stop = min(j + span, end - start)
                keep[:, start + j : start + stop] = select(block[:, j:stop], upper.diagonal()[j:stop], start + j)
            kept = torch.where(keep[:, start + j], block[:, j], 0)
            errors[:, j] = (block[:, j] - kept) / upper[j, j]
            block[:, j:] -= torch.outer(errors[:, j], upper[j, j:])
            block[:, j] = kept
        current[:, start:end] = block
        current[:, end:] -= errors @ factor[start:end, end:]
    weight.copy_(current.to(weight.dtype).masked_fill_(~keep, 0))
    return keep


def select_from_mask(keep: torch.Tensor) -> Selector:
    """Selector that follows a finished keep mask, boolean ``(d_out, d_in)``."""
    return lambda weights, diagonal, start: keep[:, start : start + weights.shape[1]]


def select_by_scores(score: ScoreSpan, pattern: WeightPattern, shape: tuple[int, int], block_size: int) -> Selector:
    """Selector that chooses inside the sweep, from weights that are already repaired.

    Args:
        score: Called as ``score(weights, inverse_diagonal)`` with ``(d_out, span)`` and ``(span,)``; higher = keep.
        pattern: N:M, or unstructured with the block scope.
        shape: ``(d_out, d_in)``.
        block_size: Columns of a block.
    """
    if isinstance(pattern, NM):
        return lambda weights, diagonal, start: masks.keep_nm(score(weights, diagonal.square()), pattern)
    counts = masks.block_counts(*shape, block_size, pattern.sparsity)
    return lambda weights, diagonal, start: masks.keep_block(
        score(weights, diagonal.square()), counts[start // block_size]
    )
