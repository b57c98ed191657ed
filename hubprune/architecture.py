"""What can be pruned in a model: its blocks and the matrices in them, found by structure instead of by name.

Three kinds of weight hold a linear map: ``nn.Linear`` (d_out, d_in), GPT-2's ``Conv1D`` (stored transposed) and the
fused 3-D parameters of mixture-of-experts layers, one map for each expert. A ``Matrix`` shows all of them as
``(d_out, d_in)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

from hubprune.errors import ConfigError, UnsupportedModelError, did_you_mean
from hubprune.facts import BaseFacts
from hubprune.sparsity import NM, Pattern

EXPERT_PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")


@dataclass(frozen=True, eq=False)
class Matrix:
    """One linear map of a decoder block, as a view on the live weights.

    Attributes:
        name: Full module name; a fused expert adds its parameter and index, ``...mlp.experts.down_proj[3]``.
        block: Index of the decoder block.
        module: The module that owns the parameter.
        attribute: Name of the parameter in it.
        expert: Index in a fused 3-D parameter, None for a 2-D one.
        transposed: Whether the parameter is stored as ``(d_in, d_out)``.
    """

    name: str
    block: int
    module: nn.Module
    attribute: str = "weight"
    expert: int | None = None
    transposed: bool = False

    @property
    def kind(self) -> str:
        """Last component of the name, such as ``q_proj``."""
        return self.name.rpartition(".")[2].partition("[")[0]

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that holds the map, shared by all experts of a fused one."""
        return getattr(self.module, self.attribute)

    @property
    def parameter_name(self) -> str:
        """Full name of that parameter in the model."""
        bare = self.name.partition("[")[0]
        return bare if self.expert is not None else f"{bare}.{self.attribute}"

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """This map's part of a tensor shaped as the parameter, ``(d_out, d_in)``: a view."""
        single = whole if self.expert is None else whole[self.expert]
        return single.T if self.transposed else single

    def view(self) -> torch.Tensor:
        """The weights, ``(d_out, d_in)``, detached; writing to it writes to the model."""
        return self.part(self.parameter.detach())

    def stored(self) -> torch.Tensor:
        """The weights as they lie in memory, contiguous, detached; writing to it writes to the model."""
        tensor = self.parameter.detach()
        return tensor if self.expert is None else tensor[self.expert]

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        rows, columns = self.view().shape
        return rows, columns


def is_paired(config: PretrainedConfig | None) -> bool:
    """Whether a model reads a question in one stack of blocks and answers it in another: an encoder-decoder."""
    return bool(getattr(config, "is_encoder_decoder", False))


def is_encoder(model: PreTrainedModel) -> bool:
    """Whether a model reads both ways and predicts no next token, as BERT does."""
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model.config.model_type)
    known = {causal} if isinstance(causal, str) else {*(causal or ())}
    names = {kind.__name__ for kind in type(model).__mro__}
    decodes = bool(known & names) or any(name.endswith("ForCausalLM") for name in names)
    return model.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes and not is_paired(model.config)


def auto_class(config: PretrainedConfig) -> Any:
    """The class of transformers that loads such a model by its name."""
    return AutoModelForSeq2SeqLM if is_paired(config) else AutoModelForCausalLM


def reading(model: Any, token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Keywords that put a text to a model; an encoder-decoder reads it on both sides.

    Args:
        model: A model.
        token_ids: ``(b, T)``.
    """
    return {"input_ids": token_ids, **({"decoder_input_ids": token_ids} if is_paired(model.config) else {})}


def check_supported(config: PretrainedConfig, *, paired: bool = True, encoder: bool = False) -> None:
    """Refuse what cannot be pruned, from the config alone, before any weight is downloaded.

    Args:
        config: The model's config.
        paired: Whether an encoder-decoder will do as well as a decoder language model.
        encoder: Whether an encoder will do.

    Raises:
        UnsupportedModelError: The model is quantised, or is no language model of a kind that will do.
    """
    name = getattr(config, "name_or_path", "") or config.model_type
    method = getattr(config, "quantization_config", None)
    if method is not None:
        method = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", method)
        raise UnsupportedModelError(
            f"pruning needs the original weights, and {name} is already quantised ({method}): "
            "prune the model it was made from and quantise afterwards"
        )
    if is_paired(config):
        if not paired:
            raise UnsupportedModelError(
                f"{name} is an encoder-decoder ({config.model_type}), and this is for decoder language models: "
                "give one"
            )
        if config.model_type not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
            raise UnsupportedModelError(
                f"pruning needs an encoder-decoder of text, and {name} is {config.model_type}: give a model that "
                "AutoModelForSeq2SeqLM loads"
            )
        return
    if getattr(config, "vision_config", None) is not None:
        raise UnsupportedModelError(f"{name} also reads images ({config.model_type}): give the text-only variant")
    if encoder:
        return
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    has_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    architectures = getattr(config, "architectures", None) or []
    known = (causal,) if isinstance(causal, str) else tuple(causal or ())
    encoder_only = bool(architectures) and not any(a in known or a.endswith("ForCausalLM") for a in architectures)
    if not has_code and (causal is None or encoder_only):
        raise UnsupportedModelError(
            f"pruning needs a decoder language model, and {name} is {', '.join(architectures) or config.model_type}: "
            "give a model that AutoModelForCausalLM loads"
        )


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find the decoder blocks: the list of as many modules of one class as the model has layers.

    Returns:
        The list's name in the model, and the list.

    Raises:
        UnsupportedModelError: There is none.
    """
    found: list[tuple[str, nn.ModuleList]] = []
    config = getattr(model, "config", None)
    depth = getattr(config.get_text_config(), "num_hidden_layers", None) if config is not None else None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0 or len({type(m) for m in module}) > 1:
            continue
        if depth in (None, len(module)) and not any(name.startswith(outer + ".") for outer, _ in found):
            found.append((name, module))
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of decoder blocks of one kind, one for each of its layers: give a "
            "transformer whose blocks are alike"
        )
    return max(found, key=lambda item: len(item[1]))


def _block_matrices(prefix: str, index: int, number: int, block: nn.Module) -> list[Matrix]:
    """The matrices of a block, given its place in its list and its number among all blocks."""
    found = []
    for name, module in block.named_modules():
        full = f"{prefix}.{index}.{name}"
        if "router" in type(module).__name__.lower():  # chooses experts; as small as it is decisive
            continue
        if isinstance(module, nn.Linear | Conv1D):
            found.append(Matrix(full, number, module, transposed=isinstance(module, Conv1D)))
            continue
        for attribute in EXPERT_PARAMETERS:
            parameter = getattr(module, attribute, None)
            if isinstance(parameter, nn.Parameter) and parameter.dim() == 3:
                transposed = bool(getattr(module, "is_transposed", False))
                found.extend(
                    Matrix(f"{full}.{attribute}[{expert}]", number, module, attribute, expert, transposed)
                    for expert in range(parameter.shape[0])
                )
    return found


def name_matches(name: str, pattern: str) -> bool:
    """Tell whether a matrix' name fits a pattern.

    A pattern is ``re:`` with a regular expression matched from the start of the name, a full name, or a last
    component. The index of an expert may be left out.
    """
    bare = name.partition("[")[0]
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return pattern in (name, bare, bare.rpartition(".")[2])


def stacks_of(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """The lists of blocks of a model: one, or those of encoder and decoder, each with its name."""
    if not is_paired(getattr(model, "config", None)):
        return [find_blocks(model)]
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and re.search(r"(^|\.)(encoder|decoder)\.(block|layers)$", name)
    ]
    if not found:
        raise UnsupportedModelError(f"{type(model).__name__} has no encoder and decoder blocks: give a T5-type model")
    return found


def find_matrices(
    model: nn.Module, targets: Sequence[str] = (), ignore: Sequence[str] = (), *, stack: str | None = None
) -> list[Matrix]:
    """List the matrices to prune, in the order of the blocks.

    Args:
        model: A language model.
        targets: Patterns of the matrices wanted; empty for every linear map of the blocks.
        ignore: Patterns of the matrices left alone.
        stack: Name of the list of blocks, where there are several; None for all of them.

    Raises:
        ConfigError: A pattern matches nothing, or nothing is left.
        UnsupportedModelError: The model has no decoder blocks, or no linear map in them.
    """
    every = [(prefix, index, block) for prefix, blocks in stacks_of(model) for index, block in enumerate(blocks)]
    matrices = [
        matrix
        for number, (prefix, index, block) in enumerate(every)
        if stack in (None, prefix)
        for matrix in _block_matrices(prefix, index, number, block)
    ]
    if not matrices:
        raise UnsupportedModelError(f"the blocks of {type(model).__name__} hold no linear map: nothing can be pruned")
    names = {m.name for m in matrices} | {m.kind for m in matrices}
    problems = [
        f"{role} pattern {pattern!r} matches no linear map of the decoder blocks: "
        + did_you_mean(
            pattern.removeprefix("re:").strip(".*^$"), names if "." in pattern else {m.kind for m in matrices}
        )
        for role, patterns in (("targets", targets), ("ignore", ignore))
        for pattern in patterns
        if not any(name_matches(m.name, pattern) for m in matrices)
    ]
    if problems:
        raise ConfigError(problems)
    kept = [
        m
        for m in matrices
        if (not targets or any(name_matches(m.name, p) for p in targets))
        and not any(name_matches(m.name, p) for p in ignore)
    ]
    if not kept:
        raise ConfigError(f"ignore={list(ignore)} leaves nothing to prune: name fewer matrices")
    return kept


def check_pattern_fits(matrices: Sequence[Matrix], pattern: Pattern) -> None:
    """Refuse an N:M pattern whose groups do not divide a matrix' input width.

    Raises:
        ConfigError: Some widths are not divisible by M; the message names them.
    """
    if not isinstance(pattern, NM):
        return
    odd = {m.kind: m.shape[1] for m in matrices if m.shape[1] % pattern.group}
    if odd:
        listed = ", ".join(f"{kind} has {width}" for kind, width in odd.items())
        raise ConfigError(
            f"{pattern} needs input widths divisible by {pattern.group}, and {listed}: "
            f"choose another M, or ignore={sorted(odd)}"
        )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout and the loss of routers off, and afterwards modules and config back to what they were."""
    modes = [(module, module.training) for module in model.modules()]
    config: Any = getattr(model, "config", None)
    text: Any = config.get_text_config() if isinstance(config, PretrainedConfig) else None
    routers = bool(getattr(text, "output_router_logits", False))
    model.eval()
    if routers:
        text.output_router_logits = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        if routers:
            text.output_router_logits = True


def max_length(config: PretrainedConfig) -> int | None:
    """Return the number of tokens the model can read, None when its config does not say."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        value: Any = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def describe(model: PreTrainedModel, **more: Any) -> BaseFacts:
    """Return what a report records about a model: model type, class, weight type and context.

    Args:
        model: The model.
        more: Further fields of ``BaseFacts``.
    """
    return BaseFacts(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        loader=auto_class(model.config).__name__,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        context_length=max_length(model.config),
        **more,
    )
