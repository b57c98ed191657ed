"""``hubprune doctor``: what hubprune finds on this machine, as a table or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hubprune.cli import tables
from hubprune.cli.options import TokenOption

if TYPE_CHECKING:
    from rich.table import Table

    from hubprune.doctor import Finding

SIGNS = {"ok": ("ok", "green"), "info": ("-", "dim"), "warning": ("warning", "yellow"), "problem": ("PROBLEM", "red")}
UNHEALTHY = 1


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    token: TokenOption = None,
) -> None:
    """Say what hubprune finds here: versions, tokens, the Hub, disk, memory, accelerators, optional packages.

    Ends with code 1 where something keeps it from working. No token is printed.
    """
    import dataclasses
    import json

    from hubprune.doctor import examine, healthy

    found = examine(token)
    if as_json:
        rows = [dataclasses.asdict(finding) for finding in found]
        print(json.dumps({"healthy": healthy(found), "findings": rows}, indent=1, ensure_ascii=False))
    else:
        tables.show(_table(found))
    if not healthy(found):
        raise typer.Exit(UNHEALTHY)


def _table(found: list[Finding]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title="hubprune doctor", title_justify="left")
    for name in ("", "", "status"):
        table.add_column(name, overflow="fold")
    table.add_column("found", overflow="fold", ratio=1)
    last = ""
    for finding in found:
        if last and finding.group != last:
            table.add_section()
        sign, colour = SIGNS[finding.status]
        value = finding.value + (f"\n{finding.remedy}" if finding.remedy else "")
        table.add_row(finding.group if finding.group != last else "", finding.name, Text(sign, colour), value)
        last = finding.group
    return table
