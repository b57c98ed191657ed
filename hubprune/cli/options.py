"""Options that several commands share, and how their words are read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from hubprune.errors import ConfigError
from hubprune.fields import ALIASES
from hubprune.presets import CORPORA

TEXT_HELP = (
    f"a preset ({', '.join(CORPORA)}), data sets of the Hub as repo@revision:config:split?column=value "
    "joined with +, or a file"
)
TEXT_PANEL, MODEL_PANEL, RESULT_PANEL, JOB_PANEL = "Text", "Model", "Result", "Hub Jobs"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DtypeOption = Annotated[
    Dtype,
    typer.Option(help="Type of the weights; auto for that of the file.", rich_help_panel=MODEL_PANEL),
]
DeviceMapOption = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="Where the weights go: auto, cuda:0, ... Without it: the CPU.",
        rich_help_panel=MODEL_PANEL,
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Branch, tag or commit of the model.", rich_help_panel=MODEL_PANEL),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run the code that the repository brings along.", rich_help_panel=MODEL_PANEL
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        metavar="TOKEN",
        help="Token of the Hub. Without it: HF_TOKEN, or the user who is logged in.",
        rich_help_panel=MODEL_PANEL,
    ),
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory the run may take, such as 4GiB; a larger model stays on disk. Without it: what is free.",
        rich_help_panel=MODEL_PANEL,
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory for activations; beyond it they go to a file. Without it: what the rest leaves.",
        rich_help_panel=MODEL_PANEL,
    ),
]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start over instead of going on with an earlier run.")]
LengthOption = Annotated[
    int | None,
    typer.Option(
        help="Tokens in a sequence. Without it: 2048 (cus-prun: 512), or the model's limit.",
        rich_help_panel=TEXT_PANEL,
    ),
]
PrivateOption = Annotated[
    bool | None,
    typer.Option(
        "--private/--public",
        help="Who sees a new repository. Without it: its owner's default.",
        rich_help_panel=RESULT_PANEL,
    ),
]
CreatePrOption = Annotated[
    bool,
    typer.Option(
        "--create-pr", help="Open a pull request instead of writing to the branch.", rich_help_panel=RESULT_PANEL
    ),
]
SpaceOption = Annotated[
    bool,
    typer.Option(
        "--space",
        help="Publish a Space of the same name too, which shows the model beside its base.",
        rich_help_panel=RESULT_PANEL,
    ),
]
MessageOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Summary of the commit.", rich_help_panel=RESULT_PANEL)
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done.")]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that hubprune prune wrote.")]


def option_name(word: str) -> str:
    """The name of an option, from the word that a user brings from another library or writes with underscores."""
    name = word.replace("-", "_")
    return ALIASES.get(name, name).replace("_", "-")


def labelled(words: Iterable[str]) -> dict[str, str]:
    """Read texts written ``label=text``, or the text alone, which is its own label then.

    Raises:
        ConfigError: A label stands twice, or a side of the equals sign is empty.
    """
    found: dict[str, str] = {}
    for word in words:
        match = re.fullmatch(r"([\w .-]*)=(.*)", word, re.DOTALL)
        label, text = (match[1].strip(), match[2].strip()) if match else (word, word)
        if not label or not text or label in found:
            raise ConfigError(f"a text is written label=text, each label once, got {word!r}: {TEXT_HELP}")
        found[label] = text
    return found
