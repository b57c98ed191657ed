"""How every figure looks: PNG without a background, in tones that can be read on a white page and on a dark one.

matplotlib is imported when a figure is drawn, and only its Agg renderer, so that no display is needed and nothing of
a program's own plots is touched.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.errors import UsageError
from hubprune.report import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Grid = Sequence[Sequence[float | None]]

DPI = 160
WIDTH = 8.0  # inches
INK = "#7a828e"
"""Text and lines: its contrast is about 4 : 1 with white and with the near-black of dark pages alike."""
BLUE, ORANGE = "#3f86d1", "#d9822b"
SCALE = ("#a8dcc9", "#55b0c2", "#3b78bf", "#4b3f9e")
"""From little to much, for cells; neither end fades into a page."""
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.unicode_minus": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}
GAP = 0.025  # inches between two cells, of about these sizes
CELLS_WIDE, CELL_HIGH = 0.78 * WIDTH, 0.27
MOST_NUMBERS = 16  # columns up to which cells have room for a number, over the whole width
MOST_TICKS = 20  # layers that are named below an axis, likewise
LONGEST_LABEL = 40  # characters
PANEL = 2.3  # inches for a panel with an axis of its own
ABOVE: dict[str, Any] = {
    "loc": "lower right",
    "bbox_to_anchor": (1.0, 1.0),
    "ncols": 3,
    "borderaxespad": 0.2,
    "borderpad": 0.2,
}
"""Where a legend stands: above the axes, at the right of the title."""
DARK_CELL = 0.25  # relative luminance under which white is the better ink for a number in a cell


def has_matplotlib() -> bool:
    """Whether figures can be drawn here."""
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def styled() -> Iterator[None]:
    """Draw in our style inside the block, whatever the program's own style is.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if not has_matplotlib():
        raise UsageError('figures are drawn by matplotlib, which is not installed: pip install "hubprune[figures]"')
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def canvas(height: float, width: float = WIDTH) -> Figure:
    """An empty figure without a background; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.patch.set_alpha(0.0)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes.

    Raises:
        OutputError: The file cannot be written.
    """
    image = io.BytesIO()
    with styled():
        figure.savefig(image, format="png", transparent=True, metadata={"Software": None})
    return write_bytes(Path(path), image.getvalue())


def short(label: str) -> str:
    """A label cut in its middle where it is too long for a figure."""
    if len(label) <= LONGEST_LABEL:
        return label
    half = (LONGEST_LABEL - 3) // 2
    return f"{label[:half]}...{label[-half:]}"


def heatmap(
    axes: Axes,
    values: Grid,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    limits: tuple[float, float],
    decimals: int = 0,
    xlabel: str = "",
    share: float = 1.0,
) -> Any:
    """Draw a table of cells, darker for more, with the number in each where there is room.

    Args:
        axes: Where to draw.
        values: ``rows`` lists of ``columns`` numbers; None leaves a cell empty.
        rows: Their names, from the top.
        columns: Their names.
        limits: Numbers at the two ends of the colour scale.
        decimals: Digits behind the point of a number in a cell.
        xlabel: What the columns are.
        share: How much of the figure's width the axes have.

    Returns:
        The scale, for ``scale_bar``.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.patches import Rectangle

    scale: Any = ScalarMappable(Normalize(*limits), LinearSegmentedColormap.from_list("hubprune", SCALE))
    across, down = GAP * len(columns) / (CELLS_WIDE * share), GAP / CELL_HIGH
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            cell = Rectangle((x + across / 2, y + down / 2), 1 - across, 1 - down, lw=0)
            axes.add_patch(cell)
            if value is None:
                cell.set(fill=False, hatch="////", edgecolor=INK, alpha=0.35)
                continue
            colour = scale.to_rgba(value)
            cell.set_facecolor(colour)
            if len(columns) <= MOST_NUMBERS * share:
                ink = "white" if luminance(colour) < DARK_CELL else "#10243d"
                text = f"{value:.{decimals}f}"
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=ink, fontsize=8.5)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    name_columns(axes, columns, 0.5, share)
    axes.set_yticks([place + 0.5 for place in range(len(rows))], list(rows))
    axes.tick_params(length=0)
    axes.set_xlabel(xlabel)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return scale


def name_columns(axes: Axes, names: Sequence[str], shift: float = 0.0, share: float = 1.0) -> None:
    """Write names below an axis, every second one or fewer where there are many; the first stands at ``shift``."""
    shown = range(0, len(names), math.ceil(len(names) / (MOST_TICKS * share)))
    axes.set_xticks([place + shift for place in shown], [names[place] for place in shown])


def name_layers(axes: Axes, blocks: Sequence[int]) -> None:
    """Name the layers below an axis."""
    name_columns(axes, [str(block) for block in blocks])
    axes.set_xlabel("layer")


def stacked(figure: Figure, count: int) -> list[Axes]:
    """Axes below each other."""
    return list(figure.subplots(count, 1, squeeze=False).flatten())


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of a colour (red, green, blue in 0 to 1), as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def scale_bar(figure: Figure, scale: Any, axes: Sequence[Axes], label: str) -> None:
    """Draw what the colours of cells mean, beside the axes that share them."""
    bar = figure.colorbar(scale, ax=list(axes), fraction=0.03, pad=0.02, aspect=24)
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
