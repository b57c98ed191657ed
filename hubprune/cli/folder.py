"""Commands on the folder of a pruned model: push, verify, card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hubprune.carddata import PrunedModelCardData
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
from hubprune.errors import ConfigError


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
    model_card: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML file that fills in or overrides fields: title, description, intended_use, prompt, "
            "developed_by, contact, citation, limitations, license, language, tags, ... The report keeps them.",
        ),
    ] = None,
) -> None:
    """Write README and figures of a pruned model's folder anew from its report; what you wrote in it stays."""
    print(rewrite_card(folder, repo_id, None if model_card is None else _card_data(model_card)))


def _card_data(path: Path) -> PrunedModelCardData:
    """Read what a user fills in.

    Raises:
        ConfigError: The file cannot be read, is no mapping, or breaks a rule.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path} ({error.strerror}): give a YAML file with fields of the card"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML ({error}): mend it") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must hold a mapping from fields of the card to values, such as 'title: My model'")
    return PrunedModelCardData.of(found)


def rewrite_card(folder: Path, repo_id: str | None, model_card: PrunedModelCardData | None = None) -> Path:
    """Write the README of a pruned model's folder anew.

    Args:
        folder: The folder.
        repo_id: Repository that the card is for; None for the folder.
        model_card: What fills in fields; None for what the report has.

    Returns:
        Path of the README.

    Raises:
        UsageError: The folder holds no report.
        OutputError: The README cannot be read or written.
    """
    from hubprune.page import write_page
    from hubprune.readme import read_readme
    from hubprune.report import PruningReport

    report = PruningReport.load(folder)
    if model_card is not None:
        report.model_card = model_card
        report.save(folder)
    return write_page(report, folder, repo_id, read_readme(folder))
