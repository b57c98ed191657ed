"""Weight files written tensor by tensor, in any order: what ``save_pretrained`` would write, without the whole model.

A safetensors file is a length (8 bytes, little-endian), a JSON header with the place of every tensor, and the bytes.
All places are known from the shapes, so each file is laid out in full size at once, and a tensor is written into its
place whenever it is finished, and again if need be.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from hubprune.activations import Kept
from hubprune.report import sync_folder, write_text

INDEX = "model.safetensors.index.json"
# Names of the types in a safetensors header.
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: file, first byte, size in bytes."""

    file: str
    offset: int
    size: int


class Sized(Protocol):
    """A tensor, or what stands for one: its type and shape are known."""

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    @property
    def shape(self) -> torch.Size: ...  # noqa: D102


def lay_out(tensors: Mapping[str, Sized]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Give each tensor its place in a file, wide types first so that all are aligned.

    Returns:
        The beginning of the file, and for each tensor its first byte and the one behind it, in the order of the file.
    """
    ordered = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    spans, end = {}, 0
    for name in ordered:
        tensor = tensors[name]
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        spans[name] = start, end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    beginning = len(text).to_bytes(8, "little") + text
    return beginning, {name: (len(beginning) + start, len(beginning) + end) for name, (start, end) in spans.items()}


def write_tensors(path: Path, tensors: Mapping[str, Kept]) -> None:
    """Write a file one tensor after the other, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_suffix(".new")
    beginning, spans = lay_out(tensors)
    with open(temporary, "wb") as handle:
        handle.write(beginning)
        for name in spans:
            handle.write(_bytes(tensors[name].tensor()))
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def _bytes(value: torch.Tensor) -> memoryview:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _reserve(file: int, size: int) -> None:
    """Find out now that there is no room, not hours later; where the file system can tell."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise


class Shards:
    """The weight files of one model in a folder.

    Args:
        model: The model; parameters that are not in memory count by their shapes.
        folder: Where the files are; an existing folder.
        max_shard_size: Largest file, as in ``save_pretrained``.
    """

    def __init__(
        self, model: PreTrainedModel, folder: str | os.PathLike[str], max_shard_size: int | str = "5GB"
    ) -> None:
        self.model, self.folder = model, Path(folder)
        ignored = set(model._keys_to_ignore_on_save or ())
        held = {name: value for name, value in model.state_dict().items() if name not in ignored}
        self._names = set(remove_tied_weights_from_state_dict(held, model))
        # Shapes alone, so that nothing is copied where a conversion stacks or splits tensors.
        shapes = {name: value.to("meta") for name, value in held.items() if name in self._names}
        tensors = {
            name: torch.empty_like(value, memory_format=torch.contiguous_format)
            for name, value in revert_weight_conversion(model, shapes).items()
        }
        split = split_torch_state_dict_into_shards(
            tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
        )
        self._places: dict[str, _Place] = {}
        self._headers = {
            file: self._lay_out(file, {name: tensors[name] for name in names})
            for file, names in split.filename_to_tensors.items()
        }
        self._index = None
        if split.is_sharded:
            metadata = {"total_parameters": model.num_parameters(), **split.metadata}
            self._index = {"metadata": metadata, "weight_map": split.tensor_to_filename}

    def _lay_out(self, file: str, tensors: Mapping[str, torch.Tensor]) -> bytes:
        beginning, spans = lay_out(tensors)
        self._places |= {name: _Place(file, start, end - start) for name, (start, end) in spans.items()}
        return beginning

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(map(len, self._headers.values())) + sum(place.size for place in self._places.values())

    def create(self) -> None:
        """Lay out the files in full size, and write the index where there are several.

        Raises:
            OSError: There is no room, or the folder cannot be written.
        """
        ends = {file: len(beginning) for file, beginning in self._headers.items()}
        for place in self._places.values():
            ends[place.file] += place.size
        for file, beginning in self._headers.items():
            with open(self.folder / file, "w+b") as handle:
                handle.write(beginning)
                handle.truncate(ends[file])
                _reserve(handle.fileno(), ends[file])
                handle.flush()
                os.fsync(handle.fileno())
        if self._index is not None:
            write_text(self.folder / INDEX, json.dumps(self._index, indent=2, sort_keys=True) + "\n")
        sync_folder(self.folder)

    def write(self, parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Write tensors into their places; they are on the disk when this returns.

        Args:
            parameters: Full names in the model, and values: those of a whole block, or of anything outside the
                blocks. Names that a saved model does not have (tied ones) are passed over.

        Raises:
            OSError: A file cannot be written.
        """
        given = {name: value for name, value in parameters if name in self._names}
        by_file: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for name, value in revert_weight_conversion(self.model, given).items():
            by_file.setdefault(self._places[name].file, []).append((self._places[name].offset, value))
        for file, parts in by_file.items():
            with open(self.folder / file, "r+b") as handle:
                for offset, value in parts:
                    handle.seek(offset)
                    handle.write(_bytes(value))
                handle.flush()
                os.fsync(handle.fileno())
