"""Units cut out: a smaller config, and from the weights of a model those of the smaller one.

The smaller model is built from its config and filled strictly; no module is edited. How many units are left is the
same everywhere, so that it loads in plain transformers.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hubprune.architecture import find_blocks
from hubprune.errors import ConfigError, UnsupportedModelError
from hubprune.facts import UnitFacts
from hubprune.units import Group, Slice, find_groups, head_shape

# Fields of configs that say how many neurons a feed-forward network has.
WIDTH_FIELDS = ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "moe_intermediate_size")
# Lists of configs with an entry for each layer.
LAYER_FIELDS = ("layer_types", "no_rope_layers")

Kept = Mapping[str, torch.Tensor]


def kept_of(rows: Iterable[UnitFacts]) -> dict[str, torch.Tensor]:
    """Keep masks by the name of the group, boolean ``(units,)``, from the rows of a report."""
    found = {}
    for row in rows:
        keep = torch.ones(row.count, dtype=torch.bool)
        keep[row.removed_indices] = False
        found[row.name] = keep
    return found


def smaller_config(model: PreTrainedModel, groups: Sequence[Group], left: Mapping[str, int]) -> PretrainedConfig:
    """The config of the model with fewer units.

    Args:
        model: The model; shapes are enough.
        groups: Its units.
        left: Units left, by the name of the group.

    Raises:
        UnsupportedModelError: The model's class cannot be built with so many.
    """
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    changes: dict[str, Any] = {}
    for group in groups:
        if group.unit == "ffn_neuron":
            changes |= {name: left[group.name] for name in WIDTH_FIELDS if _width(text, name) == group.count}
        elif group.unit == "kv_group":
            heads, kv, width = head_shape(text)
            changes["num_attention_heads"] = left[group.name] * (heads // kv)
            if getattr(text, "num_key_value_heads", None) is not None:
                changes["num_key_value_heads"] = left[group.name]
            if text.hidden_size != heads * width or changes["num_attention_heads"] != heads:
                changes["d_kv" if hasattr(text, "d_kv") else "head_dim"] = width
    return _changed(config, changes)


def fewer_layers(config: PretrainedConfig, kept: Sequence[int]) -> PretrainedConfig:
    """The config of the model with only some of its layers.

    Args:
        config: The config.
        kept: Layers that are left, in order.
    """
    text = config.get_text_config()
    changes: dict[str, Any] = {
        name: [getattr(text, name)[layer] for layer in kept] for name in LAYER_FIELDS if getattr(text, name, None)
    }
    return _changed(copy.deepcopy(config), {"num_hidden_layers": len(kept), **changes})


def _width(config: PretrainedConfig, name: str) -> int | None:
    value = getattr(config, name, None)
    return 4 * config.hidden_size if name == "n_inner" and hasattr(config, name) and value is None else value


def _changed(config: PretrainedConfig, changes: Mapping[str, Any]) -> PretrainedConfig:
    """Set fields of a config, and have its class check the result."""
    text = config.get_text_config()
    for name, value in changes.items():
        object.__setattr__(text, getattr(text, "attribute_map", {}).get(name, name), value)
    try:
        return type(config).from_dict(config.to_dict())
    except Exception as error:  # each class of configs has its own way to refuse
        raise UnsupportedModelError(
            f"{config.model_type} cannot be built with {changes}: {' '.join(str(error).split())}"
        ) from error


def bare(config: PretrainedConfig, kind: type[PreTrainedModel], dtype: torch.dtype) -> PreTrainedModel:
    """A model of a class without its weights, on the meta device.

    Raises:
        UnsupportedModelError: The class refuses the config.
    """
    try:
        with torch.device("meta"):
            return kind._from_config(config, dtype=dtype)
    except Exception as error:  # each class of models has its own way to refuse
        said = " ".join(str(error).split())
        raise UnsupportedModelError(f"{kind.__name__} cannot be built so small: {said}") from error


class Cut:
    """Cuts units out of named tensors of a model.

    Args:
        groups: The units.
        kept: Keep masks by the name of the group; a group may be missing until one of its tensors is cut.
    """

    def __init__(self, groups: Iterable[Group], kept: Kept) -> None:
        self.kept = kept
        self._by_parameter: dict[str, list[tuple[Group, Slice]]] = {}
        for group in groups:
            for each in group.slices:
                self._by_parameter.setdefault(each.parameter, []).append((group, each))

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor of the smaller model; the same one where nothing is cut out of it."""
        slices = self._by_parameter.get(name, [])
        if not slices:
            return tensor
        if slices[0][1].expert is None:
            return self._smaller(tensor, slices)
        by_expert: dict[int, list[tuple[Group, Slice]]] = {}
        for group, each in slices:
            by_expert.setdefault(int(each.expert or 0), []).append((group, each))
        return torch.stack([self._smaller(tensor[expert], by_expert[expert]) for expert in range(len(tensor))])

    def _smaller(self, tensor: torch.Tensor, slices: Sequence[tuple[Group, Slice]]) -> torch.Tensor:
        for axis in range(tensor.dim()):
            here = [(group, each) for group, each in slices if each.axis == axis]
            if not here:
                continue
            gone = torch.zeros(tensor.shape[axis], dtype=torch.bool)
            for group, each in here:
                gone[each.index[~self.kept[group.name].cpu()].flatten()] = True
            tensor = tensor.index_select(axis, (~gone).nonzero()[:, 0].to(tensor.device))
        return tensor


def smaller_outline(model: PreTrainedModel, groups: Sequence[Group], left: Mapping[str, int]) -> PreTrainedModel:
    """The smaller model without its weights; checked to have just the shapes that cutting gives.

    Args:
        model: The model; shapes are enough.
        groups: Its units.
        left: Units left, by the name of the group.

    Raises:
        UnsupportedModelError: The class cannot be built so, or means something else by it.
    """
    small = bare(smaller_config(model, groups, left), plain_class(model), next(model.parameters()).dtype)
    first = {group.name: torch.arange(group.count) < left[group.name] for group in groups}
    cut = Cut(groups, first)
    wanted = {name: tuple(cut(name, value.to("meta")).shape) for name, value in _parameters(model)}
    got = {name: tuple(value.shape) for name, value in _parameters(small)}
    if wanted != got:
        odd = next(name for name in {**wanted, **got} if wanted.get(name) != got.get(name))
        raise UnsupportedModelError(
            f"{type(small).__name__} cannot hold fewer units: {odd} would have to be {wanted.get(odd)} and is "
            f"{got.get(odd)}"
        )
    return small


def _parameters(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, parameter.detach()) for name, parameter in model.named_parameters())


def plain_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The class that transformers has for a model, whatever was mixed in."""
    return next(kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers"))


def legal_kv_counts(model: PreTrainedModel) -> list[int]:
    """How many key-value groups the model's class can be built with, fewest first; ``[]`` where they cannot be cut.

    Args:
        model: The model; shapes are enough.
    """
    try:
        groups = find_groups(model, ("kv_group",))
    except UnsupportedModelError:
        return []

    def fits(count: int) -> bool:
        try:
            smaller_outline(model, groups, {group.name: count for group in groups})
        except UnsupportedModelError:
            return False
        return True

    return [count for count in range(1, groups[0].count) if fits(count)] + [groups[0].count]


def check_legal(model: PreTrainedModel, groups: Sequence[Group], left: Mapping[str, int]) -> PreTrainedModel:
    """The smaller outline, or a refusal that names what would be possible.

    Raises:
        ConfigError: The model cannot have so many units.
    """
    try:
        return smaller_outline(model, groups, left)
    except UnsupportedModelError as error:
        heads = [left[group.name] for group in groups if group.unit == "kv_group"]
        legal = legal_kv_counts(model) if heads else []
        if not heads or heads[0] in legal:
            raise ConfigError(f"{error}: mask them instead (application='compensate')") from None
        if len(legal) < 2:
            raise ConfigError(f"{error}: remove FFN neurons, or mask (application='zero')") from None
        total, wanted = legal[-1], heads[0]
        shares = ", ".join(f"{count} (sparsity {1 - count / total:.4g})" for count in legal[:-1]) or "none"
        raise ConfigError(
            f"{wanted} of {total} KV groups cannot be what is left of {type(model).__name__}: it can be {shares}; "
            "or remove FFN neurons, or mask (application='compensate')"
        ) from None


def cut_state(
    parameters: Iterable[tuple[str, torch.Tensor]], cut: Cut, layers: Mapping[int, int] | None = None, prefix: str = ""
) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of the smaller model, from those of the model.

    Args:
        parameters: Full names and values.
        cut: What is cut out of them.
        layers: New number of each layer that is left, None for all.
        prefix: Name of the list of layers.
    """
    for name, value in parameters:
        if layers is not None and name.startswith(prefix + "."):
            number, _, rest = name.removeprefix(prefix + ".").partition(".")
            if int(number) not in layers:
                continue
            name = f"{prefix}.{layers[int(number)]}.{rest}"
        yield name, cut(name, value)


def kept_layers(rows: Sequence[UnitFacts]) -> list[int] | None:
    """The layers that are left, None where layers were not what was removed."""
    if not rows or rows[0].unit != "layer":
        return None
    gone = set(rows[0].removed_indices)
    return [layer for layer in range(rows[0].count) if layer not in gone]


def outline_of(model: PreTrainedModel, rows: Sequence[UnitFacts]) -> PreTrainedModel:
    """The smaller model of a report, without its weights."""
    layers = kept_layers(rows)
    if layers is not None:
        return bare(fewer_layers(model.config, layers), plain_class(model), next(model.parameters()).dtype)
    groups = find_groups(model, dict.fromkeys(row.unit for row in rows))
    return check_legal(model, groups, {row.name: row.kept for row in rows})


def shrunk(model: PreTrainedModel, rows: Sequence[UnitFacts]) -> PreTrainedModel:
    """Build the smaller model and fill it, strictly, with what is left of the weights.

    Args:
        model: The model, in memory.
        rows: What is removed.

    Returns:
        A new model of the same class on the same device; it shares tensors that were not cut.

    Raises:
        ConfigError: The model's class cannot be built so small; it names the counts that it can be built with.
    """
    small = outline_of(model, rows)
    layers = kept_layers(rows)
    if layers is None:
        cut = Cut(find_groups(model, dict.fromkeys(row.unit for row in rows)), kept_of(rows))
        state = cut_state(model.state_dict().items(), cut)
    else:
        prefix, _ = find_blocks(model)
        numbers = {old: new for new, old in enumerate(layers)}
        state = cut_state(model.state_dict().items(), Cut([], {}), numbers, prefix)
    small.load_state_dict({name: value.contiguous() for name, value in state}, strict=True, assign=True)
    _take_buffers(small, model)
    small.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        small.generation_config = copy.deepcopy(model.generation_config)
    return small.train(model.training)


def _take_buffers(small: nn.Module, model: nn.Module) -> None:
    """Buffers that are not saved (rotary frequencies) do not depend on the units, so they are the model's own."""
    for name, buffer in list(small.named_buffers()):
        if buffer.is_meta:
            owner, _, attribute = name.rpartition(".")
            mine: Any = functools.reduce(getattr, name.split("."), model)
            small.get_submodule(owner).register_buffer(attribute, mine, persistent=False)
