"""The words of sparsity: N counts what is kept, a share what is removed, and both are checked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubprune.errors import ConfigError
from hubprune.sparsity import NM, SCOPES, Unstructured, parse_pattern


@pytest.mark.parametrize(("text", "keep", "group", "removed"), [("2:4", 2, 4, 0.5), (" 1 : 4 ", 1, 4, 0.75)])
def test_n_is_the_number_kept(text: str, keep: int, group: int, removed: float) -> None:
    pattern = parse_pattern(text)
    assert pattern == NM(keep=keep, group=group)
    assert pattern.sparsity == removed


@given(st.integers(2, 64).flatmap(lambda group: st.builds(NM, st.integers(1, group - 1), st.just(group))))
def test_a_pattern_is_read_back_from_its_text(pattern: NM) -> None:
    assert parse_pattern(str(pattern)) == pattern
    assert pattern.sparsity == pytest.approx((pattern.group - pattern.keep) / pattern.group)


@pytest.mark.parametrize("text", ["5:4", "4:4", "0:4", "0:0"])
def test_a_pattern_that_keeps_all_or_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_pattern(text)
    assert str(caught.value) == (
        f"N:M keeps N of every M weights, so N must be at least 1 and below M, got {text}: "
        "use for instance '2:4' (keeps 2 of 4) or '1:4'"
    )


@pytest.mark.parametrize("text", ["", "2", "2:4:8", "-2:4", "2/4", "a:b", "2:4 tensor cores"])
def test_a_pattern_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_pattern(text)
    assert str(caught.value) == (
        f"a pattern is written 'N:M', N weights kept of every M, got {text!r}: use for instance '2:4'"
    )


def test_a_pattern_that_yaml_read_as_a_number_is_explained() -> None:
    yaml_reads_it_as = 124  # YAML 1.1 counts 2:4 in sixties
    with pytest.raises(ConfigError, match=r"got 124: use for instance '2:4', in a YAML file with the quotes"):
        parse_pattern(yaml_reads_it_as)  # type: ignore[arg-type]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_takes_a_share_from_none_to_almost_all(sparsity: float, scope: Any) -> None:
    assert str(Unstructured(sparsity, scope)) == f"{100 * sparsity:.4g} % per {scope}"


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 50, float("nan"), float("inf")])
def test_a_share_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Unstructured(sparsity)
    assert str(caught.value) == (
        f"sparsity must be at least 0 and below 1, got {sparsity}: it is the fraction removed"
    )


def test_a_wrong_share_and_a_wrong_scope_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Unstructured(2.0, "column")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 2
    assert caught.value.problems[1] == "scope must be one of row, block, matrix, model, got 'column'"
