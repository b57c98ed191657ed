"""The figures of a report: where a model was pruned, and what the choice looked like. Drawn from the report alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune import drawing
from hubprune.drawing import ABOVE, BLUE, INK, ORANGE, PANEL, name_layers, stacked
from hubprune.errors import OutputError
from hubprune.facts import MatrixFacts
from hubprune.report import PruningReport
from hubprune.unit_figures import kept_units, scores, stand_ins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "figures"
"""Where the figures of a model lie, in its folder and in its repository."""
LEAST_SPAN = 10.0  # percentage points that the colour scale of sparsity spans at least
FEWEST_ROWS = 3  # a heatmap is as high as this many rows at least, so that its scale has room
HEAD, ROW = 0.95, 0.32  # inches for title and axis, and for each row of cells


@dataclass(frozen=True)
class FigureKind:
    """A figure that a card shows.

    Attributes:
        file: Its name in the folder.
        title: What it shows, which is also its text for those who cannot see it.
        caption: How to read it, in a sentence.
        draw: From a report to the figure; None where the report has nothing of the kind.
    """

    file: str
    title: str
    caption: str
    draw: Callable[[PruningReport], Figure | None]

    @property
    def path(self) -> str:
        """Path in the model's folder."""
        return f"{FOLDER}/{self.file}"


def write_figures(report: PruningReport, folder: str | os.PathLike[str]) -> list[FigureKind]:
    """Draw what a report has to show into the folder ``figures`` of a model; earlier figures of ours go.

    Args:
        report: The report.
        folder: Folder of the model.

    Returns:
        The figures drawn; none where matplotlib is not installed.

    Raises:
        OutputError: The folder cannot be written.
    """
    drawn = []
    for kind in FIGURES:
        figure = None
        if drawing.has_matplotlib():
            with drawing.styled():
                figure = kind.draw(report)
        path = Path(folder) / kind.path
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the folder {path.parent} ({error.strerror}): give a folder that is writable"
            ) from error
        drawing.save(figure, path)
        drawn.append(kind)
    return drawn


def figures_in(folder: str | os.PathLike[str]) -> list[FigureKind]:
    """The figures of ours that a model's folder holds."""
    return [kind for kind in FIGURES if (Path(folder) / kind.path).is_file()]


def sparsity(report: PruningReport) -> Figure | None:
    """Share of the weights removed, by layer and type of matrix, in per cent."""
    cells: dict[tuple[str, int], list[MatrixFacts]] = {}
    for matrix in report.matrices:
        cells.setdefault((matrix.kind, matrix.block), []).append(matrix)
    if not any(row.pruned for row in report.matrices):  # units that were cut out leave no zeros
        return None
    shares = {
        place: 100 * sum(row.pruned for row in rows) / sum(row.numel for row in rows) for place, rows in cells.items()
    }
    low, high = min(shares.values()), max(shares.values())
    if high - low < LEAST_SPAN:
        low = min(max(0.0, (low + high - LEAST_SPAN) / 2), 100 - LEAST_SPAN)
        high = low + LEAST_SPAN
    return _maps({"Weights removed": shares}, (low, high), "% removed")


def overlap(report: PruningReport) -> Figure | None:
    """Jaccard index of what two corpora alone would have removed, by layer and type; a panel for each pair."""
    rows = [(row.kind, row.block, row.numel, row.overlap) for row in report.matrices]
    rows += [(row.unit, row.block, row.count, row.overlap) for row in report.units]
    found: dict[str, dict[tuple[str, int], list[tuple[float, int]]]] = {}
    for kind, block, count, pairs in rows:
        for pair, value in pairs.items():
            found.setdefault(pair, {}).setdefault((kind, block), []).append((value, count))
    panels = {
        f"Removed by {pair.replace('/', ' and by ')} text alone": {
            place: sum(value * count for value, count in values) / sum(count for _, count in values)
            for place, values in cells.items()
        }
        for pair, cells in found.items()
    }
    return _maps(panels, (0.0, 1.0), "Jaccard index", decimals=2) if panels else None


def loss_curve(report: PruningReport) -> Figure | None:
    """Loss while the pruned model was trained, and the step whose weights were kept."""
    recovery = report.recovery
    if recovery is None or recovery.config.get("method") == "reconstruct" or not recovery.curve:
        return None
    figure = drawing.canvas(PANEL + 0.5)
    axes = figure.subplots()
    axes.grid(axis="y")
    trained = [(point.step, point.training) for point in recovery.curve if point.training is not None]
    held = [(point.step, point.held_out) for point in recovery.curve if point.held_out is not None]
    if trained:
        axes.plot(*zip(*trained, strict=True), color=BLUE, linewidth=1.4, label="training text")
    if held:
        style: dict[str, Any] = {"color": ORANGE, "linewidth": 1.6, "marker": "o", "markersize": 4}
        axes.plot(*zip(*held, strict=True), label="held-out text", **style)
    axes.axvline(
        recovery.kept_step, color=INK, linewidth=1.0, linestyle=":", label=f"kept: step {recovery.kept_step:,}"
    )
    axes.set_title("Loss during recovery")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.legend(**ABOVE)
    return figure


def block_errors(report: PruningReport) -> Figure | None:
    """Error of each block before and after it was fitted to the dense one, in per cent of the output's mean square."""
    recovery = report.recovery
    if recovery is None or recovery.config.get("method") != "reconstruct":
        return None
    fitted = [
        (point.step, 100 * point.training, 100 * point.held_out)
        for point in recovery.curve
        if point.training is not None and point.held_out is not None
    ]
    if not fitted:
        return None
    figure = drawing.canvas(PANEL + 0.3)
    axes = figure.subplots()
    axes.grid(axis="y")
    places = range(len(fitted))
    for shift, column, colour, label in ((-0.2, 1, ORANGE, "before"), (0.2, 2, BLUE, "after")):
        axes.bar([place + shift for place in places], [row[column] for row in fitted], 0.36, color=colour, label=label)
    axes.set_title("Error of each block against the dense one")
    axes.set_ylabel("% of the output's mean square")
    axes.legend(**ABOVE)
    name_layers(axes, [block for block, _, _ in fitted])
    return figure


def _maps(
    panels: dict[str, dict[tuple[str, int], float]], limits: tuple[float, float], label: str, decimals: int = 0
) -> Figure:
    """Draw one heatmap for each panel, types from the top and layers from the left."""
    kinds = list(dict.fromkeys(kind for cells in panels.values() for kind, _ in cells))
    blocks = sorted({block for cells in panels.values() for _, block in cells})
    figure = drawing.canvas((HEAD + ROW * max(len(kinds), FEWEST_ROWS)) * len(panels))
    axes = stacked(figure, len(panels))
    for one, (title, cells) in zip(axes, panels.items(), strict=True):
        values = [[cells.get((kind, block)) for block in blocks] for kind in kinds]
        names = [str(block) for block in blocks]
        scale = drawing.heatmap(one, values, kinds, names, limits=limits, decimals=decimals, xlabel="layer")
        one.set_title(title)
    drawing.scale_bar(figure, scale, axes, label)
    return figure


FIGURES = (
    FigureKind(
        "sparsity.png",
        "Sparsity by layer and type of matrix",
        "Share of the weights that were removed, by layer (from left to right) and type of matrix.",
        sparsity,
    ),
    FigureKind(
        "kept_units.png",
        "Units kept by layer",
        "What each layer has left (blue) of what it had (dotted).",
        kept_units,
    ),
    FigureKind(
        "overlap.png",
        "Overlap of what each text alone would remove",
        "How far the texts agree: of all that at least one of two texts alone would have removed, the share that both "
        "would have (Jaccard index; 1 for the same choice).",
        overlap,
    ),
    FigureKind(
        "scores.png",
        "Scores of the units by layer",
        "How the scores are spread in each layer: the middle half (box) with the median (white), the middle 90 % "
        "(line), and the highest score that was removed (orange). Of whole layers, each one's own score.",
        scores,
    ),
    FigureKind(
        "mutual_information.png",
        "Mutual information of removed neurons and their stand-ins",
        "How much each removed neuron shares with the kept neuron nearest to it.",
        stand_ins,
    ),
    FigureKind(
        "loss.png",
        "Loss during recovery",
        "Loss on the training text (blue) and on text held out (orange), in nats per token; the dotted line is the "
        "step whose weights were kept.",
        loss_curve,
    ),
    FigureKind(
        "block_errors.png",
        "Error of each block against the dense one",
        "How far each block's output was from the dense block's, before (orange) and after (blue) it was fitted.",
        block_errors,
    ),
)
"""Every figure of a card, in its order."""
