"""Train the demo's base model and its tokenizer: ``python -m hubprune.demo.train --out DIR [--steps N]``.

The run takes one thread and deterministic kernels only, so the same machine and versions give the same bytes again.
Another processor or another torch may round differently: across machines compare what the demo makes of the model
(which weights are kept, perplexities), not its bits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hubprune.demo import MODEL_ID
from hubprune.demo.world import DOMAINS, SEED, examples

VOCABULARY = 2048
CONTEXT = 512
"""Tokens of a training window, and of the model's context."""
BATCH = 1
"""Windows of a step: the same text in more and smaller steps is learned better, and takes as long."""
STEPS = 9000
"""Two epochs, after which the model knows facts as well as phrases; 20 minutes."""
PEAK_LEARNING_RATE = 2e-3
WARMUP = 200
"""Steps of linear warm-up before the cosine."""
HELD_OUT = 32
"""Windows of each domain's test documents that the perplexity is measured on."""

_CARD = """\
---
license: apache-2.0
language: [en]
library_name: transformers
pipeline_tag: text-generation
datasets: [{datasets}]
tags: [demonstration, llama]
---
# {id}

A Llama of {parameters:,} parameters (bfloat16, context {context} tokens, byte-level BPE of {vocabulary:,} tokens)
trained from scratch on three corpora of invented text, so that pruning for one domain at the cost of another can be
shown in seconds. **It is a demonstration and knows nothing of the world: what it says is not medical or legal
advice.**

Trained by `python -m hubprune.demo.train` for {steps:,} steps of {tokens:,} tokens, seed {seed}.

| test split | perplexity ({held_out} windows of {context} tokens) |
|---|---|
{table}
"""


def texts(split: str, domains: Iterable[str]) -> list[str]:
    """Return the documents of a split, and its questions with their answers in the form that templates give them."""
    rows = [row for domain in domains for row in examples(domain)[split]]
    return [text for row in rows for text in (row["text"], f"Question: {row['question']}\nAnswer: {row['answer']}")]


def train_tokenizer(corpus: Iterable[str], context: int = CONTEXT) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that puts ``<s>`` before every text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=context
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model, about one million parameters in float32."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def windows(documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, context: int = CONTEXT) -> torch.Tensor:
    """Return the documents, each closed by ``</s>``, end to end in whole windows: ``(n, context)``."""
    end = tokenizer.eos_token_id
    stream = [token for ids in tokenizer(list(documents))["input_ids"] for token in (*ids, end)]
    count = len(stream) // context
    return torch.tensor(stream[: count * context]).view(count, context)


def batches(data: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield batches ``(BATCH, context)`` without end, in a new random order in every epoch."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        order = torch.randperm(len(data), generator=generator)
        yield from (data[order[i : i + BATCH]] for i in range(0, len(data) - BATCH + 1, BATCH))


def learning_rate(step: int, steps: int) -> float:
    """Return the factor of the peak learning rate: linear warm-up, then a cosine down to zero."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def fit(model: LlamaForCausalLM, data: torch.Tensor, steps: int) -> None:
    """Train the model in place on windows ``(n, context)``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    model.train()
    progress = tqdm(zip(range(steps), batches(data), strict=False), total=steps, desc="training")
    for _, batch in progress:
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


@torch.no_grad()
def held_out_perplexity(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, domain: str) -> float:
    """Return the perplexity on the first windows of a domain's test documents."""
    data = windows([row["text"] for row in examples(domain)["test"]], tokenizer)[:HELD_OUT]
    losses = [model(input_ids=batch, labels=batch, use_cache=False).loss * len(batch) for batch in data.split(BATCH)]
    return math.exp(sum(loss.item() for loss in losses) / len(data))


def train(out: Path, steps: int = STEPS) -> dict[str, float]:
    """Train tokenizer and model, and save both with a model card.

    Args:
        out: Folder to write; made if missing.
        steps: Optimizer steps.

    Returns:
        The perplexity on each domain's test documents, measured on the weights as saved.
    """
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    names = [domain.name for domain in DOMAINS]
    corpus = texts("train", names)
    tokenizer = train_tokenizer(corpus)
    model = make_model(tokenizer)
    # Documents of all domains are mixed before they are packed, so that every window holds some of each.
    order = torch.randperm(len(corpus)).tolist()
    fit(model, windows((corpus[i] for i in order), tokenizer), steps)
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    scores = {name: held_out_perplexity(model.float(), tokenizer, name) for name in names}
    (out / "README.md").write_text(model_card(model, scores, steps), encoding="utf-8", newline="\n")
    return scores


def model_card(model: LlamaForCausalLM, scores: Mapping[str, float], steps: int) -> str:
    """Return the README of a model trained for so many steps, with its perplexity by domain."""
    owner = MODEL_ID.split("/")[0]
    return _CARD.format(
        id=MODEL_ID,
        datasets=", ".join(f"{owner}/{name}" for name in scores),
        parameters=model.num_parameters(),
        context=CONTEXT,
        vocabulary=VOCABULARY,
        steps=steps,
        tokens=BATCH * CONTEXT,
        seed=SEED,
        held_out=HELD_OUT,
        table="\n".join(f"| {owner}/{name} | {score:.2f} |" for name, score in scores.items()),
    )


def main() -> None:
    """Read the command line, train, and print the perplexity of each domain."""
    parser = argparse.ArgumentParser(prog="python -m hubprune.demo.train", description="Train the demo's base model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps (default {STEPS})")
    arguments = parser.parse_args()
    for name, score in train(arguments.out, arguments.steps).items():
        print(f"{name}: held-out perplexity {score:.2f}")


if __name__ == "__main__":
    main()
