"""Scores of the matrices of a block, from what the two sweeps show of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from hubprune import ranks
from hubprune.architecture import Matrix
from hubprune.calibration import Corpus
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
        self._apart: dict[str, int] = {}
        self._summaries: dict[Matrix, dict[str, torch.Tensor | None]] = {}
        self._sums: dict[Matrix, dict[str, torch.Tensor]] = {}

    def tell_apart(self, corpora: Mapping[str, Corpus]) -> None:
        """Keep what each corpus says apart as well, where the criterion takes several alike.

        Second moments are not kept apart: each is as large as a matrix.

        Args:
            corpora: This process' part of the text.
        """
        if takes_alike(self.criterion) and len(corpora) > 1:
            self._apart = {name: len(corpus.sequences) for name, corpus in corpora.items()}

    def watch(self, needs: Sequence[Need], corpora: Iterable[str]) -> dict[str, Sinks]:
        """Begin with a block: where its inputs from each corpus go."""
        norms: list[Need] = [("norm", name) for name in self._apart] if ("norm", "all") in needs else []
        self.evidence = Evidence(self.criterion, self.damping, (*needs, *norms))
        return {name: self.evidence.sinks(name) for name in corpora}

    def summarise(self, matrices: Iterable[Matrix]) -> None:
        """Keep what the criterion wants to know of inputs until gradients are known, and let go of the rest.

        Raises:
            NumericalError: A Hessian cannot be factorised.
        """
        for matrix in matrices:
            self._summaries[matrix] = self._summarised(matrix)
            self.damping_of[matrix.name] = self.evidence.damping_of(matrix)
        self.forget()

    def forget(self) -> None:
        """Let go of the evidence of a block."""
        self.evidence = Evidence(self.criterion, self.damping, ())

    def _summarised(self, matrix: Matrix) -> dict[str, torch.Tensor | None]:
        """What the criterion wants to know of a matrix' inputs, from all text under ``""`` and from each corpus."""
        return {"": self.evidence.summary(matrix), **{name: self.evidence.norm(matrix, name) for name in self._apart}}

    def gradients(self, matrices: Sequence[Matrix]) -> GradientSink:
        """Begin to add up what the gradients of each sequence say about some matrices."""
        names = tuple(self._apart) or ("",)
        for matrix in matrices:
            self._sums[matrix] = {name: torch.zeros_like(matrix.view(), dtype=torch.float32) for name in names}
        weights = {matrix: self.replay.values(matrix).float() for matrix in matrices}
        turns = {matrix: self._turns() for matrix in matrices}

        def add(matrix: Matrix, gradient: torch.Tensor, flow: Flow | None) -> None:
            summary = self._summaries[matrix][""]
            self._sums[matrix][next(turns[matrix])] += self.criterion.contribution(weights[matrix], gradient, summary)

        return add

    def _turns(self) -> Iterator[str]:
        """The corpus of each sequence, in their order; ``""`` where they are not told apart."""
        if not self._apart:
            return itertools.repeat("")
        return itertools.chain.from_iterable(itertools.repeat(name, count) for name, count in self._apart.items())

    def score(self, matrix: Matrix, alone: Callable[[str, torch.Tensor], None] | None = None) -> torch.Tensor:
        """Score a matrix, ``(d_out, d_in)``, by what was kept of it or else by the evidence of its block.

        A matrix whose weights nothing tells apart, an expert that no token was routed to, is ranked by magnitude.

        Args:
            matrix: The matrix.
            alone: Shown what each corpus alone says of the weights, by its name; nothing where it cannot be told.

        Raises:
            NumericalError: The scores are not finite.
        """
        sums = {name: ranks.add_up(each) for name, each in self._sums.pop(matrix, {}).items()}
        gradient = functools.reduce(torch.add, sums.values()) if sums else None
        summaries = self._summaries.pop(matrix) if matrix in self._summaries else self._summarised(matrix)
        summary = summaries[""]
        self.damping_of.setdefault(matrix.name, self.evidence.damping_of(matrix))
        weight = matrix.view().float()
        scores = self.criterion.scores(weight, summary, gradient)
        if not bool(torch.isfinite(scores).all()):
            raise NumericalError(
                f"scores must be finite, and those of {matrix.name} are not: load the model in float32"
            )
        blind = summary is not None and gradient is None and _constant(summary)
        if blind or _constant(scores):
            if matrix.name not in self.unranked:  # known from an earlier attempt where all is scored again
                self.unranked.append(matrix.name)
            return weight.abs()
        if alone is not None:
            for name, each in self.criterion.alone(weight, summary, gradient):
                alone(name, each)
            for name in (name for name in self._apart if (summary is None) == (summaries[name] is None)):
                by_corpus = self.criterion.scores(weight, summaries[name], sums.get(name))
                if not _constant(by_corpus):  # or it sent no token to this expert
                    alone(name, by_corpus)
        return scores


def takes_alike(criterion: Criterion) -> bool:
    """Whether a criterion takes norms and gradients from all corpora alike, and nothing else from text."""
    by_norms = criterion.summary == "norm" and criterion.corpora == ("all",)
    by_gradients = criterion.gradients == "all"
    others = (criterion.summary is not None and not by_norms) or (criterion.gradients is not None and not by_gradients)
    return (by_norms or by_gradients) and not others
