"""Attribution: what each unit contributes to the answers of a task (arXiv:2205.04157, Findings of EACL 2023).

``A_i = h_i dP(y|x) / dh_i``, summed over tokens and examples. The sum over tokens needs no activations: it is a
product of the writer's weights with their gradient, ``sum_t h_tk dF/dh_tk = sum_j W_jk dF/dW_jk``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hubprune.unit_criterion import Example, UnitCriterion, UnitView

# Numbers of examples whose scores are held against those of all, as for tasks with few labels.
FEWER = (8, 16, 32, 64)


class Attribution(UnitCriterion):
    """Scores the contribution of each unit to the log probability of the answers.

    Args:
        variant: ``abs`` adds up absolute contributions of tokens (of examples in fused experts), ``signed`` is the
            paper's sum, in which contributions for and against the answer cancel.
        target: ``logprob``, every example counts alike; ``prob``, weighted by the probability of its answer.
        labels: ``given``, or ``pseudo`` for the model's own answers, each weighted by its probability.
        per_label: ``yes``: a unit counts as much as for the label that it matters most for.
        confidence: Pseudo-labels that the model gives less probability are dropped.
        answer_tokens: Tokens of a pseudo-label, at most.
    """

    gradients = "task"
    answers_only = True

    def __init__(
        self,
        variant: str = "abs",
        target: str = "logprob",
        labels: str = "given",
        per_label: str = "no",
        confidence: float = 0.5,
        answer_tokens: float = 16.0,
    ) -> None:
        self.signed = variant == "signed"
        self.weighted = target == "prob" or labels == "pseudo"
        self.pseudo = labels == "pseudo"
        self.per_label = per_label == "yes"
        self.confidence, self.answer_tokens = confidence, int(answer_tokens)

    def attribute(
        self,
        view: UnitView,
        gradient: torch.Tensor,
        inputs: torch.Tensor | None,
        inputs_gradient: torch.Tensor | None,
    ) -> torch.Tensor:
        """Contribution of each unit to the log probability of one answer, ``(units,)``."""
        assert view.weight is not None
        if self.signed or inputs is None or inputs_gradient is None:
            by_unit = gradient[:, view.columns.to(gradient.device)]
            total = (view.weight * by_unit).sum(dim=(0, 2))
            return total if self.signed else total.abs()
        return (view.inputs(inputs) * view.inputs(inputs_gradient)).sum(dim=2).abs().sum(dim=0)

    def unit_scores(
        self,
        view: UnitView,
        observed: Mapping[str, torch.Tensor],
        attributed: Mapping[str, torch.Tensor],
        examples: Mapping[str, list[Example]],
    ) -> torch.Tensor:
        """Sum of the examples' contributions, ``(units,)``."""
        rows = torch.cat(list(attributed.values()))
        given = [example for name in attributed for example in examples[name]]
        weights = torch.tensor([example.weight if self.weighted else 1.0 for example in given], device=rows.device)
        rows = rows * weights[:, None]
        if not self.per_label:
            return rows.mean(dim=0)
        by_label = torch.stack([rows[where].mean(dim=0) for where in _by_label(given)])
        size = by_label.abs().mean(dim=1, keepdim=True).clamp_min(torch.finfo(by_label.dtype).tiny)
        return (by_label / size).max(dim=0).values

    def explain(
        self,
        view: UnitView,
        keep: torch.Tensor,
        observed: Mapping[str, torch.Tensor],
        attributed: Mapping[str, torch.Tensor],
        examples: Mapping[str, list[Example]],
    ) -> dict[str, Any]:
        """How 8, 16, ... examples, evenly spread over all, rank the units beside all of them: Spearman's rho."""
        whole = self.unit_scores(view, observed, attributed, examples)
        fewest = min(map(len, attributed.values()))
        found = {}
        for count in (count for count in FEWER if count < fewest):
            places = {name: [turn * len(rows) // count for turn in range(count)] for name, rows in attributed.items()}
            some = {name: rows[places[name]] for name, rows in attributed.items()}
            given = {name: [examples[name][place] for place in places[name]] for name in attributed}
            found[str(count)] = round(rank_correlation(self.unit_scores(view, observed, some, given), whole), 4)
        return {"fewer": found}


def rank_correlation(left: torch.Tensor, right: torch.Tensor) -> float:
    """Spearman's rank correlation of two sets of scores, ``(units,)`` each; 1 where there is one unit only."""
    if len(left) < 2:
        return 1.0
    ranks = torch.stack([scores.argsort().argsort().double() for scores in (left, right)])
    return float(torch.corrcoef(ranks)[0, 1])


def _by_label(examples: Sequence[Example]) -> list[list[int]]:
    """Positions of the examples of each label."""
    found: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        found.setdefault(example.label, []).append(position)
    return list(found.values())
