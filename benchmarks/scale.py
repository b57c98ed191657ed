"""How time and memory of a streamed run grow with layers, width, length and number of the sequences.

    python -m benchmarks.scale [--methods d-pruner wanda] [--repeats 2]

One axis is varied at a time around a base point. Each point runs in a process of its own on a random Llama on disk in
float32, its blocks brought in one at a time and its activations in a scratch file, with one thread, which waits for no
other. An empty run comes first in each process (one narrow layer, two short sequences), so that libraries are loaded
and memory pools are filled.

*Time* is the processor time of the run, which other programs do not lengthen, the best of a few. With a fixed part
``a`` it is ``a + b n^p``, and where ``n`` grows by a constant factor, differences of neighbouring points are in
proportion to ``n^p``: the exponent is their log-log slope, with nothing assumed about ``a`` or ``p``. *Memory* is the
peak that the operating system reports for the first run of a point, less what was resident after the empty run; its
exponent is the plain log-log slope. What the C library keeps of small freed tensors counts as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.common import (
    Targets,
    flags,
    into_folder,
    measured,
    random_llama,
    random_text,
    table,
)

# Each grows by a constant factor.
AXES = {
    "layers": (2, 4, 8, 16),
    "hidden": (256, 384, 576, 864),
    "length": (64, 128, 256, 512),
    "samples": (2, 4, 8, 16),
}
BASE = {"layers": 4, "hidden": 576, "length": 128, "samples": 8}
EMPTY = {"layers": 1, "hidden": 64, "length": 16, "samples": 2}
VOCABULARY = 1024
# Axes along which time is to be linear, and what grows along them.
LINEAR = {"layers": "parameters (layers)", "samples": "tokens (sequences)"}
Point = dict[str, int]


def points(axis: str) -> list[Point]:
    """The base point with every size of one axis."""
    return [{**BASE, axis: size} for size in AXES[axis]]


def model_of(place: Path, point: Point) -> Path:
    """Folder of the model of a point."""
    return place / f"{point['layers']}-{point['hidden']}"


def write(place: Path) -> None:
    """Write the models of all points, in this process."""
    for point in [EMPTY, *itertools.chain(*map(points, AXES))]:
        folder = model_of(place, point)
        if not folder.exists():
            random_llama(point["hidden"], point["layers"], vocabulary=VOCABULARY, head=32).save_pretrained(folder)
    print("{}")


def measure(method: str, place: Path, point: Point, repeats: int) -> None:
    """Run one point in this process and print its time and the memory it added."""
    from hubprune import PruningConfig
    from hubprune.environment import peak_memory, resident_memory

    def run(point: Point) -> float:
        corpora = random_text(VOCABULARY, point["samples"], general=point["length"], domain=point["length"])
        started = time.process_time()
        with tempfile.TemporaryDirectory(dir=place) as out:
            into_folder(
                model_of(place, point), Path(out) / "out", PruningConfig(method), corpora, streamed=True, budget=0
            )
        return time.process_time() - started

    run(EMPTY)
    before = resident_memory()
    seconds = [run(point)]
    added = max(peak_memory() - before, 1)
    seconds += [run(point) for _ in range(repeats - 1)]
    print(json.dumps({"seconds": min(seconds), "added": added}))


def slope(values: Mapping[int, float]) -> float:
    """Log-log slope; NaN where a value is not positive."""
    if min(values.values()) <= 0:
        return math.nan
    return statistics.linear_regression([math.log(n) for n in values], [math.log(v) for v in values.values()]).slope


def marginal(values: Mapping[int, float]) -> float:
    """Log-log slope of what each step adds."""
    return slope({low: values[high] - values[low] for low, high in itertools.pairwise(sorted(values))})


def main() -> None:
    """Print the table and the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["d-pruner", "wanda"])
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=AXES)
    parser.add_argument("--repeats", type=int, default=2, help="runs of a point; the best counts")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    for name in BASE:
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure == "write":
        return write(options.place)
    if options.measure:
        point = {name: getattr(options, name) for name in BASE}
        return measure(options.measure, options.place, point, options.repeats)

    known: dict[tuple[str, ...], dict[str, float]] = {}
    rows, exponents = [], {}
    with tempfile.TemporaryDirectory() as place:
        command = ("-m", "benchmarks.scale", *flags({"place": place, "repeats": options.repeats}))
        measured(*command, "--measure=write")
        for method, axis in itertools.product(options.methods, options.axes):
            for point in points(axis):
                words = (f"--measure={method}", *flags(point))
                if words not in known:
                    known[words] = measured(*command, *words, OMP_NUM_THREADS="1")
                    print(method, point, known[words], file=sys.stderr)
            found = {point[axis]: known[f"--measure={method}", *flags(point)] for point in points(axis)}
            seconds = {size: row["seconds"] for size, row in found.items()}
            added = {size: row["added"] for size, row in found.items()}
            exponents[method, axis] = marginal(seconds), slope(added)
            rows.append(
                (
                    method,
                    axis,
                    ", ".join(map(str, found)),
                    ", ".join(f"{value:.2f}" for value in seconds.values()),
                    f"{exponents[method, axis][0]:.2f}",
                    ", ".join(f"{value / 2**20:.0f}" for value in added.values()),
                    f"{exponents[method, axis][1]:.2f}",
                )
            )
    table(
        f"Llama with {BASE['layers']} layers, hidden {BASE['hidden']} (parameters grow with its square), float32, "
        f"blocks and activations on disk; {BASE['samples']} x {BASE['length']} tokens of general and of domain text; "
        f"one of these varied at a time; one thread, {os.cpu_count()} cores; best of {options.repeats} runs",
        ("method", "varied", "sizes", "seconds", "exponent of time", "added memory, MiB", "exponent of memory"),
        rows,
    )
    targets = Targets()
    for (method, axis), (of_time, of_memory) in exponents.items():
        if axis in LINEAR:
            targets.between(f"{method}, exponent of time in {LINEAR[axis]}", of_time, 0.8, 1.2)
        if axis == "layers":
            targets.at_most(f"{method}, exponent of memory in layers", of_memory, 0.1)
    targets.exit()


if __name__ == "__main__":
    main()
