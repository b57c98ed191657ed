"""Cus-Prun: experts for a language, a domain and a task, without training (arXiv:2506.02561, Findings of ACL 2025).

For each dimension, a corpus, a unit matters as much as its removal changes the layer's output on the documents of that
corpus. The units that matter little in all dimensions at once go: a unit's place is the worst of its ranks, so the
intersection has exactly the size that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hubprune.unit_criterion import Example, UnitCriterion, UnitView


class CusPrun(UnitCriterion):
    r"""Scores ``R(N) = max_X rank_X(N)``, the ranks by the change of the output that each document X sees.

    The change has a closed form, so that no pass for each unit is needed: for a unit with inputs ``h`` and output
    columns ``W`` it is ``||h W^T||_F = sqrt(tr(h^T h W^T W))``, for a single neuron ``||h_k|| ||W_k||``. It is divided
    by the root of the document's tokens.

    Args:
        documents: What of the documents of a corpus counts: the ``max`` (the paper's "small for all documents"), the
            ``mean``, or the 95th percentile (``p95``).
    """

    observed = ("all",)
    reads_attention, intersects = True, True

    def __init__(self, documents: str = "max") -> None:
        self.documents = documents

    def observe(self, view: UnitView, inputs: torch.Tensor) -> torch.Tensor:
        """The change of the output that removing each unit makes in one document, ``(1, units)``."""
        assert view.weight is not None
        if len(inputs) == 0:  # an expert that no token of the document was sent to
            return torch.zeros(1, view.count, device=inputs.device)
        hidden = view.inputs(inputs)
        moments = torch.einsum("tui,tuj->uij", hidden, hidden)
        outputs = torch.einsum("oui,ouj->uij", view.weight, view.weight)
        change = (moments * outputs).sum(dim=(1, 2)).clamp_min(0).sqrt()
        return (change / len(inputs) ** 0.5)[None]

    def _importance(self, rows: torch.Tensor) -> torch.Tensor:
        """Importance of each unit for one corpus, ``(units,)``, from ``(documents, units)``."""
        if self.documents == "max":
            return rows.max(dim=0).values
        return rows.mean(dim=0) if self.documents == "mean" else rows.quantile(0.95, dim=0)

    def unit_scores(
        self,
        view: UnitView,
        observed: Mapping[str, torch.Tensor],
        attributed: Mapping[str, torch.Tensor],
        examples: Mapping[str, list[Example]],
    ) -> torch.Tensor:
        """The worst rank, and among units with the same one their mean rank, ``(units,)``."""
        importance = (self._importance(rows) for rows in observed.values())
        ranks = torch.stack([each.argsort(stable=True).argsort() for each in importance]).float()
        return ranks.max(dim=0).values + ranks.mean(dim=0) / (view.count + 1)
