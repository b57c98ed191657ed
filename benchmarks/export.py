"""Exported graphs: the same logits and zeros as the model, and what they gain in speed and size.

The first table exports small Llama, Qwen2 and GPT-2 models, with half of their weights zero and with fewer neurons, to
ONNX and OpenVINO, in float32 and with 8-bit weights, and states how far each graph is from transformers. The second
generates with a dense Llama, with the same one half of whose weights are zero, and with one that has half the neurons,
in transformers, ONNX Runtime and OpenVINO: ``generate`` is the same in all, and the runs take turns.

    python -m benchmarks.export [--only speed]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Targets, random_llama, table

FORMATS = ("onnx", "openvino")
SMALL = {"vocab": 211, "hidden": 64, "neurons": 176, "layers": 2, "heads": 4, "positions": 128}


def small_model(family: str, kind: str):
    """A small random model with seeded weights; `zeros` has half of its weights zero, `shrunk` half the neurons."""
    import torch
    import transformers as tf

    sizes = SMALL | ({"neurons": SMALL["neurons"] // 2} if kind == "shrunk" else {})
    if family == "gpt2":
        config = tf.GPT2Config(
            vocab_size=sizes["vocab"],
            n_embd=sizes["hidden"],
            n_inner=sizes["neurons"],
            n_layer=sizes["layers"],
            n_head=sizes["heads"],
            n_positions=sizes["positions"],
            bos_token_id=1,
            eos_token_id=2,
        )
    else:
        config = {"llama": tf.LlamaConfig, "qwen2": tf.Qwen2Config}[family](
            vocab_size=sizes["vocab"],
            hidden_size=sizes["hidden"],
            intermediate_size=sizes["neurons"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            num_key_value_heads=sizes["heads"] // 2,
            max_position_embeddings=sizes["positions"],
        )
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    return halve(model) if kind == "zeros" else model


def halve(model):
    """Put half of the weights of every matrix in the decoder blocks to zero, the smallest ones."""
    from hubprune import PruningConfig, prune

    prune(model, None, PruningConfig("magnitude", sparsity=0.5), {}, progress=False)
    return model


def round_trips(targets: Targets) -> None:
    """Export the small models and tell how far the graphs are from them."""
    from hubprune import export

    rows = []
    worst = {False: 0.0, True: 0.0}
    with tempfile.TemporaryDirectory() as place:
        for family in ("llama", "qwen2", "gpt2"):
            for kind in ("zeros", "shrunk"):
                folder = Path(place) / f"{family}-{kind}"
                small_model(family, kind).save_pretrained(folder)
                for format in FORMATS:
                    for int8 in (False, True):
                        facts = export(folder, format=format, int8=int8, progress=False)
                        worst[int8] = max(worst[int8], facts.difference)
                        rows.append(
                            (
                                family,
                                kind,
                                format,
                                "8-bit" if int8 else "float32",
                                f"{facts.difference:.1e}",
                                f"{100 * facts.agreement:.0f} %",
                                f"{facts.zeros:,}",
                                f"{facts.bytes / 1e6:.2f}",
                            )
                        )
    table(
        "Graphs against transformers",
        ("model", "pruned", "format", "weights", "difference / largest logit", "same token", "zeros kept", "MB"),
        rows,
    )
    targets.at_most("largest difference in float32, of the largest logit", worst[False], 1e-4)
    targets.at_most("largest difference with 8-bit weights", worst[True], 0.1)


def opened(model, place: Path, name: str) -> dict[str, tuple[Any, float]]:
    """A model in every runtime, with the size of its files in MB."""
    from hubprune import ExportedModelForCausalLM, export

    folder = place / name
    model.save_pretrained(folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    found = {"transformers, float32": (model, size / 1e6)}
    for format in FORMATS:
        for int8 in (False, True):
            facts = export(folder, format=format, int8=int8, progress=False)
            graph = ExportedModelForCausalLM.from_pretrained(folder, format=format, int8=int8)
            found[f"{format}, {'8-bit' if int8 else 'float32'}"] = (graph, facts.bytes / 1e6)
    return found


def seconds(model, ids, new: int) -> float:
    start = time.perf_counter()
    model.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    return time.perf_counter() - start


def speeds(options: argparse.Namespace, targets: Targets) -> None:
    """Generate with a dense, a sparse and a smaller model in every runtime."""
    import torch

    neurons = options.hidden * 11 // 4
    sizes = {"vocabulary": options.vocabulary, "layers": options.layers, "hidden": options.hidden}
    dense, zeros = (random_llama(**sizes, intermediate=neurons) for _ in range(2))
    models = {"dense": dense, "zeros": halve(zeros), "shrunk": random_llama(**sizes, intermediate=neurons // 2)}
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    ids = torch.randint(3, options.vocabulary, (1, options.prompt), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as place:
        runtimes = {name: opened(model, Path(place), name) for name, model in models.items()}
        cases = [(name, runtime) for runtime in runtimes["dense"] for name in models]
        first: dict[Any, list[float]] = {case: [] for case in cases}
        rest: dict[Any, list[float]] = {case: [] for case in cases}
        for turn in range(options.runs + 1):
            for name, runtime in cases:
                model = runtimes[name][runtime][0]
                prompt = seconds(model, ids, 1)
                whole = seconds(model, ids, options.tokens + 1)
                if turn:  # the first turn warms up
                    first[name, runtime].append(prompt)
                    rest[name, runtime].append(whole - prompt)
    prefill = {case: options.prompt / statistics.median(values) for case, values in first.items()}
    decode = {case: options.tokens / statistics.median(values) for case, values in rest.items()}
    table(
        f"Tokens/s of a Llama with {parameters['dense'] / 1e6:.0f} M parameters "
        f"(shrunk: {parameters['shrunk'] / 1e6:.0f} M), prompt of {options.prompt} tokens, {options.tokens} new ones, "
        f"medians of {options.runs} runs, {torch.get_num_threads()} thread(s)",
        ("runtime", "model", "MB", "prefill", "to dense", "decode", "to dense"),
        [
            (
                runtime,
                name,
                f"{runtimes[name][runtime][1]:.0f}",
                f"{prefill[name, runtime]:.0f}",
                f"{prefill[name, runtime] / prefill['dense', runtime]:.2f} x",
                f"{decode[name, runtime]:.1f}",
                f"{decode[name, runtime] / decode['dense', runtime]:.2f} x",
            )
            for name, runtime in cases
        ],
    )
    for format in FORMATS:
        full, small = f"{format}, float32", f"{format}, 8-bit"
        gain = decode["shrunk", full] / decode["dense", full]
        targets.at_least(f"decode of shrunk to dense, {full}", gain, 1.2, " x")
        gain = decode["dense", small] / decode["dense", full]
        targets.at_least(f"decode of 8-bit to float32, {format}", gain, 1.3, " x")
        left = runtimes["dense"][small][1] / runtimes["dense"][full][1]
        targets.at_most(f"size of 8-bit to float32, {format}", left, 0.5, " x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=("round-trips", "speed"), help="one of the two tables")
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    targets = Targets()
    if options.only != "speed":
        round_trips(targets)
    if options.only != "round-trips":
        speeds(options, targets)
    targets.exit()


if __name__ == "__main__":
    main()
