"""Perplexity of every method on real text: general, medical and legal, averaged over seeds of the calibration text.

    python -m benchmarks.quality [--domain medical] [--methods wanda d-pruner] [--patterns 0.5 0.6 0.7 2:4] [--seeds 3]

The model is pruned with general text (TinyStories) and text of one domain (PubMedQA or CaseHOLD), and measured on
splits that calibration did not see. A method that takes one corpus, or all there is, gets both.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.common import Targets, config_of, real_hub, table

MODEL = "hubprune-real/tri-domain-6m"
GENERAL = "roneneldan/TinyStories:default:train"
DOMAINS = {"medical": "qiaojin/PubMedQA:pqa_labeled:train", "legal": "casehold/casehold:all:train"}
TESTS = {
    "general": "roneneldan/TinyStories:default:validation",
    "medical": "qiaojin/PubMedQA:pqa_labeled:test",
    "legal": "casehold/casehold:all:test",
}
HALVES = ("d-pruner/terms=no-domain", "d-pruner/terms=no-general")
Row = dict[str, float]


def run(options: argparse.Namespace) -> tuple[Row, dict[tuple[str, str], list[Row]]]:
    """Prune and measure every method with every pattern and seed.

    Returns:
        Perplexities of the dense model, and for each pattern and method those of each seed.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hubprune import load_corpus, perplexity, prune
    from hubprune.calibration import refuse_overlap

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    dense = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32").eval()
    length = options.length
    tests = {
        name: load_corpus(
            spec, tokenizer, name=name, num_samples=options.windows, sequence_length=length, at_most=True
        )
        for name, spec in TESTS.items()
    }

    def measure(model) -> Row:
        return {n: perplexity(model, corpus, progress=False).perplexity for n, corpus in tests.items()}

    base, found = measure(dense), {}
    for seed in range(options.seeds):
        settings = {"num_samples": options.num_samples, "sequence_length": length, "seed": seed}
        corpora = {
            name: load_corpus(spec, tokenizer, name=name, **settings)
            for name, spec in (("general", GENERAL), ("domain", DOMAINS[options.domain]))
        }
        refuse_overlap(corpora.values(), tests.values())
        for pattern in options.patterns:
            for method in options.methods:
                model = copy.deepcopy(dense)
                prune(
                    model,
                    tokenizer,
                    config_of(method, **({"pattern": pattern} if ":" in pattern else {"sparsity": float(pattern)})),
                    corpora,
                    progress=False,
                )
                found.setdefault((pattern, method), []).append(measure(model))
                print(f"seed {seed}, {pattern}, {method}", flush=True)
    return base, found


def show(options: argparse.Namespace, base: Row, found: Mapping[tuple[str, str], Sequence[Row]]) -> dict:
    """Print a table for each pattern; return the means."""
    means = {}
    for pattern in options.patterns:
        rows = [("dense", *(f"{base[name]:.2f}" for name in TESTS), "")]
        for method in options.methods:
            runs = found[pattern, method]
            mean = {name: statistics.fmean(r[name] for r in runs) for name in TESTS}
            spread = statistics.stdev(r[options.domain] for r in runs) if len(runs) > 1 else 0.0
            means[pattern, method] = mean
            rows.append((method, *(f"{mean[name]:.2f}" for name in TESTS), f"{spread:.2f}"))
        table(
            f"{options.model}, {pattern}, general = {GENERAL}, domain = {DOMAINS[options.domain]}, "
            f"{options.num_samples} x {options.length} tokens each; perplexity on {options.windows} windows of "
            f"{options.length} tokens, mean of {options.seeds} seeds",
            ("method", *TESTS, f"std of {options.domain}"),
            rows,
        )
    return means


def main() -> None:
    """Print the tables and the targets."""
    from hubprune.presets import WEIGHT_METHODS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--domain", default="medical", choices=DOMAINS)
    parser.add_argument(
        "--methods", nargs="+", default=[*WEIGHT_METHODS, *HALVES], help="a method, or method/option=value"
    )
    parser.add_argument("--patterns", nargs="+", default=["0.5", "0.6", "0.7", "2:4"], help="a sparsity or N:M")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--windows", type=int, default=64, help="windows of each test text")
    parser.add_argument("--length", type=int, default=256, help="tokens in a sequence and in a window")
    options = parser.parse_args()
    with real_hub():
        base, found = run(options)
    means = show(options, base, found)
    targets = Targets()
    # What the dual score is for: better for the domain than without domain text, and for general text than without it.
    claims = [("d-pruner", other, text) for other, text in zip(HALVES, (options.domain, "general"), strict=True)]
    claims += [("d-pruner", "magnitude", options.domain), ("cross-calibration", "wanda", options.domain)]
    for pattern in options.patterns:
        for ours, theirs, text in claims:
            if (pattern, ours) in means and (pattern, theirs) in means:
                ratio = means[pattern, ours][text] / means[pattern, theirs][text]
                targets.at_most(f"{pattern}, {text} perplexity, {ours} / {theirs}", ratio, 1.0)
    targets.exit()


if __name__ == "__main__":
    main()
