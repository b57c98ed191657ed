"""Where the weights of a model are: all in memory, or on disk with one block at a time in memory.

A model that transformers loaded with its blocks on disk (``device_map={"model.layers.0": "disk", ...}``) keeps hooks
that bring a module's weights in for each call, and a map from names to tensors behind them. The engine needs a block
for longer than a call, so it takes the map over, without the hooks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from accelerate.utils import set_module_tensor_to_device
from torch import nn
from transformers import PreTrainedModel

from hubprune.architecture import Matrix, stacks_of
from hubprune.environment import NARROW, return_large_memory_at_once
from hubprune.errors import NumericalError, UnsupportedModelError
from hubprune.units import Slice

# Parameters, each with the experts in question, None for all of it.
Touched = Mapping[str, set[int | None]]


class Weights:
    """The weights of a model that lies in memory whole.

    Attributes:
        model: The model.
        blocks: Its blocks; those of an encoder-decoder one after the other.
        names: The full name of each.
        prefixes: Names of the lists that they lie in.

    Raises:
        UnsupportedModelError: The model has no blocks.
    """

    streamed = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        stacks = stacks_of(model)
        # The list itself where there is one, as the engine puts recorders in it.
        self.blocks = (
            stacks[0][1] if len(stacks) == 1 else nn.ModuleList(block for _, each in stacks for block in each)
        )
        self.prefixes = tuple(prefix for prefix, _ in stacks)
        self.names = [f"{prefix}.{index}" for prefix, blocks in stacks for index in range(len(blocks))]

    def inside(self, name: str) -> bool:
        """Whether a parameter lies in a block."""
        return name.startswith(tuple(f"{prefix}." for prefix in self.prefixes))

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each parameter's name and value, detached; tied ones once."""
        for name, parameter in self.model.named_parameters():
            yield name, parameter.detach()

    def outside(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield names and values of everything that is saved and lies outside the blocks."""
        return ((name, value) for name, value in self.model.state_dict().items() if not self.inside(name))

    @contextmanager
    def block(self, index: int, following: int | None = None) -> Iterator[nn.Module]:
        """Hold a block in memory.

        Args:
            index: The block.
            following: The block that will be held after it, to be fetched meanwhile where that helps.
        """
        yield self.blocks[index]

    def device(self, index: int) -> torch.device:
        """Where a block runs."""
        return next(self.blocks[index].parameters()).device

    def check_finite(self) -> None:
        """Refuse weights with NaN or infinity.

        Raises:
            NumericalError: Names the first such parameter.
        """
        for name, value in self.named():
            if not bool(torch.isfinite(value).all()):
                raise NumericalError(
                    f"weights must be finite, and {name} holds NaN or infinity: get a sound copy of the model"
                )

    def untouched_sha256(self, touched: Touched, layers: Mapping[int, int] | None = None) -> str:
        """Hash every parameter that pruning must leave alone: embeddings, norms, biases, the head, ignored matrices.

        Args:
            touched: The parameters that are pruned.
            layers: New number of each layer that stays, where layers are removed.

        Returns:
            Hex SHA-256 over names, types, shapes and bytes, in the order of the names.
        """
        digests: dict[str, bytes] = {}
        for name, value in self.named():
            experts = touched.get(name, set())
            place = _renumbered(name, self.prefixes[0], layers)
            if None in experts or place is None:
                continue
            if experts:
                value = value[[expert for expert in range(len(value)) if expert not in experts]]
            if experts and not len(value):
                continue
            digest = hashlib.sha256(f"{place}|{value.dtype}|{tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            digests[place] = digest.digest()
        return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).hexdigest()


def _renumbered(name: str, prefix: str, layers: Mapping[int, int] | None) -> str | None:
    """A parameter's name where only some layers stay; None for one that goes."""
    if layers is None or not name.startswith(f"{prefix}."):
        return name
    number, _, rest = name.removeprefix(f"{prefix}.").partition(".")
    return f"{prefix}.{layers[int(number)]}.{rest}" if int(number) in layers else None


def touched_by(parts: Iterable[Matrix | Slice]) -> dict[str, set[int | None]]:
    """Parameters that matrices or slices of units lie in, with the experts; None for a whole parameter."""
    found: dict[str, set[int | None]] = {}
    for part in parts:
        name = part.parameter_name if isinstance(part, Matrix) else part.parameter
        found.setdefault(name, set()).add(part.expert)
    return found


class StreamedWeights(Weights):
    """The weights of a model whose blocks lie on disk.

    With the first block it takes over from the hooks that bring them in; until then the model can run by itself.

    Args:
        model: A model that transformers loaded with its blocks on disk.

    Raises:
        UnsupportedModelError: Something besides the blocks is on disk.
    """

    streamed = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._source = _take_source(self.blocks, self.prefixes[0])
        away = [name for name, p in model.named_parameters() if p.is_meta and not self.inside(name)]
        if away:
            raise UnsupportedModelError(
                f"only decoder blocks can stay on disk, and {away[0]} is there too: keep it in memory (device_map=)"
            )
        self._hooked = True
        return_large_memory_at_once(NARROW)
        self._device = next(p.device for p in model.parameters() if not p.is_meta)
        self._stream: torch.cuda.Stream | None = None
        self._coming: tuple[int, Future[Any]] | None = None
        # Reading from disk releases Python's lock, so a thread reads and copies while the GPU computes.
        self._reader = ThreadPoolExecutor(1) if self._device.type == "cuda" else None

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each parameter's name and value, read one at a time."""
        for name, parameter in self.model.named_parameters():
            yield name, self._source[name].to(parameter.dtype) if parameter.is_meta else parameter.detach()

    @contextmanager
    def block(self, index: int, following: int | None = None) -> Iterator[nn.Module]:
        """Bring a block in, and drop it afterwards; what was written to it is gone then."""
        if self._hooked:
            remove_hook_from_submodules(self.model)
            self._hooked = False
        block = self.blocks[index]
        names = [name for name, parameter in block.named_parameters() if parameter.is_meta]
        found = self._fetched(index, names)
        if self._reader is not None and following is not None:
            self._coming = following, self._reader.submit(self._fetch, following)
        for name in names:
            set_module_tensor_to_device(block, name, self._device, value=found.pop(name), clear_cache=False)
        block.requires_grad_(False)
        try:
            yield block
        finally:
            for name in names:
                set_module_tensor_to_device(block, name, "meta", clear_cache=False)

    def device(self, index: int) -> torch.device:
        """Where a block runs: where the rest of the model is."""
        return self._device

    def _fetched(self, index: int, names: Sequence[str]) -> dict[str, torch.Tensor]:
        coming, self._coming = self._coming, None
        if coming is not None:
            found, copied = coming[1].result()
            if coming[0] == index:
                stream = torch.cuda.current_stream(self._device)
                stream.wait_event(copied)
                for value in found.values():
                    value.record_stream(stream)  # its memory is not used for another copy before this stream is done
                return found
        return {name: self._source[f"{self.names[index]}.{name}"] for name in names}

    def _fetch(self, index: int) -> tuple[dict[str, torch.Tensor], Any]:
        """Copy a block to the GPU on a stream of its own; runs in the reader's thread."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(self._stream):
            found = {
                name: self._source[f"{self.names[index]}.{name}"].pin_memory().to(self._device, non_blocking=True)
                for name, parameter in self.blocks[index].named_parameters()
                if parameter.is_meta
            }
            return found, self._stream.record_event()


def weights_of(model: PreTrainedModel | Weights) -> Weights:
    """Find out where a model's weights are.

    Raises:
        UnsupportedModelError: The model has no decoder blocks, or only a part of them is in memory.
    """
    if isinstance(model, Weights):
        return model
    away = any(parameter.is_meta for parameter in model.parameters())
    return StreamedWeights(model) if away else Weights(model)


def blocks_on_disk(model: nn.Module, device: str | int = "cpu") -> dict[str, str | int]:
    """Make the ``device_map`` that leaves the decoder blocks on disk.

    Args:
        model: The model, on any device; its shapes are enough.
        device: Where everything else goes, and where blocks will run.
    """
    stacks = dict(stacks_of(model))
    places: dict[str, str | int] = {
        f"{prefix}.{index}": "disk" for prefix, blocks in stacks.items() for index in range(len(blocks))
    }

    def walk(module: nn.Module, above: str) -> None:
        places.update((above + name, device) for name, _ in module.named_parameters(recurse=False))
        for name, child in module.named_children():
            full = above + name
            if any(prefix.startswith(full + ".") for prefix in stacks):
                walk(child, full + ".")
            elif full not in stacks:
                places[full] = device

    walk(model, "")
    return places


def _take_source(blocks: nn.ModuleList, prefix: str) -> Mapping[str, torch.Tensor]:
    """The map from full parameter names to tensors behind the hooks that accelerate put on the blocks."""
    for module in blocks.modules():
        held = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        if held is not None:
            return held.dataset
    raise UnsupportedModelError(
        f"weights that are not in memory must be on disk, and those of {prefix} are nowhere: load the model again"
    )
