"""Blocks are fitted to the dense ones: closer outputs, the same zeros, the same result in memory and from disk."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from hubprune import PruningConfig, prune
from hubprune.activations import Activations
from hubprune.architecture import find_matrices
from hubprune.opening import Opening
from hubprune.reconstruct import reconstruct
from hubprune.recovery_config import RecoveryConfig
from hubprune.sparsity import parse_pattern
from hubprune.teacher import DenseTeacher
from hubprune.weights import weights_of
from hubprune.zeros import Zeros
from tests.families import build, token_ids

CONFIG = RecoveryConfig("reconstruct", steps=30, learning_rate=5e-3).resolved()


def both(family: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A dense model, and a copy with two of every four weights removed."""
    dense = build(family, dtype)
    model = copy.deepcopy(dense)
    prune(model, None, PruningConfig("magnitude", pattern="2:4"), progress=False)
    return dense, model


def distance(one: Any, other: Any, ids: torch.Tensor) -> float:
    with torch.no_grad():
        return float((one(ids).logits - other(ids).logits).float().square().mean())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_fitted_model_is_closer_to_the_dense_one_and_keeps_its_zeros(family: str) -> None:
    dense, model = both(family)
    ids = token_ids(16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    matrices, zeros = find_matrices(model), Zeros(parse_pattern("2:4"))
    far = distance(model, dense, ids)
    done = reconstruct(
        weights_of(model), weights_of(dense), matrices, list(ids.split(4)), CONFIG, zeros, progress=False
    )
    assert distance(model, dense, ids) < 0.7 * far
    assert all(point.held_out < point.training for point in done.curve)
    assert zeros.kept == sum(m.view().numel() for m in matrices) // 2
    assert zeros.groups == zeros.kept // 2
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {matrix.parameter_name for matrix in matrices}


def test_matrices_that_were_not_pruned_stay_as_they_are() -> None:
    dense, model = both("mixtral")
    chosen = [m for m in find_matrices(model) if m.kind in ("down_proj", "q_proj") and not m.name.endswith("[1]")]
    left = [m for m in find_matrices(model) if m.name not in {each.name for each in chosen}]
    before = {matrix.name: matrix.view().clone() for matrix in left}
    reconstruct(
        weights_of(model), weights_of(dense), chosen, list(token_ids(8).split(4)), CONFIG, Zeros(), progress=False
    )
    assert all(torch.equal(matrix.view(), before[matrix.name]) for matrix in left)


def test_a_learning_rate_that_does_harm_leaves_the_block_alone() -> None:
    dense, model = both("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wild = RecoveryConfig("reconstruct", steps=3, learning_rate=50.0).resolved()
    reconstruct(
        weights_of(model),
        weights_of(dense),
        find_matrices(model),
        list(token_ids(8).split(4)),
        wild,
        Zeros(),
        progress=False,
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_teacher_knows_the_logits_of_the_dense_model(on_disk: bool, tmp_path) -> None:
    dense = build("qwen3")
    sequences = [*token_ids(4), token_ids(1, length=7, seed=3)[0]]
    given = dense
    if on_disk:
        dense.save_pretrained(tmp_path / "dense")
        given = Opening(str(tmp_path / "dense"), None, {}).weights_on_disk(tmp_path / "offload")
    padded = torch.stack([sequences[2], torch.nn.functional.pad(sequences[4], (0, 5))])
    with DenseTeacher(given, sequences, Activations(0, tmp_path), progress=False) as teacher:
        found = teacher.logits([2, 4], padded)
    with torch.no_grad():
        assert torch.allclose(found[0], dense(sequences[2][None]).logits[0], atol=1e-5)
        assert torch.allclose(found[1, :7], dense(sequences[4][None]).logits[0], atol=1e-5)
