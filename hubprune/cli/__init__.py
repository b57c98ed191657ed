"""The same verbs on the command line.

Only this and the command that runs are imported, so that ``hubprune --help`` answers at once: the modules that import
torch and transformers (``running``, ``opening``) are imported inside the commands that need them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from hubprune.errors import HubPruneError, UsageError

__all__ = ["main"]

MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
# Packages of the extras, by the name they are imported with.
EXTRAS = {
    **dict.fromkeys(("joserfc", "lz4", "markdown_it", "nh3", "starlette", "uvicorn"), "demo"),
    **dict.fromkeys(("onnx", "onnx_ir", "onnxruntime", "onnxscript", "openvino"), "export"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows ``hubprune``; None for that of this process.

    Returns:
        The exit code: 0, 2 after a user's mistake (one line on the error stream), 130 when interrupted.
    """
    import typer

    from hubprune.cli.app import build

    usage_error: Any = typer.BadParameter.__base__  # UsageError; which module holds it depends on the version of typer
    try:
        code = typer.main.get_command(build()).main(arguments, prog_name="hubprune", standalone_mode=False)
    except HubPruneError as error:
        rank, several = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", "1")) > 1
        if several and rank != "0" and isinstance(error, UsageError):  # the first process says it for all
            return MISTAKE
        who = f"process {rank}: " if several else ""
        return _refuse("; ".join([who + str(error), *getattr(error, "__notes__", ())]))
    except usage_error as error:
        where = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
        return _refuse(error.format_message() + where)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        return _refuse(f'this command needs {missing}: pip install "hubprune[{EXTRAS[missing]}]"')
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code or 0


def _refuse(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return MISTAKE
