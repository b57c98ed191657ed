"""``hubprune eval``: any causal language model measured, a pruned one beside its base."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hubprune.cli import results, tables
from hubprune.cli.folder import rewrite_card
from hubprune.cli.options import (
    MODEL_PANEL,
    RESULT_PANEL,
    TEXT_HELP,
    TEXT_PANEL,
    DeviceMapOption,
    DtypeOption,
    LengthOption,
    RevisionOption,
    TokenOption,
    TrustOption,
    labelled,
)

TASK_PANEL = "Tasks"


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model on the Hub, or a folder.")],
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=TEXT",
            help=f"Text to measure perplexity on, repeatable: {TEXT_HELP}; or wikitext2. Of a preset, the held-out "
            "splits are read. Without this and any other choice: the texts that the model's record names.",
            rich_help_panel=TEXT_PANEL,
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How perplexity is measured: default, papers (a whole text, windows side by side) or harness (each "
            "document by itself, every token predicted).",
            rich_help_panel=TEXT_PANEL,
        ),
    ] = "default",
    num_samples: Annotated[
        int | None,
        typer.Option(help="Windows of each text, at most. Without it: 64, or all of it.", rich_help_panel=TEXT_PANEL),
    ] = None,
    sequence_length: LengthOption = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens between the starts of two windows. Without it: those of a window.", rich_help_panel=TEXT_PANEL
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Task of lm-evaluation-harness, or a task file of yours (.yaml). Repeatable.",
            rich_help_panel=TASK_PANEL,
        ),
    ] = None,
    fewshot: Annotated[
        int | None,
        typer.Option(help="Worked examples in each prompt. Without it: the task's own.", rich_help_panel=TASK_PANEL),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Examples of each task, at most.", rich_help_panel=TASK_PANEL)
    ] = None,
    answers: Annotated[
        bool, typer.Option("--answers", help="Let the model answer fixed prompts, and look for gibberish.")
    ] = False,
    size: Annotated[
        bool, typer.Option("--size", help="Count parameters, zeros, bytes on disk and in a transfer, and memory.")
    ] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Time reading and writing, all models in one run.")] = False,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="NAME=MODEL",
            help="Another model to measure, repeatable: base=org/base, recovered=DIR.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    base: Annotated[
        bool,
        typer.Option("--base/--no-base", help="Measure the base of a pruned model too.", rich_help_panel=MODEL_PANEL),
    ] = True,
    record: Annotated[
        bool,
        typer.Option(
            "--record",
            help="Write the result into the report and the card of the folder.",
            rich_help_panel=RESULT_PANEL,
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Sequences in a forward pass.")] = 8,
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    trust_remote_code: TrustOption = False,
    token: TokenOption = None,
) -> None:
    """Measure a model beside its base: perplexity and how it was measured, tasks, answers, size, speed."""
    texts, others = labelled(text or ()), labelled(beside or ())
    from hubprune.protocol import Protocol
    from hubprune.report import PruningReport

    report = PruningReport.load(model) if record else None
    Protocol.named(protocol)
    keywords = {"dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code, "token": token}
    given: dict[str, Any] = {name: value for name, value in keywords.items() if value is not None}
    from hubprune.sidebyside import evaluate as measure

    found = measure(
        model,
        texts or None,
        base=others.pop("base", "auto" if base else None),
        beside=others,
        protocol=protocol,
        num_samples=num_samples,
        sequence_length=sequence_length,
        stride=stride,
        tasks=task or (),
        fewshot=fewshot,
        limit=limit,
        answers=answers,
        size=size,
        speed=speed,
        batch_size=batch_size,
        progress=sys.stderr.isatty(),
        revision=revision,
        **given,
    )
    tables.warn(found.notes)
    tables.show(*results.measured(found))
    if report is not None:
        report.record(found)
        report.save(model)
        print(rewrite_card(Path(model), None))
