"""The units of a group ranked: by all corpora together, and by each corpus alone, which shows how far they agree.

A criterion of units scores them itself; the scores of a criterion of weights are added up over the weights of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hubprune import masks
from hubprune.errors import NumericalError
from hubprune.scoring import Scoring
from hubprune.unit_evidence import Rows, UnitEvidence
from hubprune.units import Group, Slice


@dataclass
class Ranking:
    """The units of one group, ranked.

    Attributes:
        scores: Their scores, ``(units,)``; higher = keep.
        keep: Which stay, boolean ``(units,)``.
        alone: The scores that each corpus alone gives; empty where that cannot be told.
        alone_keep: Which would stay by them.
        explained: Fields of ``UnitFacts`` that say why.
        blind: Whether nothing told them apart, so that they are ranked by the size of their weights.
    """

    scores: torch.Tensor
    keep: torch.Tensor
    alone: dict[str, torch.Tensor] = field(default_factory=dict)
    alone_keep: dict[str, torch.Tensor] = field(default_factory=dict)
    explained: dict[str, Any] = field(default_factory=dict)
    blind: bool = False


def rank_by_weights(scoring: Scoring, group: Group, removed: int) -> Ranking:
    """Rank units by the scores of single weights, added up over each unit.

    Args:
        scoring: Scores the weights.
        group: The units.
        removed: How many go.
    """
    total = torch.zeros(group.count)
    alone: dict[str, torch.Tensor] = {}
    for matrix in group.matrices:
        slices = [each for each in group.slices if each.matrix is matrix]

        def add(name: str, scores: torch.Tensor, slices: Sequence[Slice] = slices) -> None:
            alone[name] = alone.get(name, 0) + _over_units(slices, scores)

        total += _over_units(slices, scoring.score(matrix, add))
    alone_keep = {name: _highest(each, removed) for name, each in alone.items()}
    return Ranking(total, _highest(total, removed), alone, alone_keep)


def rank_by_units(known: UnitEvidence, group: Group, removed: int) -> Ranking:
    """Rank units by a criterion of units.

    Args:
        known: What the criterion has noted of the group.
        group: The units.
        removed: How many go.

    Raises:
        NumericalError: The scores are not finite.
    """
    criterion, view = known.criterion, known.view(group)
    observed, attributed = known.rows(group)
    sized = view.weight is not None
    unseen = sized and bool(known.observed) and not observed  # an expert that no token was sent to
    if not unseen:
        scores = criterion.unit_scores(view, observed, attributed, known.examples).float().cpu()
        if not bool(torch.isfinite(scores).all()):
            raise NumericalError(f"scores must be finite, and those of {group.name} are not: load it in float32")
    if unseen or (sized and bool(scores.max() == scores.min())):
        by_size = view.size().cpu()
        return Ranking(by_size, _highest(by_size, removed), blind=True)

    def keep(scores: torch.Tensor, observed: Rows) -> torch.Tensor:
        chosen = criterion.select(view, scores, observed, removed) if removed else None
        return _highest(scores, removed) if chosen is None else chosen.cpu()

    kept = keep(scores, observed)
    ranking = Ranking(scores, kept, explained=criterion.explain(view, kept, observed, attributed, known.examples))
    if "all" in criterion.observed:
        for name, rows in observed.items():
            only = {name: rows}
            alone = criterion.unit_scores(view, only, attributed, known.examples).float().cpu()
            ranking.alone[name], ranking.alone_keep[name] = alone, keep(alone, only)
    return ranking


def rank_tied(rankings: Sequence[Ranking], removed: int) -> None:
    """Let groups lose the same units: those with the lowest mean of their scores, each over that of its group.

    Args:
        rankings: The groups; what they keep is set, and what each corpus alone says of all of them together.
        removed: How many go from each.
    """
    keep = _highest(_mean([ranking.scores for ranking in rankings]), removed)
    names = [name for name in rankings[0].alone if all(name in ranking.alone for ranking in rankings)]
    alone = {name: _mean([ranking.alone[name] for ranking in rankings]) for name in names}
    alone_keep = {name: _highest(scores, removed) for name, scores in alone.items()}
    for ranking in rankings:
        ranking.keep, ranking.alone, ranking.alone_keep = keep, alone, alone_keep


def agreement(ranking: Ranking, *, intersects: bool) -> dict[str, Any]:
    """Fields of ``UnitFacts`` that say how far the corpora agree.

    Args:
        ranking: The ranking.
        intersects: Whether a unit only goes when all corpora let it go, see ``UnitCriterion.intersects``.
    """
    found: dict[str, Any] = {"overlap": masks.overlap(ranking.alone_keep)}
    if intersects and ranking.alone:
        gone = ~ranking.keep
        places = [scores.argsort(stable=True).argsort()[gone] for scores in ranking.alone.values()]
        worst = max((int(place.max()) + 1 for place in places if len(place)), default=0)
        found["reached"] = worst / len(ranking.keep)
    return found


def _highest(scores: torch.Tensor, removed: int) -> torch.Tensor:
    """Keep all but the lowest scores, boolean ``(units,)``."""
    return masks.keep_block(scores[None], removed)[0].cpu()


def _mean(scores: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of several scores of the same units, each over its mean magnitude."""
    sizes = [each.abs().mean().clamp_min(torch.finfo(each.dtype).tiny) for each in scores]
    return torch.stack([each / size for each, size in zip(scores, sizes, strict=True)]).mean(dim=0)


def _over_units(slices: Sequence[Slice], scores: torch.Tensor) -> torch.Tensor:
    """Scores of a matrix, added up over what belongs to each unit, ``(units,)``."""
    lines = (scores.sum(dim=1 - each.line_axis).cpu()[each.index].sum(dim=1) for each in slices)
    return torch.stack([*lines]).sum(dim=0)
