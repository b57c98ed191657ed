"""The one record of a run. All that is shown to anybody (table, card, Space) is read from here, nothing computed.

Fields are grouped by who fills them: the base model (``hub``), the corpora (``calibration``), the matrices and totals
(``pruner``), perplexities (``evaluation``), the recovery (``recovery``), the stamp (``verify``), the user's own
words. Saved as JSON beside the weights; a short summary goes into ``config.hubprune``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hubprune.carddata import PrunedModelCardData
from hubprune.corpora import CorpusConfig, parse_source
from hubprune.errors import OutputError, UsageError
from hubprune.facts import (
    BaseFacts,
    CorpusFacts,
    EnergyFacts,
    MatrixFacts,
    Perplexity,
    Probe,
    Totals,
    UnitFacts,
    Verification,
)
from hubprune.outcomes import Answer, Evaluation, RecoveryFacts, SizeFacts, SpeedFacts, TaskScore

SCHEMA_VERSION = 1
REPORT_NAME = "hubprune_report.json"


@dataclass
class PruningReport:
    """The record of one run.

    Attributes:
        base: The model that was pruned.
        config: ``PruningConfig.to_dict()`` of the run.
        pattern: The resolved pattern in words.
        application: The resolved application.
        options: The method's settings with defaults filled in.
        corpora: Calibration text.
        matrices: One row for each pruned matrix.
        units: One row for each place that units were removed from; empty for single weights.
        totals: Counts over the model.
        untouched_sha256: Hash of every parameter outside the pruned matrices, taken before pruning.
        probe: What the pruned model answers to a fixed input, None before it was asked.
        evaluation: Perplexities before and after.
        tasks: Scores of tasks of lm-evaluation-harness.
        answers: What base and result wrote after fixed prompts.
        sizes: How large base and result are, measured.
        speeds: How fast they run, measured in one run.
        measured_on: Hardware that ``speeds`` were measured on.
        recovery: How the pruned model was recovered, None where it was not.
        timings: Seconds for each stage.
        peak_memory_bytes: Highest resident memory of the process, as the operating system reports it.
        peak_gpu_memory_bytes: Highest memory allocated on the GPUs, None where none was used.
        energy: Electricity of the pruning; None where codecarbon is not installed.
        hardware: Processor, cores, threads, GPU.
        versions: Versions of the libraries.
        warnings: What the user should know, in sentences.
        model_card: What the user fills in or overrides in the model card.
        verification: The stamp, None before it was made.
        space: Space that shows the model beside its base; None without one.
        created: ISO date and time, UTC.
        schema_version: Version of this layout.
    """

    base: BaseFacts = field(default_factory=BaseFacts)
    config: dict[str, Any] = field(default_factory=dict)
    pattern: str = ""
    application: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    corpora: list[CorpusFacts] = field(default_factory=list)
    matrices: list[MatrixFacts] = field(default_factory=list)
    units: list[UnitFacts] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    untouched_sha256: str = ""
    probe: Probe | None = None
    evaluation: list[Perplexity] = field(default_factory=list)
    tasks: list[TaskScore] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    sizes: list[SizeFacts] = field(default_factory=list)
    speeds: list[SpeedFacts] = field(default_factory=list)
    measured_on: dict[str, Any] = field(default_factory=dict)
    recovery: RecoveryFacts | None = None
    timings: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    peak_gpu_memory_bytes: int | None = None
    energy: EnergyFacts | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    model_card: PrunedModelCardData | None = None
    verification: Verification | None = None
    space: str | None = None
    created: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.config.get("method", ""))

    @property
    def result(self) -> str:
        """What the rows of the model itself are called: ``recovered`` once it was trained, else ``pruned``."""
        trained = self.recovery is not None or any(row.variant == "recovered" for row in self.evaluation)
        return "recovered" if trained else "pruned"

    def perplexities(self) -> dict[str, dict[str, Perplexity]]:
        """Perplexities as ``{corpus: {variant: Perplexity}}``, in the order measured."""
        table: dict[str, dict[str, Perplexity]] = {}
        for row in self.evaluation:
            table.setdefault(row.corpus, {})[row.variant] = row
        return table

    def text_of(self, row: Perplexity) -> str | CorpusConfig:
        """What a row was measured on, as something that can be read again.

        A row names data sets only: one that calibration read by a template or column of the user's own is read so.
        """
        own = {source.dataset: source for corpus in self.corpora for source in corpus.sources}
        parsed = [parse_source(name) for name in row.sources]
        sources = [
            source
            if source.template is not None or (used := own.get(source.dataset)) is None
            else dataclasses.replace(source, template=used.template, text_column=used.text_column, answer=used.answer)
            for source in parsed
        ]
        if sources == parsed:
            return "+".join(row.sources)
        return CorpusConfig(tuple(sources), sequence_length=row.window)

    def record(self, found: Evaluation) -> None:
        """Take over what was measured later: a row takes the place of an earlier one of the same thing.

        Perplexities of a text that was measured in another way before are dropped: they do not compare.
        """
        protocols: dict[str, set[object]] = {}
        for row in found.perplexities:
            protocols.setdefault(row.corpus, set()).add(row.protocol)
        alike = [row for row in self.evaluation if row.protocol in protocols.get(row.corpus, {row.protocol})]
        self.evaluation = _newest(alike, found.perplexities, "variant", "corpus")
        self.tasks = _newest(self.tasks, found.tasks, "variant", "task", "metric")
        again = {row.variant for row in found.answers}
        self.answers = [row for row in self.answers if row.variant not in again] + found.answers
        self.sizes = _newest(self.sizes, found.sizes, "variant")
        if found.speeds:  # speeds of another run do not compare
            self.speeds, self.measured_on = found.speeds, found.hardware
        self.warnings += [note for note in found.notes if note not in self.warnings]

    def summary(self) -> dict[str, Any]:
        """What ``config.hubprune`` holds: enough to recognise a pruned model and where its report lies."""
        return {
            "schema_version": self.schema_version,
            "version": self.versions.get("hubprune", ""),
            "base_model": self.base.model_id,
            "base_commit": self.base.commit,
            "method": self.method,
            "pattern": self.pattern,
            "application": self.application,
            "sparsity": round(self.totals.sparsity, 6),
            "share_of_all_parameters": round(self.totals.share_of_all, 6),
            "corpora": {c.name: [s.dataset for s in c.sources] for c in self.corpora},
            "report": REPORT_NAME,
            **({"recovery": self.recovery.what} if self.recovery is not None else {}),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PruningReport:
        """Rebuild from ``to_dict`` output.

        Raises:
            UsageError: The data is not a report, or of a newer layout.
        """
        version = data.get("schema_version") if isinstance(data, dict) else None
        if not isinstance(version, int):
            raise UsageError(f"a pruning report is a JSON object with a schema_version, got {str(data)[:60]!r}")
        if version > SCHEMA_VERSION:
            raise UsageError(
                f"this report has layout {version}, this hubprune reads up to {SCHEMA_VERSION}: upgrade hubprune"
            )
        try:
            return typing.cast(PruningReport, _build(cls, data))
        except (AttributeError, TypeError, ValueError) as error:
            raise UsageError(
                f"this is no pruning report of layout {version} ({error}): restore it or prune again"
            ) from error

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the report into a folder, atomically.

        Returns:
            Path of the file.

        Raises:
            OutputError: The folder cannot be written.
        """
        return write_text(Path(folder) / REPORT_NAME, self.to_json())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> PruningReport:
        """Read the report of a pruned model's folder.

        Raises:
            UsageError: There is none, or it cannot be read.
        """
        path = Path(folder) / REPORT_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"{folder} holds no {REPORT_NAME}: give the folder of a model pruned by hubprune"
            ) from None
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}): give a file that is readable") from error
        except ValueError as error:
            raise UsageError(f"{path} is not valid JSON ({error}): restore it or prune again") from None
        return cls.from_dict(data)


def _newest(rows: list[Any], later: list[Any], *names: str) -> list[Any]:
    """Rows with later ones in the places of those with the same key, new ones behind."""
    found = {tuple(getattr(row, name) for name in names): row for row in (*rows, *later)}
    return list(found.values())


def write_text(path: Path, text: str) -> Path:
    """Write a text file so that it is there whole or not at all; errors as in ``write_bytes``."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file so that it is there whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False) as handle:
            temporary = handle.name
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path} ({error.strerror}): give a folder that is writable and has room"
        ) from error
    return path


def sync_folder(folder: Path) -> None:
    """Bring names that were just written or changed in a folder to the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _build(kind: Any, value: Any) -> Any:
    """Rebuild nested dataclasses, lists, tuples and optionals from JSON types; unknown keys of a class are dropped."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if value is None or kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _build(next(a for a in arguments if a is not type(None)), value)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise TypeError(f"{getattr(kind, '__name__', kind)} must be an object, got {value!r:.40}")
        hints = typing.get_type_hints(kind)
        known: Iterable[str] = (f.name for f in dataclasses.fields(kind))
        return typing.cast(Any, kind)(**{name: _build(hints[name], value[name]) for name in known if name in value})
    if origin is list:
        return [_build(arguments[0], item) for item in value]
    if origin is tuple:
        return tuple(_build(a, item) for a, item in zip(arguments, value, strict=True))
    return value
