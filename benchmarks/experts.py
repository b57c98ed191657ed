"""A German expert: a small model of five languages pruned for one of them, against the same run for another one.

    python -m benchmarks.experts [--folder build/five-languages] [--steps 2500] [--languages de en]

The model, a Llama of 1.3 million parameters, is trained here on paragraphs, school problems and declarations in
English, German, Spanish, Thai and Chinese, once, into the folder. Cus-Prun then takes FFN neurons out of it with
``language = hubprune-real/xquad_contexts:default:train?lang=de``, or ``lang=en``, beside random and wanda-sp on the
same text; perplexity is measured for each language on paragraphs of articles that neither training nor calibration
saw. Unrepaired runs show what the choice of neurons does, repaired ones what is left of it after the least-squares
repair, which is made on the same text of one language.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import Targets, real_hub, table

XQUAD = "hubprune-real/xquad_contexts:default:train"
PROBLEMS = "hubprune-real/mgsm"
DECLARATIONS = "hubprune-real/udhr"
LANGUAGES = {"en": "eng", "de": "deu_1996", "es": "spa", "th": "tha", "zh": "cmn_hans"}
"""What the two kinds of data sets call the languages."""
ARTICLES, HELD_OUT = 48, 8
"""Articles in all, of five paragraphs each, the same ones in every language; the last ones are held out."""
CONTEXT = 256
"""Tokens of a window."""
METHODS = ("cus-prun", "wanda-sp", "random")
APPLICATIONS = {"zero": "unrepaired", "compensate": "repaired"}
Row = dict[str, float]
Key = tuple[float, str, str, str]
"""Share of the neurons that go, application, method, and language of the text."""


def training_texts() -> Iterator[str]:
    """Yield the text of every language that is not held out."""
    from datasets import load_dataset

    for row in load_dataset(XQUAD.partition(":")[0], split="train"):
        if row["article"] < ARTICLES - HELD_OUT:
            yield row["text"]
    yield from (row["question"] for row in load_dataset(PROBLEMS, split="test"))
    for row in load_dataset(DECLARATIONS, split="train"):
        if row["lang"] in LANGUAGES.values():
            yield from row["text"].splitlines()


def train(folder: Path, steps: int) -> None:
    """Train tokenizer and model, and save them; the folder appears when it is complete."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hubprune.demo.train import fit, train_tokenizer, windows

    torch.manual_seed(0)
    texts = list(training_texts())
    tokenizer = train_tokenizer(texts, CONTEXT)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    order = torch.randperm(len(texts)).tolist()
    fit(model, windows((texts[i] for i in order), tokenizer, CONTEXT), steps)
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def measure(options: argparse.Namespace) -> tuple[Row, dict[Key, Row]]:
    """Prune for each language and measure all of them.

    Returns:
        Perplexity of the dense model by language, and that of each run.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hubprune import CorpusConfig, PruningConfig, load_corpus, perplexity, prune
    from hubprune.calibration import refuse_overlap

    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    dense = AutoModelForCausalLM.from_pretrained(options.folder, dtype="float32").eval()
    held_out = range(ARTICLES - HELD_OUT, ARTICLES)
    tests = {}
    for language in LANGUAGES:
        sources = tuple(f"{XQUAD}?lang={language}&article={article}" for article in held_out)
        wanted = CorpusConfig(sources, num_samples=options.windows, sequence_length=CONTEXT)
        tests[language] = load_corpus(wanted, tokenizer, name=language, at_most=True, progress=False)
    keys = frozenset().union(*(corpus.keys for corpus in tests.values()))
    texts = {
        language: load_corpus(
            f"{XQUAD}?lang={language}",
            tokenizer,
            name="language",
            num_samples=options.num_samples,
            sequence_length=CONTEXT,
            exclude=keys,
            progress=False,
        )
        for language in options.languages
    }
    refuse_overlap(texts.values(), tests.values())

    def perplexities(model) -> Row:
        return {name: perplexity(model, corpus, progress=False).perplexity for name, corpus in tests.items()}

    found: dict[Key, Row] = {}
    for sparsity in options.sparsities:
        for application in APPLICATIONS:
            for method in METHODS:
                for language, text in texts.items():
                    config = PruningConfig(method, sparsity=sparsity, unit="ffn_neuron", application=application)
                    model = copy.deepcopy(dense)
                    prune(model, tokenizer, config, {"language": text}, progress=False)
                    found[sparsity, application, method, language] = perplexities(model)
                    print(f"{sparsity:.0%} of the neurons, {application}, {method}, {language}", flush=True)
    return perplexities(dense), found


def show(options: argparse.Namespace, dense: Row, found: dict[Key, Row]) -> None:
    """Print a table for each sparsity."""
    for sparsity in options.sparsities:
        rows = [("dense", "", "", *(f"{dense[name]:.1f}" for name in LANGUAGES))]
        for (size, application, method, language), row in found.items():
            if size == sparsity:
                rows.append((method, language, APPLICATIONS[application], *(f"{row[name]:.1f}" for name in LANGUAGES)))
        table(
            f"{sparsity:.0%} of the FFN neurons, {options.num_samples} x {CONTEXT} tokens of {XQUAD}?lang=...; "
            f"perplexity on paragraphs of {HELD_OUT} held-out articles, windows of {CONTEXT} tokens",
            ("method", "text", "", *LANGUAGES),
            rows,
        )


def main() -> None:
    """Train where it is not done, prune, print the tables and the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/five-languages"), help="where the model is kept")
    parser.add_argument("--steps", type=int, default=2500, help="of the training")
    parser.add_argument("--languages", nargs="+", default=["de", "en"], choices=LANGUAGES)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.75])
    parser.add_argument("--num-samples", type=int, default=48)
    parser.add_argument("--windows", type=int, default=24, help="windows of each language")
    options = parser.parse_args()
    with real_hub():
        if not options.folder.is_dir():
            options.folder.parent.mkdir(parents=True, exist_ok=True)
            train(options.folder, options.steps)
        dense, found = measure(options)
    show(options, dense, found)
    targets = Targets()
    for sparsity, application in itertools.product(options.sparsities, APPLICATIONS):
        for ours, theirs in itertools.permutations(options.languages, 2):
            kept, lost = (found[sparsity, application, "cus-prun", text][ours] for text in (ours, theirs))
            name = f"{sparsity:.0%}, {APPLICATIONS[application]}, perplexity of {ours}, run for it / for {theirs}"
            targets.at_most(name, kept / lost, 1.0)
    targets.exit()


if __name__ == "__main__":
    main()
