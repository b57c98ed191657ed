"""``hubprune compare``: how alike the masks of several pruned models are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubprune.cli import tables
from hubprune.cli.options import RESULT_PANEL, TokenOption, TrustOption

if TYPE_CHECKING:
    from hubprune.similarity import Comparison, Square

FIGURE = Path("mask-similarity.png")


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN", help="Two or more pruned models of one base: folders, or repositories, repo or repo@branch."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"PNG to draw. Without it: {FIGURE}, and none with --json.",
            rich_help_panel=RESULT_PANEL,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON.", rich_help_panel=RESULT_PANEL)
    ] = False,
    trust_remote_code: TrustOption = False,
    token: TokenOption = None,
) -> None:
    """Compare what several runs removed from the same base: Jaccard index over all, by type and by layer."""
    from hubprune.drawing import styled

    figure = out if as_json else out or FIGURE
    if figure is not None:
        with styled():  # says it before the work that nothing can be drawn
            pass
    from hubprune.comparison import compare as compared

    found = compared(runs, token=token, trust_remote_code=trust_remote_code, progress=sys.stderr.isatty())
    if as_json:
        print(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        tables.show(*comparison(found))
    if figure is not None:
        print(found.draw(figure), file=sys.stderr if as_json else sys.stdout)


def comparison(found: Comparison) -> list[Any]:
    """How alike the masks of several runs are."""
    names = [run.name for run in found.runs]

    def line(title: str, square: Square) -> list[str]:
        return [title, *(_index(square[left][right]) for left, right in found.pairs)]

    runs = []
    for place, run in enumerate(found.runs):
        removed, count = found.removed(place)
        runs.append((run.name, f"{run.method}, {run.pattern}: {removed:,} of {count:,} {found.unit} removed"))
    square = [[name, *map(_index, row)] for name, row in zip(names, found.similarity(), strict=True)]
    pairs = [found.name_pair(pair) for pair in found.pairs]
    rows = [line("all", found.similarity()), line("by chance", found.by_chance())]
    rows += [line(kind, found.similarity(kind=kind)) for kind in found.kinds]
    rows += [line(f"layer {block}", found.similarity(block=block)) for block in found.blocks]
    return [
        tables.facts_table(runs, f"What the runs removed from {found.base}"),
        tables.numbers(("Jaccard index", *names), square),
        tables.numbers(("Jaccard index", *pairs), rows),
        f"Jaccard index: {found.unit} that both removed, of those that at least one did. By chance: of masks drawn at "
        "random with as many removed in each place.",
    ]


def _index(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
