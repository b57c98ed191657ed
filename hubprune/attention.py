"""What single dimensions of queries and keys do to attention, seen where a model calls its attention function.

Queries and keys are looked at after rotation and norms, as they meet. transformers calls attention through a table of
functions; for the time of one block an entry of our own stands there, which looks and then calls the usual one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PretrainedConfig

from hubprune.units import rotated_pairs

NAME = "hubprune_watched"


def change_without(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    pairs: torch.Tensor,
) -> torch.Tensor:
    """How far attention moves when dimensions are taken out of queries and keys.

    For dimensions ``k`` it is ``||softmax((Q K^T - q_k k_k^T) s) - softmax(Q K^T s)||_F`` over all query heads that
    use a key head, divided by the root of the tokens (Cus-Prun, arXiv:2506.02561). Where queries and keys are
    normalised head by head (Qwen 3, Gemma 3), the norm is taken as it is, though it would change a little.

    Args:
        query: ``(heads, T, width)``, rotated.
        key: ``(groups, T, width)``, rotated.
        mask: ``(T, T)`` or ``(1, T, T)``, boolean or added; None for causal attention.
        scaling: What scores are multiplied with.
        pairs: Dimensions that go together, ``(n, 1)`` or ``(n, 2)``.

    Returns:
        ``(groups * n,)``, the dimensions of one key head after those of another.
    """
    groups, length, _ = key.shape
    grouped = query.float().unflatten(0, (groups, -1))
    keys = key.float()[:, None]
    scores = grouped @ keys.transpose(-1, -2) * scaling
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask.float()
    dense = scores.softmax(dim=-1)
    found = []
    for pair in pairs.tolist():
        part = grouped[..., pair] @ keys[..., pair].transpose(-1, -2) * scaling
        moved = (scores - part).softmax(dim=-1) - dense
        found.append(moved.square().sum(dim=(1, 2, 3)).sqrt() / length**0.5)
    return torch.stack(found, dim=1).flatten()


class AttentionWatch:
    """Looks at the queries and keys of the block that is run, one sequence at a time.

    Args:
        config: The model's config; between ``start`` and ``stop`` it names our entry in the table of functions.

    Attributes:
        latest: What was seen last, ``(groups * n,)``; None before.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config.get_text_config()
        self.pairs = rotated_pairs(self.config)
        self.latest: torch.Tensor | None = None
        self._usual: str | None = None

    def start(self) -> None:
        """Begin to look."""
        self._usual = self.config._attn_implementation
        AttentionInterface.register(NAME, self._watch)
        self.config._attn_implementation = NAME

    def stop(self) -> None:
        """Put the usual function back."""
        if self._usual is not None:
            self.config._attn_implementation, self._usual = self._usual, None

    def _watch(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **keywords: Any,
    ) -> Any:
        scaling = keywords.get("scaling") or query.shape[-1] ** -0.5
        mask = None if attention_mask is None else attention_mask[0][..., : key.shape[2]]
        self.latest = change_without(query[0], key[0], mask, scaling, self.pairs)
        return self._function(module)(module, query, key, value, attention_mask, **keywords)

    def _function(self, module: nn.Module) -> Callable[..., Any]:
        """What would be called if nobody looked."""
        own = sys.modules[type(module).__module__]
        if self._usual in (None, "eager"):
            return own.eager_attention_forward
        return AttentionInterface()[self._usual]
