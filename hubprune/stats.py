"""What the engine collects: norms and second moments of the inputs of a matrix, and sums over gradients.

All sums run over tokens in float32. An accumulator is shared by the matrices that read the same input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from hubprune.architecture import Matrix
from hubprune.errors import NumericalError

StatisticName = Literal["norm", "hessian"]

# A factorisation that fails is tried again with ten times the damping, this often.
CHOLESKY_RETRIES = 3


class InputNorm:
    """Sum of squares of each input column over tokens.

    Attributes:
        tokens: Tokens seen.
        total: ``(d_in,)``, float32.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.tokens = 0
        self.total = torch.zeros(width, dtype=torch.float32, device=device)

    def update(self, inputs: torch.Tensor) -> None:
        """Add ``inputs``, ``(tokens, d_in)``."""
        self.tokens += inputs.shape[0]
        self.total += inputs.float().square().sum(dim=0)

    def norm(self) -> torch.Tensor:
        """Root mean square over tokens, ``(d_in,)``: the 2-norm divided by the root of the tokens."""
        return (self.total / max(self.tokens, 1)).sqrt()


class Hessian:
    """Second moment of the inputs, the Hessian of the layer's squared output error (SparseGPT, arXiv:2301.00774).

    Attributes:
        tokens: Tokens seen.
        total: ``sum x x^T``, ``(d_in, d_in)``, float32.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.tokens = 0
        self.total = torch.zeros(width, width, dtype=torch.float32, device=device)

    def update(self, inputs: torch.Tensor) -> None:
        """Add ``inputs``, ``(tokens, d_in)``."""
        self.tokens += inputs.shape[0]
        inputs = inputs.float()
        self.total.addmm_(inputs.T, inputs)

    def matrix(self) -> torch.Tensor:
        """``H = (2 / tokens) sum x x^T``, ``(d_in, d_in)``, without damping."""
        return self.total * (2.0 / max(self.tokens, 1))


Statistic = InputNorm | Hessian
STATISTICS: dict[StatisticName, type[InputNorm] | type[Hessian]] = {"norm": InputNorm, "hessian": Hessian}


class InputCollector:
    """Fills one kind of accumulator for the matrices of a block; matrices that read the same input share one.

    Args:
        name: ``norm`` or ``hessian``.
    """

    def __init__(self, name: StatisticName) -> None:
        self.kind = STATISTICS[name]
        self.by_matrix: dict[Matrix, Statistic] = {}

    def __call__(self, matrices: Sequence[Matrix], inputs: torch.Tensor) -> None:
        """Add an input ``(tokens, d_in)`` that ``matrices`` read."""
        accumulator = self.by_matrix.get(matrices[0])
        if accumulator is None:
            accumulator = self.kind(inputs.shape[-1], inputs.device)
            self.by_matrix.update(dict.fromkeys(matrices, accumulator))
        accumulator.update(inputs)

    def get(self, matrix: Matrix) -> Statistic:
        """The accumulator of a matrix; an empty one where no token arrived (an expert that nothing was routed to)."""
        if matrix not in self.by_matrix:
            self.by_matrix[matrix] = self.kind(matrix.shape[1], matrix.parameter.device)
        return self.by_matrix[matrix]


def inverse_cholesky(hessian: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """Factorise the inverse of a Hessian.

    Args:
        hessian: ``(d_in, d_in)``, symmetric, without damping. Columns that saw no input get a one on the diagonal.
        damping: Added to the diagonal, as a fraction of its mean; raised tenfold when the factorisation fails.

    Returns:
        Upper triangular U with ``H^-1 = U^T U``, and the damping that was needed.

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
        if failed.item() == 0 and bool(torch.isfinite(lower).all()):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if failed.item() == 0 and bool(torch.isfinite(upper).all()):
                return upper, used
    raise NumericalError(
        f"the Hessian of the inputs must be positive definite, and it could not be factorised with damping up to "
        f"{used:g}: give more calibration text (num_samples) or a larger damping"
    )
