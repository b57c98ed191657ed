"""One process against two, with one thread each: time of the pruning itself, and how far scores and masks agree.

    python -m benchmarks.processes [--method d-pruner] [--samples 32]

The same random Llama in a folder is pruned into two others by ``hubprune.prune`` under torch's launcher, with gloo.
The time is that of the pruning stages, the best of a few runs. Processes wait for each other after every block, so the
time of the first one is that of all.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
from pathlib import Path

from benchmarks.common import Targets, cannot, flags, measured, pruning_seconds, random_llama, random_text, table

VOCABULARY = 4096


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def watch_scores() -> dict:
    """Note the scores of every matrix of runs that begin after this, in the order in which they are scored."""
    from hubprune import pruner

    load, found = pruner.load_criterion, {}

    def load_watched(config):
        criterion = load(config)

        class Watched(type(criterion)):
            def scores(self, *given):
                scores = super().scores(*given)
                found[str(len(found))] = scores
                return scores

        criterion.__class__ = Watched
        return criterion

    pruner.load_criterion = load_watched
    return found


def scores_beside(out: Path) -> Path:
    """File of the scores of a run: beside its folder, in which nothing but the result may lie."""
    return out.with_name(f"scores-{out.name}.safetensors")


def work(options: argparse.Namespace) -> None:
    """Be one process of the group: prune, keep the scores, and say how long it took."""
    from safetensors.torch import save_file

    from hubprune import PruningConfig, prune, ranks

    ranks.start()
    scores = watch_scores()
    corpora = random_text(VOCABULARY, options.samples, general=options.length, domain=options.length)
    report = prune(
        options.place / "base",
        None,
        PruningConfig(options.method),
        corpora,
        out=options.out,
        evaluation=None,
        fresh=True,
        progress=False,
    )
    if ranks.rank() == 0:
        save_file({name: score.contiguous() for name, score in scores.items()}, scores_beside(options.out))
        facts = {"seconds": pruning_seconds(report), "processes": ranks.size(), "threads": report.hardware["threads"]}
        print(json.dumps({**facts, "stages": report.timings}), flush=True)
    ranks.finish()


def agreement(left: Path, right: Path) -> tuple[float, float]:
    """Compare two results.

    Returns:
        The largest difference of scores as a fraction of the matrix' largest score, and the share of equal mask
        entries.
    """
    from safetensors.torch import load_file

    from hubprune import PruningReport

    one, two = (load_file(scores_beside(folder)) for folder in (left, right))
    assert one.keys() == two.keys()
    apart = max(float((one[name] - two[name]).abs().max() / one[name].abs().max()) for name in one)
    one, two = (load_file(folder / "model.safetensors") for folder in (left, right))
    names = [f"{matrix.name}.weight" for matrix in PruningReport.load(left).matrices]
    same = sum(int(((one[name] == 0) == (two[name] == 0)).sum()) for name in names)
    return apart, same / sum(one[name].numel() for name in names)


def main() -> None:
    """Print the table and the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="d-pruner")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--samples", type=int, default=32, help="sequences of each text")
    parser.add_argument("--length", type=int, default=256, help="tokens in a sequence")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--measure", choices=("write", "work"), help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure == "work":
        return work(options)
    if options.measure == "write":
        model = random_llama(options.hidden, options.layers, vocabulary=VOCABULARY)
        model.save_pretrained(options.place / "base")
        return print("{}")
    if cores() < 2:
        cannot(f"two processes need two cores to be faster than one, and {cores()} is there: nothing was measured")

    shape = {name: getattr(options, name) for name in ("method", "hidden", "layers", "samples", "length")}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        words = ("-m", "benchmarks.processes", *flags({**shape, "place": place}))
        measured(*words, "--measure=write")
        for processes in (1, 2) * options.repeats:
            launch = ("-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-addr=127.0.0.1")
            command = (*launch, f"--master-port={free_port()}", *words, "--measure=work", f"--out={place}/{processes}")
            row = measured(*command, OMP_NUM_THREADS="1")
            assert (row["processes"], row["threads"]) == (processes, 1), row
            found[processes] = min(row, found.get(processes, row), key=lambda row: row["seconds"])
        apart, same = agreement(place / "1", place / "2")
    faster = found[1]["seconds"] / found[2]["seconds"]
    table(
        f"{options.method}, Llama with {options.layers} layers, hidden {options.hidden}, float32; {options.samples} x "
        f"{options.length} tokens of each text; one thread a process, {cores()} cores; best of {options.repeats} runs",
        ("processes", "seconds", "of them", "speed-up", "largest difference of scores", "equal mask entries"),
        [
            (
                processes,
                f"{row['seconds']:.2f}",
                ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["stages"].items()),
                f"{found[1]['seconds'] / row['seconds']:.2f}",
                "-" if processes == 1 else f"{apart:.1e}",
                "-" if processes == 1 else f"{same:.6%}",
            )
            for processes, row in found.items()
        ],
    )
    targets = Targets()
    targets.at_least("speed-up of two processes", faster, 1.7)
    targets.at_most("largest difference of scores, relative to the matrix' largest", apart, 1e-5)
    targets.at_least("equal mask entries", same, 0.9999)
    targets.exit()


if __name__ == "__main__":
    main()
