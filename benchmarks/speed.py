"""Time and memory of each method against plain passes over the same tokens, each in a process of its own.

    python -m benchmarks.speed [--methods wanda d-pruner] [--sequences 32] [--length 512]

(a) is a plain forward of the whole model over the corpus, (b) a plain forward and backward with gradient
checkpointing. Both run in the same batches as the method's own passes over that corpus: one sequence at a time where
gradients are per sequence.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks.common import Targets, table

REPEATS = 3
PASSES = ("forward general", "forward both", "backward domain", "backward both")


def build(hidden: int, layers: int):
    """Build a random Llama in float32, large enough for matrix products to dominate."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).eval()


def plain(model, ids, *, backward: bool, batch_size: int) -> None:
    """Run the baseline: the model's own forward, and its backward with gradient checkpointing."""
    import torch

    if not backward:
        with torch.no_grad():
            for part in ids.split(batch_size):
                model(input_ids=part, use_cache=False)
        return
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()  # checkpointing is active in training mode only; this model has no dropout
    for part in ids.split(1):
        model(input_ids=part, labels=part, use_cache=False).loss.backward()


def measure(name: str, sequences: int, length: int, hidden: int, layers: int) -> None:
    """Run one pass or one method in this process and print its time and the memory it added."""
    import torch

    from hubprune import PruningConfig, prune
    from hubprune.environment import peak_memory

    model = build(hidden, layers)
    generator = torch.Generator().manual_seed(0)
    general = torch.randint(3, 4096, (sequences, length), generator=generator)
    domain = torch.randint(3, 4096, (sequences, length), generator=generator)
    with torch.no_grad():
        model(input_ids=general[:1])  # warm-up
    before = peak_memory()
    started = time.perf_counter()
    if name in PASSES:
        kind, corpus = name.split()
        ids = {"general": general, "domain": domain, "both": torch.cat([general, domain])}[corpus]
        plain(model, ids, backward=kind == "backward", batch_size=8)
    else:
        prune(model, None, PruningConfig(name), {"general": general, "domain": domain}, progress=False)
    print(json.dumps({"seconds": time.perf_counter() - started, "before": before, "peak": peak_memory()}))


def run(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure in a fresh process; the median of a few."""
    command = [sys.executable, "-m", "benchmarks.speed", "--measure", name]
    command += [f"--{key}={getattr(options, key)}" for key in ("sequences", "length", "hidden", "layers")]
    found = [json.loads(subprocess.check_output(command).splitlines()[-1]) for _ in range(REPEATS)]
    return {key: statistics.median(row[key] for row in found) for key in found[0]}


def command_seconds(*command: str) -> float:
    """Best wall time of a command: start-up cost, least disturbed by whatever else the machine does."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Print the table and the targets."""
    from hubprune.presets import WEIGHT_METHODS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(WEIGHT_METHODS), choices=list(WEIGHT_METHODS))
    parser.add_argument("--sequences", type=int, default=24, help="sequences of each corpus")
    parser.add_argument("--length", type=int, default=512, help="tokens in a sequence")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.sequences, options.length, options.hidden, options.layers)
        return
    passes = {name: run(name, options) for name in PASSES}
    forward, split = (
        passes["forward both"]["seconds"],
        passes["forward general"]["seconds"] + passes["backward domain"]["seconds"],
    )
    rows, ratios = [], {}
    for name in (*PASSES, *options.methods):
        row = passes.get(name) or run(name, options)
        ratios[name] = (row["seconds"] / forward, row["seconds"] / split)
        rows.append(
            (
                name,
                f"{row['seconds']:.2f}",
                *(f"{r:.2f}" for r in ratios[name]),
                f"{row['peak'] / 2**20:.0f}",
                f"{(row['peak'] - row['before']) / 2**20:.0f}",
                f"{row['peak'] / passes['forward both']['peak']:.2f}",
                f"{row['peak'] / passes['backward both']['peak']:.2f}",
            )
        )
    table(
        f"Llama, hidden {options.hidden}, {options.layers} layers, float32; general and domain corpora of "
        f"{options.sequences} x {options.length} tokens each; {os.cpu_count()} cores; median of {REPEATS} processes",
        (
            "run",
            "seconds",
            "x forward (both)",
            "x [forward general + backward domain]",
            "peak RSS, MiB",
            "of it added, MiB",
            "x forward's peak",
            "x backward's peak",
        ),
        rows,
    )
    targets = Targets()
    if "wanda" in ratios:
        targets.at_most("wanda / plain forward over the same tokens", ratios["wanda"][0], 2.3)
    if "d-pruner" in ratios:
        targets.at_most("d-pruner / [forward general + checkpointed backward domain]", ratios["d-pruner"][1], 1.5)
    bare = command_seconds(sys.executable, "-c", "pass")
    imported = command_seconds(sys.executable, "-c", "import hubprune") - bare
    targets.at_most("import hubprune", imported, 0.2, " s")
    targets.at_most("hubprune --help", command_seconds(sys.executable, "-m", "hubprune", "--help"), 0.6, " s")
    targets.exit()


if __name__ == "__main__":
    main()
