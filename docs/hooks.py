"""What the documentation shows of the source itself, written when it is built; and equations as MathML.

MkDocs calls ``on_files`` and ``on_page_content``. Equations become MathML when the pages are built, so that a reader's
browser needs neither a script nor a network for them.
"""

from __future__ import annotations

import ast
import html
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

import hubprune
from hubprune import errors

PACKAGE = Path(hubprune.__file__).parent
EQUATION = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that follow from the source."""
    for name, text in (("api.md", api()), ("cli.md", commands()), ("troubleshooting.md", troubleshooting())):
        files.append(File.generated(config, name, content=text))
    return files


def on_page_content(text: str, **_: Any) -> str:
    """Turn equations into MathML."""

    def equation(match: re.Match[str]) -> str:
        latex = html.unescape(match[2]).strip().removeprefix(r"\(").removeprefix(r"\[")
        return convert(
            latex.removesuffix(r"\)").removesuffix(r"\]"), display="block" if match[1] == "div" else "inline"
        )

    return EQUATION.sub(equation, text)


def api() -> str:
    """Every exported name, described by its docstring."""
    lines = ["# Python interface", "", "All of it is imported from `hubprune`."]
    for name in sorted(hubprune.__all__, key=str.lower):
        if name != "__version__":
            lines += ["", f"::: hubprune.{hubprune._EXPORTS[name]}.{name}"]
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Every command with its options, as ``--help`` tells them."""
    import typer

    from hubprune.cli.app import build

    lines = ["# Command line", ""]
    for path, command in _commands(typer.main.get_command(build()), ()):
        words = " ".join(path)
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        given = " ".join(_kind(p) if p.required else f"[{_kind(p)}]" for p in arguments)
        lines += [f"## {words}", "", inspect.cleandoc(command.help or ""), "", "```console"]
        lines += [f"{words} {given} [OPTIONS]".replace("  ", " "), "```", ""]
        rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            lines += ["| option | value | |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _kind(parameter: Any) -> str:
    """What stands for the value of an option, or of an argument."""
    if getattr(parameter, "is_flag", False):
        return ""
    kind = parameter.type_descriptor.annotation
    words = "|".join(map(str, typing.get_args(kind))) if typing.get_origin(kind) is typing.Literal else ""
    plain = {int: "N", float: "NUMBER", str: "TEXT"}.get(kind, "VALUE")
    return str(parameter.metavar or words or plain)


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The commands below one, each with its words."""
    path = (*path, command.name or "hubprune") if path else ("hubprune",)
    inner = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name in inner:
        yield from _commands(inner[name], path)


def _row(parameter: Any) -> str:
    argument = parameter.param_type_name == "argument"
    names = [_kind(parameter)] if argument else [*parameter.opts, *parameter.secondary_opts]
    kind = "" if argument else _kind(parameter)
    default = parameter.opts[0] if parameter.default is True else parameter.default
    told = not argument and default is not None and default is not False and default not in ((), "")
    cells = (", ".join(f"`{name}`" for name in names), f"`{kind}`" if kind else "", parameter.help or "")
    cells = (*cells[:2], cells[2] + (f" Default: `{default}`." if told else ""))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def troubleshooting() -> str:
    """The errors, and every message that the source has for each, with ... where the value stands."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Call)
                and isinstance(node.exc.func, ast.Name | ast.Attribute)
            ):
                kind = node.exc.func.id if isinstance(node.exc.func, ast.Name) else node.exc.func.attr
                message = re.sub(r"(\.\.\.){2,}", "...", _message(node.exc.args[0])) if node.exc.args else ""
                if message.count(" ") > 3:
                    found.setdefault(kind, []).append(message)
    tree = inspect.cleandoc(errors.__doc__ or "").partition("::")[2].partition("A message states")
    lines = [
        "# Troubleshooting",
        "",
        "Every error that hubprune raises on purpose states the rule, the value that broke it, and what to do. The "
        "command line prints it on one line and ends with code 2; in Python it is one of these classes:",
        "",
        "```text",
        inspect.cleandoc(tree[0]).strip("\n"),
        "```",
        "",
        "Below are the messages, with `...` where a value stands. What comes behind the last colon is the remedy.",
    ]
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and name in found:
            lines += ["", f"## {name}", "", inspect.cleandoc(kind.__doc__ or "").splitlines()[0], ""]
            lines += [f"- {_escape(message)}" for message in dict.fromkeys(found[name])]
    return "\n".join(lines) + "\n"


def _message(node: ast.expr) -> str:
    """The text of a message; values are dots."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_message(part) if isinstance(part, ast.Constant) else "..." for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _message(node.left) + _message(node.right)
    return "..."


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#$])", r"\\\1", " ".join(text.split()))
