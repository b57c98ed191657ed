"""What all configs share: the words users bring, counts, sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hubprune.errors import ConfigError, did_you_mean

# Words that users bring from wanda, llm-compressor and SparseGPT, with ours.
ALIASES = {
    "sparsity_ratio": "sparsity",
    "mask_structure": "pattern",
    "sparsity_type": "pattern",
    "nsamples": "num_samples",
    "num_calibration_samples": "num_samples",
    "max_seq_length": "sequence_length",
    "seqlen": "sequence_length",
    "percdamp": "damping",
    "dampening_frac": "damping",
}


def in_our_words(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config under their own names; an unknown one, or one given under two names, is refused."""
    known = [f.name for f in fields(cls)]
    renamed: dict[str, Any] = {}
    problems = []
    for word, value in data.items():
        name = ALIASES.get(word, word)
        if name not in known:
            problems.append(f"{cls.__name__} has no field {word!r}: {did_you_mean(word, known)}")
        elif name in renamed:
            problems.append(f"{word!r} is another word for a field that is given already: give {name!r} once")
        renamed[name] = value
    if problems:
        raise ConfigError(problems)
    return renamed


def count_problems(config: Any, smallest: Mapping[str, tuple[int, str]]) -> list[str]:
    """What is wrong with the fields that count something, given the smallest number and the unit of each."""
    return [
        f"{name} must be a whole number, at least {least}{unit}, got {value!r}"
        for name, (least, unit) in smallest.items()
        if not (isinstance(value := getattr(config, name), int) and value >= least)
    ]


def parse_size(value: int | str | None, name: str) -> int | None:
    """Read a size: bytes, or a number with a unit such as ``4GiB`` or ``500MB``; None stays None.

    Raises:
        ConfigError: It is neither, or not above 0.
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT]?)(I?)B)?\s*", str(value).upper())
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " ")) if match else 0
    if size <= 0:
        raise ConfigError(f"{name} is a size above 0 such as 4GiB or 500MB, got {value!r}: give a number and a unit")
    return size
