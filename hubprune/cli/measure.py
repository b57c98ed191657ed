"""``hubprune eval``: the perplexity of any causal language model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hubprune.cli import tables
from hubprune.cli.options import (
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


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model on the Hub, or a folder.")],
    text: Annotated[
        list[str],
        typer.Option(
            metavar="LABEL=TEXT",
            help=f"Text to measure on, repeatable: {TEXT_HELP}. Of a preset, the held-out splits are read.",
            rich_help_panel=TEXT_PANEL,
        ),
    ],
    num_samples: Annotated[
        int, typer.Option(help="Sequences of each text, at most.", rich_help_panel=TEXT_PANEL)
    ] = 64,
    sequence_length: LengthOption = None,
    batch_size: Annotated[int, typer.Option(help="Sequences in a forward pass.")] = 8,
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    trust_remote_code: TrustOption = False,
    token: TokenOption = None,
) -> None:
    """Measure the perplexity of a model, and state how it was measured."""
    texts = labelled(text)
    from hubprune import hub
    from hubprune.architecture import check_supported, max_length
    from hubprune.calibration import held_out, load_corpus
    from hubprune.corpora import parse_corpus
    from hubprune.evaluation import perplexity
    from hubprune.opening import Opening
    from hubprune.presets import CORPORA

    settings = {"num_samples": num_samples, "sequence_length": sequence_length}
    wanted = {label: parse_corpus(value, **settings) for label, value in texts.items()}
    progress = sys.stderr.isatty()
    keywords = {"dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code, "token": token}
    base = Opening(model, revision, {name: value for name, value in keywords.items() if value is not None})
    if getattr(base.config, "quantization_config", None) is None:
        check_supported(base.config)
    corpora = []
    for label, config in wanted.items():
        if texts[label] in CORPORA:
            config = held_out(config, num_samples=num_samples, token=token) or config
        limit = max_length(base.config)
        corpora.append(
            load_corpus(
                config, base.tokenizer, name=label, max_length=limit, at_most=True, token=token, progress=progress
            )
        )
    report = hub.read_report(base.repo, token=token)
    tables.warn(tables.calibrated_on(report, [corpus.facts for corpus in corpora]))
    weights = base.weights()
    rows = [perplexity(weights, corpus, batch_size=batch_size, progress=progress) for corpus in corpora]
    tables.show(*tables.measurements(rows))
