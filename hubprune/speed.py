"""How fast models run, side by side: in turns, warm, medians.

The models take turns in every round, in one order and then in the other, so that whatever else the machine does meets
all of them. Prefill reads a prompt in one go; decode writes one token at a time, of one sequence, with a cache: the
likeliest each time, and none ends it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from tqdm import tqdm

from hubprune.answers import greedy
from hubprune.architecture import evaluation_mode, max_length, reading
from hubprune.errors import ConfigError
from hubprune.outcomes import SizeFacts, SpeedFacts

PROMPT_TOKENS = 256
NEW_TOKENS = 32
ROUNDS = 7
WARM_ROUNDS = 2
# Tokens that a decoding model has read before the clock starts.
SHORT_PROMPT = 8


def measure_speed(
    models: Mapping[str, Any],
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    rounds: int = ROUNDS,
    progress: bool = True,
) -> list[SpeedFacts]:
    """Time prefill and decoding of some models in one run; the models are left as they were.

    Args:
        models: Causal language models by the name of the row; all in memory at once.
        prompt_tokens: Tokens that prefill reads, at most the limit of each model.
        new_tokens: Tokens that decoding writes, likewise.
        rounds: Rounds that are timed, after two that are not.
        progress: Whether to show a progress bar, once it takes more than two seconds.

    Raises:
        ConfigError: A number is below 1.
    """
    asked = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds}
    small = [f"{name} must be at least 1, got {value}" for name, value in asked.items() if value < 1]
    if small:
        raise ConfigError(small)
    limit = min(max_length(model.config) or prompt_tokens + new_tokens for model in models.values())
    prompt_tokens, new_tokens = min(prompt_tokens, limit), max(1, min(new_tokens, limit - SHORT_PROMPT))
    vocabulary = min(model.get_input_embeddings().weight.shape[0] for model in models.values())
    ids = torch.randint(vocabulary, (1, prompt_tokens), generator=torch.Generator().manual_seed(0))
    reads: dict[str, list[float]] = {name: [] for name in models}
    writes: dict[str, list[float]] = {name: [] for name in models}
    bar = tqdm(range(rounds + WARM_ROUNDS), desc="Speed", unit="round", disable=not progress, delay=2, leave=False)
    with bar, torch.no_grad():
        for turn in bar:
            for name, model in list(models.items())[:: 1 if turn % 2 else -1]:
                with evaluation_mode(model):
                    read = prompt_tokens / _seconds(model, lambda: model(**reading(model, ids.to(model.device))))  # noqa: B023
                    written = new_tokens / _seconds(model, lambda: greedy(model, ids[:, :SHORT_PROMPT], new_tokens))  # noqa: B023
                if turn >= WARM_ROUNDS:
                    reads[name].append(read)
                    writes[name].append(written)
    return [
        SpeedFacts(
            variant=name,
            prefill=statistics.median(reads[name]),
            decode=statistics.median(writes[name]),
            prefill_spread=(min(reads[name]), max(reads[name])),
            decode_spread=(min(writes[name]), max(writes[name])),
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            rounds=rounds,
            threads=torch.get_num_threads(),
            device=_device(model),
            dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        )
        for name, model in models.items()
    ]


def _seconds(model: Any, work: Any) -> float:
    _wait(model)
    started = time.perf_counter()
    work()
    _wait(model)
    return time.perf_counter() - started


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _device(model: Any) -> str:
    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device.type)


def what_zeros_do(sizes: Mapping[str, SizeFacts], base: str = "base") -> list[str]:
    """What the sizes say about speed, in sentences.

    Args:
        sizes: Sizes by the name of the model.
        base: Name of the base.
    """
    said = []
    dense = sizes.get(base)
    for name, found in sizes.items():
        if name == base or found.nonzeros == found.parameters:
            continue
        if dense is None or found.parameters == dense.parameters:
            said.append(
                f"the {name} model has as many parameters as the base, {found.nonzeros / found.parameters:.1%} of "
                "them not zero: common runtimes multiply zeros like any other number, so it does not run faster in "
                "them, and differences in the measured speed are noise"
            )
    return said
