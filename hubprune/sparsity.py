"""The vocabulary of sparsity: how much is removed and in which pattern.

A *sparsity* is the fraction removed of the targeted weights. A *pattern* says what competes: single weights inside a
scope (``Unstructured``) or inside groups of consecutive input columns (``NM``), or whole units of the model
(``Structured``). A *keep* mask is boolean, True = keep.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from hubprune.errors import ConfigError

Scope = Literal["row", "block", "matrix", "model"]
SCOPES: tuple[str, ...] = get_args(Scope)


@dataclass(frozen=True)
class Unstructured:
    """Single weights are removed wherever the scores are lowest inside a scope.

    Attributes:
        sparsity: Fraction removed, in [0, 1).
        scope: Who competes with whom: the weights of one output ``row``, of one ``block`` of consecutive input columns
            (all rows), of one ``matrix``, or of the whole ``model``.

    Raises:
        ConfigError: The sparsity is outside [0, 1) or the scope is unknown.
    """

    sparsity: float
    scope: Scope = "matrix"

    def __post_init__(self) -> None:
        problems = []
        if not 0.0 <= self.sparsity < 1.0:
            problems.append(
                f"sparsity must be at least 0 and below 1, got {self.sparsity}: it is the fraction removed"
            )
        if self.scope not in SCOPES:
            problems.append(f"scope must be one of {', '.join(SCOPES)}, got {self.scope!r}")
        if problems:
            raise ConfigError(problems)

    def __str__(self) -> str:
        """Return the short form used in tables and cards, such as ``50 % per matrix``."""
        return f"{100 * self.sparsity:.4g} % per {self.scope}"


@dataclass(frozen=True)
class NM:
    """N:M sparsity: of every ``group`` consecutive input columns of a row, ``keep`` weights stay.

    N is the number *kept*, as in hardware documentation ("2:4"); Wanda's and SparseGPT's code counts the pruned.

    Attributes:
        keep: Weights kept in each group, N.
        group: Consecutive input columns in a group, M.

    Raises:
        ConfigError: N is not between 1 and M - 1.
    """

    keep: int
    group: int

    def __post_init__(self) -> None:
        if not 1 <= self.keep < self.group:
            raise ConfigError(
                f"N:M keeps N of every M weights, so N must be at least 1 and below M, got {self.keep}:{self.group}: "
                "use for instance '2:4' (keeps 2 of 4) or '1:4'"
            )

    @property
    def sparsity(self) -> float:
        """Fraction removed, ``1 - N / M``."""
        return 1.0 - self.keep / self.group

    def __str__(self) -> str:
        """Return the form that ``parse_pattern`` reads, such as ``2:4``."""
        return f"{self.keep}:{self.group}"


Unit = Literal["ffn_neuron", "kv_group", "attention_dim", "layer"]
UNITS: tuple[str, ...] = get_args(Unit)
# In prose, one and several.
UNIT_NAMES = {
    "ffn_neuron": ("FFN neuron", "FFN neurons"),
    "kv_group": ("KV group", "KV groups"),
    "attention_dim": ("attention dimension", "attention dimensions"),
    "layer": ("layer", "layers"),
}
ShareOf = Literal["units", "blocks", "model"]
SHARES: tuple[str, ...] = get_args(ShareOf)


@dataclass(frozen=True)
class Structured:
    """Whole units are removed, as many from every layer.

    Attributes:
        sparsity: Fraction removed, in [0, 1).
        units: Kinds of unit: the neurons of feed-forward networks (``ffn_neuron``), key-value heads with their query
            heads (``kv_group``), single dimensions of queries and keys or of values (``attention_dim``), whole layers
            (``layer``).
        share_of: What the fraction is of: the ``units`` of each kind, the weights of all ``blocks``, or all
            parameters of the ``model``.

    Raises:
        ConfigError: The sparsity is outside [0, 1), or a word is unknown.
    """

    sparsity: float
    units: tuple[Unit, ...] = ("ffn_neuron",)
    share_of: ShareOf = "units"

    def __post_init__(self) -> None:
        problems = []
        if not 0.0 <= self.sparsity < 1.0:
            problems.append(
                f"sparsity must be at least 0 and below 1, got {self.sparsity}: it is the fraction removed"
            )
        problems += [f"a unit is one of {', '.join(UNITS)}, got {unit!r}" for unit in self.units if unit not in UNITS]
        if not self.units or len(set(self.units)) < len(self.units):
            problems.append(f"name every unit once, got {', '.join(self.units) or 'none'}")
        if "layer" in self.units and len(self.units) > 1:
            problems.append(f"layers are removed by themselves, got {' + '.join(self.units)}: name one")
        if self.share_of not in SHARES:
            problems.append(f"share_of must be one of {', '.join(SHARES)}, got {self.share_of!r}")
        if problems:
            raise ConfigError(problems)

    def __str__(self) -> str:
        """Return the short form used in tables and cards, such as ``25 % of the FFN neurons of every layer``."""
        names = " and ".join(UNIT_NAMES[unit][1] for unit in self.units)
        if self.share_of != "units":
            whole = "the block parameters" if self.share_of == "blocks" else "all parameters"
            return f"{100 * self.sparsity:.4g} % of {whole}, as {names}"
        return f"{100 * self.sparsity:.4g} % of the {names}" + ("" if "layer" in self.units else " of every layer")


WeightPattern = Unstructured | NM
Pattern = WeightPattern | Structured


def parse_units(text: str) -> tuple[Unit, ...]:
    """Read one or several units joined with ``+``, such as ``ffn_neuron+kv_group``."""
    return tuple(part.strip() for part in text.split("+"))  # type: ignore[misc]


def parse_pattern(text: str) -> NM:
    """Read an N:M pattern such as ``2:4``.

    Raises:
        ConfigError: The text is not of the form N:M with 1 <= N < M.
    """
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", str(text))
    if match is None:
        # YAML reads 2:4 without quotes as a number in sixties, 124.
        quotes = "" if isinstance(text, str) else ", in a YAML file with the quotes"
        raise ConfigError(
            f"a pattern is written 'N:M', N weights kept of every M, got {text!r}: use for instance '2:4'{quotes}"
        )
    return NM(keep=int(match[1]), group=int(match[2]))
