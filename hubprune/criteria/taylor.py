"""Taylor: first-order importance of structures, as LLM-Pruner uses it (arXiv:2305.11627, section 3.2)."""

from __future__ import annotations

import torch

from hubprune.criterion import Criterion


class Taylor(Criterion):
    """Scores ``sum_n |g_n W|``, the first-order change of each sequence's loss, on the dense model.

    The paper takes the absolute value of each weight's share (its "element" form) and adds up over a structure.
    """

    gradients = "all"

    def scores(
        self, weight: torch.Tensor, summary: torch.Tensor | None, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Score the weights of one matrix, ``(d_out, d_in)``."""
        assert gradient is not None
        return gradient * weight.abs()
