"""The parts of a report: what is written down of the base, the text, the matrices, the measurements, the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


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
        context_length: Tokens that the model can read at once; None where its config does not say.
        loader: Class of transformers that loads it by its name.
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
    context_length: int | None = None
    loader: str = "AutoModelForCausalLM"

    @property
    def paired(self) -> bool:
        """Whether it is an encoder-decoder."""
        return self.loader == "AutoModelForSeq2SeqLM"


@dataclass
class SourceFacts:
    """One data set of a corpus as it was read; ``rows`` counts those used, ``weight`` is its share of the samples.

    ``filters`` are the columns and values that picked its rows, ``answer`` is the end of the template that answers.
    """

    dataset: str
    config: str | None = None
    split: str | None = None
    commit: str | None = None
    template: str | None = None
    rows: int = 0
    text_column: str | None = None
    weight: float = 1.0
    filters: list[tuple[str, str]] = field(default_factory=list)
    answer: str | None = None


@dataclass
class CorpusFacts:
    """One corpus as it was used.

    Attributes:
        name: general, domain, language, task, or the label of an evaluation text.
        sources: Data sets or files; empty for texts or token ids given directly.
        num_sequences: Sequences.
        sequence_length: Tokens in the longest sequence.
        tokens: Tokens in all.
        packing: Whether documents were joined.
        seed: Seed of the choice of rows.
        token_sha256: Hash of the token ids in order.
        fingerprint: Hash of everything else but the samples, and of where the answers begin.
        samples: The first characters of two rows.
        examples: Sequences whose answer is known: all of them, or none.
        distinct_answers: Different labels among them.
        passed_over: Examples left out because their answer alone is longer than a sequence.
        join: What stands between documents that were made one text before it became tokens; None where each became
            tokens by itself.
        labelled: Of a task without labels, questions that the model itself answered.
        dropped: Questions that were left out because it was not sure enough of its answer.
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
    examples: int = 0
    distinct_answers: int = 0
    passed_over: int = 0
    join: str | None = None
    labelled: int = 0
    dropped: int = 0


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
        overlap: Jaccard index of what two corpora alone would have removed, by ``left/right``; empty where the method
            does not weigh two corpora against each other.
    """

    name: str
    block: int
    kind: str
    shape: tuple[int, int]
    pruned: int
    zeros: int
    damping: float | None = None
    overlap: dict[str, float] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """Weights in the matrix."""
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        """Fraction removed."""
        return self.pruned / self.numel


@dataclass
class UnitFacts:
    """Units of one kind in one place, such as the neurons of one feed-forward network.

    Attributes:
        name: Module that they lie in, with ``[e]`` for expert e.
        block: Index of the block.
        unit: What a unit is: ffn_neuron, kv_group, attention_dim or layer.
        count: Units there were.
        removed: Which are gone: a bit for each, first unit first, in hexadecimal digits of four.
        weights: Weights that belong to one unit.
        scores: Quantiles of the scores by name (``min``, ``p5``, ``p25``, ``median``, ``p75``, ``p95``, ``max``), and
            ``threshold``, the highest score that was removed.
        each: The score of every unit, where there are few: layers.
        reached: Cus-Prun: the share q of each dimension's ranking that the removed units lie in.
        overlap: Jaccard index of what two corpora alone would have removed, by ``left/right``.
        fewer: Attribution: Spearman's rank correlation of the scores by 8, 16, ... examples, spread over all, with
            those by all, by the number of examples.
        stand_ins: Mutual information: removed neuron, the kept neuron nearest to it, and their mutual information in
            bits.
        damping: Damping that the repair's factorisation needed, None without repair.
    """

    name: str
    block: int
    unit: str
    count: int
    removed: str
    weights: int
    scores: dict[str, float] = field(default_factory=dict)
    each: list[float] = field(default_factory=list)
    reached: float | None = None
    overlap: dict[str, float] = field(default_factory=dict)
    fewer: dict[str, float] = field(default_factory=dict)
    stand_ins: list[tuple[int, int, float]] = field(default_factory=list)
    damping: float | None = None

    @property
    def removed_indices(self) -> list[int]:
        """The units that are gone, in order."""
        bits = "".join(f"{int(digit, 16):04b}" for digit in self.removed)
        return [index for index in range(self.count) if bits[index] == "1"]

    @property
    def kept(self) -> int:
        """Units that are left."""
        return self.count - len(self.removed_indices)


def pack_removed(removed: Sequence[bool]) -> str:
    """Write which units are gone as ``UnitFacts.removed`` holds it."""
    bits = "".join("1" if gone else "0" for gone in removed)
    bits += "0" * (-len(bits) % 4)
    return "".join(f"{int(bits[start : start + 4], 2):x}" for start in range(0, len(bits), 4))


@dataclass
class Totals:
    """Counts over the model; tied weights count once.

    Attributes:
        targeted: Weights that could have been removed: those of the matrices, or of the units.
        pruned: Weights that were removed, or set to zero by the mask.
        zeros: Weights equal to zero afterwards, in the pruned matrices.
        parameters: Parameters of the base model.
        blocks: Those of them in the blocks.
        left: Parameters of the result.
    """

    targeted: int = 0
    pruned: int = 0
    zeros: int = 0
    parameters: int = 0
    blocks: int = 0
    left: int = 0

    @property
    def sparsity(self) -> float:
        """Fraction removed of the targeted weights."""
        return self.pruned / self.targeted if self.targeted else 0.0

    @property
    def share_of_blocks(self) -> float:
        """Fraction removed of the parameters of the blocks."""
        return self.pruned / self.blocks if self.blocks else 0.0

    @property
    def share_of_all(self) -> float:
        """Fraction removed of all parameters."""
        return self.pruned / self.parameters if self.parameters else 0.0


@dataclass
class Perplexity:
    """One measured perplexity with its protocol.

    Attributes:
        variant: ``base``, ``pruned``, ``recovered``, or another name of the model that was measured.
        corpus: Label of the text.
        perplexity: ``exp`` of the mean negative log likelihood per predicted token, in nats.
        stderr: Standard error of the perplexity over windows.
        tokens: Tokens predicted.
        windows: Windows scored.
        window: Tokens in a window.
        stride: Tokens between the starts of two windows.
        bos: Whether each window, or each text that is read by itself, begins with the tokenizer's start token.
        sources: Data sets of the text.
        fingerprint: Fingerprint of the text.
        layout: How the text was laid out: ``packed`` (documents one after the other), ``joined`` (by ``join``, before
            they became tokens), ``separate`` (each by itself) or ``answers`` (of examples, given their questions).
        join: What stands between joined documents.
        text_bytes: UTF-8 bytes of the text that the predicted tokens stand for; None where the tokenizer does not say.
        bits_per_byte: Bits that the model needs for a byte of text; the same for any vocabulary. None likewise.
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
    layout: str = "packed"
    join: str | None = None
    text_bytes: int | None = None
    bits_per_byte: float | None = None

    @property
    def protocol(self) -> tuple[object, ...]:
        """What two rows must have in common to be compared."""
        return self.fingerprint, self.window, self.stride, self.windows, self.bos, self.layout, self.join


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
class EnergyFacts:
    """Electricity that a computation took, as codecarbon estimates it for the whole machine.

    Attributes:
        kwh: Energy, in kilowatt hours.
        emissions_kg: CO2 equivalents of it, in kilograms; None where no country was named.
        country: The country whose electricity was reckoned with, as three letters; empty likewise.
    """

    kwh: float
    emissions_kg: float | None = None
    country: str = ""


@dataclass
class Verification:
    """The stamp: what was checked on the saved files, and that each check passed."""

    checks: dict[str, str] = field(default_factory=dict)
    passed: bool = False
    transformers_version: str = ""
