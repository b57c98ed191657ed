"""How to recover a pruned model: a frozen config that checks itself, reports all errors at once, travels as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from hubprune.errors import ConfigError
from hubprune.fields import count_problems, in_our_words

METHODS = ("adapter", "reconstruct")
# The step size of Adam that each way starts from. HiRA changes a weight by a share of itself, and takes more.
LEARNING_RATES = {"lora": 2e-3, "shira": 2e-3, "hira": 2e-2, "reconstruct": 5e-4}
STEPS = {"adapter": 200, "reconstruct": 96}
# Fields of a user's own LoraConfig that change more than the pruned matrices, with the value that leaves all else be.
HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "modules_to_save": (None, [], ()),
    "target_parameters": (None, [], ()),
    "trainable_token_indices": (None, {}, []),
    "lora_bias": (False,),
    "use_dora": (False,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
    "layer_replication": (None,),
}


@dataclass(frozen=True)
class RecoveryConfig:
    """How to recover what pruning cost; says nothing about the model or the text.

    Attributes:
        method: ``adapter`` trains a PEFT adapter on text and merges it under the mask; ``reconstruct`` fits the
            remaining weights of each block to the output of the dense block, without labels.
        adapter: ``lora``, ``shira``, ``hira``, or a ``peft.LoraConfig`` of your own.
        rank: Rank of the adapter; SHiRA trains as many weights as a LoRA adapter of that rank.
        alpha: LoRA's scaling is ``alpha / rank``. None: twice the rank.
        learning_rate: Step size of Adam. None: 2e-3 for LoRA and SHiRA, 2e-2 for HiRA, 5e-4 for ``reconstruct``.
        steps: Optimiser steps; of each block for ``reconstruct``. None: 200 and 96.
        batch_size: Sequences in a forward pass.
        accumulation: Forward passes in a step.
        warmup: Share of the steps in which the step size rises; it falls along a cosine afterwards.
        domain_ratio: Share of the training sequences that come from the domain corpus, or from those for domain,
            language and task, as many from each; the others come from the general one. Without a general corpus, or
            with no other, all come from what there is.
        num_samples: Sequences in all, held-out ones included.
        sequence_length: Tokens in a sequence. None: that of the calibration text.
        held_out: Share of the sequences that is not trained on: the loss on it decides when training ends and which
            step is kept.
        evaluate_every: Steps between two looks at the held-out loss, at which the state is saved as well.
        patience: Looks without a lower held-out loss after which training ends. 0: never before the last step.
        distill: Learn from the logits of the dense base as well.
        temperature: What both models' logits are divided by for that.
        distill_weight: Share of that in the loss, the rest is the cross entropy.
        bf16: Run in bfloat16 by autocast. None: on a GPU that supports it.
        gradient_checkpointing: Recompute activations in the backward pass instead of keeping them.
        max_grad_norm: Largest norm of the gradient.
        seed: Seed of everything random.
        report_to: Where transformers' Trainer reports to, such as ``trackio``; several as a tuple.

    Raises:
        ConfigError: Any rule is broken; the message lists every one.
    """

    method: str = "adapter"
    adapter: Any = "lora"
    rank: int = 16
    alpha: float | None = None
    learning_rate: float | None = None
    steps: int | None = None
    batch_size: int = 8
    accumulation: int = 1
    warmup: float = 0.05
    domain_ratio: float = 0.5
    num_samples: int = 512
    sequence_length: int | None = None
    held_out: float = 0.1
    evaluate_every: int = 50
    patience: int = 3
    distill: bool = False
    temperature: float = 2.0
    distill_weight: float = 0.5
    bf16: bool | None = None
    gradient_checkpointing: bool = True
    max_grad_norm: float = 1.0
    seed: int = 0
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = (self.report_to,) if isinstance(self.report_to, str) else tuple(self.report_to)
        object.__setattr__(self, "report_to", tuple(name for name in names if name != "none"))
        problems = [*self._word_problems(), *self._number_problems()]
        if problems:
            raise ConfigError(problems)

    def _word_problems(self) -> list[str]:
        problems = []
        if self.method not in METHODS:
            problems.append(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.own_lora is not None:
            problems += [
                f"recovery changes the pruned matrices alone, and the LoraConfig has {name}={value!r}: leave it out"
                for name, harmless in HARMLESS.items()
                if (value := self.own_lora.get(name, harmless[0])) not in harmless
            ]
        elif self.adapter not in ("lora", "shira", "hira"):
            problems.append(f"adapter must be lora, shira, hira or a peft.LoraConfig, got {self.adapter!r:.60}")
        if self.method == "reconstruct":
            needless = [name for name in ("distill", "report_to") if getattr(self, name)]
            problems += [
                f"{name} goes with method 'adapter', got it with 'reconstruct', which fits block by block: drop one"
                for name in needless
            ]
        return problems

    def _number_problems(self) -> list[str]:
        least = {
            "rank": (1, ""),
            "batch_size": (1, " sequence"),
            "accumulation": (1, " pass"),
            "num_samples": (2, " sequences"),
            "evaluate_every": (1, " step"),
            "patience": (0, " looks"),
            "seed": (0, ""),
        }
        optional = {"steps": (1, " step"), "sequence_length": (2, " tokens")}
        least |= {name: rule for name, rule in optional.items() if getattr(self, name) is not None}
        problems = count_problems(self, least)
        for name in ("alpha", "learning_rate", "temperature", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                problems.append(f"{name} must be a number above 0, got {value!r}")
        for name in ("domain_ratio", "distill_weight"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value <= 1):
                problems.append(f"{name} must be between 0 and 1, got {value!r}")
        for name, below in (("warmup", 1.0), ("held_out", 0.5)):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value <= below):
                problems.append(f"{name} must be at least 0 and at most {below:g}, got {value!r}")
        if self.held_out == 0 and self.patience and self.method == "adapter":
            problems.append(
                f"ending early needs text to look at, got held_out=0 with patience={self.patience}: set patience=0"
            )
        return problems

    @property
    def own_lora(self) -> Mapping[str, Any] | None:
        """The fields of a user's own LoraConfig, None where there is none."""
        if isinstance(self.adapter, Mapping):
            return self.adapter if str(self.adapter.get("peft_type")).endswith("LORA") else None
        kind = getattr(self.adapter, "peft_type", None)
        return vars(self.adapter) if kind is not None and str(getattr(kind, "value", kind)) == "LORA" else None

    @property
    def kind(self) -> str:
        """What is done, in one word: the adapter, or ``reconstruct``."""
        if self.method == "reconstruct":
            return "reconstruct"
        return "lora" if self.own_lora is not None else str(self.adapter)

    def resolved(self) -> RecoveryConfig:
        """The same with defaults filled in."""
        return replace(
            self,
            alpha=2.0 * self.rank if self.alpha is None else self.alpha,
            learning_rate=LEARNING_RATES[self.kind] if self.learning_rate is None else self.learning_rate,
            steps=STEPS[self.method] if self.steps is None else self.steps,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, defaults included."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.own_lora is not None:
            data["adapter"] = {name: _plain(value) for name, value in self.own_lora.items() if name[0] != "_"}
        return {**data, "report_to": list(self.report_to)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RecoveryConfig:
        """Build from ``to_dict`` output; a name that is no field is refused.

        Raises:
            ConfigError: A field is unknown or breaks a rule.
        """
        return cls(**in_our_words(cls, data))

    @classmethod
    def of(cls, given: RecoveryConfig | Mapping[str, Any] | str | bool | None) -> RecoveryConfig:
        """Read what a user gives: a config, its fields, the name of an adapter or method, or True for the defaults.

        Raises:
            ConfigError: It is something else, or breaks a rule.
        """
        if isinstance(given, RecoveryConfig):
            return given
        if isinstance(given, Mapping):
            return cls.from_dict(given)
        if isinstance(given, str):
            return cls(method=given) if given in METHODS else cls(adapter=given)
        if given is None or given is True:
            return cls()
        if hasattr(given, "peft_type"):
            return cls(adapter=given)
        raise ConfigError(
            f"recovery is a RecoveryConfig, its fields, lora, shira, hira or reconstruct, got {given!r:.60}"
        )


def _plain(value: Any) -> Any:
    """A value of a LoraConfig in JSON types."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(getattr(value, "value", value))
