"""Every check passes on sound files and names what is wrong on others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubprune.errors import NumericalError, UsageError, VerificationError
from hubprune.reloading import TOLERANCES, make_probe
from hubprune.report import PruningReport
from hubprune.verifier import CHECKS, verify
from tests.families import build
from tests.pruned import VOCABULARY, prune_by_hand, save_plain, tiny_model, tiny_tokenizer

MATRIX = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = tiny_model()
    return save_plain(model, prune_by_hand(model), tmp_path / "pruned")


@pytest.fixture
def without_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check that starts a process, where another one is being tested."""
    monkeypatch.delitem(CHECKS, "reload")


def edit_weights(folder: Path, name: str, change: object) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors[name])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_sound_files_pass_every_check_and_are_stamped(saved: Path) -> None:
    stamp = verify(saved)
    assert stamp.passed
    assert set(stamp.checks) == set(CHECKS) - {"exports", "units"}  # there are none
    assert PruningReport.load(saved).verification == stamp
    report = PruningReport.load(saved)
    assert f"{report.totals.zeros:,} zeros in {len(report.matrices)} matrices" in stamp.checks["zeros"]
    assert f"{report.totals.targeted // 4:,} groups of 4" in stamp.checks["groups"]
    assert "LlamaForCausalLM loads in a fresh process" in stamp.checks["reload"]


def test_fused_experts_in_bfloat16_pass_too(tmp_path: Path) -> None:
    model = build("mixtral").to(torch.bfloat16)
    stamp = verify(save_plain(model, prune_by_hand(model), tmp_path))
    assert f"allowed in bfloat16: {TOLERANCES['bfloat16']:.2g}" in stamp.checks["reload"]


def test_unstructured_runs_have_no_groups_to_check(tmp_path: Path, without_reload: None) -> None:
    model = tiny_model()
    report = prune_by_hand(model)
    report.config = {"method": "magnitude", "sparsity": 0.5, "pattern": None}
    assert "groups" not in verify(save_plain(model, report, tmp_path)).checks


def put(value: float) -> object:
    def change(tensor: torch.Tensor) -> None:
        tensor.view(-1)[0] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "failed", "message"),
    [
        (MATRIX, put(float("nan")), "finite", MATRIX),
        (MATRIX, put(float("inf")), "finite", MATRIX),
        (MATRIX, lambda t: t.fill_(1.0), "zeros", "has 0 zeros, reported 768 with 768 pruned"),
        (MATRIX, lambda t: t.fill_(0.0), "zeros", "has 1536 zeros, reported 768"),
        (MATRIX, lambda t: t.fill_(1.0), "groups", "more than 2 of 4 weights are kept"),
        ("model.norm.weight", put(0.5), "untouched", "must be the base's own"),
        ("model.embed_tokens.weight", put(0.5), "untouched", "must be the base's own"),
        ("lm_head.weight", put(0.5), "untouched", "must be the base's own"),
    ],
)
def test_damaged_weights_are_found(
    saved: Path, without_reload: None, name: str, change: object, failed: str, message: str
) -> None:
    edit_weights(saved, name, change)
    with pytest.raises(VerificationError, match=f"{failed}: ") as caught:
        verify(saved)
    assert message in str(caught.value)
    stamp = PruningReport.load(saved).verification
    assert stamp is not None
    assert not stamp.passed
    assert failed not in stamp.checks


def test_moved_zeros_break_groups_though_the_count_is_right(saved: Path, without_reload: None) -> None:
    def swap(tensor: torch.Tensor) -> None:
        first, second = tensor[0, :4], tensor[0, 4:8]
        zero, kept = int((first == 0).nonzero()[0]), int((second != 0).nonzero()[0])
        first[zero], second[kept] = 1.0, 0.0

    edit_weights(saved, MATRIX, swap)
    with pytest.raises(VerificationError, match="groups: ") as caught:
        verify(saved)
    assert "zeros: " not in str(caught.value)


def test_every_failure_is_told_at_once(saved: Path, without_reload: None) -> None:
    edit_weights(saved, MATRIX, lambda t: t.fill_(1.0))
    edit_weights(saved, "model.norm.weight", put(0.5))
    edit_json(saved / "config.json", quantization_config={"quant_method": "hubprune"})
    (saved / "old.bin").write_bytes(b"pickle")
    with pytest.raises(VerificationError) as caught:
        verify(saved)
    for name in ("files: ", "config: ", "zeros: ", "groups: ", "untouched: "):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity_config": {"format": "dense"}}, "sparsity_config"),
        ({"architectures": ["MyOwnLlama"]}, "MyOwnLlama"),
        ({"architectures": []}, "architectures must name"),
        ({"hubprune": {"method": "other"}}, "not the summary of this report"),
    ],
)
def test_configs_others_cannot_use_are_refused(
    saved: Path, without_reload: None, values: dict[str, object], message: str
) -> None:
    edit_json(saved / "config.json", **values)
    with pytest.raises(VerificationError, match="config: ") as caught:
        verify(saved)
    assert message in str(caught.value)


def test_a_left_over_shard_is_refused(saved: Path, without_reload: None) -> None:
    (saved / "model-00002-of-00002.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    with pytest.raises(VerificationError, match=r"left over \['model-00002-of-00002.safetensors'\]"):
        verify(saved)


def test_weights_that_do_not_fit_the_model_are_refused(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors["stray.weight"] = tensors.pop(MATRIX)
    save_file(tensors, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerificationError) as caught:
        verify(saved)
    assert f"missing keys: {MATRIX}" in str(caught.value)
    assert "unexpected keys: stray.weight" in str(caught.value)


def test_another_answer_than_in_memory_is_refused(saved: Path) -> None:
    report = PruningReport.load(saved)
    assert report.probe is not None
    report.probe.logits[3] += 0.01 * max(map(abs, report.probe.logits))
    with pytest.raises(VerificationError, match="logits differ by 0.01") as caught:
        verify(saved, report=report)
    assert str(caught.value).count(": ") == 1  # no other check fails


def test_a_report_without_a_probe_cannot_be_verified(saved: Path) -> None:
    report = PruningReport.load(saved)
    report.probe = None
    with pytest.raises(VerificationError, match="no probe"):
        verify(saved, report=report)


def test_unreadable_weights_fail_instead_of_crashing(saved: Path, without_reload: None) -> None:
    (saved / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(VerificationError, match="finite: cannot be checked"):
        verify(saved)


def test_a_model_that_may_not_be_in_memory_is_reloaded_with_its_blocks_on_disk(saved: Path) -> None:
    stamp = verify(saved, max_memory=1)
    assert stamp.passed
    assert "loads in a fresh process with plain transformers" in stamp.checks["reload"]
    assert not list(saved.parent.glob(".*-verify"))


def test_a_folder_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no hubprune_report"):
        verify(tmp_path)


def test_probe_is_fixed_and_leaves_the_model_alone() -> None:
    model = tiny_model().train()
    probe = make_probe(model, tiny_tokenizer())
    assert model.training
    assert probe == make_probe(model)
    assert len(probe.token_ids) == 16
    assert len(probe.logits) == 64
    assert len(set(probe.token_ids)) == 16
    assert all(0 <= token < VOCABULARY for token in probe.token_ids)
    with torch.no_grad():
        logits = model.eval()(torch.tensor([probe.token_ids])).logits[0, -1, :64]
    assert torch.allclose(logits, torch.tensor(probe.logits))


def test_probe_of_a_broken_model_is_an_error() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        make_probe(model)
