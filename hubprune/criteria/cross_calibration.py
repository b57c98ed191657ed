"""Cross-calibration: SparseGPT on a Hessian mixed from general and domain text (after arXiv:2502.18424).

The paper's exact mixing rule could not be confirmed; the convex combination is our reading.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hubprune.criterion import Criterion


class CrossCalibration(Criterion):
    """Scores ``W_ij^2 / [H^-1]_jj`` with ``H = (1 - r) H_general + r H_domain``, each Hessian a mean over its tokens.

    Args:
        domain_ratio: r, between 0 (general text only) and 1 (domain text only).
    """

    summary = "inverse_hessian"
    corpora = ("general", "domain")
    compensation_corpora = ("general", "domain")
    selects_in_sweep = True

    def __init__(self, domain_ratio: float = 0.5) -> None:
        self.domain_ratio = domain_ratio

    def mix(self, hessians: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Combine the two Hessians, each ``(d_in, d_in)``."""
        return torch.lerp(hessians["general"], hessians["domain"], self.domain_ratio)

    def scores(
        self, weight: torch.Tensor, summary: torch.Tensor | None, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Score the weights of one matrix, ``(d_out, d_in)``."""
        assert summary is not None
        return weight.square() / summary
