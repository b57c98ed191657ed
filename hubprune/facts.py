"""The parts of a report: what is written down of the base, the text, the matrices, the measurements, the checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Names of adapters in prose.
ADAPTERS = {"masked lora": "masked LoRA", "lora": "LoRA", "shira": "SHiRA", "hira": "HiRA"}


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
        variant: ``base``, ``pruned`` or ``recovered``.
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
class LossPoint:
    """Losses at one step of a recovery, in nats a token; None where they were not measured there.

    For ``reconstruct`` they are errors instead: the mean squared difference to the dense block's output, as a fraction
    of that output's mean square, before and after the block was fitted.
    """

    step: int
    training: float | None = None
    held_out: float | None = None


@dataclass
class RecoveryFacts:
    """How a pruned model was recovered.

    Attributes:
        config: ``RecoveryConfig.to_dict()``, defaults filled in.
        corpora: The text, as it was taken, held-out sequences included.
        trained: Sequences that were trained on, or fitted to.
        held_out: Sequences that were only looked at.
        adapter: ``masked lora``, ``lora``, ``shira`` or ``hira``; empty for ``reconstruct``.
        parameters: Parameters that were trained.
        matrices: Matrices whose weights changed.
        steps: Optimiser steps taken, of all blocks together.
        kept_step: The step whose weights were kept; 0 when none was better than the pruned model.
        tokens: Tokens trained on, each as often as it was seen.
        curve: Losses along the way; for ``reconstruct`` one point a block.
        teacher: Where the dense base stood that was learnt from: ``in memory``, ``on disk``, or empty.
        zeros_kept: Zeros that were checked after merging, all of them zero still.
        groups_kept: Groups of an N:M pattern that were checked, all of them right; None without one.
        timings: Seconds for each stage.
        peak_memory_bytes: Highest resident memory of the process.
        versions: Versions of the libraries.
        created: ISO date and time, UTC.
    """

    config: dict[str, Any] = field(default_factory=dict)
    corpora: list[CorpusFacts] = field(default_factory=list)
    trained: int = 0
    held_out: int = 0
    adapter: str = ""
    parameters: int = 0
    matrices: int = 0
    steps: int = 0
    kept_step: int = 0
    tokens: int = 0
    curve: list[LossPoint] = field(default_factory=list)
    teacher: str = ""
    zeros_kept: int = 0
    groups_kept: int | None = None
    timings: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""

    @property
    def what(self) -> str:
        """What was done, in words."""
        if self.config.get("method") == "reconstruct":
            return "layer-wise reconstruction"
        learnt = " with distillation" if self.config.get("distill") else ""
        return ADAPTERS.get(self.adapter, self.adapter) + learnt


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
