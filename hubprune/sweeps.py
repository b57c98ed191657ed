"""The two sweeps over the blocks: forwards with the inputs of every matrix, backwards with their gradients.

Each block is held in memory for its turn; what all sequences look like between two turns is put away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from hubprune.activations import Activations, Kept, on_device
from hubprune.architecture import Matrix
from hubprune.calibration import Corpus
from hubprune.engine import GradientSink
from hubprune.inputs import InputSink
from hubprune.recording import Batch
from hubprune.replay import Replay

Sinks = Sequence[InputSink]
Finish = Callable[[int, Mapping[str, Kept]], None]


@dataclass
class Stream:
    """The sequences of one corpus on their way through the blocks.

    Attributes:
        batches: The sequences.
        front: For each batch, the input of the block whose turn it is, or the gradient at its output, ``(b, T, d)``.
    """

    batches: list[Batch]
    front: list[Kept]


Streams = Mapping[str, Stream]


class Sweeps:
    """Runs sweeps over the blocks of one model.

    Args:
        replay: The engine, entered.
        by_block: The matrices of each block that are watched.
        activations: Where activations are put away.
    """

    def __init__(self, replay: Replay, by_block: Sequence[Sequence[Matrix]], activations: Activations) -> None:
        self.replay, self.by_block, self.activations = replay, by_block, activations
        self.model: Any = replay.model

    def read(self, corpus: Corpus, size: int, front: Sequence[torch.Tensor] = ()) -> Stream:
        """Embed a corpus, at most ``size`` of its sequences at a time; otherwise as ``open``."""
        return self.open(corpus.batches(size), front)

    def open(self, batches: Iterable[torch.Tensor], front: Sequence[torch.Tensor] = ()) -> Stream:
        """Embed sequences.

        Args:
            batches: Token ids, each ``(b, T)``.
            front: Where they have got to already, one tensor ``(b, T, d)`` for each batch; empty for the beginning.
        """
        stream = Stream([], [])
        for position, token_ids in enumerate(batches):
            batch, hidden = self.replay.open(token_ids)
            stream.batches.append(batch)
            # Copied, as a tensor in a file may lie at an address at which sums are taken in another order.
            stream.front.append(self.activations.keep(front[position].clone() if front else hidden))
        return stream

    def forward(
        self,
        streams: Streams,
        blocks: range,
        watch: Callable[[int], Mapping[str, Sinks]],
        visit: Callable[[int], None],
        finish: Finish | None = None,
    ) -> None:
        """Run blocks in order and show each one's inputs.

        Args:
            streams: Sequences of each corpus, at the input of the first block; none for a criterion without data.
            blocks: The blocks.
            watch: Called with a block before its turn; the sinks that its inputs from each corpus go to.
            visit: Called with a block once its inputs were seen, while the streams are still in front of it.
            finish: Called with a block and all fronts behind it, for a sweep that changes the blocks: their outputs
                are computed again after ``visit``.
        """
        for index in blocks:
            following = index + 1 if index + 1 < blocks.stop else None
            with self.replay.block(index, following):
                sinks = watch(index)
                outputs: dict[str, list[Kept]] = {}
                for name, stream in streams.items():
                    watched = sinks.get(name, ())
                    if finish is None:
                        outputs[name] = [self.activations.keep(output) for output in self._run(index, stream, watched)]
                    elif watched:
                        for _ in self._run(index, stream, watched):
                            pass
                visit(index)
                if finish is None:
                    for name, stream in streams.items():
                        stream.front = outputs[name]
                    continue
                ended = index + 1 == len(self.by_block)
                self.replay.refresh(index)
                for stream in streams.values() if not ended else ():
                    for position, output in enumerate(self._run(index, stream, ())):
                        stream.front[position] = self.activations.keep(output)
                finish(index, {} if ended else named_fronts(streams))

    def _run(self, index: int, stream: Stream, sinks: Sinks) -> Iterator[torch.Tensor]:
        """Run one block on all batches of a corpus, showing its inputs to the sinks; yield its outputs."""

        def sink(matrices: Sequence[Matrix], inputs: torch.Tensor) -> None:
            for receive in sinks:
                receive(matrices, inputs)

        with self.replay.inputs(index, self.by_block[index], sink) if sinks else nullcontext():
            for batch, hidden in zip(stream.batches, self._here(index, stream.front), strict=True):
                yield self.replay.forward(index, batch.calls[index], hidden)

    def next_logits(self, questions: Sequence[torch.Tensor], answers: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """What the model says comes next, one block at a time for all texts, each ``(vocabulary,)``.

        Args:
            questions: Token ids, each ``(T,)``.
            answers: What stands behind each of them by now.
        """
        texts = (
            torch.cat([ids, torch.tensor(behind, dtype=ids.dtype)])
            for ids, behind in zip(questions, answers, strict=True)
        )
        stream = self.open(ids[None] for ids in texts)
        self.forward({"text": stream}, range(len(self.by_block)), lambda _: {}, lambda _: None)
        last = self._here(len(self.by_block) - 1, stream.front)
        with self.replay.head():
            found = [
                self.replay.next_logits(batch, hidden)[0] for batch, hidden in zip(stream.batches, last, strict=True)
            ]
        self.replay.forget_calls()
        return found

    def loss_gradients(self, stream: Stream, answers: Sequence[int] = ()) -> tuple[list[float], list[Kept]]:
        """Each sequence's loss and its gradient at the last boundary, where the stream is.

        Args:
            stream: The sequences.
            answers: Where the answer begins in each, for a loss that counts answers only.
        """
        boundaries = self._here(len(self.by_block) - 1, stream.front)
        starts = answers or [0] * len(stream.batches)
        losses, found = [], []
        with self.replay.head():
            for batch, start, boundary in zip(stream.batches, starts, boundaries, strict=True):
                loss, gradient = self.replay.loss_gradient(batch, boundary, start)
                losses.append(loss)
                found.append(self.activations.keep(gradient))
        return losses, found

    def backward(
        self,
        streams: Streams,
        boundaries: Mapping[str, list[list[Kept]]],
        blocks: int,
        start: Callable[[int], GradientSink],
        finish: Finish,
        traced: Callable[[int], Sequence[Matrix]] = lambda _: (),
    ) -> None:
        """Push gradients down through the first blocks.

        Args:
            streams: Sequences one by one, with the gradient at the output of the last of these blocks.
            boundaries: For each corpus and block, its inputs; used up.
            blocks: How many blocks are to go.
            start: Called with a block before its turn; the sink that its gradients go to.
            finish: Called with a block and all gradients below it, once its gradients are known.
            traced: Called with a block; the matrices whose inputs the sink gets to see as well.
        """
        for index in reversed(range(blocks)):
            with self.replay.block(index, index - 1 if index else None):
                sink, watched = start(index), traced(index)
                for name, stream in streams.items():
                    inputs = self._here(index, boundaries[name].pop())
                    gradients = self._here(index, stream.front)
                    for position, (boundary, gradient) in enumerate(zip(inputs, gradients, strict=True)):
                        call = stream.batches[position].calls[index]
                        wanted = self.by_block[index]
                        below = self.replay.backward(index, call, boundary, gradient, wanted, sink, watched)
                        stream.front[position] = self.activations.keep(below)
                finish(index, named_fronts(streams) if index else {})

    def _here(self, index: int, kept: Sequence[Kept]) -> Iterator[torch.Tensor]:
        return on_device(kept, self.replay.weights.device(index))


def named_fronts(streams: Streams) -> dict[str, Kept]:
    """Give every tensor of all fronts a name of its own: ``corpus.position``."""
    return {f"{name}.{place}": kept for name, stream in streams.items() for place, kept in enumerate(stream.front)}


def front_of(name: str, named: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """A corpus' part of what ``named_fronts`` gave, in order."""
    count = sum(key.rpartition(".")[0] == name for key in named)
    return [named[f"{name}.{place}"] for place in range(count)]
