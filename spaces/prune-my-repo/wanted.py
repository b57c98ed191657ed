"""What a visitor asks for: checked, and turned into the arguments of ``hubprune prune``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

HERE, AUTOMATIC = "here", "automatic"
HERE_PARAMETERS = int(os.environ.get("HERE_PARAMETERS", 1_500_000_000))
MOST_PARAMETERS = int(os.environ.get("MOST_PARAMETERS", 34_000_000_000))
MAX_SAMPLES, MAX_LENGTH = 512, 2048  # sequences of each text, tokens in each
LEAST_SPARSITY, MOST_SPARSITY = 0.05, 0.9

# Machines for jobs: parameters of the largest model, and when the Hub ends the job.
MACHINES: dict[str, tuple[int, str]] = {
    "cpu-upgrade": (1_500_000_000, "4h"),
    "t4-medium": (4_000_000_000, "2h"),
    "a10g-large": (9_000_000_000, "3h"),
    "a100-large": (34_000_000_000, "6h"),
}

DOMAINS = {
    "medical": "Medical",
    "legal": "Legal",
    "code": "Code",
    "math": "Mathematics",
}
GENERAL = {"general": "General"}


@dataclass(frozen=True)
class Way:
    """A method as the page offers it.

    Attributes:
        label: What it is called.
        texts: Texts that it is given.
        sparsity: Where the slider starts.
        shrinks: Whether the result has fewer parameters; else as many, some of them zero.
        about: One sentence.
    """

    label: str
    texts: tuple[str, ...]
    sparsity: float
    shrinks: bool
    about: str


BOTH, DOMAIN = ("general", "domain"), ("domain",)
WAYS: dict[str, Way] = {
    "d-pruner": Way("D-Pruner", BOTH, 0.5, False, "Keeps what the domain needs, and what all language needs."),
    "cross-calibration": Way("Cross-calibration", BOTH, 0.5, False, "Repairs the rest, for general and domain text."),
    "sparsegpt": Way("SparseGPT", DOMAIN, 0.5, False, "Repairs the remaining weights after each step; slower."),
    "wanda": Way("Wanda", DOMAIN, 0.5, False, "Weight times the norm of its input; quick, needs little memory."),
    "cus-prun": Way("Cus-Prun", BOTH, 0.25, True, "Cuts out neurons that neither text needs: smaller and faster."),
    "wanda-sp": Way("Wanda-sp", DOMAIN, 0.25, True, "Cuts out neurons with small weights times inputs."),
    "block-influence": Way("Block influence", DOMAIN, 0.25, True, "Cuts out whole layers that change little."),
    "magnitude": Way("Magnitude", (), 0.5, False, "The smallest weights go; reads no text."),
}

REPO = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
TEXT = re.compile(rf"{REPO.pattern}(@[\w./-]+)?(:[\w.-]+){{0,2}}(\?[\w.=&%-]+)?", re.ASCII)
FILE = re.compile(r"\.(jsonl?|csv|parquet|txt)(\.gz)?$")
NAME = re.compile(r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)


class Refused(ValueError):
    """What was asked for cannot be done; the text says why and what can be."""


@dataclass(frozen=True)
class Wanted:
    """One run as a visitor asks for it.

    Attributes:
        base: Repository of the model.
        domain: A preset, or data sets as ``hubprune`` reads them.
        general: Likewise.
        method: A key of ``WAYS``.
        sparsity: Fraction to remove.
        samples: Sequences of each text.
        length: Tokens in a sequence.
        name: Name of the result; empty for ``suggestion``.
        private: Whether only its owner sees it.
        space: Whether it gets a Space that shows it beside its base.
        place: ``here``, ``automatic`` or a machine for a job.
    """

    base: str
    domain: str
    general: str
    method: str
    sparsity: float
    samples: int = 128
    length: int = 512
    name: str = ""
    private: bool = False
    space: bool = False
    place: str = AUTOMATIC

    def check(self) -> None:
        """Refuse what no run can be made of, before anything is asked of the Hub.

        Nothing here may name a file of this machine, or be taken for an option of the command.

        Raises:
            Refused: The reasons, all of them.
        """
        problems = []
        if not _is_remote(REPO, self.base or ""):
            problems.append("choose a model: owner/name of a repository on the Hub")
        way = WAYS.get(self.method)
        if way is None:
            problems.append(f"choose a method: {', '.join(WAYS)}")
        presets = {"domain": DOMAINS, "general": GENERAL}
        for label in way.texts if way else ():
            given = getattr(self, label) or ""
            if given not in presets[label] and not all(_is_remote(TEXT, part) for part in given.split("+")):
                problems.append(f"choose {label} text: one of the list, or owner/name[:config[:split]] of a data set")
        if not LEAST_SPARSITY <= self.sparsity <= MOST_SPARSITY:
            problems.append(f"the fraction is between {LEAST_SPARSITY:g} and {MOST_SPARSITY:g}")
        if not 1 <= self.samples <= MAX_SAMPLES or not 16 <= self.length <= MAX_LENGTH:
            problems.append(f"at most {MAX_SAMPLES} sequences of 16 to {MAX_LENGTH} tokens")
        if self.name and (not NAME.fullmatch(self.name) or len(self.name) > 96 or re.search(r"--|\.\.", self.name)):
            problems.append("a name has letters, digits, '-', '_' and '.', at most 96")
        if self.place not in (AUTOMATIC, HERE, *MACHINES):
            problems.append(f"choose where: {HERE}, {AUTOMATIC} or {', '.join(MACHINES)}")
        if problems:
            raise Refused("; ".join(problems))

    @property
    def texts(self) -> dict[str, str]:
        """The texts that the method reads."""
        return {label: getattr(self, label) for label in WAYS[self.method].texts}

    @property
    def suggestion(self) -> str:
        """A name for the result: base, domain and fraction."""
        base = self.base.rpartition("/")[2] or "model"
        domain = re.split(r"[@:?+]", self.domain or "")[0].rpartition("/")[2] if self.texts else ""
        words = [base, domain, self.method, f"{100 * self.sparsity:.0f}"]
        return re.sub(r"-{2,}|\.{2,}", "-", "-".join(filter(None, words)))[:96].strip("-.")

    def arguments(self, user: str, machine: str | None) -> list[str]:
        """Return what follows ``hubprune``, each option in one word.

        Args:
            user: Whose account gets the result.
            machine: Machine for a job; None for this one.
        """
        timeout = MACHINES[machine][1] if machine else None
        options = {
            "method": self.method,
            "sparsity": f"{self.sparsity:g}",
            **self.texts,
            **({"num-samples": self.samples, "sequence-length": self.length} if self.texts else {}),
            "push": f"{user}/{self.name or self.suggestion}",
            **({"job": machine, "timeout": timeout} if machine else {}),
        }
        words = [f"--{option}={value}" for option, value in options.items()]
        return [
            "prune",
            self.base,
            *words,
            "--private" if self.private else "--public",
            *(["--space"] if self.space else []),
        ]


def choose_place(wanted: Wanted, parameters: int, fits_here: bool, may_run_jobs: bool) -> str | None:
    """Return the machine for a job, or None for the hardware of this Space.

    Args:
        wanted: The run.
        parameters: Parameters of the base.
        fits_here: Whether the memory of this Space is enough.
        may_run_jobs: Whether the visitor allowed it.

    Raises:
        Refused: It is too large, for all machines or for the one that was asked for.
    """
    size = f"{wanted.base} has {parameters:,} parameters"
    if parameters > MOST_PARAMETERS:
        raise Refused(f"{size}, and this Space prunes up to {MOST_PARAMETERS:,}: use hubprune on a machine of yours")
    small = parameters <= HERE_PARAMETERS and fits_here
    if wanted.place == HERE and not small:
        raise Refused(f"{size}, which is too large for this Space's hardware: choose a machine for a job")
    if wanted.place == HERE or (wanted.place == AUTOMATIC and small):
        return None
    if not may_run_jobs:
        raise Refused(f"{size}, which takes a job, and this Space was not allowed to run jobs: log in again and agree")
    machine = next((name for name, (most, _) in MACHINES.items() if parameters <= most), None)
    if wanted.place != AUTOMATIC:
        if parameters > MACHINES[wanted.place][0]:
            raise Refused(f"{size}, too large for {wanted.place}: choose {machine or 'another machine'}")
        return wanted.place
    if machine is None:
        raise Refused(f"{size}, and there is no machine for it: use hubprune on a machine of yours")
    return machine


def _is_remote(pattern: re.Pattern[str], text: str) -> bool:
    return pattern.fullmatch(text) is not None and not FILE.search(text) and not Path(text).exists()
