"""Real models and data by repository id: every method and every pattern, pushed and reloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubprune import AutoPrunedModelForCausalLM
from hubprune.architecture import find_matrices
from hubprune.presets import WEIGHT_METHODS

TRI_DOMAIN = "hubprune-real/tri-domain-6m"
FAMILIES = ("llama", "mistral", "qwen2", "phi3", "mixtral")
GENERAL = "roneneldan/TinyStories"
PUBMEDQA = "qiaojin/PubMedQA:pqa_labeled"
PATTERNS = {"0.6": {"sparsity": 0.6}, "2:4": {"pattern": "2:4"}}
SMALL = {"num_samples": 8, "sequence_length": 128, "evaluation": None, "progress": False}

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("real_hub")]


def push_and_reload(model, repo_id: str, hub) -> None:
    """What was pushed is what is in memory, loads in plain transformers, and passed every check on the way."""
    model.push_to_hub(repo_id, token=hub.token("me"))
    assert model.hubprune_report.verification.passed
    again = AutoModelForCausalLM.from_pretrained(repo_id)
    ids = model.tokenizer("The patient", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(repo_id)("The patient")["input_ids"] == ids[0].tolist()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_every_method_prunes_a_real_model(method: str, pattern: str) -> None:
    model = AutoPrunedModelForCausalLM.from_pretrained(
        TRI_DOMAIN, method=method, general=GENERAL, domain=PUBMEDQA, **PATTERNS[pattern], **SMALL
    )
    asked = 0.5 if pattern == "2:4" else float(pattern)
    totals = model.hubprune_report.totals
    assert totals.sparsity == pytest.approx(asked, abs=1e-5)
    assert totals.zeros == sum(int((matrix.view() == 0).sum()) for matrix in find_matrices(model))


@pytest.mark.parametrize("method", ["d-pruner", "cross-calibration"])  # weights left alone, and repaired ones
def test_a_real_model_is_pushed_and_reloaded(method: str, real_hub) -> None:
    model = AutoPrunedModelForCausalLM.from_pretrained(
        TRI_DOMAIN, method=method, sparsity=0.5, general=GENERAL, domain="casehold/casehold:all", **SMALL
    )
    push_and_reload(model, f"me/tri-domain-legal-{method}", real_hub)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_real_family_is_pruned_pushed_and_reloaded(family: str, real_hub) -> None:
    model = AutoPrunedModelForCausalLM.from_pretrained(
        f"hubprune-real/stories260K-{family}",
        method="d-pruner",
        sparsity=0.5,
        general=GENERAL,
        domain=PUBMEDQA,
        **SMALL,
    )
    push_and_reload(model, f"me/stories-{family}-50", real_hub)


def test_presets_name_data_sets_that_are_there(real_hub, tmp_path: Path) -> None:
    for domain in ("medical", "legal"):
        model = AutoPrunedModelForCausalLM.from_pretrained(
            "hubprune-real/stories260K-llama", method="wanda", pattern="2:4", general="general", domain=domain, **SMALL
        )
        general, special = model.hubprune_report.corpora
        assert (
            sum(source.rows > 0 for source in general.sources)
            == sum(source.rows > 0 for source in special.sources)
            == 2
        )
        assert all(source.template for source in special.sources)


def test_domain_text_keeps_the_domain_better_than_magnitude() -> None:
    found = {}
    for method in ("magnitude", "d-pruner", "cross-calibration"):
        model = AutoPrunedModelForCausalLM.from_pretrained(
            TRI_DOMAIN,
            method=method,
            sparsity=0.7,
            general=GENERAL,
            domain=PUBMEDQA,
            num_samples=32,
            sequence_length=128,
            evaluation={"medical": f"{PUBMEDQA}:test"},
            progress=False,
        )
        found[method] = model.hubprune_report.perplexities()["medical"]["pruned"].perplexity
    assert found["cross-calibration"] < found["d-pruner"] < found["magnitude"]
