"""The commands and their names."""

from __future__ import annotations

from typing import Annotated

import typer

from hubprune import __version__
from hubprune.cli.compare import compare
from hubprune.cli.doctor import doctor
from hubprune.cli.folder import card, push, verify
from hubprune.cli.graph import export
from hubprune.cli.measure import evaluate
from hubprune.cli.offline import demo, serve
from hubprune.cli.options import option_name
from hubprune.cli.prune import plan, prune
from hubprune.cli.recover import recover
from hubprune.cli.space import space
from hubprune.cli.tables import methods

# Options are recognised with underscores and under the names that other libraries give them.
FORGIVING = {"token_normalize_func": option_name}


def build() -> typer.Typer:
    """Return the command line, ready to run."""
    app = typer.Typer(add_completion=False)
    app.callback(invoke_without_command=True)(root)
    app.command("prune", context_settings=FORGIVING)(prune)
    app.command("plan", context_settings=FORGIVING)(plan)
    app.command("recover", context_settings=FORGIVING)(recover)
    app.command("methods")(methods)
    app.command("eval", context_settings=FORGIVING)(evaluate)
    app.command("compare", context_settings=FORGIVING)(compare)
    app.command("export", context_settings=FORGIVING)(export)
    app.command("push", context_settings=FORGIVING)(push)
    app.command("verify", context_settings=FORGIVING)(verify)
    app.command("card", context_settings=FORGIVING)(card)
    app.command("space", context_settings=FORGIVING)(space)
    app.command("doctor")(doctor)
    app.command("demo")(demo)
    hub = typer.Typer()
    hub.callback()(group)
    hub.command("serve")(serve)
    app.add_typer(hub, name="hub")
    return app


def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Turn a model of the Hugging Face Hub into a smaller domain expert, and publish it."""
    if version:
        print(f"hubprune {__version__}")
        raise typer.Exit()
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def group() -> None:
    """An embedded Hub, to try a publishing pipeline without a network."""
