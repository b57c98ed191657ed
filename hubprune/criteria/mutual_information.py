"""Mutual information: of two neurons that say the same, one goes (arXiv:2406.00030; Entropy 27(12):1224, 2025).

The pairs with most mutual information are pairs of active neurons, whose entropies are highest; to visit those first,
as the paper does, takes away more than chance would. So by default neurons are visited from the weakest up, and one
goes when another that stays says enough of the same (our choice).

Neurons are compared by a matrix-based Renyi entropy of their activations at n token positions. With alpha = 2 the
entropies of all pairs are one matrix product. Mutual information is biased upwards at small n, so only its order
counts, never its size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from hubprune.unit_criterion import Example, UnitCriterion, UnitView

# Rows of the table of all pairs that are computed at a time, and pairs with the highest values that are looked at
# again with another alpha.
BLOCK, SHORTLIST = 256, 512


def _kernels(values: torch.Tensor) -> torch.Tensor:
    """Gaussian kernel matrices of standardised activations, ``(units, n * n)``, from ``(n, units)``."""
    count = values.shape[0]
    spread = values.std(dim=0, unbiased=False)
    standard = (values - values.mean(dim=0)) / spread.clamp_min(torch.finfo(values.dtype).tiny)
    width = count ** (-1 / 5)
    apart = standard.T[:, :, None] - standard.T[:, None, :]
    return torch.exp(-apart.square() / (2 * width**2)).flatten(1)


def pairwise_information(values: torch.Tensor) -> torch.Tensor:
    """Mutual information of all pairs of units with alpha = 2, in bits.

    ``S_k = -log2(sum K_k o K_k / n^2)`` and ``S_kl = -log2(sum K_k o K_k o K_l o K_l / n^2)``, so that with
    ``P_k = vec(K_k o K_k)`` all joint entropies are the product ``P P^T``.

    Args:
        values: Activations, ``(n, units)``.

    Returns:
        ``(units, units)``, with minus infinity on the diagonal.
    """
    count, units = values.shape
    squared = torch.cat([_kernels(part).square() for part in values.split(BLOCK, dim=1)])
    single = -(squared.sum(dim=1) / count**2).log2()
    found = torch.empty(units, units, device=values.device)
    for start in range(0, units, BLOCK):
        rows = slice(start, start + BLOCK)
        joint = -((squared[rows] @ squared.T) / count**2).log2()
        found[rows] = single[rows, None] + single[None] - joint
    return found.fill_diagonal_(-torch.inf)


def _entropy(gram: torch.Tensor, alpha: float) -> torch.Tensor:
    """Matrix-based Renyi entropy of a kernel matrix ``(n, n)``, in bits."""
    values = torch.linalg.eigvalsh((gram / gram.trace()).double()).clamp_min(0)
    return torch.log2((values**alpha).sum()) / (1 - alpha)


def information(left: torch.Tensor, right: torch.Tensor, alpha: float) -> float:
    """Mutual information of two neurons, in bits, by eigenvalues.

    Args:
        left: Activations, ``(n,)``.
        right: Likewise.
        alpha: Order of the entropy, above 0 and not 1.
    """
    grams = _kernels(torch.stack([left, right], dim=1)).reshape(2, len(left), len(left))
    single = _entropy(grams[0], alpha) + _entropy(grams[1], alpha)
    return float(single - _entropy(grams[0] * grams[1], alpha))


class MutualInformation(UnitCriterion):
    """Removes neurons of which others say the same.

    Args:
        strategy: ``stand-in`` visits neurons from the weakest up and removes one when a neuron that stays says as much
            of it as is said of every second neuron by its nearest.
            ``greedy`` visits pairs from the highest mutual information down and removes the weaker one of each;
            ``random`` draws them among those above the median, as the paper does.
        alpha: Order of the entropy. Other than 2, it looks once more at the pairs that come first with alpha = 2:
            ``greedy`` visits them in its own order, ``random`` leaves those below its median for later. ``stand-in``
            visits no pairs.
        positions: Token positions at which neurons are compared, taken from all sequences.
    """

    observed = ("all",)

    def __init__(self, strategy: str = "stand-in", alpha: float = 2.0, positions: float = 128) -> None:
        self.strategy, self.alpha, self.positions = strategy, alpha, int(positions)
        self.each = 1
        self.shares: dict[str, int] = {}
        self._known: tuple[tuple[str, ...], torch.Tensor] | None = None

    def working_memory(self, units: int) -> int:
        """Kernels of all neurons with what they are made of, the table of their pairs, and the order of the pairs."""
        pairs = 2 if self.strategy == "stand-in" else 9
        return 4 * units * (self.positions**2 + pairs * units) + 8 * min(units, BLOCK) * self.positions**2

    def prepare(self, sequences: Mapping[str, int]) -> None:
        """Spread the positions over all sequences."""
        whole = max(1, sum(sequences.values()))
        self.each = max(1, -(-self.positions // whole))
        self.shares = {name: -(-self.positions * count // whole) for name, count in sequences.items()}

    def observe(self, view: UnitView, inputs: torch.Tensor) -> torch.Tensor:
        """Activations at some positions, evenly spread over the sequence but for its beginning, ``(rows, units)``."""
        if len(inputs) == 0:
            return torch.zeros(0, view.count, device=inputs.device)
        at = torch.linspace(len(inputs) / (self.each + 1), len(inputs) - 1, self.each).long()
        return view.inputs(inputs[at]).squeeze(2)

    def _values(self, observed: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Activations of some corpora at their share of the positions, ``(positions, units)``."""
        rows = torch.cat(list(observed.values()))
        count = min(self.positions, sum(self.shares.get(name, self.positions) for name in observed))
        at = torch.linspace(0, max(len(rows) - 1, 0), min(len(rows), count)).long()
        return rows[at].float()

    def unit_scores(
        self,
        view: UnitView,
        observed: Mapping[str, torch.Tensor],
        attributed: Mapping[str, torch.Tensor],
        examples: Mapping[str, list[Example]],
    ) -> torch.Tensor:
        """``||h_k|| ||W_k||``, which tells which of two neurons goes, ``(units,)``."""
        rows = torch.cat(list(observed.values()))
        return rows.square().mean(dim=0).sqrt() * view.size()

    def _information(self, view: UnitView, observed: Mapping[str, torch.Tensor]) -> torch.Tensor:
        what = (view.name, *observed)
        if self._known is None or self._known[0] != what:
            self._known = what, pairwise_information(self._values(observed))
        return self._known[1]

    def _pairs(self, view: UnitView, observed: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Pairs of units in the order in which they are visited, ``(pairs, 2)``."""
        table = self._information(view, observed)
        above = torch.triu_indices(view.count, view.count, 1, device=table.device)
        values = table[above[0], above[1]]
        order = values.argsort(descending=True, stable=True)
        if self.strategy == "random":
            front = order[: (len(order) + 1) // 2]
            digest = hashlib.sha256(f"{self.seed}|{view.name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            order = torch.cat([front[torch.randperm(len(front), generator=generator)], order[len(front) :]])
        if self.alpha != 2.0:
            values_at, front = self._values(observed), order[:SHORTLIST]
            pairs = above[:, front].T.tolist()
            again = torch.tensor([information(values_at[:, a], values_at[:, b], self.alpha) for a, b in pairs])
            rank = again >= again.median() if self.strategy == "random" else again
            order = torch.cat([front[rank.float().argsort(descending=True, stable=True)], order[SHORTLIST:]])
        return above[:, order].T

    def select(
        self, view: UnitView, scores: torch.Tensor, observed: Mapping[str, torch.Tensor], removed: int
    ) -> torch.Tensor | None:
        """Choose by the strategy; where two neurons say the same, the one with the lower score goes."""
        if self.strategy == "stand-in":
            return self._weakest(view, scores, observed, removed)
        keep = [True] * view.count
        values = scores.tolist()
        for part in self._pairs(view, observed).split(2**16):  # of some ten million pairs, few are needed
            for left, right in part.tolist():
                if removed and keep[left] and keep[right]:
                    keep[left if values[left] < values[right] else right] = False
                    removed -= 1
            if removed == 0:
                break
        return torch.tensor(keep, device=scores.device)

    def _weakest(
        self, view: UnitView, scores: torch.Tensor, observed: Mapping[str, torch.Tensor], removed: int
    ) -> torch.Tensor:
        """Remove the weakest that have a stand-in or do nothing; where they are too few, the weakest of the rest."""
        shared = self._information(view, observed)
        enough = shared.max(dim=1).values.median()
        keep = torch.ones(view.count, dtype=torch.bool, device=scores.device)
        weakest_first = scores.argsort(stable=True).tolist()
        for unit in weakest_first:
            if removed and bool((scores[unit] == 0) | (shared[unit][keep].max() >= enough)):
                keep[unit] = False
                removed -= 1
        for unit in weakest_first:
            if removed and keep[unit]:
                keep[unit] = False
                removed -= 1
        return keep

    def explain(
        self,
        view: UnitView,
        keep: torch.Tensor,
        observed: Mapping[str, torch.Tensor],
        attributed: Mapping[str, torch.Tensor],
        examples: Mapping[str, list[Example]],
    ) -> dict[str, Any]:
        """For each removed neuron, the kept one that says most of the same, and how much."""
        table = self._information(view, observed)
        gone, left = (~keep).nonzero()[:, 0], keep.nonzero()[:, 0]
        nearest = table[gone][:, left].max(dim=1)
        stands = zip(gone.tolist(), left[nearest.indices].tolist(), nearest.values.tolist(), strict=True)
        return {"stand_ins": [(one, other, round(bits, 4)) for one, other, bits in stands]}
