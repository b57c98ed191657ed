"""SparseGPT: optimal brain surgery, column by column (arXiv:2301.00774, section 3)."""

from __future__ import annotations

import torch

from hubprune.criterion import Criterion


class SparseGPT(Criterion):
    """Scores ``W_ij^2 / [H^-1]_jj``, the layer error of removing one weight and repairing the others.

    With compensation the selection happens inside the column sweep: there ``[H^-1]_jj`` of the columns still to come
    is ``U_jj^2``, U the upper Cholesky factor of ``H^-1``, and W is what the sweep has made of it so far.
    """

    summary = "inverse_hessian"
    selects_in_sweep = True

    def scores(
        self, weight: torch.Tensor, summary: torch.Tensor | None, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Score the weights of one matrix, ``(d_out, d_in)``."""
        assert summary is not None
        return weight.square() / summary
