"""What the benchmark scripts share: tables, targets, processes that measure, random models, the embedded Hub.

A script that measures memory imports torch in the processes that it starts and not in its own: a process counts the
memory of the one that started it among its own peak.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

REAL = Path(os.environ.get("HUBPRUNE_REAL", Path(__file__).parents[2] / "shared" / "real"))


@contextmanager
def real_hub() -> Iterator[None]:
    """Serve the real models and data sets on an embedded Hub and point the Hub client at it.

    To be entered before huggingface_hub is imported, because the client reads its endpoint when it is imported.
    """
    if not REAL.is_dir():
        sys.exit(
            f"this benchmark reads real models and data laid out like Hub repositories, and {REAL} is not there: "
            "set HUBPRUNE_REAL"
        )
    from hubprune.localhub import EmbeddedHub

    with tempfile.TemporaryDirectory() as folder, EmbeddedHub(Path(folder) / "hub", seed=[REAL]) as hub:
        os.environ["HF_ENDPOINT"] = hub.url
        os.environ["HF_HOME"] = str(Path(folder) / "home")
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        yield


def cannot(why: str) -> NoReturn:
    """Say why this machine cannot run a benchmark, and leave with 2; 1 is for a target that is missed."""
    print(why, file=sys.stderr)
    sys.exit(2)


def measured(*words: str, **environment: str) -> dict[str, Any]:
    """Run Python with these words in a process of its own, and read the line of JSON that it prints last."""
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    output = subprocess.check_output([sys.executable, *words], env={**os.environ, **quiet, **environment})
    return json.loads(output.splitlines()[-1])


def flags(options: Mapping[str, object]) -> list[str]:
    """Options as words of a command."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def random_llama(
    hidden: int,
    layers: int,
    *,
    vocabulary: int,
    intermediate: int | None = None,
    head: int = 64,
    groups: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
):
    """Build a Llama with seeded random weights, on its device and in its type from the start."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate or hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // head,
        num_key_value_heads=groups or hidden // head,
        max_position_embeddings=4096,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()


def random_text(vocabulary: int, samples: int, **lengths: int):
    """Draw seeded token ids, ``(samples, length)``, for each corpus."""
    import torch

    generator = torch.Generator().manual_seed(1)
    draw = functools.partial(torch.randint, 3, vocabulary, generator=generator)
    return {name: draw((samples, length)) for name, length in lengths.items()}


def into_folder(folder: Path, out: Path, config, corpora, *, streamed: bool, budget: int | None = None, **keywords):
    """Prune the model in one folder into another, its blocks in memory or on disk whatever there is room for.

    Args:
        folder: The model.
        out: The result.
        config: What to prune and how.
        corpora: Token ids by name.
        streamed: Leave the blocks on disk and bring them in one at a time.
        budget: Bytes of host memory for activations; None for no limit.
        keywords: Keywords of ``from_pretrained``.
    """
    from hubprune import flow, runs
    from hubprune.opening import Opening
    from hubprune.work import WorkFolder

    base = Opening(str(folder), None, {"dtype": "auto", **keywords})
    plan = flow.prepare(base, config, corpora, settings={}, evaluation=None, progress=False)
    with WorkFolder(runs.work_folder(out), runs.fingerprint(plan), fresh=True) as work:
        report = runs.produce(plan, out, work, streamed=streamed, activation_budget=budget, progress=False)
        work.remove()
    return report


def config_of(row: str, **settings):
    """Read a row's name, a method or ``method/option=value``, as a config with further settings."""
    from hubprune import PruningConfig

    name, _, setting = row.partition("/")
    key, _, value = setting.partition("=")
    given = {key: float(value) if value.replace(".", "").isdecimal() else value} if key else {}
    return PruningConfig(name, options=given, **settings)


def pruning_seconds(report) -> float:
    """Time of a run's own stages: no reading of text, no loading, no saving at the end, no evaluation."""
    return sum(report.timings.get(stage, 0.0) for stage in ("forward", "backward", "prune", "repair"))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table, so that it can be pasted into the documentation as it is."""
    print(f"\n{title}\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


class Targets:
    """Collects what a benchmark must show; ``exit`` prints a line for each and leaves with 1 when one falls short."""

    def __init__(self) -> None:
        self.lines: list[tuple[bool, str]] = []

    def at_most(self, name: str, value: float, limit: float, unit: str = "") -> None:
        """Require ``value <= limit``."""
        self.lines.append((value <= limit, f"{name}: {value:.3g}{unit} (target: at most {limit:g}{unit})"))

    def at_least(self, name: str, value: float, limit: float, unit: str = "") -> None:
        """Require ``value >= limit``."""
        self.lines.append((value >= limit, f"{name}: {value:.3g}{unit} (target: at least {limit:g}{unit})"))

    def between(self, name: str, value: float, low: float, high: float) -> None:
        """Require ``low <= value <= high``."""
        self.lines.append((low <= value <= high, f"{name}: {value:.3g} (target: {low:g} to {high:g})"))

    def exit(self) -> None:
        """Print the verdicts and end the script."""
        for passed, line in self.lines:
            print(f"{'ok   ' if passed else 'short'} {line}")
        sys.exit(0 if all(passed for passed, _ in self.lines) else 1)
