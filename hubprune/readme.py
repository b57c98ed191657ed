"""A README shared by two authors: what was rendered, between two markers, and what the user wrote around it.

Metadata has no markers, so the section carries a record of the metadata that was written with it: what differs from
the record was added or changed by the user, and stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump

from hubprune.errors import OutputError

BEGIN = "<!-- hubprune:begin -->"
END = "<!-- hubprune:end -->"
RECORD = re.compile(r"^<!-- hubprune:metadata (\{.*\}) -->$", re.MULTILINE)
# What YAML takes for the end of a line besides the line feed.
LINE_BREAKS = re.compile("[\x85\u2028\u2029]")

# Keys that state where the weights come from: a run knows them better than an older README.
ALWAYS_OURS = ("base_model", "base_model_relation", "library_name")
MERGED_LISTS = ("tags", "datasets", "metrics")


class OwnParts(NamedTuple):
    """What belongs to the user in a README: metadata, and the text before and after our section."""

    metadata: dict[str, Any]
    before: str
    after: str


def read_readme(folder: Path) -> str | None:
    """Read the README of a folder, None where there is none.

    Raises:
        OutputError: It cannot be read, so what a user wrote in it would be lost.
    """
    path = folder / "README.md"
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(
            f"cannot read {path} ({error}), whose text would be lost: mend it or move it away"
        ) from error


def own_parts(text: str | None) -> OwnParts:
    """Separate what a user wrote in a README from what was rendered.

    Raises:
        OutputError: The metadata block is not a YAML mapping, a marker lost its partner, or the record is damaged.
    """
    text = (text or "").replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    metadata: dict[str, Any] = {}
    block = REGEX_YAML_BLOCK.search(text)
    if block is not None:
        try:
            loaded = yaml.safe_load(block.group(2)) or {}
        except yaml.YAMLError as error:
            reason = re.sub(r"\s+", " ", str(error))
            raise OutputError(
                f"the metadata of the existing README.md is not valid YAML ({reason}): mend it"
            ) from None
        if not isinstance(loaded, dict):
            raise OutputError("the metadata of the existing README.md must be 'key: value' lines: mend it")
        metadata, text = loaded, text[block.end() :]
    lines = text.split("\n")
    begins = [number for number, line in enumerate(lines) if line.strip() == BEGIN]
    ends = [number for number, line in enumerate(lines) if line.strip() == END]
    if bool(begins) != bool(ends) or (begins and begins[0] > ends[-1]):
        raise OutputError(
            f"the existing README.md must hold both {BEGIN} and {END}, in this order: restore or remove them"
        )
    if not begins:
        return OwnParts(metadata, text.strip("\n"), "")
    written = _record("\n".join(lines[begins[0] : ends[-1]]))
    before, after = "\n".join(lines[: begins[0]]), "\n".join(lines[ends[-1] + 1 :])
    return OwnParts(_without(metadata, written), before.strip("\n"), after.strip("\n"))


def _record(section: str) -> dict[str, Any]:
    """The metadata that was written with a section; nothing when the section does not say."""
    records = RECORD.findall(section)
    try:
        return dict(json.loads(records[-1])) if records else {}
    except ValueError:
        raise OutputError(
            "the line 'hubprune:metadata' of the existing README.md is damaged: restore or remove it"
        ) from None


def _without(metadata: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """What a user added to or changed in the metadata that was once written."""
    own = {}
    for key, value in metadata.items():
        old = written.get(key)
        if key in MERGED_LISTS:
            value = [item for item in as_list(value) if item not in as_list(old)]
        elif key == "model-index":
            ours = [result for entry in as_list(old) for result in entry["results"]]
            value = [
                {**entry, "results": rest}
                for entry in as_list(value)
                if (rest := [result for result in entry.get("results", []) if result not in ours])
            ]
        elif value == old:
            continue
        if value or key not in (*MERGED_LISTS, "model-index"):
            own[key] = value
    return own


def as_list(value: Any) -> list[Any]:
    """A metadata value as a list; YAML allows a single item without one."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def join_own(first: str | None, second: str | None) -> str:
    """Make one README of what a user wrote in two; where both say something about one key, the first is kept.

    Args:
        first: The README in the repository.
        second: The README in the folder.
    """
    one, two = own_parts(first), own_parts(second)
    metadata = {**two.metadata, **one.metadata}
    for key in (*MERGED_LISTS, "model-index"):
        if key in metadata:
            metadata[key] = unique([*as_list(one.metadata.get(key)), *as_list(two.metadata.get(key))])
    texts = [
        "\n\n".join([a, *(s for s in _sections(b) if s not in a)]).strip("\n")
        for a, b in ((one.before, two.before), (one.after, two.after))
    ]
    return _assemble(metadata, texts[0], f"{BEGIN}\n{END}", texts[1])


def _sections(text: str) -> list[str]:
    return [part.strip("\n") for part in re.split(r"(?m)^(?=#{1,6} )", text) if part.strip()]


def unique(items: list[Any]) -> list[Any]:
    """The items in order, each once."""
    return [item for position, item in enumerate(items) if item not in items[:position]]


def _assemble(metadata: Mapping[str, Any], before: str, ours: str, after: str) -> str:
    header = f"---\n{_dumped(metadata)}\n---" if metadata else ""
    return "\n\n".join(part for part in (header, before, ours, after) if part) + "\n"


def _dumped(metadata: Mapping[str, Any]) -> str:
    """Metadata as YAML that is read again as it was; line breaks of Unicode (NEL among them) are escaped in it."""
    text: str = yaml_dump(dict(metadata), sort_keys=False)
    if LINE_BREAKS.search(text):
        text = yaml_dump(dict(metadata), sort_keys=False, allow_unicode=False)
    return text.strip()


def merge_metadata(ours: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of the whole README.

    Lists are joined; of other values the user's win, unless they say where the weights come from.
    """
    merged = dict(ours)
    for key, value in own.items():
        if key in MERGED_LISTS or key == "model-index":
            merged[key] = unique([*as_list(ours.get(key)), *as_list(value)])
        elif key not in ALWAYS_OURS or key not in ours:
            merged[key] = value
    return merged


def write_section(body: str, ours: Mapping[str, Any], own: OwnParts) -> str:
    """Put a rendered section and its metadata together with what belongs to the user.

    Args:
        body: Markdown of the section.
        ours: Metadata of the section, before merging.
        own: The user's metadata and text.
    """
    # A comment must hold neither '--' nor '>'.
    record = json.dumps(ours, default=str).replace("--", "-\\u002d").replace(">", "\\u003e").replace("<", "\\u003c")
    section = f"{BEGIN}\n{body}\n<!-- hubprune:metadata {record} -->\n{END}"
    return _assemble(merge_metadata(ours, own.metadata), own.before, section, own.after)
