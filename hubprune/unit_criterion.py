"""What a criterion of units is: it notes a few rows of numbers for each sequence, and turns all rows into scores.

Like a criterion of weights it sees tensors only. It says which corpora it wants to see, and what it notes of each
sequence that flows into the writer of a group of units: rows with a number for each unit. The rows of all sequences,
from all processes in their order, are what it scores the units by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hubprune.criterion import Criterion


@dataclass(frozen=True)
class UnitView:
    """What a criterion sees of a group of units.

    Attributes:
        name: Name of the group; two have never the same.
        weight: Columns of the writer, ``(d_out, units, width)``, float32; None for dimensions of queries and keys.
        columns: Where they lie among its inputs, ``(units, width)``.
        count: Units.
    """

    name: str
    weight: torch.Tensor | None
    columns: torch.Tensor
    count: int

    def inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """What flows through each unit, ``(tokens, units, width)``, of the writer's inputs ``(tokens, d_in)``."""
        return inputs[:, self.columns.to(inputs.device)].float()

    def size(self) -> torch.Tensor:
        """The 2-norm of each unit's columns, ``(units,)``."""
        assert self.weight is not None
        return self.weight.square().sum(dim=(0, 2)).sqrt()


@dataclass(frozen=True)
class Example:
    """One sequence that a gradient was taken of.

    Attributes:
        weight: Its weight in the sum, such as the probability of its answer.
        label: Its answer, empty for text without answers.
    """

    weight: float = 1.0
    label: str = ""


class UnitCriterion(Criterion):
    """Base class of criteria that score units: higher = keep.

    Attributes:
        observed: Corpora whose sequences are observed; ``all`` stands for every corpus given.
        gradients: Corpora whose gradients are attributed, ``all`` for every one, None for none.
        answers_only: Whether the loss counts the tokens of answers only.
        reads_attention: Whether it also wants queries and keys.
        intersects: Whether a unit goes only when every corpus lets it go; the report then says how far down their
            rankings that reached.
    """

    observed: tuple[str, ...] = ()
    answers_only: bool = False
    reads_attention: ClassVar[bool] = False
    intersects: ClassVar[bool] = False

    def required_corpora(self) -> tuple[str, ...]:
        """Corpora it cannot do without; ``all`` among them asks for at least one of any name."""
        return tuple(dict.fromkeys((*self.observed, *((self.gradients,) if self.gradients else ()))))

    def working_memory(self, units: int) -> int:
        """Bytes that it takes to choose among so many units, besides what it has noted of them."""
        return 0

    def prepare(self, sequences: Mapping[str, int]) -> None:
        """Take note of how many sequences each corpus has, before the first one is observed."""

    def observe(self, view: UnitView, inputs: torch.Tensor) -> torch.Tensor:
        """Note what one sequence says about the units.

        Args:
            view: The group.
            inputs: What flows into its writer, ``(tokens, d_in)``.

        Returns:
            ``(rows, units)``.
        """
        raise TypeError(f"{type(self).__name__} observes corpora and must define observe(view, inputs)")

    def attribute(
        self,
        view: UnitView,
        gradient: torch.Tensor,
        inputs: torch.Tensor | None,
        inputs_gradient: torch.Tensor | None,
    ) -> torch.Tensor:
        """Note what the gradient of one sequence says about the units.

        Args:
            view: The group.
            gradient: Of the objective by the writer's weights, ``(d_out, d_in)``, float32.
            inputs: What flows into the writer, ``(tokens, d_in)``; None where it cannot be seen, in fused experts.
            inputs_gradient: Of the objective by these inputs, likewise.

        Returns:
            ``(units,)``.
        """
        raise TypeError(f"{type(self).__name__} uses gradients and must define attribute(view, gradient, ...)")

    def unit_scores(
        self,
        view: UnitView,
        observed: Mapping[str, torch.Tensor],
        attributed: Mapping[str, torch.Tensor],
        examples: Mapping[str, list[Example]],
    ) -> torch.Tensor:
        """Score the units of one group.

        Args:
            view: The group.
            observed: Rows of all sequences of each observed corpus, ``(rows, units)``.
            attributed: A row for each sequence that a gradient was taken of, ``(sequences, units)``, by corpus.
            examples: These sequences.

        Returns:
            ``(units,)``; higher = keep.
        """
        raise TypeError(f"{type(self).__name__} must define unit_scores(view, observed, attributed, examples)")

    def select(
        self, view: UnitView, scores: torch.Tensor, observed: Mapping[str, torch.Tensor], removed: int
    ) -> torch.Tensor | None:
        """Choose the units that stay by a rule of its own, boolean ``(units,)``; None for the highest scores."""
        return None

    def explain(
        self,
        view: UnitView,
        keep: torch.Tensor,
        observed: Mapping[str, torch.Tensor],
        attributed: Mapping[str, torch.Tensor],
        examples: Mapping[str, list[Example]],
    ) -> dict[str, Any]:
        """Fields of ``UnitFacts`` that say why: ``stand_ins``, ``fewer``.

        Args:
            view: The group.
            keep: The units that stay, boolean ``(units,)``.
            observed: As for ``unit_scores``.
            attributed: Likewise.
            examples: Likewise.
        """
        return {}
