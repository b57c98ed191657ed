"""Commands that need no network: the embedded Hub, and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where repositories are kept; made when missing.")],
    seed: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Fill the Hub from models/NAMESPACE/NAME/, datasets/..., spaces/... Repeatable."
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="TCP port; 0 takes a free one.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this opens the Hub to the network.")
    ] = "127.0.0.1",
    user: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:TOKEN", help="Who may push; add :pro for a PRO subscription. Repeatable."),
    ] = None,
    allow_jobs: Annotated[
        bool,
        typer.Option("--allow-jobs", help="Run the jobs that users send: their commands, on this machine, as you."),
    ] = False,
    allow_spaces: Annotated[
        bool,
        typer.Option(
            "--allow-spaces", help="Run the apps of Gradio Spaces that users start, on this machine, as you."
        ),
    ] = False,
) -> None:
    """Serve an embedded Hub until Ctrl+C; prints its address and the variables that point clients at it."""
    from hubprune.localhub import parse_users
    from hubprune.localhub import serve as run

    users, pro = parse_users(user or ())
    run(
        folder,
        host=host,
        port=port,
        users=users,
        pro=pro,
        seed=seed or (),
        allow_jobs=allow_jobs,
        allow_spaces=allow_spaces,
    )


def demo(
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the Hub and all else is kept. Without it: demo-hub.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Go on serving the Hub at the end, until Ctrl+C.")] = False,
    allow_spaces: Annotated[
        bool,
        typer.Option("--allow-spaces", help="Let the served Hub run apps and jobs that users start, as you."),
    ] = False,
) -> None:
    """Run the whole flow on a tiny model and an embedded Hub, without a network."""
    from hubprune.demo.show import run_demo

    run_demo(folder, serve, allow_spaces)
