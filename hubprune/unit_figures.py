"""The figures of removed units: how many are left in each layer, how scores are spread, what stands in for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hubprune import drawing
from hubprune.drawing import ABOVE, BLUE, INK, ORANGE, PANEL, name_layers, stacked
from hubprune.facts import UnitFacts
from hubprune.report import PruningReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DECADES = 2.0  # scores that span more than this are drawn on a logarithmic axis
BINS = 40
BOX = 0.7  # width of the boxes of one layer
UNITS = {
    "ffn_neuron": "feed-forward neurons",
    "kv_group": "key-value groups",
    "attention_dim": "attention dimensions",
    "layer": "layers",
}


def kept_units(report: PruningReport) -> Figure | None:
    """Units kept of those there were, by layer; a panel for each kind of unit."""
    by_unit = _by_unit(report.units)
    if not by_unit:
        return None
    figure = drawing.canvas(PANEL * len(by_unit))
    for axes, (unit, rows) in zip(stacked(figure, len(by_unit)), by_unit.items(), strict=True):
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
        name_layers(axes, blocks)
    return figure


def scores(report: PruningReport) -> Figure | None:
    """Scores of the units in each layer: the middle half, the middle 90 %, the median, and the highest removed.

    Of whole layers, each one's own score.
    """
    by_unit = _by_unit([row for row in report.units if row.each or ("median" in row.scores and row.unit != "layer")])
    if not by_unit:
        return None
    figure = drawing.canvas((PANEL + 0.3) * len(by_unit))
    for axes, (unit, rows) in zip(stacked(figure, len(by_unit)), by_unit.items(), strict=True):
        if unit == "layer":
            _bars(axes, rows[0])
        else:
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


def _by_unit(rows: Iterable[UnitFacts]) -> dict[str, list[UnitFacts]]:
    found: dict[str, list[UnitFacts]] = {}
    for row in rows:
        found.setdefault(row.unit, []).append(row)
    return found


def _plural(unit: str) -> str:
    return UNITS.get(unit, unit)


def _number(axes: Axes, place: int, value: int) -> None:
    """Write a number into the top of a bar."""
    style: dict[str, Any] = {"ha": "center", "va": "top", "color": "white", "fontsize": 8.5}
    axes.annotate(f"{value:,}", (place, value), (0, -3), textcoords="offset points", **style)


def _bars(axes: Axes, row: UnitFacts) -> None:
    """Draw the score of each unit as a bar."""
    gone = set(row.removed_indices)
    for label, color, places in (
        ("kept", BLUE, [place for place in range(row.count) if place not in gone]),
        ("removed", ORANGE, sorted(gone)),
    ):
        axes.bar(places, [row.each[place] for place in places], width=0.8, color=color, label=label)
    axes.grid(axis="y")
    name_layers(axes, list(range(row.count)))


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
    name_layers(axes, blocks)
