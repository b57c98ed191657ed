"""What a run will take, before anything large happens: bytes to download, room on disk, memory, time.

Memory is added up from shapes. Time is measured: the same method prunes one block of the model's own shape with random
weights, on two amounts of random text, and the line through both is drawn out to all blocks and all text.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from hubprune import environment, evaluation, hub, replay
from hubprune.architecture import find_blocks, find_matrices
from hubprune.calibration import Corpus
from hubprune.config import PruningConfig
from hubprune.criterion import load_criterion
from hubprune.errors import ConfigError
from hubprune.evidence import needs_of
from hubprune.flow import Plan
from hubprune.opening import Opening
from hubprune.pruner import prune
from hubprune.saving import SPARE_BYTES

WIDE = 4  # bytes of a float32
# Tensors of the size of the largest matrix that choosing and repairing hold at once.
COPIES = 6
# Tokens of the two probes, and the vocabulary they are drawn from.
PROBE_TOKENS = (64, 256)
PROBE_VOCABULARY = 512


@dataclass(frozen=True)
class Memory:
    """What a run holds in memory, in bytes.

    Attributes:
        common: Python, everything outside the blocks, and the work on one block.
        blocks: All blocks.
        block: The largest block.
        activations: What all sequences look like at the block boundaries that are kept.
    """

    common: int
    blocks: int
    block: int
    activations: int

    def resident(self, budget: int | None = None) -> int:
        """The peak with the whole model in memory, and activations up to a budget."""
        return self.common + self.blocks + self._kept(budget)

    def streamed(self, budget: int | None = None) -> int:
        """The peak with one block at a time in memory, and activations up to a budget."""
        return self.common + self.block + self._kept(budget)

    def _kept(self, budget: int | None) -> int:
        return self.activations if budget is None else min(self.activations, budget)


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        download: Bytes to fetch; what the cache holds is not counted.
        disk: Bytes of the result and of the work folder at its largest.
        memory: Peak memory.
        seconds: Time of the pruning itself, without download and evaluation.
    """

    download: int
    disk: int
    memory: Memory
    seconds: float


@dataclass(frozen=True)
class Choice:
    """Where the blocks will be, bytes of host memory for activations (None for no limit), and why, in one sentence."""

    streamed: bool
    budget: int | None
    reason: str


def peak_memory(plan: Plan) -> Memory:
    """Add up the peak memory of a run from the shapes of the model and the amount of text."""
    model, config = plan.base.outline, plan.config
    itemsize = _dtype(plan.base).itemsize
    prefix, blocks = find_blocks(model)
    whole = sum(p.numel() for p in model.parameters()) * itemsize
    inside = [sum(p.numel() for p in block.parameters()) * itemsize for block in blocks]
    text: Any = model.config.get_text_config()
    width, vocabulary = int(text.hidden_size), int(text.vocab_size)

    criterion = load_criterion(config)
    matrices = find_matrices(model, config.targets, config.ignore)
    first = [m for m in matrices if m.block == matrices[0].block]
    largest = max(m.view().numel() for m in first)
    working = COPIES * WIDE * largest
    compensates = config.resolved_application() == "compensate"
    for statistic, name in needs_of(criterion, scores=True, compensation=compensates):
        if statistic == "hessian" and (name in plan.corpora or name == "all"):
            # A sum and a factor for each input that several matrices may share, and the work on the largest.
            inputs = {m.kind: m.shape[1] for m in first}
            working += WIDE * (2 * sum(d * d for d in set(inputs.values())) + 3 * max(inputs.values()) ** 2)
    generations = 2
    if criterion.gradients:
        working += sum(m.view().numel() for m in first) * (3 * WIDE + itemsize)
        generations = len(blocks) + 2
    longest = max((c.facts.sequence_length for c in plan.corpora.values()), default=0)
    rows = 1 if criterion.gradients else config.batch_size
    working += rows * longest * (8 * width + 4 * sum(m.shape[0] for m in first)) * WIDE
    kept = sum(
        corpus.facts.tokens * width * itemsize * (generations if name == criterion.gradients else 2)
        for name, corpus in plan.corpora.items()
    )
    logits = 3 * WIDE * min(longest * vocabulary, replay.MOST_LOGITS) if criterion.gradients else 0
    measured = max((c.facts.sequence_length for c in plan.evaluation.values()), default=0)
    evaluated = min(max(config.batch_size * measured * vocabulary, 0), evaluation.MOST_LOGITS) * itemsize
    common = environment.resident_memory() + whole - sum(inside) + max(working + logits, evaluated)
    return Memory(common=common, blocks=sum(inside), block=max(inside), activations=kept)


def _dtype(base: Opening) -> torch.dtype:
    """The type that the weights will have."""
    wanted = base.keywords.get("dtype", "auto")
    named = getattr(torch, wanted, None) if isinstance(wanted, str) else wanted
    return named or next(base.outline.parameters()).dtype


def choose(memory: Memory, limit: int | None, budget: int | None = None) -> Choice:
    """Decide whether the blocks stay on disk.

    Args:
        memory: Peak memory of the run.
        limit: Bytes it may take; None for what is free.
        budget: Bytes of host memory for activations; None for what the rest leaves.

    Raises:
        ConfigError: Not even one block at a time fits.
    """
    name = "free memory" if limit is None else "max_memory"
    room = environment.free_memory() + environment.resident_memory() if limit is None else limit
    whole = memory.resident(budget)
    if whole <= room:
        return Choice(False, budget, f"the whole model in memory takes about {gib(whole)} ({name}: {gib(room)})")
    least = memory.streamed(budget or 0)
    if least > room and limit is not None:
        raise ConfigError(
            f"max_memory must hold one block with all that is known of it, about {gib(least)}, got {gib(room)}: raise "
            "it, lower activation_budget, or take shorter sequences"
        )
    budget = max(room - least, 0) if budget is None else budget
    return Choice(
        True,
        budget,
        f"blocks come from disk one at a time, about {gib(memory.streamed(budget))}; the whole model would take about "
        f"{gib(whole)} ({name}: {gib(room)})",
    )


def gib(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 2**30:.2f} GiB"


def estimate(plan: Plan) -> Estimate:
    """Estimate a run; downloads nothing, and takes some seconds for a block of a large model."""
    base, itemsize = plan.base, _dtype(plan.base).itemsize
    download = 0 if base.repo.local else hub.missing_bytes(base.repo, token=base.keywords.get("token"), **base.cache)
    text: Any = base.config.get_text_config()
    result = sum(p.numel() for p in base.outline.parameters()) * itemsize
    front = sum(corpus.facts.tokens for corpus in plan.corpora.values()) * int(text.hidden_size) * itemsize
    time_taken = seconds(base, plan.config, plan.corpora)
    return Estimate(download, result + 2 * front + SPARE_BYTES, peak_memory(plan), time_taken)


def seconds(base: Opening, config: PruningConfig, corpora: Mapping[str, Corpus]) -> float:
    """Measure how long one block takes, and draw it out to all of them.

    Args:
        base: The model; only its config is looked at.
        config: What to prune and how.
        corpora: Calibration text.
    """
    depth = len(find_blocks(base.outline)[1])
    few, many = (_probe(base, config, corpora, count) for count in PROBE_TOKENS)
    by_token = max(many - few, 0.0) / (PROBE_TOKENS[1] - PROBE_TOKENS[0])
    fixed = max(few - by_token * PROBE_TOKENS[0], 0.0)
    tokens = sum(corpus.facts.tokens for corpus in corpora.values()) / max(len(corpora), 1)
    return depth * (fixed + by_token * tokens)


def _probe(base: Opening, config: PruningConfig, corpora: Mapping[str, Corpus], tokens: int) -> float:
    """Seconds for one block of the model's shape and some tokens of each text."""
    kind = {"dtype": _dtype(base), "trust_remote_code": bool(base.keywords["trust_remote_code"])}
    model = AutoModelForCausalLM.from_config(_one_block(base.config), **kind).to(base.device)
    generator = torch.Generator().manual_seed(config.seed)
    given = {name: torch.randint(PROBE_VOCABULARY, (1, tokens), generator=generator) for name in corpora}
    config = dataclasses.replace(config, targets=(), ignore=())
    started = time.perf_counter()
    prune(model, None, config, given, progress=False)
    return time.perf_counter() - started


def _one_block(config: PretrainedConfig) -> PretrainedConfig:
    """The same model with one block and a small vocabulary."""
    small = copy.deepcopy(config)
    text: Any = small.get_text_config()
    text.num_hidden_layers, text.vocab_size = 1, PROBE_VOCABULARY
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    small.bos_token_id = small.eos_token_id = small.pad_token_id = None
    return small
