"""The units of a model that can be removed whole, found by structure, each with the slices that go together.

A feed-forward neuron is a row of the matrices that make it (gate, up) and a column of the one that reads it (down). A
key-value group is the rows of one key and value head and of the query heads that use it, and the columns that read
them. A ``Group`` holds the units of one kind in one place; its *writer* is the matrix through whose columns the units
reach the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from hubprune.architecture import Matrix, find_matrices, stacks_of
from hubprune.errors import UnsupportedModelError
from hubprune.sparsity import UNIT_NAMES

# What makes the neurons of a feed-forward network, and what reads them; names inside the module that holds both.
FEED_FORWARD = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
    (("c_fc",), "c_proj"),
    (("fc1",), "fc2"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("intermediate.dense",), "output.dense"),
)
# Projections of queries, keys and values, and what reads the heads. One name: fused, head after head or as thirds.
ATTENTION = (
    (("q_proj", "k_proj", "v_proj"), "o_proj"),
    (("q_proj", "k_proj", "v_proj"), "out_proj"),
    (("q", "k", "v"), "o"),
    (("qkv_proj",), "o_proj"),
    (("c_attn",), "c_proj"),
    (("query_key_value",), "dense"),
)
HEAD_AFTER_HEAD = ("query_key_value",)


@dataclass(frozen=True, eq=False)
class Slice:
    """Rows or columns of one parameter that belong to units.

    Attributes:
        parameter: Full name of the parameter.
        module: The module that owns it.
        attribute: Its name there.
        axis: Axis of the parameter (of one expert's part of a fused one) along which the units lie.
        index: Positions along it, ``(units, width)``.
        expert: Index in a fused 3-D parameter.
        matrix: The linear map it is a part of, None for a bias.
    """

    parameter: str
    module: nn.Module
    attribute: str
    axis: int
    index: torch.Tensor
    expert: int | None = None
    matrix: Matrix | None = None

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """The expert's part of a tensor shaped as the parameter: a view."""
        return whole if self.expert is None else whole[self.expert]

    def stored(self) -> torch.Tensor:
        """The live weights, detached."""
        return self.part(getattr(self.module, self.attribute).detach())

    @property
    def line_axis(self) -> int:
        """The axis in a matrix as ``(d_out, d_in)``: 0 for rows, 1 for columns."""
        transposed = self.matrix is not None and self.matrix.transposed
        return 1 - self.axis if transposed else self.axis

    @property
    def unit_size(self) -> int:
        """Weights of one unit in it."""
        whole = self.stored()
        return self.index.shape[1] * whole.numel() // whole.shape[self.axis]


@dataclass(frozen=True, eq=False)
class Group:
    """The units of one kind in one place.

    Attributes:
        name: Module that holds them, with ``[e]`` for expert e; attention dimensions add ``.values`` or ``.keys``.
        block: Index of the block among all blocks of the model.
        unit: What a unit is.
        slices: What goes together.
        writer: The matrix whose columns read the units; None for dimensions of queries and keys.
        columns: Those columns, ``(units, width)``.
        tied: Groups with one such name lose the same units; empty for a group by itself.
    """

    name: str
    block: int
    unit: str
    slices: tuple[Slice, ...]
    writer: Matrix | None
    columns: torch.Tensor
    tied: str = ""

    @property
    def count(self) -> int:
        """Units in it."""
        return int(self.slices[0].index.shape[0])

    @property
    def unit_size(self) -> int:
        """Weights that belong to one unit, biases among them."""
        return sum(each.unit_size for each in self.slices)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The linear maps that it is a part of, each once."""
        return tuple({each.matrix.name: each.matrix for each in self.slices if each.matrix is not None}.values())


def find_groups(model: nn.Module, units: Iterable[str]) -> list[Group]:
    """Find the units of some kinds in all blocks, in the order of the blocks.

    Args:
        model: The model; shapes are enough.
        units: ``ffn_neuron``, ``kv_group`` or ``attention_dim``.

    Raises:
        UnsupportedModelError: A block has none of a kind, or they are built in a way that is not known.
    """
    config: PretrainedConfig = model.config.get_text_config()  # type: ignore[union-attr, operator]
    found: list[Group] = []
    start = 0
    for prefix, blocks in stacks_of(model):
        matrices = {matrix.name: matrix for matrix in find_matrices(model, stack=prefix)}
        for index, block in enumerate(blocks):
            above = f"{prefix}.{index}"
            for unit in units:
                finder = _ffn if unit == "ffn_neuron" else _attention
                here = list(finder(block, above, start + index, matrices, config, unit))
                if not here:
                    raise UnsupportedModelError(
                        f"{type(model).__name__} has no {UNIT_NAMES[unit][1]} in {above} that are known to be "
                        "separable: prune single weights (unit='weight')"
                    )
                found += here
        start += len(blocks)
    return found


def _slices(matrix: Matrix, axis: int, index: torch.Tensor) -> Iterator[Slice]:
    """The part of a matrix along an axis of ``(d_out, d_in)``, and for rows that of its bias."""
    raw = 1 - axis if matrix.transposed else axis
    yield Slice(matrix.parameter_name, matrix.module, matrix.attribute, raw, index, matrix.expert, matrix)
    bias = getattr(matrix.module, "bias", None) if matrix.expert is None else None
    if axis == 0 and isinstance(bias, nn.Parameter):
        yield Slice(f"{matrix.name}.bias", matrix.module, "bias", 0, index)


def _ffn(
    block: nn.Module, above: str, number: int, matrices: dict[str, Matrix], config: PretrainedConfig, unit: str
) -> Iterator[Group]:
    """The neurons of the feed-forward networks of a block, or of each of its experts."""
    for name, _ in block.named_modules():
        place = f"{above}.{name}" if name else above
        for makers, reader in FEED_FORWARD:
            for end in _experts(place, reader, matrices):
                writer = matrices.get(f"{place}.{reader}{end}")
                readers = [matrices.get(f"{place}.{maker}{end}") for maker in makers]
                if writer is None or any(each is None for each in readers):
                    continue
                neurons = torch.arange(writer.shape[1])[:, None]
                slices: list[Slice] = []
                for matrix in readers:
                    assert matrix is not None
                    times, rest = divmod(matrix.shape[0], writer.shape[1])
                    if rest:
                        raise UnsupportedModelError(
                            f"{matrix.name} has {matrix.shape[0]} rows for the {writer.shape[1]} neurons that "
                            f"{writer.name} reads: prune single weights (unit='weight')"
                        )
                    rows = torch.cat([neurons + part * writer.shape[1] for part in range(times)], dim=1)
                    slices += _slices(matrix, 0, rows)
                slices += _slices(writer, 1, neurons)
                yield Group(f"{place}{end}", number, unit, tuple(slices), writer, neurons)


def _experts(place: str, reader: str, matrices: dict[str, Matrix]) -> list[str]:
    """Endings of the names of fused experts in a module; one empty ending for a plain one."""
    count = 0
    while f"{place}.{reader}[{count}]" in matrices:
        count += 1
    return [f"[{expert}]" for expert in range(count)] or [""]


def head_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """Query heads, key-value heads, and the width of a head."""
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // heads
    return heads, groups, int(width)


def _attention(
    block: nn.Module, above: str, number: int, matrices: dict[str, Matrix], config: PretrainedConfig, unit: str
) -> Iterator[Group]:
    """The key-value groups of the attention of a block, or the single dimensions in them."""
    heads, groups, width = head_shape(config)
    for name, module in block.named_modules():
        place = f"{above}.{name}" if name else above
        for makers, reader in ATTENTION:
            writer = matrices.get(f"{place}.{reader}")
            made = [matrices.get(f"{place}.{maker}") for maker in makers]
            if writer is None or any(each is None for each in made):
                continue
            _check_attention(module, place, writer, heads * width, width)
            rows = _head_rows([m for m in made if m is not None], makers, heads, groups, width)
            columns = torch.arange(heads * width).reshape(groups, heads // groups, width)
            if unit == "kv_group":
                parts = [(m, at.reshape(groups, -1)) for m, at in rows]
                reads = columns.reshape(groups, -1)
                slices = [each for matrix, at in parts for each in _slices(matrix, 0, at)]
                slices += _slices(writer, 1, reads)
                extra, tied = _position_bias(module, place, groups)
                yield Group(place, number, unit, (*slices, *extra), writer, reads, tied)
            else:
                yield from _dimensions(place, number, rows, writer, columns, config)


def _check_attention(module: nn.Module, place: str, writer: Matrix, width: int, head: int) -> None:
    """Refuse attention in which something else than its projections is bound to heads."""
    norms = {
        name: int(parameter.numel())
        for name, parameter in module.named_parameters()
        if "norm" in name and parameter.numel() != head
    }
    own = [name for name, _ in module.named_parameters(recurse=False)]
    if norms or own or writer.shape[1] != width:
        what = f"{next(iter([*norms, *own]), 'the output projection')} spans all heads"
        raise UnsupportedModelError(
            f"in {place} {what}, so heads cannot be taken apart: remove FFN neurons (unit='ffn_neuron')"
        )


def _head_rows(
    made: Sequence[Matrix], makers: Sequence[str], heads: int, groups: int, width: int
) -> list[tuple[Matrix, torch.Tensor]]:
    """Rows of queries, keys and values, ``(groups, heads in a group, width)``, with the matrix that they lie in."""
    per_group = heads // groups
    queries = torch.arange(heads * width).reshape(groups, per_group, width)
    keys = torch.arange(groups * width).reshape(groups, 1, width)
    if len(made) == 3:
        return list(zip(made, (queries, keys, keys), strict=True))
    (fused,) = made
    if makers[0] in HEAD_AFTER_HEAD:
        each = torch.arange(3 * heads * width).reshape(heads, 3, width)
        return [(fused, each[:, part : part + 1]) for part in range(3)]
    start = heads * width
    return [(fused, queries), (fused, keys + start), (fused, keys + start + groups * width)]


def _position_bias(module: nn.Module, place: str, groups: int) -> tuple[list[Slice], str]:
    """T5: heads of one stack share a bias of relative positions, so the same ones go in all its blocks."""
    if "SelfAttention" not in place:
        return [], ""
    bias = getattr(module, "relative_attention_bias", None)
    extra = []
    if isinstance(bias, nn.Embedding):
        index = torch.arange(groups)[:, None]
        extra = [Slice(f"{place}.relative_attention_bias.weight", bias, "weight", 1, index)]
    return extra, place.partition(".block.")[0] + ".SelfAttention"


def _dimensions(
    place: str,
    number: int,
    rows: Sequence[tuple[Matrix, torch.Tensor]],
    writer: Matrix,
    columns: torch.Tensor,
    config: PretrainedConfig,
) -> Iterator[Group]:
    """Dimensions of values, one by one, and of queries and keys, in the pairs that a rotation turns together."""
    (query, queries), (key, keys), (value, values) = rows
    reads = columns.transpose(1, 2).flatten(0, 1)
    slices = (*_slices(value, 0, values.reshape(-1, 1)), *_slices(writer, 1, reads))
    yield Group(f"{place}.values", number, "attention_dim", slices, writer, reads)
    pairs = rotated_pairs(config)

    def by_pair(at: torch.Tensor) -> torch.Tensor:
        return at[:, :, pairs].permute(0, 2, 1, 3).flatten(0, 1).flatten(1)

    slices = (*_slices(query, 0, by_pair(queries)), *_slices(key, 0, by_pair(keys)))
    yield Group(f"{place}.keys", number, "attention_dim", slices, None, torch.empty(0))


def rotated_pairs(config: PretrainedConfig) -> torch.Tensor:
    """Dimensions of a head that rotary positions mix, ``(n, 2)``; ``(width, 1)`` without rotation.

    Where only a part of a head is rotated, the rest is paired off as well.
    """
    *_, width = head_shape(config)
    settings: Any = getattr(config, "rope_parameters", None)
    if not settings:
        return torch.arange(width)[:, None]
    nested = next((value for value in settings.values() if isinstance(value, dict)), settings)
    turned = int(width * float(nested.get("partial_rotary_factor") or 1.0))
    front = torch.arange(turned // 2)
    rest = torch.arange(turned, width).reshape(-1, 2)
    return torch.cat([torch.stack([front, front + turned // 2], dim=1), rest])
