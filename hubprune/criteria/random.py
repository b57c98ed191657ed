"""Random: units drawn by lot, what every other method has to beat."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from hubprune.unit_criterion import Example, UnitCriterion, UnitView


class Random(UnitCriterion):
    """Scores from a generator that is seeded with the run's seed and the group's name."""

    def unit_scores(
        self,
        view: UnitView,
        observed: Mapping[str, torch.Tensor],
        attributed: Mapping[str, torch.Tensor],
        examples: Mapping[str, list[Example]],
    ) -> torch.Tensor:
        """Draw a score for each unit, ``(units,)``."""
        digest = hashlib.sha256(f"{self.seed}|{view.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.rand(view.count, generator=generator)
