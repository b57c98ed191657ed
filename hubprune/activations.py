"""Activations between two visits of a block: in host memory up to a budget, beyond it in a scratch file.

A model is gone through block by block, and what all sequences look like at a block boundary can be larger than the
model. What is kept is handed out again as it was, bit for bit.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch

# Slots in the scratch file begin at multiples of this many bytes, as torch's own memory does.
ALIGNMENT = 64


class Kept:
    """A tensor that was put away; its place is given back when nobody holds this any more."""

    def __init__(self, value: torch.Tensor | None, slot: tuple[Any, int] | None, like: torch.Tensor) -> None:
        self._value, self._slot = value, slot
        self.dtype, self.shape = like.dtype, like.shape

    def tensor(self) -> torch.Tensor:
        """The tensor, in host memory; not to be written to."""
        if self._value is not None:
            return self._value
        assert self._slot is not None  # it is in memory or in the file
        file, offset = self._slot
        # Read, not mapped: each map takes a file descriptor, and pages of one map for all would stay in memory.
        value = torch.empty(self.shape, dtype=self.dtype)
        file.seek(offset)
        file.readinto(value.view(-1).view(torch.uint8).numpy().data)
        return value


class Activations:
    """Puts tensors away.

    Args:
        budget: Bytes of host memory they may take; None for no limit.
        folder: Where the scratch file goes; None for the system's temporary folder. It has no name there, so that
            nothing is left whatever happens.
    """

    def __init__(self, budget: int | None = None, folder: str | os.PathLike[str] | None = None) -> None:
        self.budget, self.folder = budget, folder
        self.in_memory = self.in_file = 0
        self._file: Any = None
        self._free: dict[int, list[int]] = {}

    def keep(self, value: torch.Tensor) -> Kept:
        """Put a tensor away.

        Raises:
            OSError: The scratch file cannot be written.
        """
        value = value.detach().cpu()
        size = value.numel() * value.element_size()
        if self.budget is None or self.in_memory + size <= self.budget:
            self.in_memory += size
            kept = Kept(value, None, value)
            weakref.finalize(kept, self._release, size, None)
            return kept
        offset = self._write(value.contiguous().view(-1).view(torch.uint8).numpy().data, size)
        kept = Kept(None, (self._file, offset), value)
        weakref.finalize(kept, self._release, size, offset)
        return kept

    def _write(self, data: memoryview, size: int) -> int:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="activations-", dir=self.folder)
            weakref.finalize(self, self._file.close)
        free = self._free.get(size)
        if free:
            offset = free.pop()
        else:
            offset = self.in_file
            self.in_file += math.ceil(size / ALIGNMENT) * ALIGNMENT
        self._file.seek(offset)
        self._file.write(data)
        self._file.flush()
        return offset

    def _release(self, size: int, offset: int | None) -> None:
        if offset is None:
            self.in_memory -= size
        else:
            self._free.setdefault(size, []).append(offset)


def on_device(kept: Iterable[Kept], device: torch.device) -> Iterator[torch.Tensor]:
    """Yield tensors on a device; on a GPU the next one is copied, on a stream of its own, while one is used."""
    if device.type != "cuda":
        yield from (each.tensor().to(device) for each in kept)
        return
    stream = _copies(device)
    waiting: tuple[torch.Tensor, torch.cuda.Event] | None = None
    for each in kept:
        with torch.cuda.stream(stream):
            copy = each.tensor().pin_memory().to(device, non_blocking=True)
            copied = stream.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = copy, copied
    if waiting is not None:
        yield _arrived(*waiting)


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream that copies to a GPU run on: one, as each keeps the memory that it has used."""
    return torch.cuda.Stream(device)


def _arrived(copy: torch.Tensor, copied: torch.cuda.Event) -> torch.Tensor:
    stream = torch.cuda.current_stream(copy.device)
    stream.wait_event(copied)
    copy.record_stream(stream)  # its memory is not given to another copy before this stream is done with it
    return copy
