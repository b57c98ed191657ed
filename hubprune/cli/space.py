"""``hubprune space``: the Space of a pruned model written, tried on this machine, published."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubprune.cli import tables
from hubprune.cli.options import (
    RESULT_PANEL,
    DryRunOption,
    MessageOption,
    PrivateOption,
    RevisionOption,
    TokenOption,
)
from hubprune.errors import HubPruneError, UsageError

if TYPE_CHECKING:
    from hubprune.space_publisher import Shown

PREVIEW_PORT = 7860  # where gradio serves unless asked otherwise


def space(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder that hubprune prune wrote, or the model's repository.")
    ],
    push: Annotated[
        str | None,
        typer.Option(metavar="SPACE", help="Publish it under this name.", rich_help_panel=RESULT_PANEL),
    ] = None,
    repo_id: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            help="Repository that holds the model of a folder. Without it: the one that is named like the Space.",
        ),
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Run it on this machine until Ctrl+C.")] = False,
    port: Annotated[int, typer.Option(help="TCP port of the preview.")] = PREVIEW_PORT,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write. Without it: NAME-space.", rich_help_panel=RESULT_PANEL),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="FLAVOR",
            help="Hardware of a new Space, such as zero-a10g. Without it: the free one.",
            rich_help_panel=RESULT_PANEL,
        ),
    ] = None,
    private: PrivateOption = None,
    commit_message: MessageOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write the Space of a pruned model, which shows it beside its base; try it here, or publish it."""
    from hubprune import hub, space_publisher
    from hubprune.space import check_space_folder, write_space

    if push is None and (dry_run or hardware or private is not None or commit_message):
        raise UsageError("--dry-run, --hardware, --private and --commit-message go with --push SPACE: give it")
    if preview:
        _check_gradio()
    api = hub.make_api(token)
    shown = space_publisher.find_model(model, repo_id or push, revision=revision, api=api)
    folder = out or Path(f"{Path(shown.model or shown.folder.resolve()).name}-space")
    check_space_folder(folder)
    place = space_publisher.find_place(push or False, str(shown.model), api=api)
    if place is not None and dry_run:
        print(space_publisher.plan_space(place, shown.report, shown.folder))
        return
    if place is None:
        write_space(shown.report, folder, model=shown.model, commit=shown.commit, model_folder=shown.folder)
        print(folder)
    else:
        try:
            done = space_publisher.publish_space(
                place,
                shown.report,
                str(shown.commit),
                folder,
                model_folder=shown.folder,
                private=private,
                hardware=hardware,
                commit_message=commit_message,
                api=api,
            )
        except HubPruneError as error:
            error.add_note(f"try it here with: {shlex.join(['hubprune', 'space', model, '--preview'])}")
            raise
        print(tables.destination(done), space_publisher.page(place.space_id), sep="\n")
        if shown.report.base.gated:
            settings = f"{space_publisher.page(place.space_id)}/settings"
            tables.warn(
                [f"the base is gated: give the Space the secret HF_TOKEN, a token that may read it: {settings}"]
            )
    if preview:
        run_app(folder, shown, port, token)


def _check_gradio() -> None:
    if importlib.util.find_spec("gradio") is None:
        raise UsageError('a preview needs gradio, which is not installed: pip install "hubprune[demo]"')


def run_app(folder: Path, shown: Shown, port: int, token: str | None) -> None:
    """Run the app of a Space on this machine until Ctrl+C.

    Args:
        folder: Its folder.
        shown: The model that it shows.
        port: TCP port.
        token: Token of the Hub; None for that of the environment or of the user who is logged in.

    Raises:
        HubPruneError: The app ended by itself.
    """
    own = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    if shown.model is None:
        own["PRUNED_MODEL"] = str(shown.folder.resolve())
    if token is not None:
        own["HF_TOKEN"] = token
    print(f"http://127.0.0.1:{port} (Ctrl+C ends it)", file=sys.stderr)
    with subprocess.Popen([sys.executable, "app.py"], cwd=folder, env={**os.environ, **own}) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            with suppress(ProcessLookupError):
                process.terminate()
            return
    if code != 0:
        raise HubPruneError(f"the app in {folder} ended with code {code}: what it printed says why")
