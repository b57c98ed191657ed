"""RIA: relative importance and activations (Zhang et al., ICLR 2024, "Plug-and-Play")."""

from __future__ import annotations

import torch

from hubprune.criterion import Criterion


class RIA(Criterion):
    """Scores ``(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * norm(X_j)^a``.

    Args:
        activation_power: a; the paper uses 0.5.
    """

    summary = "norm"

    def __init__(self, activation_power: float = 0.5) -> None:
        self.activation_power = activation_power

    def scores(
        self, weight: torch.Tensor, summary: torch.Tensor | None, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Score the weights of one matrix, ``(d_out, d_in)``; an all-zero row or column counts as importance zero."""
        assert summary is not None
        size = weight.abs()
        smallest = torch.finfo(size.dtype).tiny
        column = size.sum(dim=0, keepdim=True).clamp_min(smallest)
        row = size.sum(dim=1, keepdim=True).clamp_min(smallest)
        return (size / column + size / row) * summary**self.activation_power
