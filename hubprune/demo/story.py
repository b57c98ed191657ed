"""How the demo tells what it does: numbered steps with their times, one table, two answers, a closing panel."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from hubprune.report import PruningReport

WIDTH = 100
"""Columns that are used at most."""


def code(text: str) -> Syntax:
    """Return Python for display, in the terminal's own colours."""
    return Syntax(text, "python", theme="ansi_dark", background_color="default", word_wrap=True)


class Story:
    """Prints the demo's progress; the time runs from the moment it is made."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._console.width = min(self._console.width, WIDTH)
        self._numbers = itertools.count(1)
        self._started = time.perf_counter()

    def show(self, *parts: RenderableType) -> None:
        """Print the parts below each other, with an empty line in front."""
        self._console.print()
        for part in parts:
            self._console.print(part)

    @contextmanager
    def step(self, title: str) -> Iterator[list[RenderableType]]:
        """Tell of one step when it is done; a spinner turns until then.

        Args:
            title: What is done.

        Yields:
            A list to fill with what is worth knowing about it.
        """
        details: list[RenderableType] = []
        started = time.perf_counter()
        with self._console.status(f"{title} ..."):
            yield details
        line = Table.grid(expand=True, padding=(0, 1))
        line.add_column(style="bold cyan")
        line.add_column(style="bold", ratio=1)
        line.add_column(style="green", justify="right")
        line.add_row(str(next(self._numbers)), title, f"{time.perf_counter() - started:.1f} s")
        self._console.print(line, *(Padding(detail, (0, 0, 0, 2)) for detail in details))

    def close(self, places: Mapping[str, str]) -> None:
        """Print where to look and how long it all took.

        Args:
            places: What lies there, and where; neither is broken over two lines.
        """
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim")
        grid.add_column(overflow="fold")
        for what, place in places.items():
            grid.add_row(what, Text(place))
        title = f"Done in {time.perf_counter() - self._started:.0f} s"
        self.show(Panel(grid, title=title, title_align="left", border_style="green", padding=(1, 2)))


def perplexity_table(reports: Mapping[str, PruningReport]) -> Table:
    """Return the perplexities before and after for every method, the best of each corpus in bold.

    Args:
        reports: A report for each method; all measured on the same text. One that tells of a recovery has a column
            for it.
    """
    measured = {method: report.perplexities() for method, report in reports.items()}
    corpora = next(iter(measured.values()))
    protocol = next(iter(corpora.values()))["base"]
    table = Table(
        title="Perplexity on test text (lower is better)",
        caption=f"{protocol.windows} windows of {protocol.window} tokens each",
        box=box.SIMPLE_HEAD,
        title_style="bold",
    )
    table.add_column("text")
    table.add_column("before", justify="right")
    columns = []
    for method, report in reports.items():
        columns.append((method, "pruned"))
        table.add_column(f"{method}, {report.totals.sparsity:.0%} removed", justify="right")
        if report.recovery is not None:
            columns.append((method, "recovered"))
            table.add_column("recovered", justify="right")
    for corpus, variants in corpora.items():
        after = [measured[method][corpus][variant].perplexity for method, variant in columns]
        cells = [Text(f"{value:.2f}", style="bold green" if value == min(after) else "") for value in after]
        table.add_row(corpus, f"{variants['base'].perplexity:.2f}", *cells)
    return table


def answers(question: str, said: Mapping[str, str]) -> Table:
    """Return a question and what each model says to it."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", justify="right")
    grid.add_column()
    grid.add_row("Question", Text(question, style="bold"))
    for who, text in said.items():
        grid.add_row(who, Text(" ".join(text.split()) or "(nothing)"))
    return grid
