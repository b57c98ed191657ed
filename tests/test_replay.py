"""The engine gives what the whole model gives: activations, inputs of every matrix, gradients."""

from __future__ import annotations

import pytest
import torch

from hubprune.architecture import find_matrices
from hubprune.errors import NumericalError, UnsupportedModelError
from hubprune.replay import Replay
from tests.families import FAMILIES, VOCABULARY, build, token_ids

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def forward(replay, batch, hidden):
    """Run a batch through all blocks; return the inputs of each block, and the last boundary."""
    boundaries = []
    for index in range(len(replay.blocks)):
        boundaries.append(hidden)
        with replay.block(index):
            hidden = replay.forward(index, batch.calls[index], hidden)
    return boundaries, hidden


@EVERY_FAMILY
def test_gradients_are_those_of_one_backward_through_the_whole_model(family):
    model, ids = build(family), token_ids(1, 16)
    matrices = find_matrices(model)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    expected = {m: m.part(m.parameter.grad).clone() for m in matrices}
    model.zero_grad(set_to_none=True)

    found = {}
    with Replay(model) as replay:
        batch, hidden = replay.open(ids)
        boundaries, last = forward(replay, batch, hidden)
        value, gradient = replay.loss_gradient(batch, last)
        for index in reversed(range(len(replay.blocks))):
            mine = [m for m in matrices if m.block == index]
            sink = lambda matrix, g, _: found.__setitem__(matrix, g.clone())  # noqa: E731
            gradient = replay.backward(index, batch.calls[index], boundaries[index], gradient, mine, sink)

    assert value == loss.item()
    assert any(g.abs().max() > 1e-3 for g in expected.values())
    for matrix in matrices:
        assert torch.equal(found[matrix], expected[matrix]), matrix.name


@EVERY_FAMILY
def test_last_boundary_leads_to_the_models_own_loss_in_batches(family):
    model, ids = build(family), token_ids(3, 12)
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss
    with Replay(model) as replay:
        batch, hidden = replay.open(ids)
        _, last = forward(replay, batch, hidden)
        loss, _ = replay.loss_gradient(batch, last)
    assert loss == pytest.approx(expected.item(), rel=1e-6)


@EVERY_FAMILY
def test_a_large_vocabulary_is_scored_some_positions_at_a_time(family, monkeypatch):
    """Logits never exist whole, and loss and gradient are the same."""
    model, ids = build(family), token_ids(2, 11)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(call[2].numel()))
    with Replay(model) as replay:
        batch, hidden = replay.open(ids)
        whole, expected = replay.loss_gradient(batch, hidden)
        assert max(seen) == 2 * 11 * VOCABULARY
        seen.clear()
        monkeypatch.setattr("hubprune.replay.MOST_LOGITS", 2 * 3 * VOCABULARY)
        loss, gradient = replay.loss_gradient(batch, hidden)
    assert seen == [2 * 3 * VOCABULARY] * 3 + [2 * 1 * VOCABULARY]
    assert loss == pytest.approx(whole, rel=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7 * float(expected.abs().max()))


@EVERY_FAMILY
def test_inputs_shown_reproduce_each_matrix_output(family):
    """Every token that reaches a matrix is shown once, checked against a hook of the test's own."""
    model, ids = build(family), token_ids(2, 10)
    matrices = find_matrices(model)
    reference = {}
    handles = [
        m.module.register_forward_hook(
            lambda _m, args, _o, m=m: reference.__setitem__(m, args[0].reshape(-1, m.shape[1]))
        )
        for m in matrices
        if m.expert is None
    ]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()

    shown = {}

    def sink(readers, inputs):
        for matrix in readers:
            shown.setdefault(matrix, []).append(inputs)

    with Replay(model) as replay:
        batch, hidden = replay.open(ids)
        for index in range(len(replay.blocks)):
            with replay.inputs(index, [m for m in matrices if m.block == index], sink):
                hidden = replay.forward(index, batch.calls[index], hidden)
    for matrix, expected in reference.items():
        assert torch.equal(torch.cat(shown[matrix]), expected), matrix.name
    experts = {m for m in matrices if m.expert is not None}
    routed = sum(len(x) for m in experts if m.kind == "down_proj" for x in shown.get(m, []))
    assert routed == (ids.numel() * 2 * len(replay.blocks) if experts else 0)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_inputs_of_fused_experts_give_the_experts_own_output(family):
    model, ids = build(family), token_ids(2, 10)
    matrices = [m for m in find_matrices(model) if m.block == 0 and m.expert is not None]
    shown = {}
    with Replay(model) as replay:
        batch, hidden = replay.open(ids)
        calls = []
        handle = matrices[0].module.register_forward_hook(lambda _m, args, out: calls.append((args, out)))
        with replay.inputs(0, matrices, lambda readers, x: shown.update({m: x for m in readers})):
            replay.forward(0, batch.calls[0], hidden)
        handle.remove()
    ((hidden, chosen, weights), output) = calls[0]
    rebuilt = torch.zeros_like(output)
    for matrix in (m for m in matrices if m.kind == "down_proj" and m in shown):
        rows, slot = torch.where(chosen == matrix.expert)
        rebuilt[rows] += shown[matrix] @ matrix.view().T * weights[rows, slot, None]
    torch.testing.assert_close(rebuilt, output, rtol=1e-4, atol=1e-5)


def test_projections_that_read_one_tensor_are_shown_together():
    model = build("llama")
    readers = []
    with Replay(model) as replay:
        batch, hidden = replay.open(token_ids(1, 8))
        with replay.inputs(
            0, [m for m in find_matrices(model) if m.block == 0], lambda ms, _x: readers.append([m.kind for m in ms])
        ):
            replay.forward(0, batch.calls[0], hidden)
    assert readers == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


def test_model_is_left_as_it_was():
    model = build("gpt2").train()
    model.transformer.h[0].attn.c_attn.weight.requires_grad_(False)
    required = {n: p.requires_grad for n, p in model.named_parameters()}
    state = {n: p.clone() for n, p in model.state_dict().items()}
    blocks = list(model.transformer.h)
    with Replay(model) as replay:
        batch, hidden = replay.open(token_ids(1, 8))
        _, last = forward(replay, batch, hidden)
        replay.loss_gradient(batch, last)
        assert not model.training
    assert model.training
    assert list(model.transformer.h) == blocks
    assert {n: p.requires_grad for n, p in model.named_parameters()} == required
    assert all(torch.equal(p, state[n]) for n, p in model.state_dict().items())
    assert all(not b._forward_hooks and not b._forward_pre_hooks for b in model.modules())


def test_float16_gradients_do_not_underflow():
    """The sweep scales the loss inside and hands out unscaled float32: float16 agrees to its accuracy."""
    found = {}
    for dtype in (torch.float32, torch.float16):
        model, ids = build("llama", dtype), token_ids(1, 16)
        matrices = find_matrices(model)
        with Replay(model, dtype) as replay:
            batch, hidden = replay.open(ids)
            boundaries, last = forward(replay, batch, hidden)
            _, gradient = replay.loss_gradient(batch, last)
            top = len(replay.blocks) - 1
            mine = [m for m in matrices if m.block == top]
            found[dtype] = {}
            sink = lambda m, g, _, d=dtype: found[d].__setitem__(m.name, g.clone())  # noqa: E731
            replay.backward(top, batch.calls[top], boundaries[top], gradient, mine, sink)
    for name, expected in found[torch.float32].items():
        error = (found[torch.float16][name] - expected).norm() / expected.norm()
        assert error < 0.02, name


def test_half_precision_runs_in_float32_on_a_cpu_without_copies_of_what_is_not_running():
    model = build("llama", torch.bfloat16)
    with Replay(model) as replay, replay.head(), replay.block(1):
        assert replay.dtype == torch.float32
        assert set(replay._head) == {"model.norm.weight", "lm_head.weight"}
        assert set(replay._copies) == {name for name, _ in model.model.layers[1].named_parameters()}
        batch, hidden = replay.open(token_ids(1, 8))
        assert replay.forward(1, batch.calls[1], hidden).dtype == hidden.dtype == torch.float32
    assert model.model.layers[1].mlp.up_proj.weight.dtype == torch.bfloat16


def test_wider_weights_among_narrow_ones_stay_as_they_are():
    model = build("llama", torch.bfloat16)
    model.model.layers[0].input_layernorm.float()
    with Replay(model, torch.bfloat16) as replay, replay.block(0):
        assert replay._copies == {}


def test_nan_is_reported_with_its_block():
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with Replay(model) as replay:
        batch, hidden = replay.open(token_ids(1, 8))
        hidden = replay.forward(0, batch.calls[0], hidden)
        with pytest.raises(NumericalError, match=r"model\.layers\.1 gives NaN"):
            replay.forward(1, batch.calls[1], hidden)


def test_weights_that_are_nowhere_are_refused():
    with torch.device("meta"):
        model = build("llama")
    with pytest.raises(UnsupportedModelError, match=r"those of model\.layers are nowhere"):
        Replay(model)
