"""Block influence: layers that hardly turn what flows through them go (ShortGPT, arXiv:2403.03853, equation 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hubprune.unit_criterion import UnitCriterion


class BlockInfluence(UnitCriterion):
    """Scores a layer by ``1 - E[cos(x_in, x_out)]`` over tokens."""

    observed = ("all",)

    def turned(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """How far each token was turned, from the input and the output of a layer, ``(..., d)``."""
        return 1 - F.cosine_similarity(before.double(), after.double(), dim=-1)
