"""A physically smaller model against the dense one: tokens per second, file, memory, in one run.

    python -m benchmarks.shrunk [--layers 22]

A Llama of 1.1 billion random weights, whose FFN holds 69 % of the parameters, loses a part of its neurons.
Each variant runs in a process of its own with the same threads; rounds of dense and smaller alternate, and the medians
count. Random neurons go: which ones does not matter for time and size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.common import Targets, flags, measured, random_llama, table

PROMPT, NEW, ROUNDS = 128, 16, 3
SHARES = (0.25, 0.5)
HIDDEN, INTERMEDIATE, GROUPS, VOCABULARY = 2048, 5632, 4, 32000


def write(folder: Path, layers: int, share: float) -> None:
    """Write the dense model, or one with a share of all parameters removed."""
    from hubprune import PruningConfig, prune, shrink

    shape = {"vocabulary": VOCABULARY, "intermediate": INTERMEDIATE, "groups": GROUPS, "dtype": "bfloat16"}
    model = random_llama(HIDDEN, layers, **shape)
    if share:
        config = PruningConfig("random", sparsity=share, share_of="model", application="zero", multiple=64)
        model = shrink(model, prune(model, None, config, {}, progress=False))
    model.save_pretrained(folder)
    print(json.dumps({"parameters": model.num_parameters(), "width": model.config.intermediate_size}))


def measure(folder: Path) -> None:
    """Time one model in this process."""
    import torch
    from transformers import AutoModelForCausalLM

    from hubprune.environment import peak_memory

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = torch.randint(3, VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(0))

    def timed(new: int) -> float:
        started = time.perf_counter()
        model.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
        return time.perf_counter() - started

    timed(1)  # warm
    first = timed(1)
    whole = timed(1 + NEW)
    print(json.dumps({"prefill": PROMPT / first, "decode": NEW / (whole - first), "peak": peak_memory()}))


def main() -> None:
    """Print the table and the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--write", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write is not None:
        return write(options.folder, options.layers, options.write)
    if options.measure:
        return measure(options.folder)

    found: dict[float, list[dict[str, float]]] = {}
    facts = {}
    with tempfile.TemporaryDirectory() as place:
        folders = {share: Path(place) / str(share) for share in (0.0, *SHARES)}
        for share, folder in folders.items():
            words = flags({"layers": options.layers, "folder": folder, "write": share})
            facts[share] = measured("-m", "benchmarks.shrunk", *words)
            facts[share]["file"] = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        for _ in range(options.rounds):
            for share, folder in folders.items():
                row = measured("-m", "benchmarks.shrunk", f"--folder={folder}", "--measure")
                found.setdefault(share, []).append(row)
    middle = {
        share: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for share, rows in found.items()
    }
    dense = {**middle[0.0], **facts[0.0]}

    def cell(share: float, name: str, unit: float, digits: int) -> str:
        value = {**middle[share], **facts[share]}[name]
        return f"{value / unit:.{digits}f} ({value / dense[name]:.2f})"

    table(
        f"Llama with {options.layers} layers, hidden {HIDDEN}, FFN {INTERMEDIATE}, {GROUPS} KV groups, bfloat16 on "
        f"disk, float32 at work; prompt of {PROMPT} tokens, {NEW} new ones; medians of {options.rounds} rounds; in "
        "brackets: / dense",
        (
            "removed of all parameters",
            "FFN",
            "parameters, M",
            "file, GB",
            "peak RSS, GB",
            "prefill, tok/s",
            "decode, tok/s",
        ),
        [
            (
                f"{share:.0%}",
                facts[share]["width"],
                cell(share, "parameters", 1e6, 0),
                cell(share, "file", 1e9, 2),
                cell(share, "peak", 1e9, 2),
                cell(share, "prefill", 1, 1),
                cell(share, "decode", 1, 2),
            )
            for share in folders
        ],
    )
    targets = Targets()
    targets.at_least("decode at 25 % fewer parameters, ratio to dense", middle[0.25]["decode"] / dense["decode"], 1.2)
    for share in SHARES:
        for name in ("parameters", "file"):
            ratio = facts[share][name] / dense[name]
            targets.at_most(f"{name} at {share:.0%} fewer, ratio to dense", ratio, 1 - share + 0.02)
        targets.at_most(
            f"peak RSS at {share:.0%} fewer, ratio to dense", middle[share]["peak"] / dense["peak"], 1 - share + 0.12
        )
    targets.exit()


if __name__ == "__main__":
    main()
