"""Peak memory and time of one run with the blocks on disk, with the whole model in memory, and without the engine.

    python -m benchmarks.memory [--layers 22]

The model is a Llama of 1.1 billion random weights, on disk in bfloat16; d-pruner, 8 x 256 tokens of general and
8 x 256 of domain text. Each variant runs in a process of its own, and the operating system says what its peak was. The
reference is what a plain implementation holds: weights, gradients and scores of the whole model in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import Targets, table

VARIANTS = {
    "streamed": "blocks on disk",
    "resident": "whole model in memory",
    "reference": "whole-model gradients and scores",
}
SEQUENCES, LENGTH, VOCABULARY, SPARSITY = 8, 256, 32000, 0.5
# What the streamed run is told it may take.
MOST = 2_100_000_000


def write(folder: str, layers: int) -> None:
    """Write the random model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        dtype=torch.bfloat16,
    )
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)


def corpora():
    """Random tokens."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randint(3, VOCABULARY, (SEQUENCES, LENGTH), generator=generator) for name in ("general", "domain")
    }


def reference(folder: str) -> None:
    """Prune as a plain implementation does: gradients of the whole model, then scores for all weights, in float32.

    One sequence of each text, as more take time but no more memory.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for text in corpora().values():
        model(input_ids=text[:1], labels=text[:1], use_cache=False).loss.backward()
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name]
    scores = [(parameter.grad * parameter.detach()).abs() for parameter in matrices]
    with torch.no_grad():
        for parameter, score in zip(matrices, scores, strict=True):
            threshold = score.flatten().kthvalue(int(SPARSITY * score.numel())).values
            parameter.masked_fill_(score <= threshold, 0)


def measure(variant: str, folder: str) -> None:
    """Run one variant in this process and print its time and peaks."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(os.cpu_count() or 1)
    stages: dict[str, float] = {}
    import hubprune.pruner  # noqa: F401 - loaded before the clock starts, as torch is

    started = time.perf_counter()
    if variant == "reference":
        reference(folder)
    else:
        from hubprune import PruningConfig, prune

        limit = MOST if variant == "streamed" else 2**50
        with tempfile.TemporaryDirectory(dir=Path(folder).parent) as out:
            config = PruningConfig("d-pruner", sparsity=SPARSITY)
            report = prune(
                folder, None, config, corpora(), out=f"{out}/model", evaluation=None, max_memory=limit, progress=False
            )
        stages = report.timings
    seconds = time.perf_counter() - started
    own, children = (
        resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(json.dumps({"seconds": seconds, "peak": own, "children": children, "stages": stages}))


def main() -> None:
    """Print the table and the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure == "write":
        return write(options.folder, options.layers)
    if options.measure:
        return measure(options.measure, options.folder)
    found = {}
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "benchmarks.memory", f"--folder={place}/base", f"--layers={options.layers}"]
        subprocess.run([*command, "--measure=write"], check=True, capture_output=True)
        size = (Path(place) / "base" / "model.safetensors").stat().st_size
        for variant in options.variants:
            output = subprocess.check_output([*command, f"--measure={variant}"])
            found[variant] = json.loads(output.splitlines()[-1])
            print(variant, found[variant], file=sys.stderr)
    rows = [
        (
            f"{variant}: {VARIANTS[variant]}",
            f"{row['seconds']:.1f}",
            ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["stages"].items()) or "-",
            f"{row['peak'] / 1e9:.2f}",
            f"{row['children'] / 1e9:.2f}",
        )
        for variant, row in found.items()
    ]
    table(
        f"Llama with {options.layers} layers, hidden 2048, FFN 5632, {size / 1e9:.2f} GB in bfloat16; d-pruner, "
        f"{SEQUENCES} x {LENGTH} tokens of each text; {os.cpu_count()} cores",
        ("variant", "seconds", "of them", "peak RSS, GB", "peak RSS of the reload in a fresh process, GB"),
        rows,
    )
    targets = Targets()
    if "streamed" in found:
        targets.at_most("streamed, peak RSS", found["streamed"]["peak"] / 1e9, 2.2, " GB")
    if {"streamed", "reference"} <= found.keys():
        share = found["streamed"]["peak"] / found["reference"]["peak"]
        targets.at_most("streamed / reference, peak RSS", share, 0.2)
    if {"streamed", "resident"} <= found.keys():
        targets.at_most("streamed / resident, time", found["streamed"]["seconds"] / found["resident"]["seconds"], 1.6)
    targets.exit()


if __name__ == "__main__":
    main()
