"""How many units go from each place, from the share that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hubprune.architecture import is_paired, stacks_of
from hubprune.config import PruningConfig
from hubprune.errors import ConfigError
from hubprune.masks import removed_count
from hubprune.removal import check_legal
from hubprune.sparsity import UNIT_NAMES, Structured
from hubprune.units import Group, find_groups

# Widths of matrices that hardware likes, by the size of the model; below the last, what small models allow.
MULTIPLES = ((2e9, 128), (1e8, 64), (0, 8))


@dataclass(frozen=True)
class Allocation:
    """What goes from where.

    Attributes:
        groups: The units of the model; empty for layers.
        removed: How many go, by the name of the group.
        layers: Layers that go.
        multiple: What is left of every feed-forward network was rounded to a multiple of this; None where they differ.
        result: The smaller model without its weights, where units are cut out.
    """

    groups: tuple[Group, ...]
    removed: dict[str, int]
    layers: int = 0
    multiple: int | None = 1
    result: PreTrainedModel | None = None


def weights_in(module: nn.Module) -> int:
    """Parameters of a module; tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """All blocks of a model, in order."""
    return [block for _, blocks in stacks_of(model) for block in blocks]


def allocate(model: PreTrainedModel, config: PruningConfig) -> Allocation:
    """Work out how many units go from each place.

    Args:
        model: The model; shapes are enough.
        config: What to prune and how.

    Raises:
        ConfigError: The share takes no unit, or more than there is, or leaves a model that cannot be built.
        UnsupportedModelError: The model has no such units.
    """
    pattern = config.resolved_pattern()
    assert isinstance(pattern, Structured)  # asked before
    blocks = blocks_of(model)
    if "layer" in pattern.units:
        if len(stacks_of(model)) > 1:
            raise ConfigError(
                f"{type(model).__name__} has layers of two kinds, of its encoder and of its decoder, and 'layer' "
                "removes layers of one: remove FFN neurons (unit='ffn_neuron') or heads (unit='kv_group')"
            )
        whole = {"units": sum(map(weights_in, blocks)), "blocks": sum(map(weights_in, blocks))}
        share = pattern.sparsity * whole.get(pattern.share_of, weights_in(model)) / whole["blocks"]
        count = removed_count(len(blocks), share)
        _check_some(count, len(blocks), "layer", pattern)
        return Allocation((), {}, layers=count)
    if "attention_dim" in pattern.units and is_paired(model.config):
        raise ConfigError(
            f"single attention dimensions are looked at in decoder language models, and {type(model).__name__} is an "
            "encoder-decoder: remove heads (unit='kv_group')"
        )
    groups = find_groups(model, pattern.units)
    share = _share_of_units(model, groups, pattern)
    cuts = config.resolved_application() == "remove"
    multiple = config.multiple or (_multiple(weights_in(model)) if cuts else 1)
    removed, steps = {}, set()
    for group in groups:
        step = multiple if group.unit == "ffn_neuron" else 1
        while not config.multiple and step > 1 and 8 * step > group.count:
            step //= 2
        steps |= {step} if group.unit == "ffn_neuron" else set()
        left = group.count - removed_count(group.count, share)
        if step > 1:
            left = min(max(step, int(left / step + 0.5) * step), group.count)
        removed[group.name] = group.count - left
        if pattern.sparsity:
            _check_some(removed[group.name], group.count, group.unit, pattern)
    left_of = {group.name: group.count - removed[group.name] for group in groups}
    result = check_legal(model, groups, left_of) if cuts else None
    rounded = 1 if not steps else steps.pop() if len(steps) == 1 else None
    return Allocation(tuple(groups), removed, multiple=rounded, result=result)


def _multiple(parameters: int) -> int:
    return next(multiple for least, multiple in MULTIPLES if parameters >= least)


def _share_of_units(model: PreTrainedModel, groups: Sequence[Group], pattern: Structured) -> float:
    """The share of each kind of unit that makes up the share of what was asked for."""
    if pattern.share_of == "units":
        return pattern.sparsity
    inside = sum(map(weights_in, blocks_of(model)))
    whole = inside if pattern.share_of == "blocks" else weights_in(model)
    ours = sum(group.unit_size * group.count for group in groups)
    share = pattern.sparsity * whole / ours
    if share >= 1:
        names = " and ".join(UNIT_NAMES[unit][1] for unit in pattern.units)
        raise ConfigError(
            f"{names} hold {ours / whole:.1%} of {'the block' if pattern.share_of == 'blocks' else 'all'} parameters, "
            f"so {pattern.sparsity:.1%} of them cannot be removed that way: lower sparsity, or add units (unit=...)"
        )
    return share


def _check_some(removed: int, count: int, unit: str, pattern: Structured) -> None:
    """Refuse a share that takes no unit, or all of them."""
    one, several = UNIT_NAMES[unit]
    if removed == 0 and pattern.sparsity:
        raise ConfigError(
            f"{pattern.sparsity:g} of {count} {several} is less than one {one} can be: the smallest step is "
            f"{1 / count:.4g} of them; raise sparsity, choose another unit, or lower multiple"
        )
    if removed >= count:
        raise ConfigError(
            f"at least one of {count} {several} has to stay, got sparsity {pattern.sparsity:g}: lower it"
        )
