"""What the engines share: a model that is frozen and in evaluation mode for as long as it is pruned.

There are two. ``replay.Replay`` runs the blocks of a decoder one at a time; ``whole.Whole`` runs an encoder-decoder
whole. What is decided about the weights does not know which of them runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

import torch
from torch import nn
from transformers import PreTrainedModel

from hubprune.architecture import Matrix, evaluation_mode
from hubprune.weights import Weights, weights_of

# What flows into a matrix, and the gradient of the loss by it, each (tokens, d_in).
Flow = tuple[torch.Tensor, torch.Tensor]
GradientSink = Callable[[Matrix, torch.Tensor, Flow | None], None]


class Engine:
    """Runs a model. A context manager: inside, the model is in evaluation mode, and frozen.

    Args:
        model: The model, or its weights.
        dtype: Type that the arithmetic runs in; None for the model's own, or float32 for half precision on a CPU.

    Attributes:
        weights: Where the weights are.
        resumes: Whether a run can go on behind the blocks that are finished.

    Raises:
        UnsupportedModelError: The model has no blocks.
    """

    resumes = True

    def __init__(self, model: PreTrainedModel | Weights, dtype: torch.dtype | None = None) -> None:
        self.weights = weights_of(model)
        self.model = self.weights.model
        self.blocks = self.weights.blocks
        on_cpu = self.weights.device(0).type == "cpu"
        self.dtype = dtype or (torch.float32 if on_cpu and self.model.dtype.itemsize == 2 else self.model.dtype)
        self._restore: list[tuple[nn.Parameter, bool, torch.Tensor | None]] = []
        self._mode = ExitStack()

    def __enter__(self) -> Self:
        self._restore = [(p, p.requires_grad, p.grad) for p in self.model.parameters()]
        self._mode.enter_context(evaluation_mode(self.model))
        self.model.requires_grad_(False)
        self.model.zero_grad(set_to_none=True)
        return self

    def __exit__(self, *_: object) -> None:
        for parameter, required, gradient in self._restore:
            parameter.requires_grad_(required)
            parameter.grad = gradient
        self._mode.close()

    def running(self, matrix: Matrix) -> torch.Tensor:
        """The parameter of a matrix, or the copy of it in a wider type that runs in its place."""
        return matrix.parameter

    def values(self, matrix: Matrix) -> torch.Tensor:
        """The weights of a matrix of the block that is held, ``(d_out, d_in)``, as they run."""
        return matrix.part(self.running(matrix).detach())
