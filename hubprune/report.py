"""The one record of a run. All that is shown to anybody (table, card, Space) is read from here, nothing computed.

Fields are grouped by who fills them: the base model (``hub``), the corpora (``calibration``), the matrices and totals
(``pruner``), perplexities (``evaluation``), the stamp (``verify``). Saved as JSON beside the weights; a short summary
goes into ``config.hubprune``.
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

from hubprune.errors import OutputError, UsageError

SCHEMA_VERSION = 1
REPORT_NAME = "hubprune_report.json"


@dataclass
class BaseFacts:
    """The model that was pruned.

    Attributes:
        model_id: Repository, or path of a local folder.
        revision: Branch, tag or commit asked for.
        commit: The commit it resolved to; None for a local folder.
        model_type: ``config.model_type``.
        architecture: Class name in ``config.architectures``.
        dtype: Weight type, such as ``bfloat16``.
        trust_remote_code: Whether the user let the repository's own code run.
        gated: Whether the Hub asks for consent before a download.
        card: Metadata of the base's model card that the new card carries over (licence, languages, tags, pipeline
            tag).
    """

    model_id: str = ""
    revision: str | None = None
    commit: str | None = None
    model_type: str = ""
    architecture: str = ""
    dtype: str = ""
    trust_remote_code: bool = False
    gated: bool = False
    card: dict[str, Any] = field(default_factory=dict)


@dataclass
class SourceFacts:
    """One data set of a corpus as it was read; ``rows`` counts those used, ``weight`` is its share of the samples."""

    dataset: str
    config: str | None = None
    split: str | None = None
    commit: str | None = None
    template: str | None = None
    rows: int = 0
    text_column: str | None = None
    weight: float = 1.0


@dataclass
class CorpusFacts:
    """One corpus as it was used.

    Attributes:
        name: general, domain, or the label of an evaluation text.
        sources: Data sets or files; empty for texts or token ids given directly.
        num_sequences: Sequences.
        sequence_length: Tokens in the longest sequence.
        tokens: Tokens in all.
        packing: Whether documents were joined.
        seed: Seed of the choice of rows.
        token_sha256: Hash of the token ids in order.
        fingerprint: Hash of everything above.
        samples: The first characters of two rows.
    """

    name: str
    sources: list[SourceFacts] = field(default_factory=list)
    num_sequences: int = 0
    sequence_length: int = 0
    tokens: int = 0
    packing: bool = True
    seed: int = 0
    token_sha256: str = ""
    fingerprint: str = ""
    samples: list[str] = field(default_factory=list)


@dataclass
class MatrixFacts:
    """One pruned matrix.

    Attributes:
        name: Module name, with ``[e]`` for expert e of a fused tensor.
        block: Index of the decoder block.
        kind: Last component of the name, such as ``q_proj``.
        shape: ``(d_out, d_in)``.
        pruned: Weights removed by the mask.
        zeros: Weights equal to zero afterwards; at least ``pruned``.
        damping: Damping that the Cholesky factorisation needed, None when there was none.
    """

    name: str
    block: int
    kind: str
    shape: tuple[int, int]
    pruned: int
    zeros: int
    damping: float | None = None

    @property
    def numel(self) -> int:
        """Weights in the matrix."""
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        """Fraction removed."""
        return self.pruned / self.numel


@dataclass
class Totals:
    """Counts over the model; ``parameters`` counts tied weights once."""

    targeted: int = 0
    pruned: int = 0
    zeros: int = 0
    parameters: int = 0

    @property
    def sparsity(self) -> float:
        """Fraction removed of the targeted weights."""
        return self.pruned / self.targeted if self.targeted else 0.0

    @property
    def share_of_all(self) -> float:
        """Fraction removed of all parameters."""
        return self.pruned / self.parameters if self.parameters else 0.0


@dataclass
class Perplexity:
    """One measured perplexity with its protocol.

    Attributes:
        variant: ``base`` or ``pruned``.
        corpus: Label of the text.
        perplexity: ``exp`` of the mean negative log likelihood per predicted token, in nats.
        stderr: Standard error of the perplexity over windows.
        tokens: Tokens predicted.
        windows: Windows scored.
        window: Tokens in a window.
        stride: Tokens between the starts of two windows.
        bos: Whether each window begins with the tokenizer's start token.
        sources: Data sets of the text.
        fingerprint: Fingerprint of the text.
    """

    variant: str
    corpus: str
    perplexity: float
    stderr: float
    tokens: int
    windows: int
    window: int
    stride: int
    bos: bool
    sources: list[str] = field(default_factory=list)
    fingerprint: str = ""


@dataclass
class Probe:
    """A fixed input and what the pruned model answered in memory; the saved files must answer the same.

    Attributes:
        token_ids: One sequence of token ids.
        logits: Logits at its last position, ``(vocabulary,)``, cut to the first 64, in float32.
    """

    token_ids: list[int]
    logits: list[float]


@dataclass
class Verification:
    """The stamp: what was checked on the saved files, and that each check passed."""

    checks: dict[str, str] = field(default_factory=dict)
    passed: bool = False
    transformers_version: str = ""


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
        totals: Counts over the model.
        untouched_sha256: Hash of every parameter outside the pruned matrices, taken before pruning.
        probe: What the pruned model answers to a fixed input, None before it was asked.
        evaluation: Perplexities before and after.
        timings: Seconds for each stage.
        peak_memory_bytes: Highest resident memory of the process, as the operating system reports it.
        peak_gpu_memory_bytes: Highest memory allocated on the GPU, None without one.
        hardware: Processor, cores, threads, GPU.
        versions: Versions of the libraries.
        warnings: What the user should know, in sentences.
        verification: The stamp, None before it was made.
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
    totals: Totals = field(default_factory=Totals)
    untouched_sha256: str = ""
    probe: Probe | None = None
    evaluation: list[Perplexity] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    peak_gpu_memory_bytes: int | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    verification: Verification | None = None
    created: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.config.get("method", ""))

    def perplexities(self) -> dict[str, dict[str, Perplexity]]:
        """Perplexities as ``{corpus: {variant: Perplexity}}``, in the order measured."""
        table: dict[str, dict[str, Perplexity]] = {}
        for row in self.evaluation:
            table.setdefault(row.corpus, {})[row.variant] = row
        return table

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


def write_text(path: Path, text: str) -> Path:
    """Write a text file so that it is there whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as handle:
            temporary = handle.name
            handle.write(text)
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
