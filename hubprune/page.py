"""What people and the Hub see of a model's folder: the card, its figures, and results on benchmarks."""

from __future__ import annotations

import os
from pathlib import Path

from hubprune import drawing, figures
from hubprune.card import render_card
from hubprune.evalresults import write_results
from hubprune.hub import README
from hubprune.report import PruningReport, write_text


def write_page(
    report: PruningReport, folder: str | os.PathLike[str], repo_id: str | None, existing: str | None
) -> Path:
    """Write all of it from a report.

    Args:
        report: The report.
        folder: The model's folder.
        repo_id: Repository that the card is for; None for the folder.
        existing: Text of the README that is there already: what the user wrote in it stays.

    Returns:
        Path of the README.

    Raises:
        OutputError: The existing README cannot be read, or the folder cannot be written.
    """
    shown = figures.write_figures(report, folder) if drawing.has_matplotlib() else figures.figures_in(folder)
    write_results(report, folder)
    return write_text(Path(folder) / README, render_card(report, repo_id, existing, figures=shown))
