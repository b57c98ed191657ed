"""What a run decides in each block, and writes to its weights: the part of a run that the sweeps do not know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from hubprune.architecture import Matrix
from hubprune.calibration import Corpus
from hubprune.engine import GradientSink
from hubprune.facts import MatrixFacts, UnitFacts
from hubprune.sweeps import Sinks

# Stages of a run, as the report's timings and a work folder name them.
FORWARD, BACKWARD, PRUNE, REPAIR = "forward", "backward", "prune", "repair"
# What a report says about the scores of units.
QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


class Chooser(ABC):
    """Decides about blocks one by one.

    Attributes:
        gradients: Corpora whose gradients it needs, ``all`` for every one, None for none.
        repairs: Whether the remaining weights are repaired, in a sweep after everything is chosen or while choosing.
        whole_model: Whether it can decide only once all blocks are known.
        answers_only: Whether the loss counts the tokens of answers only.
        warnings: What the user should know.
    """

    gradients: str | None = None
    repairs = False
    whole_model = False
    answers_only = False

    def __init__(self) -> None:
        self.warnings: list[str] = []

    @abstractmethod
    def matrices(self, index: int) -> list[Matrix]:
        """Matrices of a block whose inputs and gradients it wants to see."""

    @abstractmethod
    def corpora(self, *, scores: bool) -> set[str]:
        """Corpora whose inputs it wants to see to score, or else to repair; ``all`` for every one."""

    def singly(self) -> set[str]:
        """Corpora whose sequences it wants to see one by one, apart from those of gradients."""
        return set()

    def prepare(self, corpora: Mapping[str, Corpus]) -> None:  # noqa: B027 (most have no use for it)
        """Take note of this process' part of the text."""

    @abstractmethod
    def watch(self, index: int, corpora: Sequence[str], *, scores: bool) -> dict[str, Sinks]:
        """Begin with a block: where its inputs from each corpus go."""

    @abstractmethod
    def seen(self, index: int) -> None:
        """Take in what was seen of a block of the dense model."""

    def traced(self, index: int) -> Sequence[Matrix]:
        """Matrices of a block whose inputs and their gradients it wants to see as well."""
        return ()

    @abstractmethod
    def attribute(self, index: int, losses: Mapping[str, list[float]]) -> GradientSink:
        """Begin with the gradients of a block.

        Args:
            index: The block.
            losses: The loss of each sequence, by corpus; sequences are shown in this order.
        """

    @abstractmethod
    def decide(self, index: int) -> None:
        """Choose in a block of the dense model, and write to it unless it is to be repaired later."""

    def decide_on_all(self) -> None:  # noqa: B027 (most decide block by block)
        """Choose in all blocks at once, for a choice that needs all of them."""

    @abstractmethod
    def prune(self, index: int) -> None:
        """Choose in a block, unless that is done, and write to it."""

    @abstractmethod
    def waiting(self, index: int) -> dict[str, torch.Tensor]:
        """Keep masks of a block whose weights are still to be repaired, boolean ``(rows, width)``, by name."""

    @abstractmethod
    def take_waiting(self, index: int, known: Mapping[str, torch.Tensor]) -> None:
        """Take such masks back."""

    @abstractmethod
    def forget_waiting(self, index: int) -> None:
        """Let go of the masks of a block; they are written down."""

    @abstractmethod
    def widths(self, index: int) -> dict[str, int]:
        """Width of each such mask."""

    def close(self) -> None:  # noqa: B027 (most change nothing)
        """Undo what was done to the model to look into it; also when a run is broken off."""

    @abstractmethod
    def note(self, index: int, stage: str) -> dict[str, Any]:
        """What is known of a block, in JSON types."""

    @abstractmethod
    def take_up(self, note: Mapping[str, Any]) -> None:
        """Take back what an earlier attempt has noted."""

    def final(self, parameters: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and values of the result, from those of a block."""
        return parameters

    @abstractmethod
    def rows(self) -> tuple[list[MatrixFacts], list[UnitFacts]]:
        """Rows of the report."""


def note_fields(note: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    """Rebuild rows of a report from a note."""
    return [kind(**{**row, **({"shape": tuple(row["shape"])} if "shape" in row else {})}) for row in note[name]]
