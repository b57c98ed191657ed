"""``optimum-cli prune``: the options of ``hubprune prune`` in the form of optimum's other commands.

The model is named with ``-m``, the folder to write comes last, and ``--task`` is resolved by optimum's
``TasksManager``, as in ``optimum-cli export``; the text of a task is ``--task-text``. Everything else is the same
option with the same meaning.
"""

from __future__ import annotations

import sys
from argparse import SUPPRESS, ArgumentParser
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from hubprune.errors import HubPruneError, UnsupportedModelError, UsageError, did_you_mean

TASKS = ("text-generation", "text2text-generation")
# What has a form of its own here.
OWN = ("base", "out", "help")


class PruneCommand(BaseOptimumCLICommand):
    """Prunes a model of the Hub for a domain."""

    COMMAND = CommandInfo(name="prune", help="Prune a language model for a domain with hubprune.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the options: those of ``hubprune prune``, read from there."""
        parser.description = PruneCommand.COMMAND.help
        parser.add_argument("-m", "--model", required=True, help="Model on the Hub, or a folder.")
        parser.add_argument(
            "--task",
            default="auto",
            help=f"What the model is for; auto asks its config. Has to come to {' or '.join(TASKS)}.",
        )
        parser.add_argument("output", nargs="?", help="Folder to write; may be left out with --push or --dry-run.")
        for option in _options():
            words = ["--task-text"] if option.name == "task" else [*option.opts, *option.secondary_opts]
            if option.is_flag:
                parser.add_argument(*option.opts, action="append_const", const=option.opts[0], **_shared(option))
                if option.secondary_opts:
                    negative = option.secondary_opts
                    parser.add_argument(
                        *negative, action="append_const", const=negative[0], dest=option.name, help=SUPPRESS
                    )
            else:
                metavar = option.metavar or option.name.upper()
                parser.add_argument(*words, action="append", metavar=metavar, **_shared(option))

    def run(self) -> None:
        """Resolve the task and hand the options to ``hubprune prune``."""
        from hubprune.cli import MISTAKE, main

        given = vars(self.args)
        try:
            loading = {name: given[name][-1] for name in ("token", "trust_remote_code") if given[name]}
            check_task(given["task"], given["model"], (given["revision"] or [None])[-1], **loading)
        except HubPruneError as error:
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            sys.exit(MISTAKE)
        words = ["prune", given["model"]]
        for option in _options():
            for value in given.get(_place(option)) or ():
                words += [value] if option.is_flag else [option.opts[0], value]
        if given["output"] is not None:
            words += ["--out", given["output"]]
        sys.exit(main(words))


def _options() -> list[Any]:
    """The options of ``hubprune prune``."""
    import typer

    from hubprune.cli.app import build

    group: Any = typer.main.get_command(build())
    command = group.commands["prune"]
    return [p for p in command.params if p.param_type_name == "option" and p.name not in OWN]


def _place(option: Any) -> str:
    """Where the parser keeps an option: ``task`` is optimum's own."""
    return "task_text" if option.name == "task" else str(option.name)


def _shared(option: Any) -> dict[str, Any]:
    return {"dest": _place(option), "default": None, "help": (option.help or "").replace("%", "%%")}


def check_task(task: str, model: str, revision: str | None = None, **loading: Any) -> type:
    """Find out what a model is for and which class loads it, and refuse what cannot be pruned.

    Args:
        task: A task as optimum names it or by a synonym; ``"auto"`` to infer it from the model.
        model: Repository or folder.
        revision: Branch, tag or commit.
        loading: Keywords of ``from_pretrained``, such as ``token``.

    Returns:
        The auto class that loads it.

    Raises:
        UsageError: There is no such task.
        UnsupportedModelError: The model is for something else.
        HubPruneError: The model cannot be read.
    """
    import transformers
    from optimum.exporters.tasks import TasksManager

    from hubprune.opening import Opening

    config = Opening(model, revision, loading).config
    if task == "auto":
        classes = [getattr(transformers, name, None) for name in getattr(config, "architectures", None) or ()]
        found = TASKS[0]
        if classes and classes[0] is not None:
            try:
                found = TasksManager.infer_task_from_model(classes[0])
            except ValueError:
                found = classes[0].__name__
    else:
        found = TasksManager.map_from_synonym(task.removesuffix("-with-past"))
        if found not in TasksManager.get_all_tasks():
            raise UsageError(f"optimum knows no task {task!r}: {did_you_mean(task, TasksManager.get_all_tasks())}")
    if found not in TASKS:
        raise UnsupportedModelError(
            f"pruning needs a model for {' or '.join(TASKS)}, and {model} is for {found}: give a decoder language "
            "model or an encoder-decoder"
        )
    return TasksManager.get_model_class_for_task(found, model_type=config.model_type)
