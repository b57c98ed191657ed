"""What to prune and how: a frozen config that checks itself, reports every error at once and travels as JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hubprune.errors import ConfigError, did_you_mean
from hubprune.fields import count_problems, in_our_words
from hubprune.presets import APPLICATIONS, CORPORA, METHODS, Method
from hubprune.sparsity import SCOPES, Pattern, Structured, Unstructured, parse_pattern, parse_units


@dataclass(frozen=True)
class PruningConfig:
    """What to prune and how; says nothing about the model or the text.

    Attributes:
        method: Name of a method, see ``hubprune methods``.
        sparsity: Fraction removed of the targeted weights, in [0, 1). None: 0.5, or what ``pattern`` implies.
        pattern: ``"N:M"`` such as ``"2:4"`` (N weights kept of every M along the input), None for unstructured.
        scope: Who competes with whom in an unstructured run: row, block, matrix or model. None: the method's own.
        application: ``zero`` leaves the remaining weights alone; ``compensate`` repairs them, by SparseGPT's column
            sweep or, for units, by least squares; ``remove`` cuts units out, so that the model gets smaller. None:
            the method's own, and ``remove`` for units.
        unit: What is removed: single weights (``weight``) or units of the model (``ffn_neuron``, ``kv_group``,
            ``attention_dim``, ``layer``), several joined with ``+``. None: the method's own.
        share_of: What ``sparsity`` is a share of when units are removed: the ``units``, the weights of all ``blocks``,
            or all parameters of the ``model``.
        repair: Whether the remaining weights make up for units that are removed. None: yes, except with ``zero``.
        multiple: How many neurons are left in a feed-forward network is a multiple of this. None: when they are
            removed physically, 128 from two billion parameters on, 64 from a hundred million, 8 below, halved until
            it is at most an eighth of their number; when they are masked, 1.
        targets: Names of the matrices to prune; empty for every linear map of the decoder blocks. A name is a full
            module name, a last component (``q_proj``), or ``re:`` and a regular expression matched from the start.
        ignore: Matrices left alone, in the same notation.
        block_size: Consecutive input columns of a ``block``, and of the column sweep.
        damping: Added to the Hessian's diagonal, as a fraction of its mean.
        batch_size: Sequences in one forward pass of the calibration.
        seed: Seed of everything random in a run.
        options: The method's own settings, see ``hubprune methods``.

    Raises:
        ConfigError: Any rule is broken; the message lists every one.
    """

    method: str = "d-pruner"
    sparsity: float | None = None
    pattern: str | None = None
    scope: str | None = None
    application: str | None = None
    unit: str | None = None
    share_of: str = "units"
    repair: bool | None = None
    multiple: int | None = None
    targets: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    block_size: int = 128
    damping: float = 0.01
    batch_size: int = 8
    seed: int = 0
    options: Mapping[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("targets", "ignore"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        object.__setattr__(self, "options", dict(self.options))
        problems = [*self._pattern_problems(), *self._method_problems(), *self._number_problems()]
        problems += self._unit_problems() if self.method in METHODS else []
        if problems:
            raise ConfigError(problems)

    def _pattern_problems(self) -> list[str]:
        problems = []
        if self.sparsity is not None and not (isinstance(self.sparsity, int | float) and 0.0 <= self.sparsity < 1.0):
            problems.append(
                f"sparsity must be a number of at least 0 and below 1, got {self.sparsity!r}: it is the fraction "
                "removed, write 0.5 for half"
            )
        if self.pattern is not None:
            try:
                parse_pattern(self.pattern)
            except ConfigError as error:
                problems.extend(error.problems)
            if self.sparsity is not None:
                problems.append(
                    f"pattern {self.pattern!r} fixes the sparsity by itself, got sparsity={self.sparsity} as well: "
                    "give one"
                )
            if self.scope is not None:
                problems.append(
                    f"scope applies to unstructured runs, got scope={self.scope!r} with {self.pattern!r}: drop one"
                )
        if self.scope is not None and self.scope not in SCOPES:
            problems.append(f"scope must be one of {', '.join(SCOPES)}, got {self.scope!r}")
        return problems

    def _unit_problems(self) -> list[str]:
        method, unit = self.preset, self.resolved_unit()
        given: dict[str, object] = {"pattern": self.pattern, "scope": self.scope}
        if unit == "weight":
            problems = [] if method.unit == "weight" else [f"method {self.method!r} scores units, got unit 'weight'"]
            given = {"repair": self.repair, "multiple": self.multiple}
            if self.share_of != "units":
                given["share_of"] = self.share_of
            if self.application == "remove":
                problems.append("single weights cannot be cut out, got application 'remove': name a unit, or use zero")
            what = "goes with units"
        else:
            problems, what = [], "goes with single weights"
            try:
                Structured(0.0, parse_units(unit), self.share_of)  # type: ignore[arg-type]
            except ConfigError as error:
                problems += error.problems
            if (method.unit == "layer") != (unit == "layer"):
                problems.append(f"method {self.method!r} scores {method.unit}, got unit {unit!r}: drop one of them")
            if self.repair is False and self.application == "compensate":
                problems.append("application 'compensate' repairs, got repair=False: use zero, or drop repair")
            if unit == "layer" and (self.resolved_application() != "remove" or self.repair):
                problems.append("layers are removed as they are: drop application and repair")
            if "attention_dim" in unit and self.resolved_application() == "remove":
                problems.append(
                    "single attention dimensions can only be masked, got application 'remove': use zero or compensate"
                )
            if "attention_dim" in unit and self.method not in ("cus-prun", "random"):
                problems.append(f"attention dimensions are scored by cus-prun and random, got method {self.method!r}")
            if self.method in ("mutual-information",) and unit != "ffn_neuron":
                problems.append(f"method {self.method!r} compares neurons, got unit {unit!r}: drop it")
            if self.targets or self.ignore:
                problems.append("targets and ignore go with single weights, got them with units: drop them")
        problems += [
            f"{name} {what}, got {name}={value!r} with unit {unit!r}: drop one"
            for name, value in given.items()
            if value is not None
        ]
        if self.multiple is not None:
            problems += count_problems(self, {"multiple": (1, " unit")})
        return problems

    def _method_problems(self) -> list[str]:
        problems = []
        if self.application is not None and self.application not in APPLICATIONS:
            problems.append(f"application must be one of {', '.join(APPLICATIONS)}, got {self.application!r}")
        if self.method not in METHODS:
            return [*problems, f"unknown method {self.method!r}: {did_you_mean(str(self.method), METHODS)}"]
        method = METHODS[self.method]
        for name, value in self.options.items():
            if name not in method.options:
                known = did_you_mean(name, method.options) if method.options else "it has none"
                problems.append(f"method {self.method!r} has no option {name!r}: {known}")
            elif name in method.choices and value not in method.choices[name]:
                problems.append(f"option {name} must be one of {', '.join(method.choices[name])}, got {value!r}")
            elif name not in method.choices and not (isinstance(value, int | float) and 0 <= value < math.inf):
                problems.append(f"option {name} must be a finite number of at least 0, got {value!r}")
            elif name in ("domain_ratio", "confidence") and value > 1:  # type: ignore[operator]
                problems.append(f"option {name} must be between 0 and 1, got {value}")
            elif name == "answer_tokens" and value < 1:  # type: ignore[operator]
                problems.append(f"option {name} must be at least 1 token, got {value}")
            elif name == "alpha" and value in (0, 1):
                problems.append(f"option alpha must be above 0 and not 1, got {value}: 1.01 is the paper's")
            elif name == "alpha" and value != 2 and self.resolved_options()["strategy"] == "stand-in":
                problems.append(
                    f"option alpha is for strategies that visit pairs, got {value}: add strategy='greedy' or 'random'"
                )
        return problems

    def _number_problems(self) -> list[str]:
        problems = count_problems(
            self, {"block_size": (1, " column"), "batch_size": (1, " sequence"), "seed": (0, "")}
        )
        if not (isinstance(self.damping, int | float) and 0.0 < self.damping < 1.0):
            problems.append(
                f"damping must be above 0 and below 1 (a fraction of the mean diagonal), got {self.damping!r}"
            )
        for pattern in (*self.targets, *self.ignore):
            if not isinstance(pattern, str):
                problems.append(f"targets and ignore hold names of matrices, got {pattern!r}: write it in quotes")
            elif pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as error:
                    problems.append(f"{pattern!r} is not a regular expression ({error}): mend what follows 're:'")
        return problems

    @property
    def preset(self) -> Method:
        """The method's row in the table."""
        return METHODS[self.method]

    def resolved_pattern(self) -> Pattern:
        """The pattern with the method's defaults filled in."""
        if self.pattern is not None:
            return parse_pattern(self.pattern)
        sparsity = self.preset.sparsity if self.sparsity is None else float(self.sparsity)
        unit = self.resolved_unit()
        if unit != "weight":
            return Structured(sparsity, parse_units(unit), self.share_of)  # type: ignore[arg-type]
        return Unstructured(sparsity, self.scope or self.preset.scope)  # type: ignore[arg-type]

    def resolved_unit(self) -> str:
        """What is removed, with the method's default filled in."""
        return self.unit or self.preset.unit

    def resolved_application(self) -> str:
        """The application with the default filled in."""
        removes = self.resolved_unit() != "weight" and "attention_dim" not in self.resolved_unit()
        default = "remove" if removes else "zero" if self.resolved_unit() != "weight" else self.preset.application
        return self.application or default

    def repairs(self) -> bool:
        """Whether remaining weights are changed to make up for what is removed."""
        if self.resolved_unit() == "weight":
            return self.resolved_application() == "compensate"
        if self.resolved_unit() == "layer":
            return False
        return self.resolved_application() != "zero" if self.repair is None else self.repair

    def resolved_options(self) -> dict[str, float | str]:
        """The method's settings with its defaults filled in."""
        return {**self.preset.options, **self.options}

    @property
    def pseudo_labels(self) -> bool:
        """Whether the model's own answers take the place of those of the task."""
        return self.resolved_options().get("labels") == "pseudo"

    def required_corpora(self) -> tuple[str, ...]:
        """Names of the corpora this run cannot do without; ``("any",)`` for at least one of any name."""
        terms = self.resolved_options().get("terms")
        narrowed = {"no-general": ("domain",), "no-domain": ("general",), "general-only": ("general",)}
        if terms in narrowed:
            return narrowed[str(terms)]
        if not self.preset.corpora and self.repairs():
            return ("any",)
        return self.preset.corpora

    def check_corpora(self, names: tuple[str, ...]) -> None:
        """Refuse a run whose corpora are missing.

        Args:
            names: Names of the corpora given.

        Raises:
            ConfigError: The method needs a corpus that is not among them.
        """
        required = self.required_corpora()
        presets = ", ".join(CORPORA)
        if required == ("any",):
            if not names:
                raise ConfigError(
                    f"method {self.method!r} needs calibration text, got none: give domain=... or general=... "
                    f"(a Hub data set, a file, a list of strings or a preset: {presets})"
                )
            return
        problems = [
            f"method {self.method!r} needs a {name} corpus, got {', '.join(names) or 'none'}: give {name}=... "
            f"(a Hub data set, a file, a list of strings or a preset: {presets})"
            for name in required
            if name not in names
        ]
        if problems:
            raise ConfigError(problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, defaults included."""
        return {**asdict(self), "targets": list(self.targets), "ignore": list(self.ignore)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruningConfig:
        """Build from ``to_dict`` output; a name that is no field is refused.

        Raises:
            ConfigError: A field is unknown or breaks a rule.
        """
        return cls(**in_our_words(cls, data))
