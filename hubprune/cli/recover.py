"""``hubprune recover``: recover the folder of a pruned model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hubprune.cli import tables
from hubprune.cli.folder import rewrite_card
from hubprune.cli.options import (
    RESULT_PANEL,
    TEXT_HELP,
    TEXT_PANEL,
    DeviceMapOption,
    DryRunOption,
    FreshOption,
    MaxMemoryOption,
    RevisionOption,
    TokenOption,
    TrustOption,
    labelled,
)
from hubprune.recovery_config import METHODS, RecoveryConfig

TRAINING_PANEL, TEACHER_PANEL = "Training", "Dense base"
LOADING = ("device_map", "trust_remote_code", "token", "revision")


def recover(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder that hubprune prune wrote, or a pruned model on the Hub.")
    ],
    method: Annotated[
        str, typer.Option(metavar="NAME", help=f"{', '.join(METHODS)}: train on text, or fit block by block.")
    ] = RecoveryConfig.method,
    adapter: Annotated[str, typer.Option(metavar="NAME", help="lora, shira or hira.")] = "lora",
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = RecoveryConfig.rank,
    alpha: Annotated[
        float | None, typer.Option(help="LoRA's scaling is alpha / rank. Without it: twice the rank.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Step size of Adam. Without it: the adapter's own.", rich_help_panel=TRAINING_PANEL),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Optimiser steps, of each block for reconstruct. Without it: 200 and 96.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Sequences in a forward pass.", rich_help_panel=TRAINING_PANEL)
    ] = RecoveryConfig.batch_size,
    accumulation: Annotated[
        int, typer.Option(help="Forward passes in a step.", rich_help_panel=TRAINING_PANEL)
    ] = RecoveryConfig.accumulation,
    warmup: Annotated[
        float, typer.Option(help="Share of the steps in which the step size rises.", rich_help_panel=TRAINING_PANEL)
    ] = RecoveryConfig.warmup,
    held_out: Annotated[
        float, typer.Option(help="Share of the text that is only looked at.", rich_help_panel=TRAINING_PANEL)
    ] = RecoveryConfig.held_out,
    evaluate_every: Annotated[
        int, typer.Option(help="Steps between two looks at it.", rich_help_panel=TRAINING_PANEL)
    ] = RecoveryConfig.evaluate_every,
    patience: Annotated[
        int,
        typer.Option(help="Looks without a lower loss after which training ends.", rich_help_panel=TRAINING_PANEL),
    ] = RecoveryConfig.patience,
    bf16: Annotated[
        bool | None,
        typer.Option(
            "--bf16/--no-bf16",
            help="Run in bfloat16. Without it: where a GPU supports it.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Recompute activations or keep them.", rich_help_panel=TRAINING_PANEL)
    ] = RecoveryConfig.gradient_checkpointing,
    max_grad_norm: Annotated[
        float, typer.Option(help="Largest norm of the gradient.", rich_help_panel=TRAINING_PANEL)
    ] = RecoveryConfig.max_grad_norm,
    seed: Annotated[
        int, typer.Option(help="Seed of everything random.", rich_help_panel=TRAINING_PANEL)
    ] = RecoveryConfig.seed,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Where transformers' Trainer reports to, such as trackio. Repeatable.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = None,
    general: Annotated[
        str | None, typer.Option(metavar="TEXT", help=f"General text: {TEXT_HELP}.", rich_help_panel=TEXT_PANEL)
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Text of the domain, likewise. Without both: the data sets of the calibration.",
            rich_help_panel=TEXT_PANEL,
        ),
    ] = None,
    domain_ratio: Annotated[
        float, typer.Option(help="Share of the sequences from the domain text.", rich_help_panel=TEXT_PANEL)
    ] = RecoveryConfig.domain_ratio,
    num_samples: Annotated[
        int, typer.Option(help="Sequences in all.", rich_help_panel=TEXT_PANEL)
    ] = RecoveryConfig.num_samples,
    sequence_length: Annotated[
        int | None,
        typer.Option(help="Tokens in a sequence. Without it: the calibration's.", rich_help_panel=TEXT_PANEL),
    ] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(
            "--eval",
            "--evaluation",
            metavar="LABEL=TEXT",
            help="Text to measure perplexity on, repeatable; or none. Without it: what pruning measured on.",
            rich_help_panel=TEXT_PANEL,
        ),
    ] = None,
    distill: Annotated[
        bool, typer.Option("--distill", help="Learn from its logits as well.", rich_help_panel=TEACHER_PANEL)
    ] = False,
    temperature: Annotated[
        float, typer.Option(help="What both models' logits are divided by.", rich_help_panel=TEACHER_PANEL)
    ] = RecoveryConfig.temperature,
    distill_weight: Annotated[
        float, typer.Option(help="Share of that in the loss.", rich_help_panel=TEACHER_PANEL)
    ] = RecoveryConfig.distill_weight,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Without it: the one that the report names.", rich_help_panel=TEACHER_PANEL
        ),
    ] = None,
    revision: RevisionOption = None,
    device_map: DeviceMapOption = None,
    trust_remote_code: TrustOption = False,
    token: TokenOption = None,
    max_memory: MaxMemoryOption = None,
    fresh: FreshOption = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder to write. Without it: the model's own.", rich_help_panel=RESULT_PANEL
        ),
    ] = None,
    adapter_out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the adapter itself, which plain PEFT loads (shira and hira).",
            rich_help_panel=RESULT_PANEL,
        ),
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Recover what pruning cost: train an adapter and merge it under the mask, or fit each block to the dense one.

    Every zero stays zero. A recovery that was killed goes on when the same command is repeated.
    """
    given = dict(ctx.params)
    named = {name: given[name] for name in RecoveryConfig.__dataclass_fields__ if name != "report_to"}
    config = RecoveryConfig(**named, report_to=tuple(report_to or ()))
    words = list(evaluation or ["auto"])
    measured: Any = None if words == ["none"] else "auto" if words == ["auto"] else labelled(words)
    loading = {name: given[name] for name in LOADING if given[name] not in (None, False)}
    settings: dict[str, Any] = {"general": general, "domain": domain, "evaluation": measured, "base": base, "out": out}
    from hubprune import recoverer

    if dry_run:
        plan, report, target = recoverer.plan_for(model, config, progress=sys.stderr.isatty(), **settings, **loading)
        tables.show(tables.recovery_plan(plan, report, target))
        return
    settings |= {"adapter_out": adapter_out, "max_memory": max_memory, "fresh": fresh}
    report = recoverer.recover(model, config, progress=sys.stderr.isatty(), **settings, **loading)
    target = Path(out or model)
    rewrite_card(target, None)
    places = {"folder": str(target)}
    if adapter_out is not None:
        places["adapter"] = str(adapter_out)
    tables.show(*tables.recovered(report, places))
