"""What recovery brings back at equal wall time, what the mask costs a step, and that a killed recovery loses nothing.

    python -m benchmarks.recovery [--pruned wanda/sparsity=0.6] [--seconds 60] [--parts quality step memory resume]

Each ``--pruned`` is a method with keywords of ``from_pretrained``: ``wanda/sparsity=0.6``, ``sparsegpt/pattern=2:4``.
The model is pruned once, and every way of recovering starts from a copy. Steps are chosen from a probe, so that each
gets the same time, the teacher's included. It is processor time, which is wall time for a machine with nothing else to
do, and stays the same beside other programs.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Targets, flags, measured, random_llama, random_text, real_hub, table

MODEL = "hubprune-real/tri-domain-6m"
GENERAL = "roneneldan/TinyStories:default:train"
DOMAIN = "qiaojin/PubMedQA:pqa_labeled:train"
TESTS = {
    "general": "roneneldan/TinyStories:default:validation",
    "medical": "qiaojin/PubMedQA:pqa_labeled:test",
    "legal": "casehold/casehold:all:test",
}
PRUNED = ["wanda/sparsity=0.6", "d-pruner/unit=ffn_neuron,sparsity=0.35"]
WAYS = ("lora", "lora+distill", "shira", "shira+distill", "hira", "hira+distill", "reconstruct")
PROBE_STEPS = 3


def pruning_of(spec: str) -> dict[str, Any]:
    """Read ``method/key=value,key=value`` as keywords of ``from_pretrained``."""
    method, _, rest = spec.partition("/")
    pairs = (word.partition("=") for word in rest.split(",") if word)
    plain = {key: float(value) if value.replace(".", "", 1).isdecimal() else value for key, _, value in pairs}
    return {"method": method, **plain}


def config_of(way: str, steps: int, options: argparse.Namespace):
    from hubprune import RecoveryConfig

    kind, _, distill = way.partition("+")
    named = {"method": "reconstruct"} if kind == "reconstruct" else {"adapter": kind, "distill": bool(distill)}
    return RecoveryConfig(
        **named,
        steps=steps,
        batch_size=options.batch,
        num_samples=options.num_samples,
        sequence_length=options.length,
        evaluate_every=max(1, steps // 2),
        patience=0,
    )


def quality(options: argparse.Namespace, targets: Targets) -> None:
    """Recover the same pruned model in every way."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hubprune import AutoPrunedModelForCausalLM, load_corpus, perplexity, recover

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    length, windows = options.length, options.windows
    tests = {
        name: load_corpus(spec, tokenizer, name=name, num_samples=windows, sequence_length=length, at_most=True)
        for name, spec in TESTS.items()
    }
    dense = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()
    base = {name: perplexity(dense, corpus, progress=False).perplexity for name, corpus in tests.items()}
    for spec in options.pruned:
        model = AutoPrunedModelForCausalLM.from_pretrained(
            MODEL,
            **pruning_of(spec),
            general=GENERAL,
            domain=DOMAIN,
            num_samples=64,
            sequence_length=length,
            dtype="float32",
            evaluation=None,
            progress=False,
        )
        pruned = {name: perplexity(model, corpus, progress=False).perplexity for name, corpus in tests.items()}
        rows: list[tuple[object, ...]] = [
            ("dense", *(f"{base[name]:.2f}" for name in TESTS), "", "", ""),
            ("pruned", *(f"{pruned[name]:.2f}" for name in TESTS), "", "", model.hubprune_report.totals.zeros),
        ]
        for way in options.ways:

            def run(steps: int, *, way: str = way, model: Any = model) -> tuple[Any, Any, float]:
                own = copy.deepcopy(model)
                started = time.process_time()
                report = recover(own, config_of(way, steps, options), base=dense, evaluation=None, progress=False)
                return own, report, time.process_time() - started

            run(1)  # loads libraries, and the text into the cache
            few, more = (run(steps)[2] for steps in (1, 1 + PROBE_STEPS))
            step = max((more - few) / PROBE_STEPS, 1e-3)
            steps = max(PROBE_STEPS, int((options.seconds - max(few - step, 0.0)) / step))
            own, report, took = run(steps)
            found = {name: perplexity(own, corpus, progress=False).perplexity for name, corpus in tests.items()}
            facts, totals = report.recovery, report.totals
            rows.append(
                (
                    way,
                    *(f"{found[name]:.2f}" for name in TESTS),
                    facts.steps,
                    f"{took:.0f} s",
                    facts.zeros_kept,
                )
            )
            print(f"{spec}, {way}: {steps} steps", flush=True)
            lost = totals.pruned - facts.zeros_kept if totals.zeros else 0
            targets.at_most(f"{spec}, {way}, zeros lost", max(0, lost), 0)
            ratio = found["medical"] / pruned["medical"]
            targets.at_most(f"{spec}, {way}, medical perplexity, recovered / pruned", ratio, 1.0)
        table(
            f"{MODEL}, {spec}, recovered on {options.num_samples} x {length} tokens, half general = {GENERAL}, half "
            f"domain = {DOMAIN}, {options.seconds:g} s of processor time each; perplexity on {windows} windows of "
            f"{length} tokens",
            ("", *TESTS, "steps", "time", "zeros"),
            rows,
        )


def _sparse(options: argparse.Namespace):
    """A random model with 60 % of its weights removed, and its matrices."""
    import torch

    from hubprune import apply
    from hubprune.architecture import find_matrices

    model = random_llama(options.hidden, 2, vocabulary=4096)
    matrices = find_matrices(model)
    for matrix in matrices:
        apply.zero(matrix.view(), torch.rand(matrix.shape) < 0.4)
    return model, matrices


def _wrapped(model: Any, matrices: Any, masked: bool) -> Any:
    """The model with an adapter of rank 16 on every matrix, PEFT's own or the masked one."""
    from peft import LoraConfig, get_peft_model
    from torch import nn

    from hubprune.adapters import masked_lora, without_remark

    config = LoraConfig(r=16, lora_alpha=32, target_modules=[m.name for m in matrices], task_type="CAUSAL_LM")
    if masked:
        config._register_custom_module({nn.Linear: masked_lora()})
    with without_remark():
        return get_peft_model(model, config)


def _step(wrapped: Any, optimizer: Any, ids: Any) -> float:
    started = time.perf_counter()
    optimizer.zero_grad()
    wrapped(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    return time.perf_counter() - started


def _ready(options: argparse.Namespace, masked: bool, checkpointing: bool) -> tuple[Any, Any]:
    import torch

    wrapped = _wrapped(*_sparse(options), masked)
    wrapped.train()
    if checkpointing:
        wrapped.base_model.model.activation_checkpointing_enable({"use_reentrant": False})
        wrapped.base_model.model.enable_input_require_grads()
    return wrapped, torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad])


def step_time(options: argparse.Namespace, targets: Targets) -> None:
    """Time a step of masked and of plain LoRA, turn by turn in one process."""
    ids = random_text(4096, options.batch, general=options.length)["general"]
    rows = []
    for checkpointing in (True, False):
        sides = {masked: _ready(options, masked, checkpointing) for masked in (False, True)}
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(options.turns + 1):
            for masked, (wrapped, optimizer) in sides.items():
                took = _step(wrapped, optimizer, ids)
                if turn:  # the first one warms up
                    seconds[masked].append(took)
        plain, ours = (statistics.median(seconds[masked]) for masked in (False, True))
        ratio = statistics.median(a / b for a, b in zip(seconds[True], seconds[False], strict=True))
        what = "recomputed" if checkpointing else "kept"
        rows.append((what, f"{plain:.2f} s", f"{ours:.2f} s", f"{ratio:.2f}"))
        targets.at_most(f"step of masked LoRA / plain LoRA, activations {what}", ratio, 1.6)
    table(
        f"One step of LoRA of rank 16, {options.batch} x {options.length} tokens, 2 blocks of width {options.hidden}, "
        f"float32, median of {options.turns}",
        ("activations", "plain", "masked", "masked / plain"),
        rows,
    )


def peak(options: argparse.Namespace) -> None:
    """Print the memory that a step takes on top of what the libraries take; runs in a process of its own."""
    import peft  # noqa: F401 - what it takes is not counted
    import torch

    from hubprune import adapters, environment  # noqa: F401

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()
    start = environment.resident_memory()
    ids = random_text(4096, options.batch, general=options.length)["general"]
    environment.return_large_memory_at_once()
    wrapped, optimizer = _ready(options, options.peak == "masked", options.checkpointing == "yes")
    for _ in range(2):
        _step(wrapped, optimizer, ids)
    print(json.dumps({"peak": environment.peak_memory() - start}))


def memory(options: argparse.Namespace, targets: Targets) -> None:
    """Compare the peak memory of a step, each in a process of its own."""
    rows = []
    for checkpointing in ("yes", "no"):
        found = {}
        for kind in ("plain", "masked"):
            given = {"peak": kind, "checkpointing": checkpointing, "hidden": options.hidden}
            given |= {"batch": options.batch, "length": options.length}
            found[kind] = measured("-m", "benchmarks.recovery", *flags(given))["peak"]
        ratio = found["masked"] / found["plain"]
        what = "recomputed" if checkpointing == "yes" else "kept"
        rows.append((what, *(f"{found[kind] / 2**20:.0f} MiB" for kind in ("plain", "masked")), f"{ratio:.2f}"))
        targets.at_most(f"peak memory of masked LoRA / plain LoRA, activations {what}", ratio, 1.2)
    table(
        "Peak resident memory of the same steps, model included, libraries not",
        ("activations", "plain", "masked", "masked / plain"),
        rows,
    )


# Runs hubprune, and ends the process without warning once a checkpoint is half or wholly written.
_KILLED = """
import os, signal, sys
from hubprune import training
mark = training._Watcher.on_save
def on_save(self, args, state, control, **more):
    if state.global_step >= int(sys.argv[1]):
        if sys.argv[2] == "after":
            mark(self, args, state, control, **more)
        os.kill(os.getpid(), signal.SIGKILL)
    mark(self, args, state, control, **more)
training._Watcher.on_save = on_save
from hubprune.cli import main
sys.exit(main(sys.argv[3:]))
"""


def resume(options: argparse.Namespace, targets: Targets) -> None:
    """Kill a recovery at a checkpoint, repeat the command, and compare with one that was left alone."""
    from hubprune import PruningConfig, PruningReport, prune

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        text = {"general": GENERAL, "domain": DOMAIN}
        small = {"num_samples": 16, "sequence_length": 64, "evaluation": None, "progress": False}
        prune(MODEL, None, PruningConfig("wanda", sparsity=0.6), text, out=folder / "pruned", **small)
        steps = {"steps": 12, "evaluate_every": 4, "num_samples": 48, "batch_size": 4, "eval": "none"}
        rows, losses = [], {}
        for name in ("alone", "before", "after"):
            words = ["recover", str(folder / "pruned"), "--out", str(folder / name), *flags(steps)]
            if name != "alone":
                code = subprocess.run([sys.executable, "-c", _KILLED, "8", name, *words], check=False).returncode
                if code != -signal.SIGKILL:
                    raise SystemExit(f"the recovery was to be killed and ended with {code}")
            quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            subprocess.run(
                [sys.executable, "-m", "hubprune", *words],
                check=True,
                env={**os.environ, **quiet},
                stdout=subprocess.DEVNULL,
            )
            curve = PruningReport.load(folder / name).recovery.curve  # type: ignore[union-attr]
            losses[name] = curve[-1]
            rows.append((name, len(curve), curve[-1].training, curve[-1].held_out))
        for name in ("before", "after"):
            for field in ("training", "held_out"):
                gap = abs(getattr(losses[name], field) - getattr(losses["alone"], field))
                targets.at_most(f"killed {name} the checkpoint was whole: {field} loss, difference", gap, 1e-4)
    table("12 steps, killed at step 8 and repeated", ("run", "points", "training loss", "held-out loss"), rows)


def main() -> None:
    """Print the tables and the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"quality": quality, "step": step_time, "memory": memory, "resume": resume}
    parser.add_argument("--parts", nargs="+", default=[*parts], choices=parts)
    parser.add_argument("--pruned", nargs="+", default=PRUNED, help="method/keyword=value,...")
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=WAYS)
    parser.add_argument("--seconds", type=float, default=60, help="processor time that each way gets")
    parser.add_argument("--num-samples", type=int, default=512)
    parser.add_argument("--windows", type=int, default=24, help="windows of each test text")
    parser.add_argument("--length", type=int, default=256, help="tokens in a sequence and in a window")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1024, help="width of the model whose steps are timed")
    parser.add_argument("--turns", type=int, default=7, help="steps that are timed")
    parser.add_argument("--peak", choices=("plain", "masked"), help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", choices=("yes", "no"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is not None:
        peak(options)
        return
    targets = Targets()
    with real_hub():
        for part in options.parts:
            parts[part](options, targets)
    targets.exit()


if __name__ == "__main__":
    main()
