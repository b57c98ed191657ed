"""What stands in for the blocks while the model around them runs, and what it takes note of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Call:
    """The arguments of one block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Sequences of one length.

    Attributes:
        token_ids: ``(b, T)``.
        calls: The arguments of each block.
    """

    token_ids: torch.Tensor
    calls: list[Call]


class Seen(Exception):
    """Ends a forward of the model once the first block has answered."""


class Recorder(nn.Module):
    """Stands in for a block: notes what it is called with and hands hidden states on."""

    def __init__(self, block: nn.Module, as_tuple: bool, answer: torch.Tensor | None = None) -> None:
        super().__init__()
        # Kept out of the module tree: attributes pass through, weights do not.
        object.__setattr__(self, "block", block)
        self.as_tuple = as_tuple
        self.answer = answer
        self.hidden: torch.Tensor | None = None
        self.call: Call | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Note the arguments, and answer in the block's own form."""
        hidden = args[0] if args else kwargs.pop("hidden_states")
        self.hidden, self.call = hidden, Call(args[1:], kwargs)
        handed_on = hidden if self.answer is None else self.answer
        return (handed_on,) if self.as_tuple else handed_on


def same(left: Any, right: Any) -> bool:
    """Compare arguments of two calls, tensors by value."""
    if left is right:
        return True
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape and left.dtype == right.dtype and bool(torch.equal(left, right))
    if isinstance(left, tuple | list) and isinstance(right, tuple | list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    return type(left) is type(right) and not isinstance(left, torch.Tensor) and bool(left == right)
