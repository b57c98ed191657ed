"""``hubprune export``: a graph for ONNX Runtime or OpenVINO, checked and, where asked for, published."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from hubprune.cli import tables
from hubprune.cli.options import (
    RESULT_PANEL,
    CreatePrOption,
    MessageOption,
    RevisionOption,
    TokenOption,
    TrustOption,
)
from hubprune.errors import UsageError

Format = Literal["onnx", "openvino"]


def export(
    model: Annotated[str, typer.Argument(metavar="DIR", help="Folder of a saved model, or a model on the Hub.")],
    format: Annotated[Format, typer.Option(help="Runtime that the graph is for.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Write the weights as 8-bit integers.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder to write. Without it: onnx/ or openvino/ in the model's folder.",
            rich_help_panel=RESULT_PANEL,
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            help="Repository of the model, where the graph goes to onnx/ or openvino/.",
            rich_help_panel=RESULT_PANEL,
        ),
    ] = None,
    create_pr: CreatePrOption = False,
    commit_message: MessageOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Turn a model into a graph for ONNX Runtime or OpenVINO, and check it against transformers.

    Its weights are those of the model bit for bit, or with --int8 rounded so that every zero stays one.
    """
    if push is None and (create_pr or commit_message is not None):
        raise UsageError("--create-pr and --commit-message go with --push REPO: give it")
    from hubprune import exporting
    from hubprune.exporthub import publish_export

    facts = exporting.export(
        model,
        out,
        format=format,
        int8=int8,
        revision=revision,
        token=token,
        trust_remote_code=trust_remote_code,
        progress=sys.stderr.isatty(),
    )
    folder = out if out is not None else Path(model) / format
    places = {"folder": str(folder)}
    if push is not None:
        try:
            done = publish_export(folder, push, token=token, commit_message=commit_message, create_pr=create_pr)
        except Exception as error:
            words = ["hubprune", "export", model, "--format", format, *(["--int8"] if int8 else [])]
            words += [] if revision is None else ["--revision", revision]
            words += [] if out is None else ["--out", str(out)]
            words += ["--trust-remote-code"] if trust_remote_code else []
            error.add_note(f"the graph is in {folder}; push it with: {shlex.join([*words, '--push', push])}")
            raise
        places["on the Hub"] = tables.destination(done)
    tables.show(tables.exported(facts, places))
