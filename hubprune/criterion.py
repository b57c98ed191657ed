"""What a criterion is: a rule that turns statistics into scores. It declares what it needs and receives it.

A criterion sees tensors only, never a model. To prune by a rule of your own, subclass ``Criterion`` and hand an
instance to ``prune(..., criterion=mine)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch

from hubprune.config import PruningConfig
from hubprune.errors import ConfigError

Summary = Literal["norm", "inverse_hessian"]


class Criterion:
    """Base class of all criteria. Scores rank the weights of a matrix: higher = keep.

    Attributes:
        summary: What it needs to know of the inputs of a matrix: the root mean square of each column (``norm``), the
            diagonal of the inverse Hessian (``inverse_hessian``), or nothing (None).
        corpora: Corpora the summary is taken from; ``all`` stands for every corpus given. Several: see ``mix``.
        gradients: Corpus whose gradients it needs, None for no gradients.
        selects_in_sweep: Whether, when the remaining weights are repaired, it chooses inside the column sweep from
            weights that are already repaired, as SparseGPT does.
        compensation_corpora: Corpora of the Hessian that repairs the remaining weights.
        scope: Scope of an unstructured run, where the config names none and the criterion is not of the table.
        application: What is done to the weights, likewise.
        seed: Seed of the run.
    """

    summary: Summary | None = None
    corpora: tuple[str, ...] = ("all",)
    gradients: str | None = None
    selects_in_sweep: ClassVar[bool] = False
    compensation_corpora: tuple[str, ...] = ("all",)
    scope: ClassVar[str] = "matrix"
    application: ClassVar[str] = "zero"
    seed: int = 0

    def required_corpora(self) -> tuple[str, ...]:
        """Corpora it cannot do without; ``all`` among them asks for at least one of any name."""
        declared = self.corpora if self.summary is not None else ()
        return tuple(dict.fromkeys((*declared, *((self.gradients,) if self.gradients else ()))))

    def check_corpora(self, names: tuple[str, ...], *, compensates: bool) -> None:
        """Refuse a run whose corpora are missing.

        Args:
            names: Names of the corpora given.
            compensates: Whether the remaining weights are to be repaired.

        Raises:
            ConfigError: One that is needed is not among them, or norms are asked of several.
        """
        kind = type(self).__name__
        if self.summary == "norm" and len(self.corpora) != 1:
            raise ConfigError(f"norms come from one corpus or from 'all', and {kind} names {self.corpora}: mend it")
        required = self.required_corpora() + (self.compensation_corpora if compensates else ())
        missing = [name for name in required if (not names if name == "all" else name not in names)]
        if missing:
            wanted = "at least one corpus" if missing == ["all"] else "the corpora " + ", ".join(missing)
            raise ConfigError(f"{kind} needs {wanted}, got {', '.join(names) or 'none'}: add them to corpora")

    def mix(self, hessians: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Combine the Hessians of several corpora.

        Args:
            hessians: ``(d_in, d_in)`` for each name in ``corpora``.
        """
        (single,) = hessians.values()
        return single

    def contribution(self, weight: torch.Tensor, gradient: torch.Tensor, summary: torch.Tensor | None) -> torch.Tensor:
        """Return what one sequence adds to the gradient statistic.

        Args:
            weight: ``(d_out, d_in)``, float32.
            gradient: Gradient of this sequence's mean loss, ``(d_out, d_in)``, float32; it may be overwritten.
            summary: ``(d_in,)`` as declared, None without one.

        Returns:
            ``(d_out, d_in)``; the sum over sequences reaches ``scores``.
        """
        return gradient.abs_()

    def alone(
        self, weight: torch.Tensor, summary: torch.Tensor | None, gradient: torch.Tensor | None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the scores that each corpus alone would give, with its name, where several are weighed in ``scores``.

        The report tells how far they agree. Arguments and shapes as in ``scores``.
        """
        yield from ()

    def scores(
        self, weight: torch.Tensor, summary: torch.Tensor | None, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Score the weights of one matrix.

        Args:
            weight: ``(d_out, d_in)``, float32.
            summary: ``(d_in,)`` as declared, None without one.
            gradient: Sum of the contributions, ``(d_out, d_in)``, None without gradients.

        Returns:
            ``(d_out, d_in)``; higher = keep.
        """
        raise TypeError(f"{type(self).__name__} must define scores(weight, summary, gradient)")


def load_criterion(config: PruningConfig) -> Criterion:
    """Build the built-in criterion that a config names; only rows of the table of methods can be named."""
    module, _, name = config.preset.criterion.partition(":")
    kind = getattr(importlib.import_module(f"hubprune.criteria.{module}"), name)
    criterion: Criterion = kind(**config.resolved_options())
    criterion.seed = config.seed
    return criterion
