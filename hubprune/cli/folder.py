"""Commands on the folder of a pruned model: push, verify, card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hubprune.cli import tables
from hubprune.cli.options import (
    RESULT_PANEL,
    CreatePrOption,
    DryRunOption,
    FolderArgument,
    MessageOption,
    PrivateOption,
    SpaceOption,
    TokenOption,
    TrustOption,
)


def push(
    folder: FolderArgument,
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="Repository; created when there is none.")],
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Branch. Without it: the default one.", rich_help_panel=RESULT_PANEL),
    ] = None,
    private: PrivateOption = None,
    create_pr: CreatePrOption = False,
    commit_message: MessageOption = None,
    space: SpaceOption = False,
    token: TokenOption = None,
    trust_remote_code: TrustOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Verify the folder of a pruned model and publish it in one commit; with --space its Space in another."""
    from hubprune.publisher import publish_folder
    from hubprune.report import PruningReport
    from hubprune.space_publisher import page

    done = publish_folder(
        folder,
        repo_id,
        revision=revision,
        private=private,
        create_pr=create_pr,
        commit_message=commit_message,
        space=space,
        token=token,
        dry_run=dry_run,
        trust_remote_code=trust_remote_code,
    )
    print(tables.destination(done))
    if space and not dry_run:
        print(page(str(PruningReport.load(folder).space)))


def verify(
    folder: FolderArgument,
    pruned: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The pruned model that a quantised one in DIR was made from."),
    ] = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Check that the folder of a pruned model holds what its report says; write the stamp into the report.

    Of a model that was quantised after pruning, check that its zeros and groups were kept.
    """
    from hubprune.verifier import verify as check

    tables.show(tables.stamp(check(folder, trust_remote_code=trust_remote_code, pruned=pruned)))


def card(
    folder: FolderArgument,
    repo_id: Annotated[
        str | None, typer.Option(metavar="REPO", help="Repository that the card is for. Without it: the folder.")
    ] = None,
) -> None:
    """Write README and figures of a pruned model's folder anew from its report; what you wrote in it stays."""
    print(rewrite_card(folder, repo_id))


def rewrite_card(folder: Path, repo_id: str | None) -> Path:
    """Write the README of a pruned model's folder anew.

    Args:
        folder: The folder.
        repo_id: Repository that the card is for; None for the folder.

    Returns:
        Path of the README.

    Raises:
        UsageError: The folder holds no report.
        OutputError: The README cannot be read or written.
    """
    from hubprune.card import render_card
    from hubprune.drawing import has_matplotlib
    from hubprune.figures import figures_in, write_figures
    from hubprune.hub import README
    from hubprune.readme import read_readme
    from hubprune.report import PruningReport, write_text

    report = PruningReport.load(folder)
    figures = write_figures(report, folder) if has_matplotlib() else figures_in(folder)
    text = render_card(report, repo_id, read_readme(folder), figures=figures)
    return write_text(folder / README, text)
