"""The engine of encoder-decoders: the model is run whole, with recorders on the matrices that are looked at.

An encoder-decoder has two stacks of blocks, and each block of the second reads what the first one gives; it is small
beside decoder language models, and stays in memory. So a sweep forwards runs the model up to the block whose turn it
is, once for each block; a sweep backwards is one backward pass of the whole model for each example, which shows the
gradients of all blocks at once. An example is a question, which the encoder reads, and its answer, which the decoder
is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from hubprune.activations import Activations, Kept
from hubprune.architecture import Matrix, is_paired
from hubprune.calibration import Corpus
from hubprune.engine import Engine, Flow, GradientSink
from hubprune.errors import NumericalError, UsageError
from hubprune.inputs import InputSink, InputWatcher
from hubprune.recording import Seen
from hubprune.replay import Replay
from hubprune.sweeps import Finish, Sinks, Sweeps
from hubprune.weights import Weights


@dataclass(frozen=True)
class Pair:
    """One example.

    Attributes:
        question: Token ids that the encoder reads, ``(1, T)``.
        answer: Token ids that the decoder is asked for, ``(1, A)``.
    """

    question: torch.Tensor
    answer: torch.Tensor


@dataclass
class PairStream:
    """The examples of one corpus.

    Attributes:
        batches: The examples.
        front: Empty: nothing is kept of them between two blocks.
        summed: Whether the loss is the sum over the tokens of the answer, not the mean.
    """

    batches: list[Pair]
    front: list[Kept] = field(default_factory=list)
    summed: bool = False


class Whole(Engine):
    """Runs an encoder-decoder.

    Args:
        model: The model, in memory.
        dtype: See ``Engine``.

    Raises:
        UsageError: The blocks are on disk.
        UnsupportedModelError: The model has no blocks.
    """

    resumes = False

    def __init__(self, model: PreTrainedModel | Weights, dtype: torch.dtype | None = None) -> None:
        super().__init__(model, dtype)
        if self.weights.streamed:
            raise UsageError(
                "an encoder-decoder is pruned whole in memory, and blocks of this one are on disk: load it without "
                "disk offload (device_map=), or give it more memory (max_memory)"
            )
        self._copies: dict[str, torch.Tensor] = {}
        for index in (None, *range(len(self.blocks))):
            self.refresh(index)

    def refresh(self, index: int | None) -> None:
        """Take over what was written to the weights of a block, or None for what lies outside; where copies run."""
        place = None if index is None else self.weights.names[index] + "."
        for name, value in self.weights.named():
            here = not self.weights.inside(name) if place is None else name.startswith(place)
            if here and value.is_floating_point() and value.dtype.itemsize < self.dtype.itemsize:
                self._copies[name] = value.to(self.dtype)

    def running(self, matrix: Matrix) -> torch.Tensor:
        """The parameter of a matrix, or the copy of it in a wider type that runs in its place."""
        return self._copies.get(matrix.parameter_name, matrix.parameter)

    def call(self, **kwargs: torch.Tensor | Any) -> Any:
        """Run the model."""
        here = {
            name: value.to(self.model.device) if isinstance(value, torch.Tensor) else value
            for name, value in kwargs.items()
        }
        if not self._copies:
            return self.model(**here, use_cache=False)
        return functional_call(self.model, self._copies, args=(), kwargs={**here, "use_cache": False})

    def loss(self, pair: Pair, summed: bool) -> torch.Tensor:
        """Cross entropy of an answer's tokens in nats, the sum or the mean, a scalar.

        Raises:
            NumericalError: It is NaN or infinite.
        """
        loss: torch.Tensor = self.call(input_ids=pair.question, labels=pair.answer).loss
        if not bool(torch.isfinite(loss)):
            raise NumericalError(f"the loss must be finite, and it is {loss.item()}: load the model in float32")
        return loss * pair.answer.numel() if summed else loss

    def forward(self, index: int, pair: Pair, matrices: Sequence[Matrix], sink: InputSink) -> None:
        """Run the model up to a block, and show what flows into some matrices of it.

        Args:
            index: The block.
            pair: An example.
            matrices: Matrices of this block.
            sink: Called with the matrices that read the same input, and the input ``(tokens, d_in)``.

        Raises:
            NumericalError: The block gives NaN or infinity.
        """
        watcher = InputWatcher(matrices, sink)

        def note(_module: Any, _args: Any, output: Any) -> None:
            watcher.flush()
            hidden = output[0] if isinstance(output, tuple) else output
            if not bool(torch.isfinite(hidden).all()):
                raise NumericalError(
                    f"activations must be finite, and {self.weights.names[index]} gives NaN or infinity on the "
                    "calibration text: load the model in bfloat16 or float32 (dtype=...)"
                )
            raise Seen

        handles = [module.register_forward_pre_hook(watcher) for module in watcher.modules()]
        handles.append(self.blocks[index].register_forward_hook(note))
        try:
            with torch.no_grad():
                self.call(input_ids=pair.question, labels=pair.answer)
        except Seen:
            pass
        finally:
            for handle in handles:
                handle.remove()


class WholeSweeps:
    """Runs sweeps over the blocks of an encoder-decoder; what ``sweeps.Sweeps`` is for other models.

    Args:
        engine: The engine, entered.
        by_block: The matrices of each block that are watched.
        activations: Where activations would be put away; there are none.
    """

    def __init__(self, engine: Whole, by_block: Sequence[Sequence[Matrix]], activations: Activations) -> None:
        self.engine, self.by_block, self.activations = engine, by_block, activations
        self.model: Any = engine.model

    def read(self, corpus: Corpus, size: int, front: Sequence[torch.Tensor] = ()) -> PairStream:
        """Take the examples of a corpus, one by one."""
        starts = zip(corpus.sequences, corpus.answers, strict=True)
        return PairStream([Pair(ids[None, :start], ids[None, start:]) for ids, start in starts])

    def forward(
        self,
        streams: Mapping[str, Any],
        blocks: range,
        watch: Callable[[int], Mapping[str, Sinks]],
        visit: Callable[[int], None],
        finish: Finish | None = None,
    ) -> None:
        """Take the blocks in order and show each one's inputs, as the weights are by then."""
        for index in blocks:
            sinks = watch(index)
            for name, stream in streams.items():
                watched = sinks.get(name, ())

                def sink(matrices: Sequence[Matrix], inputs: torch.Tensor, watched: Sinks = watched) -> None:
                    for receive in watched:
                        receive(matrices, inputs)

                for pair in stream.batches if watched else ():
                    self.engine.forward(index, pair, self.by_block[index], sink)
            visit(index)
            self.engine.refresh(index)
            if finish is not None:
                finish(index, {})

    def next_logits(self, questions: Sequence[torch.Tensor], answers: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """What the decoder says comes next, each ``(vocabulary,)``; arguments as ``sweeps.Sweeps.next_logits``."""
        start = self.model.config.decoder_start_token_id
        with torch.no_grad():
            return [
                self.engine.call(input_ids=ids[None], decoder_input_ids=torch.tensor([[start, *behind]])).logits[0, -1]
                for ids, behind in zip(questions, answers, strict=True)
            ]

    def loss_gradients(self, stream: Any, answers: Sequence[int] = ()) -> tuple[list[float], list[Kept]]:
        """Each example's loss; for one that counts answers only, the sum over its tokens, otherwise the mean."""
        stream.summed = bool(answers)
        with torch.no_grad():
            return [float(self.engine.loss(pair, stream.summed)) for pair in stream.batches], []

    def backward(
        self,
        streams: Mapping[str, Any],
        boundaries: Mapping[str, list[list[Kept]]],
        blocks: int,
        start: Callable[[int], GradientSink],
        finish: Finish,
        traced: Callable[[int], Sequence[Matrix]] = lambda _: (),
    ) -> None:
        """Push the gradient of every example through the whole model, and then take the blocks from the last on."""
        order = [*reversed(range(blocks))]
        sinks = {index: start(index) for index in order}
        wanted = [matrix for index in order for matrix in self.by_block[index]]
        watched = [matrix for index in order for matrix in traced(index)]

        def show(matrix: Matrix, gradient: torch.Tensor, flow: Flow | None) -> None:
            sinks[matrix.block](matrix, gradient, flow)

        for stream in streams.values():
            for pair in stream.batches:
                run = functools.partial(self.engine.loss, pair, stream.summed)
                self.engine.differentiate(run, wanted, watched, show)
        for index in order:
            finish(index, {})


def engine_of(weights: Weights) -> Engine:
    """The engine for a model.

    Raises:
        UsageError: It is an encoder-decoder whose blocks are on disk.
    """
    return Whole(weights) if is_paired(weights.model.config) else Replay(weights)


def sweeps_of(engine: Engine, by_block: Sequence[Sequence[Matrix]], activations: Activations) -> Sweeps | WholeSweeps:
    """The sweeps of an engine."""
    if isinstance(engine, Whole):
        return WholeSweeps(engine, by_block, activations)
    assert isinstance(engine, Replay)
    return Sweeps(engine, by_block, activations)
