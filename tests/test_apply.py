"""Compensation against a slow reference that inverts the remaining Hessian anew at every column."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from hubprune import PruningConfig, apply, masks, prune
from hubprune.architecture import find_matrices
from hubprune.errors import NumericalError
from hubprune.sparsity import NM, Unstructured
from hubprune.stats import inverse_cholesky
from tests.families import build, token_ids

DAMPING = 0.01


def problem(rows=6, columns=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, columns, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), 2 * x.T @ x / len(x), x


def slow_sweep(weight, hessian, choose):
    """Optimal brain surgery from left to right; ``choose(weights, column, inverse_diagonals)`` says what stays."""
    w = weight.clone()
    h = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    diagonals = torch.stack([torch.linalg.inv(h[j:, j:])[0, 0] for j in range(len(h))])
    keep = torch.ones_like(w, dtype=torch.bool)
    for j in range(w.shape[1]):
        choose(w, j, diagonals, keep)
        inverse = torch.linalg.inv(h[j:, j:])
        for i in range(w.shape[0]):
            if not keep[i, j]:
                w[i, j:] -= w[i, j] / inverse[0, 0] * inverse[0]
                w[i, j] = 0
    return w, keep


def by_block(size, counts):
    """Choose the lowest of each block of columns when its first column is reached."""

    def choose(w, j, diagonals, keep):
        if j % size == 0:
            part = w[:, j : j + size] ** 2 / diagonals[j : j + size]
            order = part.flatten().sort().indices[: counts[j // size]]
            flat = torch.ones(part.numel(), dtype=torch.bool)
            flat[order] = False
            keep[:, j : j + size] = flat.reshape(part.shape)

    return choose


def by_group(pattern):
    """Choose the lowest of each group of a row when its first column is reached."""

    def choose(w, j, diagonals, keep):
        if j % pattern.group == 0:
            part = w[:, j : j + pattern.group] ** 2 / diagonals[j : j + pattern.group]
            for i in range(len(w)):
                keep[i, j + part[i].sort().indices[: pattern.group - pattern.keep]] = False

    return choose


def run(weight, hessian, select, span, block_size):
    factor, _ = inverse_cholesky(hessian, DAMPING)
    result = weight.float().clone()
    keep = apply.compensate(
        result, factor.float(), torch.zeros(len(hessian), dtype=torch.bool), select, span=span, block_size=block_size
    )
    return result.double(), keep


@pytest.mark.parametrize("block_size", [4, 8, 16, 128])
def test_a_finished_mask_is_repaired_as_by_hand(block_size):
    weight, hessian, _ = problem()
    mask = masks.keep_mask(weight.abs(), Unstructured(0.5, "row"))
    expected, _ = slow_sweep(weight, hessian, lambda w, j, d, keep: keep.copy_(mask))
    found, keep = run(weight, hessian, apply.select_from_mask(mask), block_size, block_size)
    assert torch.equal(keep, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found == 0, ~mask)


def test_sparsegpt_chooses_per_block_from_repaired_weights():
    weight, hessian, _ = problem(columns=12)
    size, pattern = 8, Unstructured(0.6, "block")
    counts = masks.block_counts(*weight.shape, size, 0.6)

    expected, mask = slow_sweep(weight, hessian, by_block(size, counts))
    select = apply.select_by_scores(lambda w, d: w**2 / d, pattern, tuple(weight.shape), size)
    found, keep = run(weight, hessian, select, size, size)
    assert torch.equal(keep, mask)
    assert int((~keep).sum()) == masks.removed_count(keep.numel(), 0.6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4)])
def test_sparsegpt_chooses_nm_groups_as_it_reaches_them(pattern):
    weight, hessian, _ = problem()

    expected, mask = slow_sweep(weight, hessian, by_group(pattern))
    select = apply.select_by_scores(lambda w, d: w**2 / d, pattern, tuple(weight.shape), 8)
    found, keep = run(weight, hessian, select, 4, 8)
    assert torch.equal(keep, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_repair_lowers_the_output_error_of_correlated_inputs():
    weight, _, x = problem()
    x = torch.cat([x[:, :4] @ x[:4, :], x[:, :4]], dim=1)[:, :16]
    hessian = 2 * x.T @ x / len(x)
    mask = masks.keep_mask(weight.abs(), Unstructured(0.5, "row"))
    repaired, _ = run(weight, hessian, apply.select_from_mask(mask), 8, 8)
    error = lambda w: ((w - weight) @ x.T).norm()  # noqa: E731
    assert error(repaired) < 0.7 * error(weight * mask)


def test_dead_columns_become_zero_and_bfloat16_keeps_the_mask():
    weight, hessian, _ = problem()
    hessian[3], hessian[:, 3] = 0, 0
    factor, _ = inverse_cholesky(hessian, DAMPING)
    result = weight.to(torch.bfloat16)
    mask = masks.keep_mask(weight.abs(), NM(2, 4))
    keep = apply.compensate(
        result, factor.float(), hessian.diagonal() == 0, apply.select_from_mask(mask), span=8, block_size=8
    )
    assert (result[:, 3] == 0).all()
    assert (result[~keep] == 0).all()
    assert torch.isfinite(result).all()


def test_a_hessian_that_cannot_be_factorised_is_an_error_and_one_that_needs_damping_is_recorded():
    good = torch.eye(4)
    assert inverse_cholesky(good, 0.01)[1] == 0.01
    indefinite = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.5]))
    _, used = inverse_cholesky(indefinite, 0.1)
    assert used == pytest.approx(1.0)
    with pytest.raises(NumericalError, match="more calibration text"):
        inverse_cholesky(torch.full((3, 3), float("nan")), 0.01)


@pytest.mark.parametrize("method", ["sparsegpt", "cross-calibration"])
@pytest.mark.parametrize("pattern", [{"sparsity": 0.5}, {"pattern": "2:4"}], ids=str)
def test_a_whole_run_repairs_every_matrix_as_by_hand(method, pattern):
    """The defaults of the two methods that repair, on the inputs that the only block of a model gets."""
    model = build("llama", num_hidden_layers=1)
    texts = {"general": token_ids(6, 40), "domain": token_ids(5, 40, seed=1)}
    matrices = find_matrices(model)
    second = {name: {m.name: 0.0 for m in matrices} for name in texts}
    for name, ids in texts.items():
        with ExitStack() as stack, torch.no_grad():
            for matrix in matrices:

                def watch(_module, args, sums=second[name], key=matrix.name):
                    x = args[0].flatten(0, -2).double()
                    sums[key] = sums[key] + x.T @ x

                stack.callback(matrix.module.register_forward_pre_hook(watch).remove)
            model(ids)
    tokens = {name: ids.numel() for name, ids in texts.items()}
    before = {matrix.name: matrix.view().double().clone() for matrix in matrices}
    prune(model, None, PruningConfig(method, **pattern), texts, progress=False)
    for matrix in matrices:
        if method == "sparsegpt":  # all text together
            hessian = 2 * sum(second[name][matrix.name] for name in texts) / sum(tokens.values())
        else:  # each text as much as the other
            hessian = sum(second[name][matrix.name] / tokens[name] for name in texts)
        weight = before[matrix.name]
        removed = masks.removed_count(weight.numel(), 0.5)
        choose = by_group(NM(2, 4)) if "pattern" in pattern else by_block(128, [removed])
        expected, keep = slow_sweep(weight, hessian, choose)
        assert float((keep == (matrix.view() != 0)).float().mean()) > 0.999
        torch.testing.assert_close(matrix.view().double(), expected, rtol=1e-3, atol=1e-3)
