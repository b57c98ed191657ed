"""The engine: a model run one decoder block at a time over stored activations, forwards and backwards.

A whole-model backward pass keeps weights, gradients and scores of every layer at once. Here each block is run by
itself: the *forward sweep* stores the activations at the block boundaries and shows what flows into the matrices; the
*backward sweep* starts from the gradient of the loss at the last boundary, recomputes one block at a time with
gradients on, and pushes the boundary gradient down. Both give exactly what the whole model would give.

No code here knows a model family. Recorders take the place of the blocks, and the model's own forward is run once: the
recorders see the embedded input and every block's own arguments (masks, rotary embeddings, ...), and hand the hidden
states on in the form in which the block itself returns them. For the head, the last recorder hands over a stored
boundary instead, so that the final norm, the head, soft-capping and the loss are the model's own. This is the only
module that registers hooks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from hubprune.architecture import Matrix
from hubprune.engine import Engine, GradientSink
from hubprune.errors import NumericalError
from hubprune.inputs import InputSink, InputWatcher
from hubprune.recording import Batch, Call, Recorder, Seen, same
from hubprune.weights import Weights

# float16 gradients of a mean loss underflow; a power of two is exact to multiply in and to divide out again.
FLOAT16_SCALE = 2.0**12
# Logits that exist at once at the head: 256 MiB in float32.
MOST_LOGITS = 2**26


class Replay(Engine):
    """Runs the blocks of a model one at a time.

    Args:
        model: A decoder language model; an encoder, where no gradients are asked for.
        dtype: See ``Engine``.

    Raises:
        UnsupportedModelError: The model has no blocks.
    """

    def __init__(self, model: PreTrainedModel | Weights, dtype: torch.dtype | None = None) -> None:
        super().__init__(model, dtype)
        self._copies: dict[str, torch.Tensor] = {}
        self._head: dict[str, torch.Tensor] | None = None
        self._as_tuple: bool | None = None
        self._calls: dict[tuple[int, ...], list[Call]] = {}

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._calls.clear()

    @contextmanager
    def block(self, index: int, following: int | None = None) -> Iterator[None]:
        """Hold a block in memory, ready to run; arguments as ``Weights.block``."""
        with self.weights.block(index, following):
            self.refresh(index)
            try:
                yield
            finally:
                self._copies = {}

    def refresh(self, index: int) -> None:
        """Take over what was written to the weights of the block that is held."""
        self._copies = {}  # the old ones go first
        self._copies = self._other_type(self.blocks[index])

    def _other_type(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Copies of a module's weights in a wider type, where it runs in one; embeddings are looked up as they are."""
        return {
            f"{above}.{name}" if above else name: value.detach().to(self.dtype)
            for above, owner in module.named_modules(remove_duplicate=False)
            if not isinstance(owner, nn.Embedding)
            for name, value in owner.named_parameters(recurse=False)
            if value.is_floating_point() and value.dtype.itemsize < self.dtype.itemsize and not value.is_meta
        }

    @contextmanager
    def head(self) -> Iterator[None]:
        """Hold the head ready to run, for several batches."""
        with self._recorders():  # the blocks are no part of it
            self._head = self._other_type(self.model)
        try:
            yield
        finally:
            self._head = None

    def _call(self, module: nn.Module, **kwargs: Any) -> Any:
        """Run the model around its blocks, which recorders stand in for."""
        if self.dtype == self.model.dtype:
            return module(**kwargs)
        copies = self._head if self._head is not None and module is self.model else self._other_type(module)
        embeddings = [each for each in module.modules() if isinstance(each, nn.Embedding)]
        handles = [each.register_forward_hook(lambda _m, _a, output: output.to(self.dtype)) for each in embeddings]
        try:
            return functional_call(module, copies, args=(), kwargs=kwargs, tie_weights=False)
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _recorders(self, answer: torch.Tensor | None = None) -> Iterator[list[Recorder]]:
        """Put recorders in place of the blocks; the last one hands over ``answer`` when it is given."""
        originals = list(self.blocks)
        last = len(originals) - 1
        as_tuple = bool(self._as_tuple)
        recorders = [Recorder(b, as_tuple, answer if i == last else None) for i, b in enumerate(originals)]
        try:
            for index, recorder in enumerate(recorders):
                self.blocks[index] = recorder
            yield recorders
        finally:
            for index, original in enumerate(originals):
                self.blocks[index] = original

    def _learn_form(self, token_ids: torch.Tensor) -> None:
        """Find out whether the blocks return a tensor or a tuple, by running one on two tokens."""
        if self._as_tuple is not None:
            return

        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            self._as_tuple = isinstance(output, tuple)
            raise Seen

        with self.weights.block(0) as block, torch.no_grad():
            handle = block.register_forward_hook(note)
            try:
                self.model.base_model(input_ids=token_ids[:1, :2], use_cache=False)
            except Seen:
                pass
            finally:
                handle.remove()

    def open(self, token_ids: torch.Tensor) -> tuple[Batch, torch.Tensor]:
        """Embed sequences and note the arguments of every block.

        Args:
            token_ids: ``(b, T)``.

        Returns:
            The batch, and the input of block 0, ``(b, T, d)``. Sequences carry no padding, so batches of one shape
            share their arguments; they are compared, and kept apart should a model make them differ.
        """
        token_ids = token_ids.to(self.model.device)
        self._learn_form(token_ids)
        with torch.no_grad(), self._recorders() as recorders:
            self._call(self.model.base_model, input_ids=token_ids, use_cache=False)
        calls = [recorder.call for recorder in recorders if recorder.call is not None]
        shared = self._calls.setdefault(tuple(token_ids.shape), calls)
        if shared is not calls and all(
            same((a.args, a.kwargs), (b.args, b.kwargs)) for a, b in zip(shared, calls, strict=True)
        ):
            calls = shared
        hidden = recorders[0].hidden
        assert hidden is not None  # the model has run, so its first block was called
        return Batch(token_ids, calls), hidden.detach()

    def _run(self, index: int, call: Call, hidden: torch.Tensor) -> torch.Tensor:
        block = self.blocks[index]
        if self._copies:
            output = functional_call(block, self._copies, (hidden, *call.args), call.kwargs)
        else:
            output = block(hidden, *call.args, **call.kwargs)
        return output[0] if isinstance(output, tuple) else output

    def forward(self, index: int, call: Call, hidden: torch.Tensor) -> torch.Tensor:
        """Run one block on a batch.

        Args:
            index: The block.
            call: Its arguments.
            hidden: Its input, ``(b, T, d)``, where the block is.

        Returns:
            The next boundary, ``(b, T, d)``.

        Raises:
            NumericalError: The block gives NaN or infinity.
        """
        with torch.no_grad():
            output = self._run(index, call, hidden)
        if not bool(torch.isfinite(output).all()):
            raise NumericalError(
                f"activations must be finite, and {self.weights.names[index]} gives NaN or infinity on the "
                "calibration text: load the model in bfloat16 or float32 (dtype=...)"
            )
        return output

    @contextmanager
    def inputs(self, index: int, matrices: Sequence[Matrix], sink: InputSink) -> Iterator[None]:
        """Show what flows into the matrices of one block while it runs.

        Args:
            index: The block.
            matrices: Matrices of this block.
            sink: Called with the matrices that read the same input, and the input ``(tokens, d_in)``. An expert sees
                the tokens routed to it.
        """
        watcher = InputWatcher(matrices, sink)
        handles = [module.register_forward_pre_hook(watcher) for module in watcher.modules()]
        handles.append(self.blocks[index].register_forward_hook(lambda *_: watcher.flush()))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def next_logits(self, batch: Batch, boundary: torch.Tensor) -> torch.Tensor:
        """What the head makes of the last boundary at its last position, ``(b, vocabulary)``.

        Args:
            batch: One batch.
            boundary: Output of the last block, ``(b, T, d)``, where that block is.
        """
        keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.model.forward).parameters else {}
        with torch.no_grad(), self._recorders(answer=boundary):
            return self._call(self.model, input_ids=batch.token_ids, use_cache=False, **keep).logits[:, -1]

    def forget_calls(self) -> None:
        """Let go of the arguments of blocks that sequences of one shape share."""
        self._calls.clear()

    def loss_gradient(self, batch: Batch, boundary: torch.Tensor, answer: int = 0) -> tuple[float, torch.Tensor]:
        """Start the backward sweep: the gradient of the loss at the last boundary.

        Args:
            batch: One batch; the loss is the mean next-token cross entropy over its tokens, in nats.
            boundary: Output of the last block, ``(b, T, d)``, where that block is.
            answer: Where the answer of a question begins. Other than 0, the loss is the sum over its tokens.

        Returns:
            The loss and its gradient, ``(b, T, d)``, the latter times ``self.scale``.

        Raises:
            NumericalError: The loss is NaN or infinite.
        """
        leaf = boundary.detach().requires_grad_(True)
        total, gradient = 0.0, torch.zeros_like(leaf)
        with torch.enable_grad(), self._recorders(answer=leaf):
            for loss in self._losses(batch.token_ids, answer):
                if not bool(torch.isfinite(loss)):
                    raise NumericalError(
                        f"the loss must be finite, and it is {loss.item()} at the head: load the model in float32"
                    )
                total += float(loss.detach())
                gradient += torch.autograd.grad(loss * self.scale, leaf)[0]
        return total, gradient

    def _losses(self, token_ids: torch.Tensor, answer: int = 0) -> Iterator[torch.Tensor]:
        """Yield the parts of the loss, which add up to it; of an answer, the sum over its tokens.

        There is one part unless the logits, ``(b, T, vocabulary)``, are too many to exist at once: then the model's
        own head is asked for some positions at a time.
        """
        rows, length = token_ids.shape
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        step = max(1, MOST_LOGITS // (rows * vocabulary))
        first = max(answer - 1, 0)
        count = rows * (length - 1 - first)
        if step >= length or "logits_to_keep" not in inspect.signature(self.model.forward).parameters:
            labels = token_ids.clone()
            labels[:, :answer] = -100  # what transformers passes over
            loss = self._call(self.model, input_ids=token_ids, labels=labels, use_cache=False).loss
            yield loss * count if answer else loss
            return
        count = 1 if answer else count
        for positions in torch.arange(first, length - 1, device=token_ids.device).split(step):
            logits = self._call(self.model, input_ids=token_ids, use_cache=False, logits_to_keep=positions).logits
            targets = token_ids[:, positions + 1].flatten().to(logits.device)
            yield F.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="sum") / count

    @property
    def scale(self) -> float:
        """Factor of the gradients inside the backward sweep; taken out again before anybody sees them."""
        return FLOAT16_SCALE if self.dtype == torch.float16 else 1.0

    def running(self, matrix: Matrix) -> torch.Tensor:
        """The parameter of a matrix of the block that is held, or the copy that runs in its place."""
        inside = matrix.parameter_name.removeprefix(f"{self.weights.names[matrix.block]}.")
        return self._copies.get(inside, matrix.parameter)

    def backward(
        self,
        index: int,
        call: Call,
        boundary: torch.Tensor,
        gradient: torch.Tensor,
        matrices: Sequence[Matrix],
        sink: GradientSink,
        traced: Sequence[Matrix] = (),
    ) -> torch.Tensor:
        """Recompute one block with gradients on and push the gradient through it.

        Args:
            index: The block.
            call: Its arguments.
            boundary: Its input, ``(b, T, d)``, where the block is.
            gradient: Gradient of the loss at its output, likewise.
            matrices: Matrices of this block whose gradient is wanted.
            sink: Called with each matrix and its gradient ``(d_out, d_in)`` in float32, and for a traced one what
                flows into it and the gradient by that.
            traced: Matrices whose inputs are wanted as well; passed over for fused experts.

        Returns:
            Gradient of the loss at the block's input, ``(b, T, d)``.
        """
        leaf = boundary.detach().requires_grad_(True)
        below = self.differentiate(
            lambda: self._run(index, call, leaf), matrices, traced, sink, gradient=gradient, leaf=leaf
        )
        assert below is not None  # there is a leaf
        return below
