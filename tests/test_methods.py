"""The matrix: every method, pattern and application pruned, saved, reloaded and described, by the same assertions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hubprune import PruningConfig, prune
from hubprune.architecture import find_matrices
from hubprune.card import render_card
from hubprune.masks import removed_count
from hubprune.presets import WEIGHT_METHODS
from hubprune.report import PruningReport
from hubprune.saving import save
from hubprune.sparsity import SCOPES, parse_pattern
from tests.families import FAMILIES, build, token_ids

CORPORA = {"general": token_ids(3, 12), "domain": token_ids(3, 12, seed=1)}
PATTERNS = {"half": {"sparsity": 0.5}, "2:4": {"pattern": "2:4"}, "1:4": {"pattern": "1:4"}}
PATTERNS |= {scope: {"sparsity": 0.37, "scope": scope} for scope in SCOPES}


def pruned(method: str, pattern: str, application: str, family: str = "llama"):
    model = build(family)
    config = PruningConfig(method, application=application, **PATTERNS[pattern])
    return model, prune(model, None, config, CORPORA, progress=False)


@pytest.mark.parametrize("application", ["zero", "compensate"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_pruned_saved_reloaded_and_described(method: str, pattern: str, application: str, tmp_path: Path) -> None:
    model, report = pruned(method, pattern, application)
    asked = parse_pattern(pattern).sparsity if ":" in pattern else PATTERNS[pattern]["sparsity"]
    total = sum(matrix.view().numel() for matrix in find_matrices(model))
    per_matrix = sum(removed_count(matrix.view().numel(), asked) for matrix in find_matrices(model))
    assert report.totals.targeted == total
    assert report.totals.pruned == (removed_count(total, asked) if pattern == "model" else per_matrix)
    zeros = {matrix.name: int((matrix.view() == 0).sum()) for matrix in find_matrices(model)}
    assert {facts.name: facts.zeros for facts in report.matrices} == zeros
    assert all(facts.zeros >= facts.pruned for facts in report.matrices)
    if ":" in pattern:
        kept = parse_pattern(pattern)
        for matrix in find_matrices(model):
            groups = (matrix.view() != 0).reshape(matrix.shape[0], -1, kept.group).sum(-1)
            assert int(groups.max()) <= kept.keep

    save(model, tmp_path / "saved", report=report)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(token_ids()).logits, model(token_ids()).logits)
    assert PruningReport.load(tmp_path / "saved").to_dict() == report.to_dict()
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert f"{report.totals.pruned:,}" in card
    assert WEIGHT_METHODS[method].title in card
    assert render_card(report, None, card) == card


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_pruning_twice_changes_nothing_for_a_mask_that_stays(method: str) -> None:
    """What is zero has the lowest score there is: a second run with the same text removes the same weights again."""
    model, first = pruned(method, "half", "zero")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    second = prune(model, None, PruningConfig(method, sparsity=0.5, application="zero"), CORPORA, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert second.totals.zeros == first.totals.zeros


@pytest.mark.parametrize("method", ["d-pruner", "sparsegpt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_pruned_saved_and_reloaded(family: str, method: str, tmp_path: Path) -> None:
    model, report = pruned(method, "2:4", WEIGHT_METHODS[method].application, family)
    save(model, tmp_path / "saved", report=report)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.config.architectures == [type(model).__name__]
    with torch.no_grad():
        assert torch.equal(again(token_ids()).logits, model(token_ids()).logits)
    zeros = sum(int((matrix.view() == 0).sum()) for matrix in find_matrices(again))
    assert zeros == report.totals.zeros >= report.totals.targeted // 2
