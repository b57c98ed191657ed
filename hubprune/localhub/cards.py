"""The YAML head of a README: reading it, checking it as the public Hub does, and the tags it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from hubprune.errors import UsageError

RELATIONS = ("adapter", "merge", "quantized", "finetune")
"""What `base_model_relation` may be."""
SDKS = ("gradio", "docker", "static")
MAX_NODES = 50_000
"""Most values in one YAML head, aliases counted each time; keeps a small text from standing for a huge one."""

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_TAGGED = {"license": "license", "datasets": "dataset", "base_model": "base_model"}
_LISTS = ("tags", "datasets", "metrics", "language", "models")


class CardError(UsageError):
    """The head of a README is not a YAML mapping."""


def split(text: str) -> tuple[dict[str, Any], str]:
    """Split a README into its metadata and its body.

    Raises:
        CardError: The head is not valid YAML, or not a mapping.
    """
    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    try:
        value = _plain(yaml.safe_load(match.group(1)), [MAX_NODES])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CardError(f"the metadata at the top must be valid YAML: {' '.join(str(error).split())}") from error
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise CardError("the metadata at the top must be a YAML mapping (key: value)")
    return value, text[match.end() :]


def lenient(text: str) -> tuple[dict[str, Any], str]:
    """Split a README as `split` does; a head that cannot be read counts as part of the body."""
    try:
        return split(text)
    except CardError:
        return {}, text


def problems(text: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Return what is wrong with the metadata of a README, and what is worth a warning."""
    try:
        card, _ = split(text)
    except CardError as error:
        return [str(error)], []
    if not card:
        needs = " A Space needs at least 'sdk'." if repo_type == "space" else ""
        return [], [f"empty or missing yaml metadata in repo card.{needs}"]
    errors = [f'"{key}" must be a string' for key in ("title", "pipeline_tag", "library_name") if _not(card, key, str)]
    errors += _license_errors(card.get("license"))
    errors += _list_errors(card)
    errors += _model_errors(card)
    if repo_type == "space" and card.get("sdk") not in SDKS:
        errors.append(f'"sdk" must be one of {", ".join(SDKS)}; got {card.get("sdk")!r}')
    return errors, []


def _license_errors(value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    if value is not None and not all(isinstance(name, str) and name for name in names):
        return ['"license" must be a string']
    return []


def _list_errors(card: dict[str, Any]) -> list[str]:
    errors = []
    for key in _LISTS:
        value = card.get(key)
        if value is None or (isinstance(value, str) and key in ("language", "datasets", "metrics")):
            continue
        if not isinstance(value, list):
            errors.append(f'"{key}" must be an array')
        elif not all(isinstance(item, str) for item in value):
            errors.append(f'"{key}" must hold only strings; quote values such as no, on or 1.0')
    return errors


def _model_errors(card: dict[str, Any]) -> list[str]:
    errors = []
    relation = card.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {", ".join(RELATIONS)}; got {relation!r}')
    bases = card.get("base_model")
    if bases is not None and not all(isinstance(item, str) for item in strings(bases, keep=True)):
        errors.append('"base_model" must be a repository id or an array of them')
    index = card.get("model-index")
    if index is not None and not (
        isinstance(index, list) and all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in index)
    ):
        errors.append('"model-index" must be an array of objects that have a "name"')
    return errors


def _not(card: dict[str, Any], key: str, kind: type) -> bool:
    return card.get(key) is not None and not isinstance(card[key], kind)


def tags(card: dict[str, Any], paths: Iterable[str]) -> list[str]:
    """Return the tags by which a repository is found: from its metadata and its file names."""
    found = [item for key in ("library_name", "pipeline_tag", "sdk") for item in strings(card.get(key))]
    if any(path.endswith(".safetensors") for path in paths):
        found.append("safetensors")
    found += strings(card.get("tags"))
    found += strings(card.get("language"))
    for key, prefix in _TAGGED.items():
        found += [f"{prefix}:{item}" for item in strings(card.get(key))]
    bases = strings(card.get("base_model"))
    found += [f"base_model:{card.get('base_model_relation') or 'finetune'}:{base}" for base in bases]
    found.append("region:local")
    return list(dict.fromkeys(found))


def strings(value: Any, *, keep: bool = False) -> list[Any]:
    """Return a value that may be one item or a list as a list; only its strings unless `keep`."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    return items if keep else [item for item in items if isinstance(item, str)]


def _plain(value: Any, budget: list[int]) -> Any:
    """Return a value made of JSON types only; dates become text."""
    budget[0] -= 1
    if budget[0] < 0:
        raise ValueError(f"it stands for more than {MAX_NODES} values")
    if isinstance(value, dict):
        return {str(key): _plain(item, budget) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item, budget) for item in value]
    if isinstance(value, float) and value != value or value in (float("inf"), float("-inf")):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
