"""D-Pruner: dual pruning for a domain (arXiv:2405.06275, Findings of NAACL 2024).

The paper adds to the domain loss a penalty on moving weights that matter for general text, and scores each weight by
the second-order change of that loss when it is removed. G is the general importance, the error of removing a weight by
optimal brain surgery on general text (equation 3 of the paper's general stage); g_n is the gradient of domain
sequence n.

Three forms. ``paper`` is the paper's score with G and F divided by their means; its regulariser and its second-order
term stay far below the first, so it ranks almost as ``|g W|`` does. ``dual``, the default, is our reading of the idea:
the two importances multiplied on comparable scales. ``additive`` is their sum.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hubprune.criterion import Criterion


def _relative(importance: torch.Tensor) -> torch.Tensor:
    """Divide by the mean over the matrix, so that only the relative size counts."""
    return importance / importance.mean().clamp_min(torch.finfo(importance.dtype).tiny)


class DPruner(Criterion):
    r"""Scores the domain gradient refined by the general importance ``G = W^2 / (2 [H^-1]_jj)``.

    * ``dual``: ``sum_n |g_n W| * (1 + lambda * G / mean(G))``
    * ``additive``: ``sum_n |g_n W| / mean + lambda * G / mean(G)``
    * ``paper``: ``sum_n |g_n W (1 + lambda * G / mean(G) * F_n / mean(F_n)) - W^2 F_n / 2|``, with ``F_n = g_n^2``;
      lambda absorbs the paper's ``2 lambda alpha^2``.

    Args:
        general_weight: lambda; 0 leaves the general text out.
        form: ``dual``, ``additive`` or ``paper``.
        terms: ``both``; ``no-general`` (lambda = 0); ``no-domain`` (G alone); ``general-only`` (the score of form,
            with the general text in place of the domain's).
    """

    corpora = ("general",)

    def __init__(self, general_weight: float = 10.0, form: str = "dual", terms: str = "both") -> None:
        self.general_weight = general_weight
        self.form = form
        self.no_domain = terms == "no-domain"
        self.summary = None if terms == "no-general" else "inverse_hessian"
        self.gradients = {"no-domain": None, "general-only": "general"}.get(terms, "domain")

    def _general(self, weight: torch.Tensor, summary: torch.Tensor | None) -> torch.Tensor:
        """Return ``lambda * G / mean(G)``, ``(d_out, d_in)``."""
        if summary is None:
            return torch.zeros_like(weight)
        return self.general_weight * _relative(0.5 * weight.square() / summary)

    def contribution(self, weight: torch.Tensor, gradient: torch.Tensor, summary: torch.Tensor | None) -> torch.Tensor:
        """Return what one domain sequence adds, ``(d_out, d_in)``."""
        if self.form != "paper":
            return gradient.abs_()
        fisher = gradient.square()
        refined = gradient * (1 + self._general(weight, summary) * _relative(fisher))
        return (refined * weight - 0.5 * weight.square() * fisher).abs()

    def alone(
        self, weight: torch.Tensor, summary: torch.Tensor | None, gradient: torch.Tensor | None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ``G`` and ``sum_n |g_n W|``; the form of the paper adds up nothing that is the domain's alone."""
        if summary is not None and gradient is not None and self.form != "paper":
            yield "general", 0.5 * weight.square() / summary
            yield self.gradients or "domain", gradient * weight.abs()

    def scores(
        self, weight: torch.Tensor, summary: torch.Tensor | None, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Score the weights of one matrix, ``(d_out, d_in)``."""
        if self.no_domain:
            assert summary is not None
            return 0.5 * weight.square() / summary
        assert gradient is not None
        if self.form == "paper":
            return gradient
        domain = gradient * weight.abs()
        if self.form == "additive":
            return _relative(domain) + self._general(weight, summary)
        return domain * (1 + self._general(weight, summary))
