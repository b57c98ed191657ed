"""Wanda: weights and activations (arXiv:2306.11695, section 3)."""

from __future__ import annotations

import torch

from hubprune.criterion import Criterion


class Wanda(Criterion):
    """Scores ``|W_ij| * norm(X_j)``, compared inside each output row.

    The inputs come from blocks that are already pruned.
    """

    summary = "norm"

    def scores(
        self, weight: torch.Tensor, summary: torch.Tensor | None, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Score the weights of one matrix, ``(d_out, d_in)``."""
        assert summary is not None
        return weight.abs() * summary
