"""The dense base as a teacher: run once before the training, block by block, and asked for logits during it.

What is kept of a sequence is its state behind the last block; from there to the logits it is the final norm and the
head. So the blocks may stay on disk, each is brought in once, and no sequence goes through them twice, however many
epochs the training has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import PreTrainedModel

from hubprune.activations import Activations, Kept
from hubprune.replay import Replay
from hubprune.sweeps import Sweeps
from hubprune.weights import Weights


class DenseTeacher(Replay):
    """Knows the logits of the dense base. A context manager, as the engine that it is.

    Args:
        model: The dense base, in memory or with its blocks on disk.
        sequences: The training sequences, each ``(T,)``.
        activations: Where their states are put away.
        progress: Whether to show a progress bar.
    """

    def __init__(
        self,
        model: PreTrainedModel | Weights,
        sequences: Sequence[torch.Tensor],
        activations: Activations,
        progress: bool = True,
    ) -> None:
        super().__init__(model)
        self.sequences, self.activations, self.progress = sequences, activations, progress
        self.states: list[Kept] = []

    def __enter__(self) -> DenseTeacher:
        super().__enter__()
        sweeps = Sweeps(self, [[] for _ in self.blocks], self.activations)
        bar = tqdm(desc="Asking the dense base", unit="block", disable=not self.progress, delay=2, leave=False)
        bar.total = len(self.blocks)
        with bar:

            def visit(_: int) -> None:
                bar.update()

            stream = sweeps.open(sequence[None] for sequence in self.sequences)
            sweeps.forward({"text": stream}, range(len(self.blocks)), lambda _: {}, visit)
        self.states = stream.front
        self._calls.clear()
        return self

    def logits(self, positions: Sequence[int], token_ids: torch.Tensor) -> torch.Tensor:
        """Logits of some sequences; see ``training.Teacher``."""
        width = token_ids.shape[1]
        rows = [self.states[position].tensor()[0] for position in positions]
        behind = torch.stack([F.pad(row, (0, 0, 0, width - len(row))) for row in rows]).to(self.model.device)
        with torch.no_grad(), self._recorders(answer=behind):
            return self._call(self.model, input_ids=token_ids.to(self.model.device), use_cache=False).logits
