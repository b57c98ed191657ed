"""Scores of the matrices of a block, from what the two sweeps show of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from hubprune import ranks
from hubprune.architecture import Matrix
from hubprune.criterion import Criterion
from hubprune.engine import Engine, Flow, GradientSink
from hubprune.errors import NumericalError
from hubprune.evidence import Evidence, Need
from hubprune.sweeps import Sinks


def _constant(values: torch.Tensor) -> bool:
    return values.numel() > 1 and bool(values.max() == values.min())


class Scoring:
    """Turns statistics into scores.

    Args:
        replay: The engine.
        criterion: The rule.
        damping: Damping of a Hessian, as a fraction of its mean diagonal.

    Attributes:
        evidence: What is known of the inputs of the block whose turn it is.
        unranked: Names of matrices whose weights nothing told apart.
        damping_of: Damping that the factorisation of a Hessian needed, by the name of the matrix.
    """

    def __init__(self, replay: Engine, criterion: Criterion, damping: float) -> None:
        self.replay, self.criterion, self.damping = replay, criterion, damping
        self.evidence = Evidence(criterion, damping, ())
        self.unranked: list[str] = []
        self.damping_of: dict[str, float | None] = {}
        self._summaries: dict[Matrix, torch.Tensor | None] = {}
        self._sums: dict[Matrix, torch.Tensor] = {}

    def watch(self, needs: Sequence[Need], corpora: Iterable[str]) -> dict[str, Sinks]:
        """Begin with a block: where its inputs from each corpus go."""
        self.evidence = Evidence(self.criterion, self.damping, needs)
        return {name: self.evidence.sinks(name) for name in corpora}

    def summarise(self, matrices: Iterable[Matrix]) -> None:
        """Keep what the criterion wants to know of inputs until gradients are known, and let go of the rest.

        Raises:
            NumericalError: A Hessian cannot be factorised.
        """
        for matrix in matrices:
            self._summaries[matrix] = self.evidence.summary(matrix)
            self.damping_of[matrix.name] = self.evidence.damping_of(matrix)
        self.forget()

    def forget(self) -> None:
        """Let go of the evidence of a block."""
        self.evidence = Evidence(self.criterion, self.damping, ())

    def gradients(self, matrices: Sequence[Matrix]) -> GradientSink:
        """Begin to add up what the gradients of each sequence say about some matrices."""
        self._sums |= {m: torch.zeros_like(m.view(), dtype=torch.float32) for m in matrices}
        weights = {matrix: self.replay.values(matrix).float() for matrix in matrices}

        def add(matrix: Matrix, gradient: torch.Tensor, flow: Flow | None) -> None:
            summary = self._summaries[matrix]
            self._sums[matrix] += self.criterion.contribution(weights[matrix], gradient, summary)

        return add

    def score(self, matrix: Matrix, alone: Callable[[str, torch.Tensor], None] | None = None) -> torch.Tensor:
        """Score a matrix, ``(d_out, d_in)``, by what was kept of it or else by the evidence of its block.

        A matrix whose weights nothing tells apart, an expert that no token was routed to, is ranked by magnitude.

        Args:
            matrix: The matrix.
            alone: Shown what each corpus alone says of the weights, by its name; nothing where it cannot be told.

        Raises:
            NumericalError: The scores are not finite.
        """
        gradient = ranks.add_up(self._sums.pop(matrix)) if matrix in self._sums else None
        summary = self._summaries.pop(matrix) if matrix in self._summaries else self.evidence.summary(matrix)
        self.damping_of.setdefault(matrix.name, self.evidence.damping_of(matrix))
        weight = matrix.view().float()
        scores = self.criterion.scores(weight, summary, gradient)
        if not bool(torch.isfinite(scores).all()):
            raise NumericalError(
                f"scores must be finite, and those of {matrix.name} are not: load the model in float32"
            )
        blind = summary is not None and gradient is None and _constant(summary)
        if blind or _constant(scores):
            self.unranked.append(matrix.name)
            return weight.abs()
        if alone is not None:
            for name, each in self.criterion.alone(weight, summary, gradient):
                alone(name, each)
        return scores
