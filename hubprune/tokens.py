"""A text as tokens, and how many bytes of it each token stands for, so that models with other vocabularies compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# Code points from which UTF-8 takes a byte more.
WIDER = (0x80, 0x800, 0x10000)


def tokenize(tokenizer: Any, text: str, *, special: bool) -> tuple[list[int], list[int] | None]:
    """Turn a text into tokens.

    Args:
        tokenizer: A tokenizer of transformers.
        text: The text.
        special: Whether the tokenizer puts in the special tokens that the model expects.

    Returns:
        Token ids, and the UTF-8 bytes that each stands for, 0 for special ones; they add up to those of the text. None
        where the tokenizer does not say where its tokens stand.
    """
    more = {"return_offsets_mapping": True} if getattr(tokenizer, "is_fast", False) else {}
    found = tokenizer(text, add_special_tokens=special, verbose=False, **more)
    return list(found["input_ids"]), _bytes(text, found["offset_mapping"]) if more else None


def _bytes(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Bytes from the end of one token to the end of the next; what is left at the end belongs to the last one."""
    if not spans:
        return []
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    widths = 1 + sum((points >= limit).astype(np.int64) for limit in WIDER)
    before = np.concatenate([[0], np.cumsum(widths)])
    ends = np.maximum.accumulate(np.array([end for _, end in spans]))
    sizes = np.diff(before[ends], prepend=0)
    standing = np.flatnonzero(sizes)
    if len(standing):
        sizes[standing[-1]] += before[-1] - before[ends[-1]]
    return [int(size) for size in sizes]
