"""PEFT adapters that keep zeros: attached to the pruned matrices, trained by whoever, merged under the mask.

Plain LoRA adds a dense product to a sparse matrix, and nothing of the sparsity is left after merging. Three ways keep
it. The masked LoRA here runs ``W + mask * scaling * B A`` while training and merges exactly that; SHiRA
(arXiv:2406.13175) trains single weights, here some of those that are left; HiRA multiplies, ``W * (1 + B A)``, and a
zero stays zero. A matrix without zeros gets ordinary LoRA.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hubprune import apply
from hubprune.architecture import Matrix
from hubprune.errors import ConfigError, UsageError
from hubprune.recovery_config import RecoveryConfig

ADAPTER = "default"  # as peft calls the first one
NO_MASK = (
    "plain PEFT would run a masked LoRA adapter without its mask: publish the recovered model, or recover with "
    "adapter='shira' or 'hira'"
)


class MaskedLinear(torch.autograd.Function):
    """``x (W + mask * scaling * B A)^T + bias`` in one product, where the mask is that of the weights that are not 0.

    Between the passes only ``x`` is kept: the sum is a small product away, and is formed again for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> torch.Tensor:
        """Run the layer.

        Args:
            ctx: Carries tensors to the backward pass.
            x: Inputs, ``(..., d_in)``, in the type of the arithmetic.
            weight: ``(d_out, d_in)``, frozen; may be a transposed view.
            bias: ``(d_out,)`` or None, frozen.
            a: Adapter, ``(r, d_in)``.
            b: Adapter, ``(d_out, r)``.
            scaling: Factor of the product.
        """
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling = scaling
        summed = masked_sum(weight.to(x.dtype), a.to(x.dtype), b.to(x.dtype), scaling)
        return F.linear(x, summed, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the inputs and of the adapter, from that of the outputs, ``(..., d_out)``."""
        x, weight, a, b = ctx.saved_tensors
        given = gradients[0].to(x.dtype)
        left, right = b.to(x.dtype), a.to(x.dtype)
        below = None
        if ctx.needs_input_grad[0]:
            below = given @ masked_sum(weight.to(x.dtype), right, left, ctx.scaling)
        whole = given.flatten(0, -2).T @ x.flatten(0, -2)
        whole.masked_fill_(weight == 0, 0)
        of_a, of_b = left.T @ whole, whole @ right.T
        return below, None, None, (of_a * ctx.scaling).to(a.dtype), (of_b * ctx.scaling).to(b.dtype), None


def masked_sum(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """``W + mask * scaling * B A``.

    Args:
        weight: ``(d_out, d_in)``.
        a: ``(r, d_in)``.
        b: ``(d_out, r)``.
        scaling: Factor of the product.
    """
    return torch.addmm(weight, b, a, alpha=scaling).masked_fill_(weight == 0, 0)


@functools.cache
def masked_lora() -> type[nn.Module]:
    """The LoRA layer of PEFT, with the mask of its own base weight; a layer without zeros is PEFT's as it is."""
    from peft.tuners.lora.layer import Linear, LoraVariant

    class Masked(LoraVariant):
        """What PEFT asks of a variant besides the layer's forward."""

        def supports_lora_conversion(self) -> bool:
            return False

        @staticmethod
        def init(module: Any, adapter_name: str, *_: Any, **__: Any) -> None:
            """Nothing to prepare: the mask is that of the base weight."""

        @staticmethod
        def merge_safe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
            return module.summed(active_adapter, orig_weight)

        @staticmethod
        def merge_unsafe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> None:
            apply.copy(orig_weight.detach(), module.summed(active_adapter, orig_weight.detach()))

        @staticmethod
        def unmerge(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
            delta = module.get_delta_weight(active_adapter).to(orig_weight.dtype)
            return (orig_weight - delta).masked_fill(orig_weight == 0, 0)

        @staticmethod
        def forward(module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any) -> torch.Tensor:
            """The part that is added, by itself: with dropout, the adapter sees other inputs than the base."""
            weight = module.get_base_layer().weight
            delta = module.get_delta_weight(active_adapter).masked_fill(weight == 0, 0)
            dropped = module.lora_dropout[active_adapter](x)
            return result + F.linear(dropped, (delta.T if module.transposed else delta).to(dropped.dtype))

    class MaskedLora(Linear):
        """A LoRA layer under a mask."""

        def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any, **kwargs: Any) -> None:
            # Through Any: a module declares its attributes as tensors and modules.
            holder: Any = self
            inner: Any = base_layer
            holder.__dict__["masked"] = bool((inner.weight == 0).any())
            holder.__dict__["transposed"] = isinstance(base_layer, Conv1D)
            super().__init__(base_layer, adapter_name, config=config, **kwargs)
            self.fan_in_fan_out = holder.transposed

        @property
        def lora_variants(self) -> dict[tuple[str, ...], Any]:
            return {(): Masked if self.__dict__["masked"] else None}

        def summed(self, adapter: str, weight: torch.Tensor) -> torch.Tensor:
            """The merged weight, in the form in which the base weight is stored."""
            holder: Any = self
            a, b = holder.lora_A[adapter].weight, holder.lora_B[adapter].weight
            inside = weight.T if holder.transposed else weight
            merged = masked_sum(inside.float(), a.float(), b.float(), holder.scaling[adapter]).to(weight.dtype)
            return (merged.T if holder.transposed else merged).contiguous()

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            holder: Any = self
            alone = len(holder.active_adapters) == 1 and ADAPTER in holder.lora_A
            plain = not holder.disable_adapters and not holder.merged and not args and not kwargs
            if not (holder.masked and alone and plain and isinstance(holder.lora_dropout[ADAPTER], nn.Identity)):
                return super().forward(x, *args, **kwargs)
            inner = holder.get_base_layer()
            kind = x.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inner.weight.dtype
            weight = inner.weight.T if holder.transposed else inner.weight
            a, b = holder.lora_A[ADAPTER].weight, holder.lora_B[ADAPTER].weight
            with torch.autocast(kind, enabled=False):
                out: Any = MaskedLinear.apply(x.to(dtype), weight, inner.bias, a, b, holder.scaling[ADAPTER])
            return out.to(x.dtype) if dtype != x.dtype and not torch.is_autocast_enabled(kind) else out

    return MaskedLora


def check_installed() -> None:
    """Refuse to go on without peft.

    Raises:
        UsageError: It is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError('recovery with adapters needs peft: pip install "hubprune[peft]"')


def adaptable(matrices: Sequence[Matrix], config: RecoveryConfig) -> list[Matrix]:
    """The matrices that an adapter can be attached to: those with a module of their own.

    Raises:
        ConfigError: There is none, the adapter does not go with one, or its rank is too large.
    """
    found = [matrix for matrix in matrices if matrix.expert is None]
    if not found:
        raise ConfigError(
            "adapters need matrices with a module of their own, and all that were pruned are fused experts: recover "
            "with method='reconstruct'"
        )
    if config.kind == "shira":
        stored = [matrix.name for matrix in found if matrix.transposed]
        if stored:
            raise ConfigError(f"SHiRA takes nn.Linear alone, and {stored[0]} is a Conv1D: take lora or hira")
        counted = [int((m.view() != 0).sum()) // sum(m.shape) for m in found if not m.parameter.is_meta]
        most = min(counted, default=config.rank)
        if config.rank > most:
            raise ConfigError(
                f"SHiRA of rank r trains r * (d_in + d_out) of the weights that are left in a matrix, which allows a "
                f"rank of at most {most} here, got {config.rank}: lower it" + ("" if most else ", or take lora")
            )
    return found


def _peft_config(matrices: Sequence[Matrix], config: RecoveryConfig) -> Any:
    """The adapter's config, for the matrices named in full."""
    import peft

    names = [matrix.name for matrix in matrices]
    transposed = any(matrix.transposed for matrix in matrices)
    if config.kind == "shira":
        shira = peft.ShiraConfig(r=config.rank, target_modules=names, task_type="CAUSAL_LM")
        shira.mask_fn = functools.partial(_left_weights, seed=config.seed)
        return shira
    if config.kind == "hira":
        return peft.HiraConfig(r=config.rank, target_modules=names, task_type="CAUSAL_LM", fan_in_fan_out=transposed)
    own = config.own_lora
    if own is None:
        alpha: Any = 2 * config.rank if config.alpha is None else config.alpha
        lora = peft.LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=names, task_type="CAUSAL_LM")
    else:
        known = {field: own[field] for field in peft.LoraConfig.__dataclass_fields__ if field in own}
        known = {field: value for field, value in known.items() if field not in ("peft_type", "peft_version")}
        wanted = known.get("target_modules")
        known |= {"target_modules": names} if wanted in (None, "all-linear") else {}
        lora = peft.LoraConfig(**{**known, "task_type": "CAUSAL_LM", "inference_mode": False})
    lora._register_custom_module({nn.Linear: masked_lora(), Conv1D: masked_lora()})
    return lora


def _left_weights(base_layer: Any, r: int, *, seed: int, **_: Any) -> torch.Tensor:
    """Choose the weights that SHiRA trains: of those that are not 0, ``r * (d_in + d_out)`` at random."""
    weight = base_layer.weight.detach()
    left = (weight != 0).flatten().nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    chosen = left[torch.randperm(len(left), generator=generator)[: r * sum(weight.shape)].to(left.device)]
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[chosen] = True
    return mask.view(weight.shape)


@contextmanager
def without_remark() -> Iterator[None]:
    """Keep transformers and torch from remarking on how peft calls them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled", UserWarning)
        yield


def needs_mask(matrices: Sequence[Matrix]) -> bool:
    """Whether any matrix has zeros to keep."""
    return any(bool((matrix.view() == 0).any()) for matrix in matrices)


@contextmanager
def attached(model: PreTrainedModel, matrices: Sequence[Matrix], config: RecoveryConfig) -> Iterator[Any]:
    """Attach an adapter; afterwards the model is without it again, and is merged where ``merge`` was called.

    Args:
        model: The model; its modules are wrapped meanwhile, its own weights are frozen.
        matrices: The matrices that may be changed.
        config: How to recover.

    Yields:
        The model as PEFT wraps it.

    Raises:
        ConfigError: The adapter does not fit, or would change more than the matrices.
    """
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    allowed = {matrix.name for matrix in adaptable(matrices, config)}
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    torch.manual_seed(config.seed)  # the adapter's first values
    try:
        with without_remark():
            wrapped = get_peft_model(model, _peft_config([m for m in matrices if m.name in allowed], config))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"peft does not attach this adapter: {' '.join(str(error).split())}") from error
    try:
        beyond = [n for n, m in model.named_modules() if isinstance(m, BaseTunerLayer) and n not in allowed]
        if beyond:
            raise ConfigError(
                f"recovery changes the pruned matrices alone, and target_modules of the LoraConfig also names "
                f"{beyond[0]}: name fewer, or none for all of them"
            )
        # A path would be looked up on the Hub whenever the adapter is saved; the adapter fits this model alone.
        wrapped.peft_config[ADAPTER].base_model_name_or_path = None
        yield wrapped
    finally:
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            wrapped.unload()
        model.__dict__.pop("peft_config", None)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])


def save_adapter(wrapped: Any, folder: Any, name: str | None) -> None:
    """Save an adapter that plain PEFT loads onto the pruned model.

    Args:
        wrapped: The model as PEFT wraps it.
        folder: Where it goes.
        name: Repository or folder of the pruned model, which the adapter's config names.

    Raises:
        UsageError: It is a masked LoRA adapter, which plain PEFT would run without the mask.
    """
    if any(getattr(module, "masked", False) for module in wrapped.modules()):
        raise UsageError(NO_MASK)
    config = wrapped.peft_config[ADAPTER]
    wrapped.save_pretrained(folder)
    config.base_model_name_or_path = name
    config.save_pretrained(folder)
