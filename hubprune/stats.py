"""What the engine collects: norms and second moments of the inputs of a matrix.

Products are taken in float32 and added up in float64, so that the order of the sum, which the number of processes
changes, does not show. An accumulator is shared by the matrices that read the same input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch

from hubprune import ranks
from hubprune.architecture import Matrix
from hubprune.errors import NumericalError, UnsupportedModelError

StatisticName = Literal["norm", "hessian"]

# A factorisation that fails is tried again with ten times the damping, this often.
CHOLESKY_RETRIES = 3
# Columns of a second moment that are added up together.
PANEL = 512


def widest_float(device: torch.device) -> torch.dtype:
    """The type that sums are kept in: float64, or float32 on a device without it."""
    return torch.float32 if device.type == "mps" else torch.float64


class Statistic(ABC):
    """A sum over tokens.

    Attributes:
        tokens: Tokens seen.
        totals: The parts of the sum.
    """

    tokens: int
    totals: list[torch.Tensor]

    @abstractmethod
    def __init__(self, width: int, device: torch.device) -> None: ...

    @abstractmethod
    def update(self, inputs: torch.Tensor) -> None:
        """Add ``inputs``, ``(tokens, d_in)``."""

    def add_up(self) -> None:
        """Add what the other processes have seen."""
        self.tokens = int(ranks.add_up(torch.tensor(self.tokens)))
        self.totals = [ranks.add_up(total) for total in self.totals]


class InputNorm(Statistic):
    """Sum of squares of each input column over tokens, ``(d_in,)``."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.tokens = 0
        self.totals = [torch.zeros(width, dtype=widest_float(device), device=device)]

    def update(self, inputs: torch.Tensor) -> None:
        """Add ``inputs``, ``(tokens, d_in)``."""
        self.tokens += inputs.shape[0]
        self.totals[0] += inputs.float().square().sum(dim=0)

    def norm(self) -> torch.Tensor:
        """Root mean square over tokens, ``(d_in,)``: the 2-norm divided by the root of the tokens."""
        return (self.totals[0] / max(self.tokens, 1)).sqrt().float()


class Hessian(Statistic):
    """Second moment of the inputs, ``sum x x^T``, ``(d_in, d_in)``.

    It is the Hessian of the layer's squared output error (SparseGPT, arXiv:2301.00774). It is symmetric, so only its
    upper half is computed and kept, as panels of columns, each down to the diagonal: in float64 that takes no more
    memory than the whole in float32, and half the time.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.tokens, self.width = 0, width
        dtype = widest_float(device)
        self.totals = [torch.zeros(stop, stop - start, dtype=dtype, device=device) for start, stop in self._panels()]

    def _panels(self) -> list[tuple[int, int]]:
        return [(start, min(start + PANEL, self.width)) for start in range(0, self.width, PANEL)]

    def update(self, inputs: torch.Tensor) -> None:
        """Add ``inputs``, ``(tokens, d_in)``."""
        self.tokens += inputs.shape[0]
        inputs = inputs.float()
        for total, (start, stop) in zip(self.totals, self._panels(), strict=True):
            total += inputs[:, :stop].T @ inputs[:, start:stop]

    def diagonal(self) -> torch.Tensor:
        """The diagonal of the sum, ``(d_in,)``."""
        return torch.cat(
            [total[start:].diagonal() for total, (start, _) in zip(self.totals, self._panels(), strict=True)]
        )

    def matrix(self) -> torch.Tensor:
        """``H = (2 / tokens) sum x x^T``, ``(d_in, d_in)``, float32, without damping."""
        whole = torch.empty(self.width, self.width, device=self.totals[0].device)
        for total, (start, stop) in zip(self.totals, self._panels(), strict=True):
            panel = total * (2.0 / max(self.tokens, 1))
            whole[:stop, start:stop] = panel
            whole[start:stop, :start] = panel[:start].T
        return whole


STATISTICS: dict[StatisticName, type[Statistic]] = {"norm": InputNorm, "hessian": Hessian}


class InputCollector:
    """Fills one kind of accumulator for the matrices of a block; matrices that read the same input share one.

    Args:
        name: ``norm`` or ``hessian``.
    """

    def __init__(self, name: StatisticName) -> None:
        self.kind = STATISTICS[name]
        self.by_matrix: dict[Matrix, Statistic] = {}
        self._complete: set[int] = set()

    def __call__(self, matrices: Sequence[Matrix], inputs: torch.Tensor) -> None:
        """Add an input ``(tokens, d_in)`` that ``matrices`` read."""
        accumulator = self.by_matrix.get(matrices[0])
        if accumulator is None:
            accumulator = self.kind(inputs.shape[-1], inputs.device)
            self.by_matrix.update(dict.fromkeys(matrices, accumulator))
        accumulator.update(inputs)

    def seen_everywhere(self, matrix: Matrix) -> bool:
        """Whether every process has seen an input of a matrix; every one must ask in the same order."""
        return int(ranks.add_up(torch.tensor(int(matrix in self.by_matrix)))) == ranks.size()

    def get(self, matrix: Matrix) -> Statistic:
        """The accumulator of a matrix, summed over all processes; every one must ask in the same order."""
        if matrix not in self.by_matrix:
            raise UnsupportedModelError(
                f"every matrix must be run by its block, and {matrix.name} was not: leave it alone (ignore=...)"
            )
        statistic = self.by_matrix[matrix]
        if id(statistic) not in self._complete:
            statistic.add_up()
            self._complete.add(id(statistic))
        return statistic


def damped_cholesky(hessian: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """Factorise a Hessian.

    Args:
        hessian: ``(n, n)``, symmetric, without damping. Columns that saw no input get a one on the diagonal.
        damping: Added to the diagonal, as a fraction of its mean; raised tenfold when the factorisation fails.

    Returns:
        Lower triangular L with ``H = L L^T``, and the damping that was needed.

    Raises:
        NumericalError: It fails even with the largest damping tried.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    mean = diagonal.mean()
    for attempt in range(CHOLESKY_RETRIES + 1):
        used = damping * 10.0**attempt
        damped = hessian.clone()
        damped.diagonal().add_(used * mean)
        damped.diagonal().masked_fill_(dead, 1.0)
        lower, failed = torch.linalg.cholesky_ex(damped)
        del damped  # each of these is as large as the Hessian
        if failed.item() == 0 and bool(torch.isfinite(lower).all()):
            return lower, used
    raise NumericalError(
        f"the Hessian of the inputs must be positive definite, and it could not be factorised with damping up to "
        f"{used:g}: give more calibration text (num_samples) or a larger damping"
    )


def inverse_cholesky(hessian: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """Factorise the inverse of a Hessian.

    Args:
        hessian: As for ``damped_cholesky``.
        damping: Likewise.

    Returns:
        Upper triangular U with ``H^-1 = U^T U``, and the damping that was needed.

    Raises:
        NumericalError: It fails even with the largest damping tried.
    """
    # Factorised from the last column to the first, H = V V^T with V upper triangular; then U = V^-1, and the inverse
    # itself, the costly and inexact step, is not needed.
    lower, used = damped_cholesky(hessian.flip(0, 1), damping)
    inverse = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    if not bool(torch.isfinite(inverse).all()):
        raise NumericalError(
            "the inverse Hessian of the inputs must be finite, and it is not: give more calibration text "
            "(num_samples) or a larger damping"
        )
    return inverse.flip(0, 1), used
