"""The loop: block by block through the engine's two sweeps, deciding on the way.

Two strategies. What needs gradients, or all weights at once, is decided on the dense model: one forward sweep, one
backward sweep. Everything else goes through the blocks in order, so that each block is scored on inputs that come from
blocks already pruned (as Wanda and SparseGPT do). Repairing the remaining weights always runs in order.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from hubprune import ranks
from hubprune.activations import Activations, Kept
from hubprune.calibration import Corpus
from hubprune.choosing import BACKWARD, FORWARD, PRUNE, REPAIR, Chooser
from hubprune.engine import Engine
from hubprune.errors import OutputError
from hubprune.report import PruningReport
from hubprune.sweeps import Sinks, front_of
from hubprune.whole import sweeps_of
from hubprune.work import Journal


class Loop:
    """One pruning run: the state that the two sweeps share."""

    def __init__(
        self, replay: Engine, chooser: Chooser, corpora: Mapping[str, Corpus], batch_size: int, report: PruningReport
    ) -> None:
        self.replay, self.chooser, self.batch_size, self.report = replay, chooser, batch_size, report
        self.corpora = {name: corpus.share() for name, corpus in corpora.items()}
        self.blocks = len(replay.blocks)
        chooser.prepare(self.corpora)

    def start(self, journal: Journal, activations: Activations, progress: bool) -> None:
        """Take up the run where the journal says it was left."""
        self.journal = journal
        by_block = [self.chooser.matrices(index) for index in range(self.blocks)]
        self.sweeps: Any = sweeps_of(self.replay, by_block, activations)
        if not self.replay.resumes:
            journal.begin_again()
        quiet = not progress or ranks.rank() > 0
        self.bar = tqdm(desc="Pruning", unit="block", disable=quiet, delay=1, total=0)
        for stage in (BACKWARD, PRUNE, REPAIR):
            for note in journal.notes(stage):
                self.chooser.take_up(note)

    def __call__(self) -> None:
        """Prune every block and fill the report's rows."""
        chooser = self.chooser
        on_dense = chooser.gradients is not None or chooser.whole_model
        with self.bar, contextlib.closing(chooser):
            if on_dense:
                self._score_dense()
            if chooser.repairs or not on_dense:
                self._prune_in_order(REPAIR if on_dense else PRUNE)
        self.report.matrices, self.report.units = chooser.rows()
        self.report.warnings += chooser.warnings

    def _score_dense(self) -> None:
        """Decide on every block of the dense model; write at once where nothing has to wait.

        Gradients are those of the dense model, so that a run that goes on takes the dense blocks that are left once
        more forwards, and the gradient at the last of them from the journal.
        """
        left = self.blocks - len(self.journal.notes(BACKWARD))
        if left == 0:
            return
        if self.chooser.whole_model:  # all weights are compared at once, again
            left = self.blocks
        with_gradients = self._names([self.chooser.gradients] if self.chooser.gradients else [])
        singly = self._names({*with_gradients, *self.chooser.singly()})
        streams = self._open(self.chooser.corpora(scores=True), singly=singly)
        boundaries: dict[str, list[list[Kept]]] = {name: [] for name in with_gradients}

        def visit(index: int) -> None:
            self.chooser.seen(index)
            for name, kept in boundaries.items():
                kept.append(streams[name].front)
            self.bar.update()

        with self._stage(FORWARD, left):
            self.sweeps.forward(streams, range(left), self._watch(scores=True), visit)
        if with_gradients:
            self._backward({name: streams[name] for name in with_gradients}, boundaries, left)
        if self.chooser.whole_model:
            self.chooser.decide_on_all()
            if not self.chooser.repairs:
                for index in reversed(range(self.blocks - len(self.journal.notes(BACKWARD)))):
                    self._finish(BACKWARD, index, {})

    def _backward(self, streams: Mapping[str, Any], boundaries: dict[str, list[list[Kept]]], left: int) -> None:
        """Push the loss gradient down and decide on each block once its gradients are known."""

        def finish(index: int, front: Mapping[str, Kept]) -> None:
            self.chooser.decide(index)
            if self.chooser.whole_model:  # nothing is decided before the last block
                self.bar.update()
            else:
                self._finish(BACKWARD, index, front)

        with self._stage(BACKWARD, left):
            known = self._front(BACKWARD, left < self.blocks)
            losses: dict[str, list[float]] = {}
            for name, stream in streams.items():
                if known:
                    stream.front = [self.sweeps.activations.keep(each.clone()) for each in front_of(name, known)]
                else:
                    answers = self.corpora[name].answers if self.chooser.answers_only else ()
                    losses[name], stream.front = self.sweeps.loss_gradients(stream, answers)
            start = functools.partial(self.chooser.attribute, losses=losses)
            self.sweeps.backward(streams, boundaries, left, start, finish, self.chooser.traced)

    def _prune_in_order(self, stage: str) -> None:
        """Go through the blocks in order; each sees what the pruned blocks before it give."""
        done = len(self.journal.notes(stage))
        if done == self.blocks:
            return
        wanted = self.chooser.corpora(scores=stage == PRUNE)
        front = self._front(stage, done > 0 and bool(wanted))
        singly = self._names(self.chooser.singly()) if stage == PRUNE else ()
        streams = self._open(wanted, singly=singly, front=front)

        def visit(index: int) -> None:
            self.chooser.take_waiting(index, self.journal.masks(index, self.chooser.widths(index)))
            self.chooser.prune(index)

        with self._stage(stage, self.blocks - done):
            finish = functools.partial(self._finish, stage)
            watch = self._watch(scores=stage == PRUNE)
            self.sweeps.forward(streams, range(done, self.blocks), watch, visit, finish)

    def _front(self, stage: str, needed: bool) -> dict[str, torch.Tensor]:
        """Where the sequences have got to in a stage that is gone on with; empty at its beginning."""
        front = self.journal.front(stage)
        if needed and not front:
            raise OutputError(
                f"the unfinished run has lost what its sequences look like after its last block ({stage}): start over "
                "(--fresh, fresh=True)"
            )
        return front

    def _watch(self, *, scores: bool) -> Callable[[int], Mapping[str, Sinks]]:
        """Make a function that gathers new evidence for each block."""
        return lambda index: self.chooser.watch(index, tuple(self.corpora), scores=scores)

    def _finish(self, stage: str, index: int, front: Mapping[str, Kept]) -> None:
        """Write down that a block's turn is over, and with it its weights, or the choice among them."""
        note = self.chooser.note(index, stage)
        if stage == BACKWARD and self.chooser.repairs:
            self.journal.finish(stage, index, note, front=front, masks=self.chooser.waiting(index))
            if self.journal.lasting:
                self.chooser.forget_waiting(index)
        else:
            above = f"{self.replay.weights.names[index]}."
            state = ((above + name, value) for name, value in self.replay.blocks[index].state_dict().items())
            self.journal.finish(stage, index, note, front=front, weights=self.chooser.final(state))
        self.bar.update()

    def _names(self, corpora: Iterable[str]) -> tuple[str, ...]:
        """Corpora given that are meant, ``all`` standing for every one."""
        wanted = set(corpora)
        return tuple(name for name in self.corpora if name in wanted or "all" in wanted)

    def _open(
        self, corpora: Iterable[str], *, singly: Sequence[str], front: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, Any]:
        """Embed the corpora that are needed; those in ``singly`` one by one."""
        return {
            name: self.sweeps.read(
                self.corpora[name], 1 if name in singly else self.batch_size, front_of(name, front or {})
            )
            for name in self._names({*corpora, *singly})
        }

    @contextlib.contextmanager
    def _stage(self, name: str, steps: int) -> Iterator[None]:
        """Time a stage of the run and add its steps to the progress bar."""
        self.bar.total = (self.bar.total or 0) + steps
        self.bar.set_description(f"Pruning ({name})")
        started = time.perf_counter()
        yield
        self.report.timings[name] = round(time.perf_counter() - started, 3)
