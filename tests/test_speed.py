"""Models take turns, and what is stated is what was measured; times themselves are for the benchmarks."""

from __future__ import annotations

import time

import pytest
import torch

from hubprune.errors import ConfigError
from hubprune.outcomes import SizeFacts
from hubprune.speed import ROUNDS, WARM_ROUNDS, measure_speed, what_zeros_do
from tests.families import build
from tests.pruned import tiny_model


def test_models_take_turns_and_stay_as_they_are() -> None:
    models = {"base": tiny_model(layers=3), "pruned": tiny_model(layers=1).train()}
    turns: list[str] = []
    for name, model in models.items():
        inner = model.forward
        model.forward = lambda *words, _name=name, _inner=inner, **more: turns.append(_name) or _inner(*words, **more)
    found = measure_speed(models, prompt_tokens=16, new_tokens=3, rounds=2, progress=False)
    assert [row.variant for row in found] == ["base", "pruned"]
    assert models["pruned"].training
    assert not models["base"].training
    each = turns[:: 1 + 3]
    assert len(turns) == (2 + WARM_ROUNDS) * 2 * (1 + 3)
    assert each == ["pruned", "base", "base", "pruned"] * 2
    for row in found:
        assert row.prefill_spread[0] <= row.prefill <= row.prefill_spread[1]
        assert row.decode_spread[0] <= row.decode <= row.decode_spread[1]
        assert (row.prompt_tokens, row.new_tokens, row.rounds) == (16, 3, 2)
        assert (row.threads, row.device, row.dtype) == (torch.get_num_threads(), "cpu", "float32")


def test_a_slower_model_is_measured_as_slower() -> None:
    models = {"base": tiny_model(), "pruned": tiny_model()}
    inner = models["base"].forward

    def slow(*words, **more):
        time.sleep(0.02)
        return inner(*words, **more)

    models["base"].forward = slow
    base, pruned = measure_speed(models, prompt_tokens=8, new_tokens=2, rounds=3, progress=False)
    assert base.prefill < 8 / 0.02
    assert base.decode < 1 / 0.02
    assert pruned.prefill > base.prefill


def test_a_model_of_few_positions_is_read_as_far_as_it_goes() -> None:
    (found,) = measure_speed({"base": build("gpt2")}, rounds=1, progress=False)
    assert (found.prompt_tokens, found.new_tokens) == (64, 32)
    assert ROUNDS > 1


def test_nothing_is_not_measured() -> None:
    with pytest.raises(ConfigError, match="rounds must be at least 1, got 0"):
        measure_speed({"base": tiny_model()}, rounds=0)


def test_zeros_are_said_not_to_speed_anything_up() -> None:
    base, sparse = SizeFacts("base", 100, 100), SizeFacts("pruned", 100, 60)
    (said,) = what_zeros_do({"base": base, "pruned": sparse})
    assert "60.0% of them not zero" in said
    assert "does not run faster" in said
    assert what_zeros_do({"base": base, "pruned": SizeFacts("pruned", 70, 70)}) == []
    assert what_zeros_do({"base": base, "pruned": SizeFacts("pruned", 70, 60)}) == []
