"""A tiny model with zeros put in by hand, and the report that tells the truth about it."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hubprune.architecture import describe, find_matrices
from hubprune.facts import CorpusFacts, MatrixFacts, Perplexity, SourceFacts, Totals
from hubprune.reloading import make_probe
from hubprune.report import PruningReport
from hubprune.weights import Weights, touched_by

VOCABULARY = 96
BASE_COMMIT = "a" * 40


def tiny_model(seed: int = 0, layers: int = 2) -> LlamaForCausalLM:
    """A random Llama of about 20,000 parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single words."""
    words = {"<s>": 0, "</s>": 1, "<unk>": 2, **{f"w{n}": n for n in range(3, VOCABULARY)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def prune_by_hand(model: PreTrainedModel, base_id: str = "org/base", method: str = "magnitude") -> PruningReport:
    """Keep the two weights of the largest magnitude in every four, and write down what was done."""
    matrices = find_matrices(model)
    untouched = Weights(model).untouched_sha256(touched_by(matrices))
    rows = []
    for matrix in matrices:
        groups = matrix.view().reshape(-1, 4)
        smallest = groups.abs().argsort(dim=1)[:, :2]
        groups.scatter_(1, smallest, 0.0)
        zeros = int((matrix.view() == 0).sum())
        rows.append(MatrixFacts(matrix.name, matrix.block, matrix.kind, matrix.shape, smallest.numel(), zeros))
    return PruningReport(
        base=describe(
            model,
            model_id=base_id,
            revision="main",
            commit=BASE_COMMIT,
            card={"license": "mit", "language": ["en"]},
        ),
        config={"method": method, "sparsity": None, "pattern": "2:4", "seed": 0},
        pattern="2:4",
        application="zero",
        corpora=[corpus("general", "org/stories", "b"), corpus("domain", "org/medical", "c")],
        matrices=rows,
        totals=Totals(
            targeted=sum(r.numel for r in rows),
            pruned=sum(r.pruned for r in rows),
            zeros=sum(r.zeros for r in rows),
            parameters=sum(p.numel() for p in model.parameters()),
        ),
        untouched_sha256=untouched,
        probe=make_probe(model),
        evaluation=[
            measured("base", "general", 21.25),
            measured("pruned", "general", 34.0),
            measured("base", "domain", 18.5),
            measured("pruned", "domain", 17.25),
        ],
        timings={"forward": 1.25, "backward": 2.5},
        peak_memory_bytes=3 * 2**30,
        hardware={"processor": "a processor", "cores": 2},
        versions={"hubprune": "0.1.0", "torch": torch.__version__},
        created="2026-01-02T03:04:05+00:00",
    )


def corpus(name: str, dataset: str, letter: str) -> CorpusFacts:
    """Facts about a corpus of the Hub."""
    source = SourceFacts(dataset, None, "train", letter * 40, None, rows=7)
    return CorpusFacts(
        name, [source], 12, 64, 768, token_sha256=letter * 64, fingerprint=letter * 64, samples=["first row", "second"]
    )


def measured(variant: str, name: str, value: float) -> Perplexity:
    """One perplexity."""
    dataset = {"general": "org/stories", "domain": "org/medical"}[name]
    return Perplexity(variant, name, value, value / 100, 1000, 16, 64, 64, True, [f"{dataset}::test"], "d" * 64)


def save_plain(model: PreTrainedModel, report: PruningReport, folder: Path) -> Path:
    """Write model and report as any program could, with nothing but transformers."""
    model.config.hubprune = report.summary()
    model.save_pretrained(folder)
    report.save(folder)
    return folder
