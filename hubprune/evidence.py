"""What a criterion gets to see of one block: the statistics it declared, in the form it asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hubprune.architecture import Matrix
from hubprune.criterion import Criterion
from hubprune.errors import NumericalError
from hubprune.inputs import InputSink
from hubprune.stats import Hessian, InputCollector, InputNorm, Statistic, StatisticName, inverse_cholesky

Need = tuple[StatisticName, str]


def needs_of(criterion: Criterion, *, scores: bool, compensation: bool) -> tuple[Need, ...]:
    """List the statistics of inputs that have to be collected.

    Args:
        criterion: The criterion.
        scores: Whether it is to score.
        compensation: Whether the remaining weights are to be repaired.

    Returns:
        Pairs of a statistic and a corpus; ``all`` stands for every corpus given.
    """
    needs: dict[Need, None] = {}
    if scores and criterion.summary is not None:
        statistic: StatisticName = "norm" if criterion.summary == "norm" else "hessian"
        needs.update(dict.fromkeys((statistic, corpus) for corpus in criterion.corpora))
    if compensation:
        needs.update(dict.fromkeys(("hessian", corpus) for corpus in criterion.compensation_corpora))
    return tuple(needs)


class Evidence:
    """Statistics of the inputs of one block.

    Args:
        criterion: Says how the Hessians of several corpora are mixed.
        damping: Damping of a Hessian, as a fraction of its mean diagonal.
        needs: What to collect.
    """

    def __init__(self, criterion: Criterion, damping: float, needs: Sequence[Need]) -> None:
        self.criterion, self.damping = criterion, damping
        self._collected = {need: InputCollector(need[0]) for need in needs}
        self._factors: dict[tuple[int, ...], tuple[torch.Tensor, float]] = {}
        self._damping: dict[Matrix, float] = {}

    def sinks(self, corpus: str) -> list[InputSink]:
        """Collectors that the inputs from a corpus go to."""
        return [collector for (_, name), collector in self._collected.items() if name in ("all", corpus)]

    def statistic(self, name: StatisticName, corpus: str, matrix: Matrix) -> Statistic:
        """A statistic that was collected, summed over all processes."""
        return self._collected[name, corpus].get(matrix)

    def _hessians(self, matrix: Matrix, corpora: Sequence[str]) -> dict[str, Hessian]:
        found = {corpus: self._collected["hessian", corpus].get(matrix) for corpus in corpora}
        return {corpus: statistic for corpus, statistic in found.items() if isinstance(statistic, Hessian)}

    def summary(self, matrix: Matrix) -> torch.Tensor | None:
        """What the criterion wants to know of a matrix' inputs, ``(d_in,)``; None when it wants nothing.

        Raises:
            NumericalError: The Hessian cannot be factorised.
        """
        if self.criterion.summary is None:
            return None
        if self.criterion.summary == "norm":
            return self.norm(matrix, *self.criterion.corpora)
        factor, _ = self._factor(matrix, self.criterion.corpora)
        # H^-1 = U^T U with U upper triangular, so its diagonal is the sum of squares down the columns of U. Where
        # nothing flows in, nothing is lost: the error of removing such a weight, W^2 / [H^-1]_jj, is zero.
        unseen = ~self._seen(matrix, self.criterion.corpora)
        return factor.square().sum(dim=0).masked_fill(unseen, torch.inf)

    def norm(self, matrix: Matrix, corpus: str) -> torch.Tensor | None:
        """Norms of a matrix' inputs from one corpus, ``(d_in,)``; None where they were not collected."""
        if ("norm", corpus) not in self._collected:
            return None
        if corpus not in self.criterion.corpora and not self._collected["norm", corpus].seen_everywhere(matrix):
            return None  # an expert that this corpus does not reach
        statistic = self._collected["norm", corpus].get(matrix)
        assert isinstance(statistic, InputNorm)
        return statistic.norm()

    def seen_columns(self, matrix: Matrix) -> torch.Tensor:
        """Columns into which the compensation corpora put anything but zeros, boolean ``(d_in,)``."""
        return self._seen(matrix, self.criterion.compensation_corpora)

    def _seen(self, matrix: Matrix, corpora: Sequence[str]) -> torch.Tensor:
        hessians = self._hessians(matrix, corpora).values()
        return torch.stack([h.diagonal() != 0 for h in hessians]).any(dim=0)

    def compensation_factor(self, matrix: Matrix) -> tuple[torch.Tensor, float]:
        """Upper Cholesky factor of the inverse Hessian, ``(d_in, d_in)``, and the damping it needed.

        Raises:
            NumericalError: The Hessian cannot be factorised.
        """
        return self._factor(matrix, self.criterion.compensation_corpora)

    def _factor(self, matrix: Matrix, corpora: Sequence[str]) -> tuple[torch.Tensor, float]:
        """Factorise once for all matrices that share an input."""
        hessians = self._hessians(matrix, corpora)
        key = tuple(id(hessian) for hessian in hessians.values())
        if key not in self._factors:
            mixed = self.criterion.mix({corpus: hessian.matrix() for corpus, hessian in hessians.items()})
            try:
                self._factors[key] = inverse_cholesky(mixed, self.damping)
            except NumericalError as error:
                raise NumericalError(f"{matrix.name}: {error}") from None
        self._damping[matrix] = self._factors[key][1]
        return self._factors[key]

    def damping_of(self, matrix: Matrix) -> float | None:
        """The damping that the factorisation of its Hessian needed; None where none was factorised."""
        return self._damping.get(matrix)
