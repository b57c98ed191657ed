"""``hubprune prune``: its options, read into one request."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hubprune.cli.options import (
    JOB_PANEL,
    RESULT_PANEL,
    TEXT_HELP,
    TEXT_PANEL,
    BudgetOption,
    CreatePrOption,
    DeviceMapOption,
    DryRunOption,
    DtypeOption,
    FreshOption,
    LengthOption,
    MaxMemoryOption,
    MessageOption,
    PrivateOption,
    RevisionOption,
    SpaceOption,
    TokenOption,
    TrustOption,
    labelled,
    option_name,
)
from hubprune.cli.runfile import read_run_file
from hubprune.config import PruningConfig
from hubprune.corpora import CORPUS_NAMES, CorpusConfig, parse_corpus
from hubprune.errors import ConfigError, UsageError
from hubprune.fields import parse_size
from hubprune.presets import APPLICATIONS
from hubprune.sparsity import SCOPES, SHARES, UNITS

# Keywords of ``from_pretrained``, and of ``publish_folder``.
LOADING = ("dtype", "device_map", "trust_remote_code", "token")
CORPUS_OPTIONS = ("num_samples", "sequence_length", "packing", "streaming", "seed")
PUBLISHING = ("private", "create_pr", "commit_message", "space")
# What is dropped of a file where the command line says something that excludes it.
EXCLUDES = {"pattern": ("sparsity", "scope"), "sparsity": ("pattern",), "scope": ("pattern",)}


@dataclass(frozen=True)
class Request:
    """What is to be done.

    Attributes:
        base: Repository or folder of the base model.
        revision: Its branch, tag or commit.
        config: What to prune and how.
        corpora: Calibration text by name.
        settings: Fields of ``CorpusConfig`` for evaluation text that carries none.
        evaluation: As ``flow.prepare`` takes it.
        loading: Keywords of ``from_pretrained``.
        out: Folder to write, None for none.
        push: Repository to push to, None for none.
        publishing: Keywords of ``publish_folder``.
        max_memory: Bytes that the run may take, None for what is free.
        activation_budget: Bytes of host memory for activations, None for what the rest leaves.
        fresh: Start over instead of going on with an earlier run.
        dry_run: Stop before the weights are downloaded.
    """

    base: str
    revision: str | None
    config: PruningConfig
    corpora: Mapping[str, CorpusConfig]
    settings: Mapping[str, Any]
    evaluation: str | Mapping[str, Any] | None
    loading: Mapping[str, Any]
    out: Path | None
    push: str | None
    publishing: Mapping[str, Any]
    max_memory: int | None
    activation_budget: int | None
    fresh: bool
    dry_run: bool


def prune(
    ctx: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE", help="Model on the Hub, or a folder.")],
    method: Annotated[str, typer.Option(metavar="NAME", help="See hubprune methods.")] = PruningConfig.method,
    sparsity: Annotated[
        float | None,
        typer.Option(metavar="FRACTION", help="Fraction to remove. Without it: the method's, such as 0.5."),
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(metavar="N:M", help="Keep N of every M weights, such as 2:4, instead of a fraction.")
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Who competes with whom: {', '.join(SCOPES)}. Without it: the method's."),
    ] = None,
    application: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"{', '.join(APPLICATIONS)}. Without it: the method's.")
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"What to remove: weight, {', '.join(UNITS)}, or several with +. Without it: the method's.",
        ),
    ] = None,
    share_of: Annotated[
        str, typer.Option(metavar="NAME", help=f"What the fraction is of, with units: {', '.join(SHARES)}.")
    ] = PruningConfig.share_of,
    repair: Annotated[
        bool | None, typer.Option(help="Let what stays make up for units that go. Without it: yes, but with zero.")
    ] = None,
    multiple: Annotated[
        int | None, typer.Option(help="Units left are a multiple of this. Without it: what suits the model's size.")
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Prune these matrices only: q_proj, or re:REGEX. Repeatable."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Leave these matrices alone. Repeatable.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the method's own. Repeatable.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences in a forward pass.")] = PruningConfig.batch_size,
    damping: Annotated[
        float, typer.Option(help="Added to the Hessian's diagonal, as a fraction of its mean.")
    ] = PruningConfig.damping,
    block_size: Annotated[
        int, typer.Option(help="Columns of a block, and of the column sweep.")
    ] = PruningConfig.block_size,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = PruningConfig.seed,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML file that holds these options by name; the command line wins.",
            is_eager=True,
            callback=read_run_file,
        ),
    ] = None,
    dry_run: DryRunOption = False,
    general: Annotated[
        str | None, typer.Option(metavar="TEXT", help=f"General text: {TEXT_HELP}.", rich_help_panel=TEXT_PANEL)
    ] = None,
    domain: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Text of the domain, likewise.", rich_help_panel=TEXT_PANEL)
    ] = None,
    language: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Text in the language, likewise.", rich_help_panel=TEXT_PANEL)
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Examples of the task, likewise.", rich_help_panel=TEXT_PANEL)
    ] = None,
    num_samples: Annotated[
        int, typer.Option(help="Sequences of each text.", rich_help_panel=TEXT_PANEL)
    ] = CorpusConfig.num_samples,
    sequence_length: LengthOption = None,
    packing: Annotated[
        bool | None,
        typer.Option(
            help="Join documents to full sequences, or one each. Without it: joined, but for a task with answers.",
            rich_help_panel=TEXT_PANEL,
        ),
    ] = CorpusConfig.packing,
    streaming: Annotated[
        bool,
        typer.Option(help="Read rows as needed, or download the files first.", rich_help_panel=TEXT_PANEL),
    ] = CorpusConfig.streaming,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(
            "--eval",
            "--evaluation",
            metavar="LABEL=TEXT",
            help="Text to measure perplexity on, repeatable; or none. Without it: held-out splits of the texts above.",
            rich_help_panel=TEXT_PANEL,
        ),
    ] = None,
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    trust_remote_code: TrustOption = False,
    token: TokenOption = None,
    max_memory: MaxMemoryOption = None,
    activation_budget: BudgetOption = None,
    fresh: FreshOption = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write.", rich_help_panel=RESULT_PANEL)
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="REPO", help="Repository to push to.", rich_help_panel=RESULT_PANEL)
    ] = None,
    private: PrivateOption = None,
    create_pr: CreatePrOption = False,
    commit_message: MessageOption = None,
    space: SpaceOption = False,
    job: Annotated[
        str | None,
        typer.Option(
            metavar="FLAVOR",
            help="Run on a machine of the Hub, such as a10g-large, instead of this one. Needs --push.",
            rich_help_panel=JOB_PANEL,
        ),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="When the Hub ends the job: 90m, 2h, 1d. Without it: after 30 minutes.",
            rich_help_panel=JOB_PANEL,
        ),
    ] = None,
) -> None:
    """Prune a model for a domain, measure it, and save or publish the result."""
    if job is not None:
        from hubprune.cli.job import submit

        submit(ctx)
        return
    request = read_request(ctx)
    from hubprune.cli.running import run

    run(request)


@functools.wraps(prune, assigned=("__module__", "__annotations__"))
def plan(ctx: typer.Context, **_: Any) -> None:
    """Say what hubprune prune takes with the same options: download, disk, memory, and time on this machine.

    To take the time, one block with random weights is pruned. Nothing large is downloaded and nothing is written;
    options of the result are passed over.
    """
    request = read_request(ctx, to_keep=False)
    from hubprune.cli.running import forecast

    forecast(request)


def read_request(ctx: typer.Context, *, to_keep: bool = True) -> Request:
    """Turn the options into a request, and refuse what can be refused without the network.

    Args:
        ctx: The command's context.
        to_keep: Whether there is going to be a result.

    Raises:
        ConfigError: An option breaks a rule, or a text that the method needs is missing.
        UsageError: The result would be lost.
    """
    given = merged(ctx)
    names = [name for name in PruningConfig.__dataclass_fields__ if name in given]
    config = PruningConfig(
        **{name: given[name] for name in names}
        | {name: tuple(given[name] or ()) for name in ("targets", "ignore")}
        | {"options": _options(given["option"] or ())}
    )
    settings = {name: given[name] for name in CORPUS_OPTIONS}
    corpora = {name: parse_corpus(given[name], **settings) for name in CORPUS_NAMES if given[name] is not None}
    config.check_corpora(tuple(corpora))
    if to_keep:
        _check_end(given)
    loading = {name: given[name] for name in LOADING if given[name] not in (None, False)}
    return Request(
        base=given["base"],
        revision=given["revision"],
        config=config,
        corpora=corpora,
        settings=settings,
        evaluation=_evaluation(given["evaluation"]),
        loading=loading,
        out=None if given["out"] is None else Path(given["out"]),
        push=given["push"],
        publishing={name: given[name] for name in (*PUBLISHING, "token", "trust_remote_code")},
        max_memory=parse_size(given["max_memory"], "max_memory"),
        activation_budget=parse_size(given["activation_budget"], "activation_budget"),
        fresh=given["fresh"],
        dry_run=given["dry_run"],
    )


def _check_end(given: Mapping[str, Any]) -> None:
    """Refuse options of the result that go with one that is not there."""
    if given["out"] is None and given["push"] is None and not given["dry_run"]:
        raise UsageError("the result would be lost: give --out DIR or --push REPO, or --dry-run to check only")
    if given["timeout"] is not None and given["job"] is None:
        raise UsageError("--timeout goes with --job FLAVOR: give it")
    asked = [name for name in PUBLISHING if given[name] not in (None, False)]
    if asked and given["push"] is None:
        raise UsageError(f"{', '.join('--' + option_name(name) for name in asked)} goes with --push REPO: give it")


def merged(ctx: typer.Context) -> dict[str, Any]:
    """The values of all options: what the command line says excludes what the file says otherwise."""
    sources = {name: getattr(ctx.get_parameter_source(name), "name", "") for name in ctx.params}
    given = dict(ctx.params)
    for winner, losers in EXCLUDES.items():
        if sources[winner] == "COMMANDLINE":
            given |= {loser: None for loser in losers if sources[loser] == "DEFAULT_MAP"}
    structured: Mapping[str, Any] = ctx.obj or {}
    return given | {name: value for name, value in structured.items() if sources[name] != "COMMANDLINE"}


def _options(words: Iterable[str]) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"an option of a method is written name=value, got {word!r}: see hubprune methods")
        try:
            found[name.strip().replace("-", "_")] = float(value)
        except ValueError:
            found[name.strip().replace("-", "_")] = value.strip()
    return found


def _evaluation(given: Any) -> str | Mapping[str, Any] | None:
    if isinstance(given, Mapping):
        return given
    words = list(given or ["auto"])
    if words in (["auto"], ["none"]):
        return None if words == ["none"] else "auto"
    return labelled(words)
