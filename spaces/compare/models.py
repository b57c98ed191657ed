"""The two models: loaded where they fit, one of them or none where they do not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from facts import SPACE, VARIANTS
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

LOADERS = {"AutoModelForCausalLM": AutoModelForCausalLM, "AutoModelForSeq2SeqLM": AutoModelForSeq2SeqLM}
SHARE_OF_MEMORY = 0.8  # for the weights; the rest is for everything else
ZERO_GPU_BYTES = 40 * 2**30  # of one ZeroGPU slice, which cannot be asked before a GPU is there
FLOAT32_BYTES = 4


@dataclass
class Side:
    """One of the two models.

    Attributes:
        variant: ``base`` or ``pruned``.
        model: The model; None where it is not loaded.
        why: Why it is not loaded.
    """

    variant: str
    model: Any = None
    why: str = ""


def on_zero_gpu() -> bool:
    """Whether a GPU is lent for each answer."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


def memory_bytes() -> int:
    """Memory that the models may take together."""
    if os.environ.get("MEMORY_GIB"):
        return int(float(os.environ["MEMORY_GIB"]) * 2**30)
    if on_zero_gpu():
        return ZERO_GPU_BYTES
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(limit).read_text(encoding="utf-8").strip() if Path(limit).is_file() else ""
        sizes += [int(text)] if text.isdigit() else []
    return min(sizes)


def gigabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def place(variant: str) -> tuple[str, str | None]:
    """Where a model is loaded from: a repository and its commit, or a folder."""
    if variant == "pruned" and os.environ.get("PRUNED_MODEL"):
        return os.environ["PRUNED_MODEL"], None
    return SPACE[variant]["repo"], SPACE[variant]["revision"]


def load_side(variant: str, taken: int, room: int, device: str) -> Side:
    """Load a model, unless it does not fit.

    Args:
        variant: ``base`` or ``pruned``.
        taken: Bytes that are kept for the other one.
        room: Bytes for both.
        device: Where it goes.
    """
    facts = SPACE[variant]
    repo, revision = place(variant)
    if not repo:
        return Side(variant, why="it is in no repository that could be loaded")
    # Processors are slow in half precision; where there is room, weights are widened.
    wide = device == "cpu" and taken + facts["parameters"] * FLOAT32_BYTES <= room
    needed = facts["parameters"] * (FLOAT32_BYTES if wide else facts["item_bytes"])
    if taken + needed > room:
        return Side(variant, why=f"it takes {gigabytes(needed)}, and {gigabytes(max(0, room - taken))} are free here")
    try:
        model = LOADERS[SPACE["loader"]].from_pretrained(
            repo,
            revision=revision,
            dtype=torch.float32 if wide else "auto",
            trust_remote_code=SPACE["trust_remote_code"],
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"{repo} cannot be loaded: {error}")
        return Side(variant, why=f"it cannot be loaded ({reason})")
    return Side(variant, model.to(device).eval())


def load() -> tuple[dict[str, Side], Any]:
    """Load both models and the tokenizer; the pruned model comes first where there is room for one only."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    room = int(SHARE_OF_MEMORY * memory_bytes())
    both = {name: SPACE[name]["parameters"] * FLOAT32_BYTES for name in VARIANTS}
    fits = sum(both.values()) <= room
    pruned = load_side("pruned", both["base"] if fits else 0, room, device)
    used = 0 if pruned.model is None else sum(p.numel() * p.element_size() for p in pruned.model.parameters())
    base = load_side("base", used, room, device)
    for side in (base, pruned):
        if side.model is not None and not on_zero_gpu():
            start = torch.tensor([[0]], device=device)
            side.model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=2, pad_token_id=0)
    return {"base": base, "pruned": pruned}, load_tokenizer()


def load_tokenizer() -> Any:
    """Load the tokenizer of the pruned model, which is the base's."""
    for variant in reversed(VARIANTS):
        repo, revision = place(variant)
        if repo:
            try:
                return AutoTokenizer.from_pretrained(
                    repo, revision=revision, trust_remote_code=SPACE["trust_remote_code"]
                )
            except (OSError, ValueError) as error:
                print(f"{repo} has no tokenizer that can be loaded: {error}")
    return None


SIDES, TOKENIZER = load()
