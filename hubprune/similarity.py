"""How alike the masks of several runs are: what two of them both removed, of what at least one removed.

That is the Jaccard index. Two masks drawn at random share something too, at half the weights a third; so each index
stands beside what chance alone would give.
"""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

Square = list[list[float | None]]
"""One number for each pair of runs, in their order; None where neither removed anything."""
LIMITS = (0.0, 1.0)
COLUMNS = 2  # pairs drawn side by side
HEAD, SIDE, ROW = 0.75, 0.45, 0.27  # inches: title and axis, a row of the matrix of runs, a row of a pair


@dataclass(frozen=True)
class Place:
    """What the runs removed from one block, of one kind.

    Attributes:
        block: Index of the block.
        kind: Type of the matrices, such as ``q_proj``, or the unit.
        count: Weights or units that there were.
        shared: For each pair of runs, how many both removed; on the diagonal, how many a run removed.
        weights: Weights in one unit, by which the kinds of units are weighed against each other.
    """

    block: int
    kind: str
    count: int
    shared: tuple[tuple[int, ...], ...]
    weights: int = 1


@dataclass(frozen=True)
class Run:
    """One run that is compared: what it is called, its method, its pattern in words."""

    name: str
    method: str
    pattern: str


@dataclass(frozen=True)
class Comparison:
    """The masks of several runs of one base, compared.

    Attributes:
        base: The model that all were made from.
        unit: What was removed: weights or units.
        runs: The runs.
        places: What they removed, by block and kind.
    """

    base: str
    unit: str
    runs: tuple[Run, ...]
    places: tuple[Place, ...]

    @property
    def kinds(self) -> list[str]:
        """Types of matrices, or units, in the order of the model."""
        return list(dict.fromkeys(place.kind for place in self.places))

    @property
    def blocks(self) -> list[int]:
        """Blocks that something was removed from."""
        return sorted({place.block for place in self.places})

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every two runs, by their places in ``runs``."""
        count = len(self.runs)
        return [(left, right) for left in range(count) for right in range(left + 1, count)]

    def name_pair(self, pair: tuple[int, int]) -> str:
        """Names of two runs."""
        return " / ".join(self.runs[index].name for index in pair)

    def similarity(self, *, block: int | None = None, kind: str | None = None) -> Square:
        """Jaccard index of what each two runs removed.

        Args:
            block: Of one block alone.
            kind: Of one kind alone.
        """
        return self._square(self._select(block, kind), lambda place, i, j: place.shared[i][j])

    def by_chance(self, *, block: int | None = None, kind: str | None = None) -> Square:
        """Jaccard index that masks drawn at random would have, with as many removed in each place; as above."""

        def expected(place: Place, i: int, j: int) -> float:
            removed = place.shared[i][i]
            return removed if i == j else removed * place.shared[j][j] / place.count

        return self._square(self._select(block, kind), expected)

    def _select(self, block: int | None, kind: str | None) -> list[Place]:
        return [place for place in self.places if block in (None, place.block) and kind in (None, place.kind)]

    def _square(self, places: Iterable[Place], both: Callable[[Place, int, int], float]) -> Square:
        places, order = list(places), range(len(self.runs))

        def index(i: int, j: int) -> float | None:
            common = sum(both(place, i, j) * place.weights for place in places)
            either = sum((place.shared[i][i] + place.shared[j][j]) * place.weights for place in places) - common
            return common / either if either else None

        return [[index(i, j) for j in order] for i in order]

    def removed(self, run: int) -> tuple[int, int]:
        """Weights or units that a run removed, and how many there were."""
        return sum(place.shared[run][run] for place in self.places), sum(place.count for place in self.places)

    def to_dict(self) -> dict[str, Any]:
        """Everything in JSON types."""
        runs = [
            {"name": run.name, "method": run.method, "pattern": run.pattern, "removed": self.removed(index)[0]}
            for index, run in enumerate(self.runs)
        ]
        places = [
            {
                "block": place.block,
                "kind": place.kind,
                "count": place.count,
                "removed": [place.shared[index][index] for index in range(len(self.runs))],
                "similarity": self.similarity(block=place.block, kind=place.kind),
                "by_chance": self.by_chance(block=place.block, kind=place.kind),
            }
            for place in self.places
        ]
        return {
            "base": self.base,
            "unit": self.unit,
            "count": self.removed(0)[1],
            "runs": runs,
            "similarity": self.similarity(),
            "by_chance": self.by_chance(),
            "by_kind": {kind: self.similarity(kind=kind) for kind in self.kinds},
            "by_block": {str(block): self.similarity(block=block) for block in self.blocks},
            "places": places,
        }

    def draw(self, path: str | os.PathLike[str]) -> Path:
        """Draw the similarity of all runs, and below it that of each two by layer and kind.

        Args:
            path: PNG file to write.

        Returns:
            The file.

        Raises:
            UsageError: matplotlib is not installed.
            OutputError: The file cannot be written.
        """
        with drawing.styled():
            columns = min(COLUMNS, len(self.pairs))
            lines = -(-len(self.pairs) // columns)
            top, low = HEAD + SIDE * len(self.runs), HEAD + ROW * len(self.kinds)
            figure = drawing.canvas(top + lines * low)
            parts: Any = figure.subfigures(2, 1, height_ratios=[top, lines * low])
            upper, lower = parts
            for part in parts:
                part.patch.set_alpha(0.0)
            scale = self._draw_matrix(upper)
            grid = lower.subplots(lines, columns, squeeze=False).flatten()
            for axes, pair in zip(grid, self.pairs, strict=False):
                self._draw_pair(axes, pair, share=1 / columns)
            for axes in grid[len(self.pairs) :]:
                axes.set_axis_off()
            drawing.scale_bar(lower, scale, list(grid), "Jaccard index")
            return drawing.save(figure, path)

    def _draw_matrix(self, figure: SubFigure) -> Any:
        """Draw a cell for each two runs, and beside it what the letters stand for."""
        whole, legend = figure.subplots(1, 2, width_ratios=[1, 2])
        letters = [_letter(index) for index in range(len(self.runs))]
        scale = drawing.heatmap(whole, self.similarity(), letters, letters, limits=LIMITS, decimals=2, share=0.5)
        whole.set_title(f"Jaccard index of the {self.unit} removed")
        legend.set_axis_off()
        for index, run in enumerate(self.runs):
            count, of = self.removed(index)
            about = f"{run.method}, {100 * count / of:.1f} % of {of:,} {self.unit} removed"
            height = 1 - (index + 0.5) / len(self.runs)
            legend.text(0.0, height, letters[index], va="center", weight="bold")
            legend.text(0.05, height, f"{drawing.short(run.name)}\n{about}", va="center")
        return scale

    def _draw_pair(self, axes: Axes, pair: tuple[int, int], share: float) -> None:
        """Draw the similarity of two runs by layer and kind."""
        left, right = pair
        values = [
            [self.similarity(block=block, kind=kind)[left][right] for block in self.blocks] for kind in self.kinds
        ]
        blocks = [str(block) for block in self.blocks]
        drawing.heatmap(axes, values, self.kinds, blocks, limits=LIMITS, decimals=2, xlabel="layer", share=share)
        chance = self.by_chance()[left][right]
        axes.set_title(f"{_letter(left)} and {_letter(right)}" + (f" (by chance {chance:.2f})" if chance else ""))


def _letter(index: int) -> str:
    """What a figure calls a run: A, B, ...; a number where there are more runs than letters."""
    return string.ascii_uppercase[index] if index < len(string.ascii_uppercase) else str(index + 1)
