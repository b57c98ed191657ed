"""Magnitude: the smallest weights go (Han et al., 2015, arXiv:1506.02626)."""

from __future__ import annotations

import torch

from hubprune.criterion import Criterion


class Magnitude(Criterion):
    """Scores ``|W|``; needs no data."""

    def scores(
        self, weight: torch.Tensor, summary: torch.Tensor | None, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Score the weights of one matrix, ``(d_out, d_in)``."""
        return weight.abs()
