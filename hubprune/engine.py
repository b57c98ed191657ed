"""What the engines share: a model that is frozen and in evaluation mode for as long as it is pruned.

There are two. ``replay.Replay`` runs the blocks of a decoder one at a time; ``whole.Whole`` runs an encoder-decoder
whole. What is decided about the weights does not know which of them runs. No other module registers hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

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

    @property
    def scale(self) -> float:
        """What gradients are multiplied by on their way, so that they do not vanish in half precision."""
        return 1.0

    def running(self, matrix: Matrix) -> torch.Tensor:
        """The parameter of a matrix, or the copy of it in a wider type that runs in its place."""
        return matrix.parameter

    def differentiate(
        self,
        run: Callable[[], torch.Tensor],
        matrices: Sequence[Matrix],
        traced: Sequence[Matrix],
        sink: GradientSink,
        *,
        gradient: torch.Tensor | None = None,
        leaf: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Run with gradients on, and show those of some matrices.

        Args:
            run: Gives the output that is differentiated.
            matrices: Matrices whose gradient is wanted.
            traced: Matrices whose inputs are wanted as well; passed over for fused experts.
            sink: Called with each matrix and its gradient ``(d_out, d_in)`` in float32, and for a traced one what
                flows into it and the gradient by that.
            gradient: Gradient of the loss at the output; None where that is the loss, a scalar.
            leaf: What the output is differentiated by as well.

        Returns:
            The gradient by ``leaf``; None without one.
        """
        parameters = {matrix.parameter_name: self.running(matrix) for matrix in matrices}
        inputs: dict[str, torch.Tensor] = {}

        def trace(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
            """Note an input; one that no gradient would reach is made a leaf."""
            inputs[name] = args[0] if args[0].requires_grad else args[0].detach().requires_grad_(True)
            return (inputs[name], *args[1:])

        handles = [
            matrix.module.register_forward_pre_hook(lambda _, args, name=matrix.name: trace(name, args))
            for matrix in traced
            if matrix.expert is None
        ]
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        try:
            with torch.enable_grad():
                output = run()
                wanted = [*([] if leaf is None else [leaf]), *parameters.values(), *inputs.values()]
                found = torch.autograd.grad(output, wanted, gradient, allow_unused=True)
        finally:
            for parameter in parameters.values():
                parameter.requires_grad_(False)
            for handle in handles:
                handle.remove()
        below = None if leaf is None else found[0]
        by_name = dict(zip([*parameters, *inputs], found[0 if leaf is None else 1 :], strict=True))
        for matrix in matrices:
            whole = by_name[matrix.parameter_name]  # None where nothing flowed
            part = torch.zeros_like(matrix.view()) if whole is None else matrix.part(whole)
            back, flow = by_name.get(matrix.name), None
            if back is not None:
                flow = inputs[matrix.name].detach().flatten(0, -2), self._unscaled(back).flatten(0, -2)
            sink(matrix, self._unscaled(part), flow)
        return below

    def _unscaled(self, value: torch.Tensor) -> torch.Tensor:
        return value.float() if self.scale == 1.0 else value.float() / self.scale

    def values(self, matrix: Matrix) -> torch.Tensor:
        """The weights of a matrix of the block that is held, ``(d_out, d_in)``, as they run."""
        return matrix.part(self.running(matrix).detach())
