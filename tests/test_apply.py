"""Compensation against a slow reference that inverts the remaining Hessian anew at every column."""

from __future__ import annotations

import pytest
import torch

from hubprune import apply, masks
from hubprune.errors import NumericalError
from hubprune.sparsity import NM, Unstructured
from hubprune.stats import inverse_cholesky

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

    def choose(w, j, diagonals, keep):
        if j % size == 0:
            part = w[:, j : j + size] ** 2 / diagonals[j : j + size]
            order = part.flatten().sort().indices[: counts[j // size]]
            flat = torch.ones(part.numel(), dtype=torch.bool)
            flat[order] = False
            keep[:, j : j + size] = flat.reshape(part.shape)

    expected, mask = slow_sweep(weight, hessian, choose)
    select = apply.select_by_scores(lambda w, d: w**2 / d, pattern, tuple(weight.shape), size)
    found, keep = run(weight, hessian, select, size, size)
    assert torch.equal(keep, mask)
    assert int((~keep).sum()) == masks.removed_count(keep.numel(), 0.6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4)])
def test_sparsegpt_chooses_nm_groups_as_it_reaches_them(pattern):
    weight, hessian, _ = problem()

    def choose(w, j, diagonals, keep):
        if j % 4 == 0:
            part = w[:, j : j + 4] ** 2 / diagonals[j : j + 4]
            for i in range(len(w)):
                keep[i, j + part[i].sort().indices[: 4 - pattern.keep]] = False

    expected, mask = slow_sweep(weight, hessian, choose)
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
