"""The record beside exported graphs: the weights they were made from, and what was checked about each."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hubprune.errors import ConfigError, OutputError, UsageError, did_you_mean
from hubprune.report import write_text

RECORD_NAME = "hubprune_export.json"
SCHEMA_VERSION = 1
# The names that other programs look for: the graph in float32, and the one with 8-bit weights.
GRAPHS = {"onnx": ("model.onnx", "model_int8.onnx"), "openvino": ("openvino_model.xml", "openvino_model_int8.xml")}
FORMATS = tuple(GRAPHS)
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
CHUNK = 2**24  # bytes hashed at a time


@dataclass(frozen=True)
class GraphFacts:
    """One graph, and what was measured on it before it was handed over.

    Attributes:
        format: ``onnx`` or ``openvino``.
        files: Names and sizes in bytes of its files; the first one is opened.
        int8: Whether the weights of its linear maps are 8-bit integers.
        difference: Largest difference between its logits and those of transformers, a fraction of the largest logit.
        tolerance: What was allowed.
        tokens: Tokens that were compared.
        agreement: Fraction of those tokens after which both put the same token first.
        matrices: Weight matrices of the decoder blocks, all of which were found in the graph.
        zeros: Zeros in them, all of which are zeros in the graph.
        rounded_to_zero: Further weights that are zero in the graph: below half a step of the 8-bit numbers.
        versions: Versions of the libraries that made it.
        seconds: Time it took.
        created: When, in UTC.
    """

    format: str
    files: dict[str, int]
    int8: bool
    difference: float
    tolerance: float
    tokens: int
    agreement: float
    matrices: int
    zeros: int
    rounded_to_zero: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    created: str = ""

    @property
    def file(self) -> str:
        """The file that a runtime opens."""
        return next(iter(self.files))

    @property
    def bytes(self) -> int:
        """Size of its files together."""
        return sum(self.files.values())


@dataclass
class ExportRecord:
    """What a folder of graphs holds.

    Attributes:
        weights: SHA-256 of each weight file that the graphs were made from.
        graphs: The graphs, by the file that is opened.
    """

    weights: dict[str, str]
    graphs: dict[str, GraphFacts] = field(default_factory=dict)

    @property
    def files(self) -> set[str]:
        """All files of the graphs."""
        return {name for graph in self.graphs.values() for name in graph.files}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the record.

        Raises:
            OutputError: It cannot be written.
        """
        data = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return write_text(Path(folder) / RECORD_NAME, json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ExportRecord | None:
        """Read the record of a folder; None where there is none.

        Raises:
            OutputError: It cannot be read, or comes from a later version.
        """
        path = Path(folder) / RECORD_NAME
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"its schema is {data['schema_version']}, this version knows {SCHEMA_VERSION}")
            graphs = {name: GraphFacts(**facts) for name, facts in data["graphs"].items()}
            return cls(dict(data["weights"]), graphs)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{path} cannot be read ({error}): remove the folder and export again") from error


def check_format(format: str, packages: Mapping[str, Sequence[str]] = PACKAGES) -> None:
    """Refuse a format that there is not, or whose packages are not installed.

    Args:
        format: Its name.
        packages: What each needs.

    Raises:
        ConfigError: There is no such format.
        UsageError: A package is missing.
    """
    if format not in FORMATS:
        raise ConfigError(f"there is no format {format!r}: {did_you_mean(format, FORMATS)}")
    missing = [name for name in packages[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f'graphs for {format} need {" and ".join(missing)}: pip install "hubprune[export]"')


def weights_sha256(folder: str | os.PathLike[str]) -> dict[str, str]:
    """SHA-256 of each weight file of a model's folder, by name, as the Hub states them."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        digest = hashlib.sha256()
        with path.open("rb") as handle:
            while chunk := handle.read(CHUNK):
                digest.update(chunk)
        found[path.name] = digest.hexdigest()
    return found


def exports_in(folder: str | os.PathLike[str]) -> dict[str, ExportRecord]:
    """The exports in a model's folder, by the name of their own folder."""
    records = {path.name: ExportRecord.load(path) for path in sorted(Path(folder).iterdir()) if path.is_dir()}
    return {name: record for name, record in records.items() if record is not None}
