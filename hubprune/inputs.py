"""What flows into the matrices of a block while it runs, also into those of fused experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hubprune.architecture import Matrix
from hubprune.errors import UnsupportedModelError

InputSink = Callable[[Sequence[Matrix], torch.Tensor], None]


class InputWatcher:
    """A forward pre-hook that tells a sink what flows into matrices.

    Projections that read the same tensor (query, key and value; gate and up) are reported together, so that their
    statistics are computed once. The tensor is held until another one arrives, so identity of the object means
    identity of the input.
    """

    def __init__(self, matrices: Sequence[Matrix], sink: InputSink) -> None:
        self.sink = sink
        self.by_module: dict[nn.Module, list[Matrix]] = {}
        for matrix in matrices:
            self.by_module.setdefault(matrix.module, []).append(matrix)
        self.held: torch.Tensor | None = None
        self.readers: list[Matrix] = []

    def modules(self) -> Iterable[nn.Module]:
        """The modules to hook."""
        return self.by_module

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Take note of a module's arguments."""
        matrices = self.by_module[module]
        if matrices[0].expert is not None:
            if len(args) < 2:
                raise UnsupportedModelError(f"the experts of {matrices[0].name} do not say which tokens they get")
            self._experts(module, matrices, args[0], args[1])
            return
        if args[0] is not self.held:
            self.flush()
            self.held = args[0]
        self.readers.extend(matrices)

    def flush(self) -> None:
        """Report the input that is held."""
        if self.held is not None:
            self.sink(tuple(self.readers), self.held.reshape(-1, self.held.shape[-1]))
        self.held, self.readers = None, []

    def _experts(self, module: nn.Module, matrices: list[Matrix], hidden: torch.Tensor, chosen: torch.Tensor) -> None:
        """Report the inputs of fused experts: routed tokens, and what the first projection makes of them."""
        self.flush()
        by_expert: dict[int, dict[str, Matrix]] = {}
        for matrix in matrices:
            by_expert.setdefault(int(matrix.expert or 0), {})[matrix.attribute] = matrix
        for expert, named in by_expert.items():
            tokens = hidden[(chosen == expert).any(dim=-1)]  # none at all for some experts
            first = [m for a, m in named.items() if a != "down_proj"]
            if first:
                self.sink(tuple(first), tokens)
            if "down_proj" in named:
                self.sink((named["down_proj"],), _expert_hidden(module, expert, tokens))


def _expert_hidden(module: Any, expert: int, tokens: torch.Tensor) -> torch.Tensor:
    """Compute what flows into one expert's down projection, ``(tokens, intermediate)``, as the module itself does."""
    gated = hasattr(module, "gate_up_proj")
    weight = (module.gate_up_proj if gated else module.up_proj)[expert]
    biases = getattr(module, "gate_up_proj_bias" if gated else "up_proj_bias", None)
    projected = F.linear(tokens, weight.T if getattr(module, "is_transposed", False) else weight)
    if biases is not None:
        projected = projected + biases[expert]
    return module._apply_gate(projected) if gated else module.act_fn(projected)
