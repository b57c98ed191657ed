"""Keep masks: exact counts, the lowest scores go, ties by position."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from hubprune.masks import block_counts, keep_mask, keep_masks_of_model, removed_count
from hubprune.sparsity import NM, Unstructured

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 17))
SPARSITIES = st.floats(0, 0.99)
SCOPES = st.sampled_from(["row", "block", "matrix"])


def scores_of(shape, seed, ties):
    """Scores with many ties, or with none."""
    values = torch.randperm(shape[0] * shape[1], generator=torch.Generator().manual_seed(seed)).float()
    return (values // 5 if ties else values).reshape(shape)


def slow_lowest(values, count):
    """Indices of the lowest values, ties by position: a sort of pairs."""
    return {i for _, i in sorted((v, i) for i, v in enumerate(values))[:count]}


@given(SHAPES, SPARSITIES, SCOPES, st.integers(0, 99), st.booleans())
def test_count_is_exact_in_every_scope(shape, sparsity, scope, seed, ties):
    keep = keep_mask(scores_of(shape, seed, ties), Unstructured(sparsity, scope), block_size=4)
    assert int((~keep).sum()) == removed_count(shape[0] * shape[1], sparsity)


@given(SHAPES, SPARSITIES, st.integers(0, 99), st.booleans())
def test_matrix_scope_removes_the_lowest(shape, sparsity, seed, ties):
    scores = scores_of(shape, seed, ties)
    removed = slow_lowest(scores.flatten().tolist(), removed_count(scores.numel(), sparsity))
    expected = torch.tensor([i not in removed for i in range(scores.numel())]).reshape(shape)
    assert torch.equal(keep_mask(scores, Unstructured(sparsity, "matrix")), expected)


@given(SHAPES, SPARSITIES, st.integers(0, 99), st.booleans())
def test_row_scope_removes_the_lowest_of_each_row_and_rows_differ_by_one_at_most(shape, sparsity, seed, ties):
    scores = scores_of(shape, seed, ties)
    keep = keep_mask(scores, Unstructured(sparsity, "row"))
    counts = (~keep).sum(dim=1).tolist()
    assert max(counts) - min(counts) <= 1
    for row, kept, count in zip(scores.tolist(), keep.tolist(), counts, strict=True):
        assert {i for i, k in enumerate(kept) if not k} == slow_lowest(row, count)


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([(2, 4), (1, 4), (3, 4), (4, 8), (1, 2)]), st.booleans())
def test_nm_keeps_the_highest_n_of_every_group(rows, groups, pair, ties):
    n, m = pair
    scores = scores_of((rows, groups * m), 3, ties)
    keep = keep_mask(scores, NM(n, m))
    for values, kept in zip(scores.reshape(-1, m).tolist(), keep.reshape(-1, m).tolist(), strict=True):
        assert sum(kept) == n
        assert {i for i, k in enumerate(kept) if not k} == slow_lowest(values, m - n)


def test_one_of_four_keeps_one():
    assert keep_mask(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), NM(1, 4)).tolist() == [[False, True, False, False]]


@given(st.lists(SHAPES, min_size=1, max_size=5), SPARSITIES, st.booleans())
def test_model_scope_counts_over_all_matrices(shapes, sparsity, ties):
    scores = {i: scores_of(shape, i, ties) for i, shape in enumerate(shapes)}
    removed = removed_count(sum(s.numel() for s in scores.values()), sparsity)
    keep = keep_masks_of_model(scores, removed)
    assert sum(int((~k).sum()) for k in keep.values()) == removed
    dropped = [scores[i][~k].max() for i, k in keep.items() if (~k).any()]
    kept = [scores[i][k].min() for i, k in keep.items() if k.any()]
    assert not dropped or not kept or max(dropped) <= min(kept)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 16), SPARSITIES)
def test_block_counts_add_up(rows, columns, block, sparsity):
    assert sum(block_counts(rows, columns, block, sparsity)) == removed_count(rows * columns, sparsity)


@pytest.mark.parametrize(
    ("numel", "sparsity", "count"), [(10, 0.5, 5), (5, 0.5, 3), (172 * 64, 0.6, 6605), (7, 0.0, 0)]
)
def test_removed_count_is_the_nearest(numel, sparsity, count):
    assert removed_count(numel, sparsity) == count
