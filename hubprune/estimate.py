"""What a run will take, before anything large happens: bytes to download, room on disk, memory, time.

Memory is added up from shapes (``footprint``), and time is measured (``probe``).
"""

from __future__ import annotations

from dataclasses import dataclass

from hubprune import environment, hub, probe, ranks
from hubprune.architecture import find_matrices, is_paired
from hubprune.card import size
from hubprune.errors import ConfigError
from hubprune.flow import Plan, draw
from hubprune.footprint import Memory, boundaries, peak_memory
from hubprune.opening import Opening
from hubprune.saving import SPARE_BYTES


@dataclass(frozen=True)
class Choice:
    """Where the blocks will be, bytes of host memory for activations (None for no limit), and why, in one sentence."""

    streamed: bool
    budget: int | None
    reason: str

    def __str__(self) -> str:
        return ("Streaming: " if self.streamed else "In memory: ") + self.reason


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        download: Bytes of weights to fetch; what the cache holds is not counted.
        disk: Bytes of the result and of the work folder at its largest.
        memory: What it holds in memory.
        choice: Where the blocks will be, and why.
        seconds: Time of the pruning itself, without download and evaluation; None where it was not measured.
        parameters: Parameters of the base; tied ones count once.
        left: Parameters of the result.
    """

    download: int
    disk: int
    memory: Memory
    choice: Choice
    seconds: float | None
    parameters: int
    left: int


def estimate(plan: Plan, limit: int | None = None, budget: int | None = None, *, timed: bool = True) -> Estimate:
    """Estimate a run; downloads nothing, and prunes one random block to take the time.

    Args:
        plan: The run.
        limit: Bytes of memory it may take; None for what is free.
        budget: Bytes of host memory for activations; None for what the rest leaves.
        timed: Whether to measure the time.

    Raises:
        ConfigError: The run does not fit into the memory that it may take.
        AccessError, OfflineError: The Hub does not say how large the weights are.
    """
    base = plan.base
    memory = peak_memory(plan)
    choice = choose(memory, limit, budget, environment.free_gpu_memory(base.gpus))
    download = hub.missing_bytes(base.repo, token=base.keywords.get("token"), **base.cache)
    disk = (
        sum(parameter.numel() for parameter in base.outline.parameters()) * base.dtype.itemsize
        + 2 * sum(boundaries(plan).values())
        + SPARE_BYTES
    )
    if choice.budget is not None:
        disk += max(memory.activations - choice.budget, 0)
    if choice.streamed:
        disk += ranks.on_this_machine() * _copied(base)
    timed = timed and not is_paired(base.config)  # there is no one block that stands for both stacks
    outline = draw(base, plan.config)
    seconds = probe.seconds(plan) if timed else None
    return Estimate(download, disk, memory, choice, seconds, outline.parameters, outline.left)


def _copied(base: Opening) -> int:
    """Bytes of what each process writes a copy of, as the files hold it in another form: fused experts."""
    fused = {m.parameter_name: m.parameter.numel() for m in find_matrices(base.outline) if m.expert is not None}
    return sum(fused.values()) * base.dtype.itemsize


def choose(memory: Memory, limit: int | None, budget: int | None = None, card: int | None = None) -> Choice:
    """Decide whether the blocks stay on disk.

    Args:
        memory: Peak memory of the run.
        limit: Bytes a process may take; None for its share of what is free.
        budget: Bytes of host memory for activations; None for what the rest leaves.
        card: Bytes free on the GPUs that the model goes to; None where it runs on the CPU.

    Raises:
        ConfigError: Not even one block at a time fits, or all blocks are needed and do not fit.
    """
    name = "free memory" if limit is None else "max_memory"
    free = environment.free_memory() // ranks.on_this_machine() + environment.resident_memory()
    room = free if limit is None else limit
    whole = memory.resident(budget)
    said = f"{name}: {size(room)}"
    fits = whole <= room
    if card is not None and memory.resident(0) - environment.resident_memory() > card:
        said, fits = f"{said}, free on the GPU: {size(card)}", False
    if fits:
        return Choice(False, budget, f"the whole model in memory takes about {size(whole)} ({said})")
    if memory.scores:  # then all blocks are needed, but not all activations
        if budget is None and memory.resident(0) <= room:
            spare = room - memory.resident(0)
            return Choice(
                False, spare, f"the whole model in memory, activations beyond {size(spare)} in a scratch file ({said})"
            )
        raise ConfigError(
            f"scope 'model' compares the scores of all weights at once, which takes about "
            f"{size(memory.resident(budget or 0))}, got {said}: choose another scope, or give it more memory"
        )
    if memory.paired:
        raise ConfigError(
            "an encoder-decoder is pruned whole in memory and cannot be streamed from disk; that takes about "
            f"{size(whole)}, got {said}: give it more memory, or take shorter sequences"
        )
    least = memory.streamed(budget or 0)
    if least > room and limit is not None:
        raise ConfigError(
            f"max_memory must hold one block with all that is known of it, about {size(least)}, got {size(room)}: "
            "raise it, lower activation_budget, or take shorter sequences"
        )
    budget = max(room - least, 0) if budget is None else budget
    return Choice(
        True,
        budget,
        f"blocks come from disk one at a time, about {size(memory.streamed(budget))}; the whole model would take "
        f"about {size(whole)} ({said})",
    )
