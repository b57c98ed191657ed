"""Layer-wise reconstruction: the weights left in each block, fitted to what the dense block gives.

Two streams of the same text go through the blocks side by side, one through the dense base and one through the pruned
model as far as it is fitted. At each block the pruned matrices are moved by Adam until the block gives, on the pruned
model's inputs, what the dense block gives on the dense model's. Weights that are zero stay zero: what would change
them is left out of every step. No labels, no pass through the whole model, and one block of each model in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.func import functional_call
from tqdm import tqdm

from hubprune import apply
from hubprune.activations import Activations, Kept
from hubprune.architecture import Matrix
from hubprune.errors import NumericalError, OutputError
from hubprune.outcomes import LossPoint
from hubprune.recovery_config import RecoveryConfig
from hubprune.replay import Call, Replay
from hubprune.sweeps import Stream, Sweeps, front_of, named_fronts
from hubprune.weights import Weights
from hubprune.work import Journal
from hubprune.zeros import Zeros

STAGE = "reconstruct"
DENSE, PRUNED = "dense", "pruned"
# An output whose mean square is below this says nothing to fit to.
SMALLEST = 1e-12


class Fitting(Replay):
    """The engine, with blocks that run on other values of their weights, with gradients."""

    def run_on(self, index: int, call: Call, hidden: torch.Tensor, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run one block.

        Args:
            index: The block.
            call: Its arguments.
            hidden: Its input, ``(b, T, d)``.
            values: Weights to run on, by their names inside the block; the others are the model's own.

        Returns:
            Its output, ``(b, T, d)``.
        """
        output: Any = functional_call(
            self.blocks[index], {**self._copies, **values}, (hidden, *call.args), call.kwargs
        )
        return output[0] if isinstance(output, tuple) else output


class Reconstruction:
    """One reconstruction.

    Args:
        pruned: The pruned model's engine, entered.
        dense: The dense base's, entered.
        matrices: The matrices to fit.
        config: How, with its defaults filled in.
        zeros: Notes zeros before, and checks them after.
        journal: Where finished blocks are written down.
    """

    def __init__(
        self,
        pruned: Fitting,
        dense: Replay,
        matrices: Sequence[Matrix],
        config: RecoveryConfig,
        zeros: Zeros,
        journal: Journal,
    ) -> None:
        self.pruned, self.dense, self.config, self.zeros, self.journal = pruned, dense, config, zeros, journal
        self.by_block: list[list[Matrix]] = [[] for _ in pruned.blocks]
        for matrix in matrices:
            self.by_block[matrix.block].append(matrix)
        self.curve = [LossPoint(**note["point"]) for note in journal.notes(STAGE)]
        self.zero_counts: dict[str, int] = {}
        for note in journal.notes(STAGE):
            self.zero_counts |= note["zeros"]
            zeros.kept += note["kept"]
            zeros.groups += note["groups"]
        self.bar = tqdm(disable=True)

    def run(self, batches: Sequence[torch.Tensor], activations: Activations, progress: bool) -> None:
        """Fit every block that is not fitted yet.

        Args:
            batches: Token ids, each ``(b, T)``.
            activations: Where the streams are put away.
            progress: Whether to show a progress bar.

        Raises:
            NumericalError: A weight or an output is NaN or infinite.
            VerificationError: A zero is no zero any more.
            OutputError: The unfinished run has lost its streams.
        """
        done, count = len(self.journal.notes(STAGE)), len(self.by_block)
        if done == count:
            return
        known = self.journal.front(STAGE)
        if done and not known:
            raise OutputError(
                "the unfinished recovery has lost what its sequences look like after its last block: start over "
                "(--fresh, fresh=True)"
            )
        sweeps = Sweeps(self.pruned, self.by_block, activations)
        self.beside = Sweeps(self.dense, [[] for _ in self.by_block], activations)
        streams = {PRUNED: sweeps.open(batches, front_of(PRUNED, known))}
        self.aim = self.beside.open(batches, front_of(DENSE, known))
        steps = (count - done) * (self.config.steps or 0)
        self.bar = tqdm(desc="Reconstructing", unit="step", total=steps, disable=not progress, delay=2, leave=False)
        with self.bar:
            sweeps.forward(
                streams,
                range(done, count),
                lambda _: {},
                lambda index: self._fit(index, streams[PRUNED]),
                self._finish,
            )

    def _fit(self, index: int, stream: Stream) -> None:
        """Move the dense stream past a block, and fit the pruned block to it."""
        self.beside.forward({DENSE: self.aim}, range(index, index + 1), lambda _: {}, lambda _: None)
        matrices = self.by_block[index]
        before = self.zeros.kept, self.zeros.groups
        point = LossPoint(index)
        self.zeros.note(matrices)
        if matrices:
            point.training, point.held_out = self._descend(index, stream, matrices)
        self.zeros.check(matrices)
        self.kept = self.zeros.kept - before[0], self.zeros.groups - before[1]
        self.curve.append(point)

    def _descend(self, index: int, stream: Stream, matrices: Sequence[Matrix]) -> tuple[float, float]:
        """Fit a block; return its error before and after, as a fraction of the output's mean square."""
        assert self.config.steps is not None
        assert self.config.learning_rate is not None
        inside = f"{self.pruned.weights.names[index]}."
        owners = {matrix.parameter_name.removeprefix(inside): matrix for matrix in matrices}
        values = {name: owner.parameter.detach().float().clone() for name, owner in owners.items()}
        frozen = {name: torch.ones_like(value, dtype=torch.bool) for name, value in values.items()}
        for matrix in matrices:  # experts that were not pruned stay as they are
            matrix.part(frozen[matrix.parameter_name.removeprefix(inside)]).logical_and_(self.zeros.mask(matrix))
        leaves = {name: value.requires_grad_(True) for name, value in values.items()}
        size = self._mean_square(index)
        started = self._error(index, stream, leaves) / size
        adam = torch.optim.Adam(leaves.values(), lr=self.config.learning_rate)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.config.steps)
        order = torch.Generator().manual_seed(self.config.seed + index)
        places: list[int] = []
        for _ in range(self.config.steps):
            places = places or torch.randperm(len(stream.front), generator=order).tolist()
            loss = self._difference(index, stream, places.pop(), leaves) / size
            adam.zero_grad()
            loss.backward()
            for name, leaf in leaves.items():
                if leaf.grad is not None:  # None where nothing flowed
                    leaf.grad = leaf.grad.masked_fill(frozen[name], 0)
            adam.step()
            fall.step()
            self.bar.update()
        ended = self._error(index, stream, leaves) / size
        if not math.isfinite(ended):
            raise NumericalError(
                f"the error of {inside[:-1]} must be finite, and it is {ended} after fitting with a learning rate of "
                f"{self.config.learning_rate}: lower it"
            )
        if ended > started:  # the fit did not help on the whole of the text
            return started, started
        for name, owner in owners.items():
            apply.copy(owner.parameter.detach(), leaves[name].detach().to(owner.parameter.dtype))
        return started, ended

    def _difference(self, index: int, stream: Stream, place: int, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        device = self.pruned.weights.device(index)
        hidden, aim = stream.front[place].tensor().to(device), self.aim.front[place].tensor().to(device)
        dtype = self.pruned.dtype
        runs = {name: value.to(dtype) for name, value in values.items()}
        output = self.pruned.run_on(index, stream.batches[place].calls[index], hidden, runs)
        return (output.float() - aim.float()).square().mean()

    def _error(self, index: int, stream: Stream, values: Mapping[str, torch.Tensor]) -> float:
        with torch.no_grad():
            found = [float(self._difference(index, stream, place, values)) for place in range(len(stream.front))]
        return sum(found) / len(found)

    def _mean_square(self, index: int) -> float:
        found = [float(kept.tensor().float().square().mean()) for kept in self.aim.front]
        return max(sum(found) / len(found), SMALLEST)

    def _finish(self, index: int, front: Mapping[str, Kept]) -> None:
        """Write down that a block is fitted."""
        above = f"{self.pruned.weights.names[index]}."
        state = ((above + name, value) for name, value in self.pruned.blocks[index].state_dict().items())
        counts = {matrix.name: int((matrix.view() == 0).sum()) for matrix in self.by_block[index]}
        self.zero_counts |= counts
        point = self.curve[-1]
        note = {"point": vars(point), "zeros": counts, "kept": self.kept[0], "groups": self.kept[1]}
        both = {**front, **named_fronts({DENSE: self.aim})} if front else {}
        self.journal.finish(STAGE, index, note, front=both, weights=state)


def reconstruct(
    pruned: Weights,
    dense: Weights,
    matrices: Sequence[Matrix],
    batches: Sequence[torch.Tensor],
    config: RecoveryConfig,
    zeros: Zeros,
    *,
    journal: Journal | None = None,
    activations: Activations | None = None,
    progress: bool = True,
) -> Reconstruction:
    """Fit the matrices of a pruned model, block by block.

    Args:
        pruned: The pruned model; its matrices are written to, or go to the journal where its blocks are on disk.
        dense: The base that it was pruned from.
        matrices: The matrices to fit.
        batches: Token ids, each ``(b, T)``.
        config: How, with its defaults filled in.
        zeros: Notes the zeros, and checks them.
        journal: Where finished blocks are written down; None for nowhere.
        activations: Where the streams are put away; None for host memory.
        progress: Whether to show a progress bar.
    """
    fitting = Fitting(pruned)
    with fitting, Replay(dense) as beside:
        run = Reconstruction(fitting, beside, matrices, config, zeros, journal or Journal())
        run.run(batches, activations or Activations(), progress)
    return run
