"""``hubprune compare``: how alike the masks of several pruned models are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from hubprune.cli import tables
from hubprune.cli.options import RESULT_PANEL, TokenOption, TrustOption

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
        tables.show(*tables.comparison(found))
    if figure is not None:
        print(found.draw(figure), file=sys.stderr if as_json else sys.stdout)
