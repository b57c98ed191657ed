"""GBLM-Pruner: activations and gradients (arXiv:2311.04902)."""

from __future__ import annotations

import torch

from hubprune.criterion import Criterion


class GBLM(Criterion):
    """Scores ``|W| * norm(X) + b * |W| * sqrt(sum_n g_n^2)``, compared inside each output row, on the dense model.

    norm(X) is taken per token and g_n is the gradient of sequence n's mean loss, so that neither depends on the
    amount of text in a sequence.

    Args:
        gradient_weight: b.
    """

    summary = "norm"
    gradients = "all"

    def __init__(self, gradient_weight: float = 1.0) -> None:
        self.gradient_weight = gradient_weight

    def contribution(self, weight: torch.Tensor, gradient: torch.Tensor, summary: torch.Tensor | None) -> torch.Tensor:
        """Return the squared gradient of one sequence, ``(d_out, d_in)``."""
        return gradient.square()

    def scores(
        self, weight: torch.Tensor, summary: torch.Tensor | None, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Score the weights of one matrix, ``(d_out, d_in)``."""
        assert summary is not None
        assert gradient is not None
        return weight.abs() * (summary + self.gradient_weight * gradient.sqrt())
