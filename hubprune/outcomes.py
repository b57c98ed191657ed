"""Further parts of a report: what was measured of models side by side, and how one was recovered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hubprune.facts import CorpusFacts, EnergyFacts, Perplexity

# Names of adapters in prose.
ADAPTERS = {"masked lora": "masked LoRA", "lora": "LoRA", "shira": "SHiRA", "hira": "HiRA"}


@dataclass
class TaskScore:
    """One metric of one task of lm-evaluation-harness.

    Attributes:
        variant: Name of the model that was measured.
        task: Name of the task.
        metric: Name of the metric, with its filter where that is not ``none``: ``acc``, ``exact_match,strict-match``.
        value: The score.
        stderr: Its standard error; None where the metric has none.
        examples: Examples that were scored.
        fewshot: Worked examples in each prompt.
        higher_is_better: Whether more is better; None where the task does not say.
        version: Version of the task.
        recovered: The score as a fraction of the base's, or the base's of the score where less is better; None for the
            base, and where the base's is 0 or missing.
    """

    variant: str
    task: str
    metric: str
    value: float
    stderr: float | None = None
    examples: int = 0
    fewshot: int = 0
    higher_is_better: bool | None = None
    version: str = ""
    recovered: float | None = None


@dataclass
class Answer:
    """What a model wrote after a fixed prompt, choosing the likeliest token each time.

    Attributes:
        variant: Name of the model.
        prompt: The prompt.
        text: What it wrote.
        tokens: Tokens that it wrote.
        looped: Fraction of them in a run that says the same again and again.
        problem: What is wrong with it, in words; empty when nothing is.
    """

    variant: str
    prompt: str
    text: str
    tokens: int = 0
    looped: float = 0.0
    problem: str = ""


@dataclass
class SizeFacts:
    """How large a model is.

    Attributes:
        variant: Name of the model.
        parameters: Parameters; tied ones count once.
        nonzeros: Parameters that are not zero.
        dtype: Type of most of the weights.
        memory_bytes: Bytes of the weights in memory.
        file_bytes: Bytes of the weight files; None for a model that has none yet.
        transfer_bytes: Estimate of the bytes that a transfer moves that compresses as the Hub's storage does (LZ4 in
            chunks); None where it was not estimated.
        zstd_bytes: Estimate of the bytes after zstandard at its usual level; None likewise.
        estimated_from: Bytes of weights that the estimates were made from.
        resident_bytes: Resident memory of a process of its own that has loaded the model and run it once; None where
            none was started.
    """

    variant: str
    parameters: int
    nonzeros: int
    dtype: str = ""
    memory_bytes: int = 0
    file_bytes: int | None = None
    transfer_bytes: int | None = None
    zstd_bytes: int | None = None
    estimated_from: int = 0
    resident_bytes: int | None = None


@dataclass
class SpeedFacts:
    """How fast a model runs, measured in turns with the others, warm.

    Attributes:
        variant: Name of the model.
        prefill: Tokens read in a second: median over the rounds.
        decode: Tokens written in a second, one sequence, with a cache: median over the rounds.
        prefill_spread: Lowest and highest of the rounds.
        decode_spread: Likewise.
        prompt_tokens: Tokens read in one go.
        new_tokens: Tokens written in one go.
        rounds: Rounds that were timed.
        threads: Threads of the processor that torch used.
        device: Where the model ran.
        dtype: Type of the weights.
    """

    variant: str
    prefill: float
    decode: float
    prefill_spread: tuple[float, float] = (0.0, 0.0)
    decode_spread: tuple[float, float] = (0.0, 0.0)
    prompt_tokens: int = 0
    new_tokens: int = 0
    rounds: int = 0
    threads: int = 0
    device: str = "cpu"
    dtype: str = ""


@dataclass
class Evaluation:
    """What was measured of some models, side by side.

    Attributes:
        perplexities: On each text.
        tasks: Scores of tasks.
        answers: What the models wrote after fixed prompts.
        sizes: How large they are.
        speeds: How fast they run.
        notes: What the reader should know, in sentences.
        hardware: Processor, cores, threads, GPU.
        versions: Versions of the libraries.
    """

    perplexities: list[Perplexity] = field(default_factory=list)
    tasks: list[TaskScore] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    sizes: list[SizeFacts] = field(default_factory=list)
    speeds: list[SpeedFacts] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


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
        energy: Electricity of the training or fitting; None where codecarbon is not installed.
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
    energy: EnergyFacts | None = None
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""

    @property
    def what(self) -> str:
        """What was done, in words."""
        if self.config.get("method") == "reconstruct":
            return "layer-wise reconstruction"
        learnt = " with distillation" if self.config.get("distill") else ""
        return ADAPTERS.get(self.adapter, self.adapter) + learnt
