"""d-pruner on a GPU with a model of 7 billion random weights, and 2:4 results as semi-structured sparse matrices.

    python -m benchmarks.gpu [--layers 32] [--samples 128] [--folder DIR]
    python -m benchmarks.gpu --device cpu --layers 2 --hidden 256 --samples 4 --general 64 --domain 32   # a dry check

The model has the shape of Llama-2-7B in bfloat16; the text is random, by default 128 x 2048 general and 128 x 1024
domain tokens. Each variant runs in a process of its own: in memory alone, and from one folder into another, with all
blocks on the GPU or on disk until their turn. Activations take 41 GB of host memory, folders 30 GB of disk. Operations
are counted from the shapes: the passes in bfloat16 (a forward over the general text; over the domain text a forward, a
recomputed one, and a backward of two), and the second moments of the inputs, summed in float32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import (
    Targets,
    cannot,
    flags,
    into_folder,
    measured,
    pruning_seconds,
    random_llama,
    random_text,
    table,
)

VARIANTS = {"memory": "in memory", "resident": "folder, whole model on the GPU", "streamed": "folder, blocks on disk"}
# The last three: sequences of each text, tokens in a general and in a domain sequence. Hidden is a multiple of 128.
SIZES = {"layers": 32, "hidden": 4096, "samples": 128, "general": 2048, "domain": 1024}
COLUMNS = ("TFLOP/s of the passes", "with second moments", "passes, share of the card's rate")
SPARSITY, VOCABULARY = 0.5, 32000
ROWS = (1, 16, 256, 2048, 8192)
# Two sums that differ in order alone may be rounded to neighbouring numbers of bfloat16.
ROUNDING = 2.0**-7


def build(options: argparse.Namespace, layers: int):
    """Make the model on the device."""
    shape = {"vocabulary": VOCABULARY, "intermediate": options.hidden * 43 // 16, "head": 128}
    return random_llama(options.hidden, layers, **shape, dtype="bfloat16", device=options.device)


def operations(options: argparse.Namespace) -> tuple[float, float]:
    """Floating-point operations of a run, in 10**12: those of the passes, and those of the second moments."""
    hidden, wide = options.hidden, options.hidden * 43 // 16
    weights = 4 * hidden**2 + 3 * hidden * wide
    # For one token: two for each weight; attention over half of the sequence. The head: logits, and back to its input.
    passes = options.samples * options.domain * 4 * VOCABULARY * hidden
    for times, length in ((1, options.general), (4, options.domain)):
        passes += times * options.samples * length * options.layers * (2 * weights + 2 * length * hidden)
    moments = options.samples * options.general * options.layers * 2 * (3 * hidden**2 + wide**2)
    return passes / 1e12, moments / 1e12


def in_files(folder: Path, device: str) -> Iterator[tuple[str, object]]:
    """Yield the names and tensors of a folder's weights."""
    from safetensors import safe_open

    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt", device=device) as handle:
            for name in handle.keys():  # noqa: SIM118 - it is no dictionary
                yield name, handle.get_tensor(name)


def checked(report, tensors) -> dict:
    """Count what is not as it must be, and make a hash of each mask, which every variant must have in common.

    Wrong are matrices with another number of zeros than asked for, and values that are not finite.
    """
    import numpy

    rows = {f"{row.name}.weight": row for row in report.matrices}
    masks: dict[str, str] = {}
    right = infinite = 0
    for name, tensor in tensors:
        infinite += int((~tensor.isfinite()).sum())
        if name in rows:
            masks[name] = hashlib.sha256(numpy.packbits((tensor == 0).cpu().numpy()).tobytes()).hexdigest()
            zeros, removed = int((tensor == 0).sum()), int(SPARSITY * tensor.numel() + 0.5)
            # A weight that was zero from the start may be among those that are kept.
            right += rows[name].pruned == removed <= zeros == rows[name].zeros
    return {"counts": len(rows) - right, "infinite": infinite, "masks": masks}


def rate(options: argparse.Namespace) -> dict:
    """Measure the rate of one large product in bfloat16, in 10**12 operations a second."""
    import torch

    size, card = (8192, torch.cuda.get_device_name()) if options.device == "cuda" else (512, "CPU")
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=options.device) for _ in range(2))
    return {"rate": 2 * size**3 / seconds(torch.mm, left, right) / 1e12, "card": card, "torch": torch.__version__}


def seconds(function, *arguments) -> float:
    """Median time of a call."""
    from torch.utils.benchmark import Timer

    return Timer("f(*a)", globals={"f": function, "a": arguments}).blocked_autorange(min_run_time=0.2).median


def prune_whole(variant: str, options: argparse.Namespace) -> dict:
    """Prune the whole model in this process."""
    from hubprune import PruningConfig, prune
    from hubprune.environment import peak_memory

    corpora = random_text(VOCABULARY, options.samples, general=options.general, domain=options.domain)
    config = PruningConfig("d-pruner", sparsity=SPARSITY)
    if variant == "memory":
        model = build(options, options.layers)
        report = prune(model, None, config, corpora, progress=False)
        found = checked(report, model.state_dict().items())
    else:
        base, places = options.place / "base", {"device_map": options.device}
        with tempfile.TemporaryDirectory(dir=options.place) as folder:
            out = Path(folder) / "out"
            report = into_folder(base, out, config, corpora, streamed=variant == "streamed", **places)
            found = checked(report, in_files(out, options.device))
    return {
        "seconds": pruning_seconds(report),
        "stages": {name: report.timings[name] for name in ("forward", "backward")},
        "gpu": report.peak_gpu_memory_bytes or 0,
        "host": peak_memory(),
        **found,
    }


def semi_structured(options: argparse.Namespace) -> dict:
    """Prune one block to 2:4, and time each kind of matrix dense and converted."""
    import torch
    from torch.nn.functional import linear
    from torch.sparse import to_sparse_semi_structured

    from hubprune import PruningConfig, prune

    model = build(options, 1)
    prune(model, None, PruningConfig("wanda", pattern="2:4"), random_text(VOCABULARY, 8, domain=64), progress=False)
    rows = []
    for shape, weight in {tuple(p.shape): p.detach() for p in model.model.layers.parameters() if p.dim() == 2}.items():
        packed = to_sparse_semi_structured(weight) if options.device == "cuda" else weight
        kept = int((weight.view(-1, 4) != 0).sum(dim=1).max())
        for count in ROWS:
            inputs = torch.randn(count, shape[1], dtype=weight.dtype, device=weight.device)
            dense, sparse = linear(inputs, weight).float(), linear(inputs, packed).float()
            error = float((dense - sparse).abs().max() / dense.abs().max())
            times = seconds(linear, inputs, weight), seconds(linear, inputs, packed)
            rows.append({"shape": shape, "rows": count, "seconds": times, "error": error, "kept": kept})
    return {"rows": rows}


def show(found: dict[str, dict], options: argparse.Namespace, speed: dict) -> None:
    """Print the table of the whole runs."""
    passes, moments = operations(options)
    table(
        f"d-pruner, Llama with {options.layers} layers, hidden {options.hidden}, bfloat16; {options.samples} x "
        f"{options.general} general and {options.samples} x {options.domain} domain tokens; {speed['card']}, torch "
        f"{speed['torch']}, where a large product in bfloat16 runs at {speed['rate']:.3g} TFLOP/s; {passes:.4g} TFLOP "
        f"in the passes, {moments:.4g} in second moments (float32)",
        ("variant", "seconds", "of them", "peak GPU memory, GiB", "peak host RSS, GiB", *COLUMNS),
        [
            (
                VARIANTS[variant],
                f"{row['seconds']:.1f}",
                ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["stages"].items()),
                *(f"{row[kind] / 2**30:.2f}" for kind in ("gpu", "host")),
                *(f"{count / row['seconds']:.3g}" for count in (passes, passes + moments)),
                f"{passes / row['seconds'] / speed['rate']:.1%}",
            )
            for variant, row in found.items()
        ],
    )


def show_sparse(rows: list[dict], card: str) -> None:
    """Print the table of the linear layers."""
    packed = "semi-structured" if card != "CPU" else "masked dense again (no GPU, so nothing is converted)"
    table(
        f"2:4 by wanda, linear layers in bfloat16 on {card}: masked dense against {packed}",
        ("d_out x d_in", "rows of input", "dense, us", "sparse, us", "dense / sparse", "largest difference, relative"),
        [
            (
                " x ".join(map(str, row["shape"])),
                row["rows"],
                *(f"{seconds * 1e6:.1f}" for seconds in row["seconds"]),
                f"{row['seconds'][0] / row['seconds'][1]:.2f}",
                f"{row['error']:.1e}",
            )
            for row in rows
        ],
    )


def measure(options: argparse.Namespace) -> dict:
    """Do one part in this process."""
    if options.measure == "write":
        build(options, options.layers).save_pretrained(options.place / "base")
        return {}
    if options.measure in VARIANTS:
        return prune_whole(options.measure, options)
    return rate(options) if options.measure == "rate" else semi_structured(options)


def main() -> None:
    """Print the tables and the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a dry check at a small size")
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--parts", nargs="+", default=[*VARIANTS, "sparse"], choices=[*VARIANTS, "sparse"])
    parser.add_argument("--folder", help="where the folders go; None for the system's temporary folder")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return print(json.dumps(measure(options)))
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        cannot("this benchmark needs a GPU that torch can use, and there is none: nothing was measured")

    shape = {name: getattr(options, name) for name in ("device", *SIZES)}
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        words = ("-m", "benchmarks.gpu", *flags({**shape, "place": place}))
        if {"resident", "streamed"} & set(options.parts):
            measured(*words, "--measure=write")
        found = {}
        for part in ("rate", *options.parts):
            found[part] = measured(*words, f"--measure={part}")
            shown = {name: value for name, value in found[part].items() if name not in ("rows", "masks")}
            print(part, shown, file=sys.stderr)
    speed, rows = found.pop("rate"), found.pop("sparse", {"rows": []})["rows"]
    targets = Targets()
    if found:
        show(found, options, speed)
        (reference, first), *others = found.items()
        for variant, row in others:
            apart = sum(row["masks"][name] != mask for name, mask in first["masks"].items())
            targets.at_most(f"{VARIANTS[variant]}: matrices with another mask than {VARIANTS[reference]}", apart, 0)
    for variant, row in found.items():
        targets.at_most(f"{VARIANTS[variant]}: matrices with another count than asked for", row["counts"], 0)
        targets.at_most(f"{VARIANTS[variant]}: weights that are not finite", row["infinite"], 0)
    if {"resident", "streamed"} <= found.keys() and options.device == "cuda":
        targets.at_most("streamed / resident, time", found["streamed"]["seconds"] / found["resident"]["seconds"], 1.6)
    if rows:
        show_sparse(rows, speed["card"])
        targets.at_most("2:4, weights kept in a group of 4", max(row["kept"] for row in rows), 2)
        targets.at_most(
            "2:4, largest relative difference of linear outputs", max(row["error"] for row in rows), ROUNDING
        )
    targets.exit()


if __name__ == "__main__":
    main()
