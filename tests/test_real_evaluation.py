"""Real models and text: perplexity and task scores are those of lm-evaluation-harness, dense and pruned."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hubprune
from hubprune import AutoPrunedModelForCausalLM, Protocol
from tests.test_harness import own_accuracy, write_pairs

TRI_DOMAIN, STORIES = "hubprune-real/tri-domain-6m", "hubprune-real/stories3M-llama"
ROLLING = """\
task: rolling
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("real_hub")]


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    with (folder / "datasets/hubprune-real" / name / "data/test.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("model_id", [TRI_DOMAIN, STORIES, "hubprune-real/stories260K-qwen2"])
def test_perplexity_is_that_of_the_harness(model_id: str, real_folder: Path, tmp_path: Path) -> None:
    """Short documents, one longer than the model reads, and characters of several bytes; after unit conversion."""
    texts = [row["text"] for row in rows_of(real_folder, "wikitext_heldout")[:12]]
    texts += [" ".join(texts[:5]), "Das Gericht prüfte die Ärztin – „gründlich“."]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "rolling.yaml").write_text(ROLLING.format(file=tmp_path / "texts.jsonl"))
    found = hubprune.evaluate(
        model_id, {"x": texts}, protocol="harness", tasks=str(tmp_path / "rolling.yaml"), progress=False
    )
    (ours,), theirs = found.perplexities, {row.metric: row.value for row in found.tasks}
    nats = math.log(ours.perplexity) * ours.tokens
    words = sum(len(re.split(r"\s+", text)) for text in texts)
    assert ours.text_bytes == sum(len(text.encode()) for text in texts)
    assert math.exp(nats / words) == pytest.approx(theirs["word_perplexity"], rel=1e-3)
    assert math.exp(nats / ours.text_bytes) == pytest.approx(theirs["byte_perplexity"], rel=1e-5)
    assert ours.bits_per_byte == pytest.approx(theirs["bits_per_byte"], rel=1e-5)


def test_minimal_pairs_dense_against_pruned_as_our_own_scoring_has_them(real_folder: Path, tmp_path: Path) -> None:
    pairs = rows_of(real_folder, "blimp")[::20]
    model = AutoPrunedModelForCausalLM.from_pretrained(
        STORIES, method="magnitude", sparsity=0.5, evaluation=None, progress=False
    )
    found = model.evaluate(tasks=write_pairs(tmp_path, pairs), batch_size=32, progress=False)
    dense, pruned = found.tasks
    assert (dense.variant, pruned.variant, dense.examples, pruned.examples) == ("base", "pruned", 201, 201)
    base, tokenizer = AutoModelForCausalLM.from_pretrained(STORIES), AutoTokenizer.from_pretrained(STORIES)
    assert dense.value == own_accuracy(base, tokenizer, pairs)
    assert pruned.value == own_accuracy(model, tokenizer, pairs)
    assert 0.5 < pruned.value < dense.value
    assert pruned.recovered == pruned.value / dense.value
    assert dense.stderr == pytest.approx((dense.value * (1 - dense.value) / 200) ** 0.5)
    assert model.hubprune_report.tasks == [dense, pruned]


def test_wikitext_is_read_as_the_papers_read_it() -> None:
    """The whole split with empty rows, joined by a blank line; the reference reads the rows from the files."""
    few = Protocol(sequence_length=512, num_samples=6)
    (row,) = hubprune.evaluate(TRI_DOMAIN, {"wikitext2": "wikitext2"}, protocol=few, progress=False).perplexities
    from datasets import load_dataset

    lines = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test", streaming=True)
    text = "\n\n".join(line["text"] for line in lines.take(120))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(TRI_DOMAIN), AutoTokenizer.from_pretrained(TRI_DOMAIN)
    ids = tokenizer(text, return_tensors="pt").input_ids[:, : 6 * 512]
    assert ids.shape[1] == 6 * 512
    with torch.no_grad():
        nats = [float(model(input_ids=part, labels=part).loss) * 512 for part in ids.split(512, dim=1)]
    assert row.perplexity == pytest.approx(math.exp(sum(nats) / (6 * 512)), rel=1e-5)
    assert (row.layout, row.join, row.windows, row.tokens) == ("joined", "\n\n", 6, 6 * 511)
