"""The figures of a report: where a model was pruned, and what the choice looked like. Drawn from the report alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune import drawing
from hubprune.drawing import BLUE, INK, ORANGE
from hubprune.errors import OutputError
from hubprune.facts import MatrixFacts, UnitFacts
from hubprune.report import PruningReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = "figures"
"""Where the figures of a model lie, in its folder and in its repository."""
LEAST_SPAN = 10.0  # percentage points that the colour scale of sparsity spans at least
DECADES = 2.0  # scores that span more than this are drawn on a logarithmic axis
FEWEST_ROWS = 3  # a heatmap is as high as this many rows at least, so that its scale has room
BINS = 40
BOX = 0.7  # width of the boxes of one layer
HEAD, ROW = 0.95, 0.32  # inches for title and axis, and for each row of cells
PANEL = 2.3  # inches for a panel with an axis of its own
ABOVE: dict[str, Any] = {
    "loc": "lower right",
    "bbox_to_anchor": (1.0, 1.0),
    "ncols": 3,
    "borderaxespad": 0.2,
    "borderpad": 0.2,
}
"""Where a legend stands: above the axes, at the right of the title."""
UNITS = {
    "ffn_neuron": "feed-forward neurons",
    "kv_group": "key-value groups",
    "attention_dim": "attention dimensions",
    "layer": "layers",
}


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


def kept_units(report: PruningReport) -> Figure | None:
    """Units kept of those there were, by layer; a panel for each kind of unit."""
    by_unit = _by_unit(report.units)
    if not by_unit:
        return None
    figure = drawing.canvas(PANEL * len(by_unit))
    for axes, (unit, rows) in zip(_panels(figure, len(by_unit)), by_unit.items(), strict=True):
        counts: Counter[int] = Counter()
        kept: Counter[int] = Counter()
        for row in sorted(rows, key=lambda row: row.block):
            if unit == "layer":
                counts.update(range(row.count))
                kept.update(set(range(row.count)).difference(row.removed_indices))
            else:
                counts[row.block] += row.count
                kept[row.block] += row.kept
        places, blocks = range(len(counts)), list(counts)
        axes.bar(
            places, list(counts.values()), width=0.8, facecolor="none", edgecolor=INK, linewidth=0.8, linestyle=":"
        )
        axes.bar(places, [kept[block] for block in blocks], width=0.8, color=BLUE)
        if unit == "layer":
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
        else:
            axes.set_ylabel("kept")
            axes.yaxis.set_major_formatter("{x:,g}")
            if len(blocks) <= drawing.MOST_NUMBERS:
                for place, block in enumerate(blocks):
                    _number(axes, place, kept[block])
        axes.set_title(f"{sum(kept.values()):,} of {sum(counts.values()):,} {_plural(unit)} kept")
        _name_layers(axes, blocks)
    return figure


def scores(report: PruningReport) -> Figure | None:
    """Scores of the units in each layer: the middle half, the middle 90 %, the median, and the highest removed."""
    by_unit = _by_unit([row for row in report.units if "median" in row.scores and row.unit != "layer"])
    if not by_unit:
        return None
    figure = drawing.canvas((PANEL + 0.3) * len(by_unit))
    for axes, (unit, rows) in zip(_panels(figure, len(by_unit)), by_unit.items(), strict=True):
        _boxes(axes, rows)
        axes.set_title(f"Scores of {_plural(unit)}")
        axes.set_ylabel("score (higher = keep)")
        axes.legend(**ABOVE)
    return figure


def stand_ins(report: PruningReport) -> Figure | None:
    """Mutual information of each removed neuron with the kept neuron that is nearest to it, as a histogram."""
    bits = sorted(bits for row in report.units for _, _, bits in row.stand_ins)
    if not bits:
        return None
    figure = drawing.canvas(PANEL + 0.4)
    axes = figure.subplots()
    axes.hist(bits, bins=min(BINS, max(5, len(bits) // 4)), color=BLUE, rwidth=0.92)
    median = (bits[(len(bits) - 1) // 2] + bits[len(bits) // 2]) / 2
    axes.axvline(median, color=ORANGE, linewidth=1.6, label=f"median {median:.2f} bits")
    axes.set_title(f"What {len(bits):,} removed neurons share with their stand-ins")
    axes.set_xlabel("mutual information, bits")
    axes.set_ylabel("removed neurons")
    axes.legend(**ABOVE)
    return figure


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
    _name_layers(axes, [block for block, _, _ in fitted])
    return figure


def _by_unit(rows: Iterable[UnitFacts]) -> dict[str, list[UnitFacts]]:
    found: dict[str, list[UnitFacts]] = {}
    for row in rows:
        found.setdefault(row.unit, []).append(row)
    return found


def _plural(unit: str) -> str:
    return UNITS.get(unit, unit)


def _panels(figure: Figure, count: int) -> list[Axes]:
    """Axes below each other."""
    return list(figure.subplots(count, 1, squeeze=False).flatten())


def _name_layers(axes: Axes, blocks: Sequence[int]) -> None:
    drawing.name_columns(axes, [str(block) for block in blocks])
    axes.set_xlabel("layer")


def _number(axes: Axes, place: int, value: int) -> None:
    """Write a number into the top of a bar."""
    style: dict[str, Any] = {"ha": "center", "va": "top", "color": "white", "fontsize": 8.5}
    axes.annotate(f"{value:,}", (place, value), (0, -3), textcoords="offset points", **style)


def _boxes(axes: Axes, rows: Sequence[UnitFacts]) -> None:
    """Draw quantiles as boxes; experts of one layer lie side by side."""
    blocks = sorted({row.block for row in rows})
    beside = [[row for row in rows if row.block == block] for block in blocks]
    width = BOX / max(map(len, beside))
    placed = [
        (place + (index - (len(here) - 1) / 2) * width, row.scores)
        for place, here in enumerate(beside)
        for index, row in enumerate(here)
    ]
    x = [place for place, _ in placed]
    low, quarter, median, upper, high = (
        [q[name] for _, q in placed] for name in ("p5", "p25", "median", "p75", "p95")
    )
    axes.vlines(x, low, high, color=BLUE, linewidth=1.2, label="middle 90 %")
    heights = [top - bottom for top, bottom in zip(upper, quarter, strict=True)]
    axes.bar(x, heights, bottom=quarter, width=0.9 * width, color=BLUE, label="middle half")
    half = 0.45 * width
    axes.hlines(median, [p - half for p in x], [p + half for p in x], color="white", linewidth=1.2)
    cut = [(p, q["threshold"]) for p, q in placed if "threshold" in q]
    axes.hlines(
        [score for _, score in cut],
        [p - width / 2 for p, _ in cut],
        [p + width / 2 for p, _ in cut],
        color=ORANGE,
        linewidth=2.0,
        label="highest score removed",
    )
    if min(low) > 0 and max(high) / min(low) > 10**DECADES:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y")
    _name_layers(axes, blocks)


def _maps(
    panels: dict[str, dict[tuple[str, int], float]], limits: tuple[float, float], label: str, decimals: int = 0
) -> Figure:
    """Draw one heatmap for each panel, types from the top and layers from the left."""
    kinds = list(dict.fromkeys(kind for cells in panels.values() for kind, _ in cells))
    blocks = sorted({block for cells in panels.values() for _, block in cells})
    figure = drawing.canvas((HEAD + ROW * max(len(kinds), FEWEST_ROWS)) * len(panels))
    axes = _panels(figure, len(panels))
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
        "(line), and the highest score that was removed (orange).",
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
