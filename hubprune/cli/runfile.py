"""``--config run.yaml``: the options of a command, written down.

The file is a mapping from the names of options to their words. Words are taken as they stand, as on the command line,
since YAML would read ``2:4`` as a number in base 60. Only texts may have structure: ``general``, ``domain``,
``language`` and ``task`` the fields of a ``CorpusConfig`` or a list of texts, ``eval`` the same by label, ``option``
values by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from hubprune.cli.options import option_name
from hubprune.corpora import CORPUS_NAMES
from hubprune.errors import ConfigError, did_you_mean


def read_run_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make a file's words the defaults of a command; the callback of its ``--config``, which must be eager.

    What has structure goes to ``ctx.obj``, by the name of the parameter.

    Raises:
        ConfigError: The file cannot be read, is no mapping, or has a name that is no option.
    """
    if path is not None:
        known = {
            option_name(word.lstrip("-")): parameter
            for parameter in ctx.command.params
            for word in (str(parameter.name), *parameter.opts)
            if parameter.name not in ("config", "help")
        }
        words, structured, problems = {}, {}, []
        for key, value in _entries(path):
            parameter = known.get(option_name(key))
            if parameter is None:
                problems.append(f"{path} has {key!r}, which is no option of this command: {did_you_mean(key, known)}")
            elif parameter.name in words or parameter.name in structured:
                problems.append(f"{path} has {key!r}, another word for an option that is there already: give it once")
            elif not isinstance(value, str) and _may_have_structure(parameter.name, value):
                structured[parameter.name] = value
            else:
                given = _words(path, key, value)
                words[parameter.name] = [given] if isinstance(given, str) and parameter.multiple else given
        if problems:
            raise ConfigError(problems)
        ctx.default_map, ctx.obj = words, structured
    return path


def _may_have_structure(name: str | None, value: Any) -> bool:
    return name in CORPUS_NAMES or (name == "evaluation" and isinstance(value, dict))


def _entries(path: Path) -> list[tuple[str, Any]]:
    """The file's keys and values: a scalar as it is written, what has structure as YAML reads it; nulls left out."""
    import yaml

    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path} must hold a mapping from names of options to values, such as 'sparsity: 0.5'")
        return [
            (str(key.value), value.value if isinstance(value, yaml.ScalarNode) else _structure(value))
            for key, value in node.value
            if value.tag != "tag:yaml.org,2002:null"
        ]
    except OSError as error:
        raise ConfigError(
            f"cannot read {path} ({error.strerror}): give a YAML file with the names of options"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML ({error}): mend it") from error


def _structure(node: Any) -> Any:
    from yaml.constructor import SafeConstructor

    return SafeConstructor().construct_document(node)


def _words(path: Path, key: str, value: Any) -> str | list[str]:
    """What the command line would have: one word, or a list for an option that is given several times."""
    if isinstance(value, str):
        return value
    if option_name(key) == "option" and isinstance(value, dict):
        return [f"{name}={number}" for name, number in value.items()]
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        return [str(item) for item in value]
    raise ConfigError(f"{path} gives {key} in a form that no option has ({value!r:.60}): write one value")
