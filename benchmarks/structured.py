"""Perplexity after FFN neurons are removed: every method, with and without repair, on real models and text.

    python -m benchmarks.structured [--models hubprune-real/tri-domain-6m] [--sparsities 0.15 0.25 0.35] [--documents]

The model is pruned with the general preset (WikiText, TinyStories) and the medical one (PubMedQA, MedQuAD), and
measured on text that calibration did not see: WikiText, the medical test splits, and case law, which it is not for.
Attribution sees the answers of the medical text instead. Neurons are masked; cutting them out gives the same answers.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence

from benchmarks.common import Targets, config_of, real_hub, table

MODELS = ("hubprune-real/tri-domain-6m", "hubprune-real/stories3M-llama")
TESTS = {
    "general": "hubprune-real/wikitext_heldout",
    "medical": "qiaojin/PubMedQA:pqa_labeled:test+lavita/MedQuAD:default:test",
    "legal": "casehold/casehold:all:test",
}
TASK = "qiaojin/PubMedQA:pqa_labeled:train+lavita/MedQuAD:default:train"
METHODS = (
    "random",
    "magnitude",
    "wanda-sp",
    "taylor",
    "cus-prun",
    "cus-prun/documents=mean",
    "attribution",
    "mutual-information",
    "d-pruner",
)
SEEDS = ("cus-prun", "attribution", "mutual-information", "d-pruner")
# What a prototype reached with repair, as a multiple of the dense model's perplexity: 25 % and 50 % of the neurons.
PROTOTYPE = {
    0.25: {"general": 120.4 / 118.5, "medical": 26.9 / 26.4},
    0.5: {"general": 125.2 / 118.5, "medical": 28.3 / 26.4},
}
Row = Mapping[str, float]


def measure_all(name: str, options: argparse.Namespace) -> dict[tuple[str, str, float], Row]:
    """Prune and measure; by method, application and sparsity, the dense model under ``dense``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hubprune import load_corpus, perplexity, prune
    from hubprune.architecture import max_length
    from hubprune.calibration import refuse_overlap

    tokenizer = AutoTokenizer.from_pretrained(name)
    dense = AutoModelForCausalLM.from_pretrained(name, dtype="float32").eval()
    length = min(options.length, max_length(dense.config) or options.length)
    sizes = {"num_samples": options.num_samples, "sequence_length": length}
    sizes |= {"packing": False} if options.documents else {}
    corpora = {
        "general": load_corpus("general", tokenizer, name="general", **sizes),
        "domain": load_corpus("medical", tokenizer, name="domain", **sizes),
    }
    task = load_corpus(TASK, tokenizer, name="task", **sizes)
    tests = {
        label: load_corpus(
            spec, tokenizer, name=label, num_samples=options.windows, sequence_length=length, at_most=True
        )
        for label, spec in TESTS.items()
    }
    refuse_overlap([*corpora.values(), task], tests.values())

    def measured(model) -> Row:
        return {label: perplexity(model, text, progress=False).perplexity for label, text in tests.items()}

    found = {("dense", "", 0.0): measured(dense)}
    for sparsity in options.sparsities:
        for method in options.methods:
            for application in ("zero", "compensate"):
                model = copy.deepcopy(dense)
                config = config_of(method, unit="ffn_neuron", sparsity=sparsity, application=application)
                given = {"task": task} if config.method == "attribution" else corpora
                prune(model, tokenizer, config, given, progress=False)
                found[method, application, sparsity] = measured(model)
                print(f"{name}, {sparsity}, {method}, {application}", flush=True)
    return found


def show(name: str, options: argparse.Namespace, found: Mapping[tuple[str, str, float], Row]) -> None:
    """Print a table for each sparsity."""
    dense = found["dense", "", 0.0]
    for sparsity in options.sparsities:
        rows = [("dense", *(f"{dense[label]:.2f}" for label in TESTS), *("" for _ in TESTS))]
        rows += [
            (
                method,
                *(f"{found[method, 'zero', sparsity][label]:.2f}" for label in TESTS),
                *(f"{found[method, 'compensate', sparsity][label]:.2f}" for label in TESTS),
            )
            for method in options.methods
        ]
        table(
            f"{name}, {sparsity:.0%} of the FFN neurons of every layer, general and medical text, "
            f"{options.num_samples} {'documents of up to' if options.documents else 'x'} {options.length} tokens "
            f"each; perplexity on up to {options.windows} windows of {options.length} tokens",
            ("method", *TESTS, *(f"{label}, repaired" for label in TESTS)),
            rows,
        )


def judge(name: str, options: argparse.Namespace, found: Mapping[tuple[str, str, float], Row], to: Targets) -> None:
    """Hold the methods to random, to wanda-sp and to the prototype."""
    dense, texts = found["dense", "", 0.0], ("general", "medical")

    def excess(method: str, application: str, sparsity: float, texts: Sequence[str] = texts) -> float:
        """The mean of how far the perplexities of texts are above the dense model's."""
        row = found[method, application, sparsity]
        return sum(row[label] / dense[label] - 1 for label in texts) / len(texts)

    for sparsity in options.sparsities:
        for method in (each for each in options.methods if each in SEEDS):
            for application in ("zero", "compensate"):
                if "random" in options.methods:
                    ratio = excess(method, application, sparsity) / excess("random", application, sparsity)
                    to.at_most(f"{name}, {sparsity}, {method} ({application}), excess / random's", ratio, 0.9)
        best = min(options.methods, key=lambda method: excess(method, "compensate", sparsity))
        for label, limit in PROTOTYPE.get(sparsity, {}).items() if name == MODELS[0] else ():
            ratio = found[best, "compensate", sparsity][label] / dense[label]
            to.at_most(f"{name}, {sparsity}, {best} repaired, {label} / dense (prototype)", ratio, round(limit, 4))
        for method in (each for each in options.methods if each in SEEDS and "wanda-sp" in options.methods):
            own = ("medical",) if method == "attribution" else texts  # the text that it was made for
            ratio = excess(method, "compensate", sparsity, own) / excess("wanda-sp", "compensate", sparsity, own)
            to.at_most(f"{name}, {sparsity}, {method} repaired, excess / wanda-sp's", ratio, 1.0)


def main() -> None:
    """Print the tables and the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.15, 0.25, 0.35])
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--documents", action="store_true", help="calibrate on documents as they are, not joined")
    parser.add_argument("--windows", type=int, default=64, help="windows of each test text")
    parser.add_argument("--length", type=int, default=256, help="tokens in a sequence and in a window")
    options = parser.parse_args()
    targets = Targets()
    with real_hub():
        for name in options.models:
            found = measure_all(name, options)
            show(name, options, found)
            judge(name, options, found, targets)
    targets.exit()


if __name__ == "__main__":
    main()
