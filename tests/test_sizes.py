"""Parameters, zeros and bytes are counted exactly; an estimate of what a transfer moves is near what is moved."""

from __future__ import annotations

import sys
from pathlib import Path

import lz4.frame
import pytest
import torch
import zstandard
from safetensors.torch import save_file

from hubprune.errors import NumericalError
from hubprune.sizes import compressed, file_bytes, measure_size, resident_bytes
from tests.families import build
from tests.pruned import prune_by_hand, tiny_model


def test_everything_is_counted(tmp_path: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    report = prune_by_hand(model)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    found = measure_size(model, variant="pruned", folder=tmp_path)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert (found.parameters, found.dtype, found.memory_bytes) == (count, "bfloat16", 2 * count)
    assert found.nonzeros == count - report.totals.zeros
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert found.file_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert found.estimated_from == found.memory_bytes
    assert measure_size(model, variant="x").file_bytes is None


def test_tied_weights_count_once() -> None:
    model = build("gemma2")
    assert model.get_input_embeddings().weight is model.lm_head.weight
    assert measure_size(model, variant="x").parameters == model.num_parameters()


def test_a_smaller_model_has_smaller_numbers() -> None:
    large, small = (measure_size(tiny_model(layers=layers), variant="x") for layers in (3, 1))
    for name in ("parameters", "nonzeros", "memory_bytes", "transfer_bytes", "zstd_bytes"):
        assert getattr(small, name) < getattr(large, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.7])
def test_estimates_are_near_what_the_compressors_make_of_a_file(
    dtype: torch.dtype, sparsity: float, tmp_path: Path
) -> None:
    """The LZ4 estimate groups bytes where that helps, so it is about what LZ4 makes of the file, or less."""
    weights = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)) / 20
    weights[torch.rand(512, 512, generator=torch.Generator().manual_seed(1)) < sparsity] = 0
    tensor = weights.to(dtype)
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    raw = (tmp_path / "model.safetensors").read_bytes()
    transfer, zstd, seen = compressed([tensor], tensor.numel() * tensor.element_size())
    assert transfer is not None
    assert zstd is not None
    assert seen == tensor.numel() * tensor.element_size()
    assert zstd == pytest.approx(len(zstandard.ZstdCompressor(level=3).compress(raw)), rel=0.03)
    assert 0.7 * zstd < transfer <= 1.03 * len(lz4.frame.compress(raw))


def test_a_part_of_the_weights_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.randn(300, 1000, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    total = sum(tensor.numel() * 4 for tensor in tensors)
    whole = compressed(tensors, total)
    monkeypatch.setattr("hubprune.sizes.SAMPLE", total // 5)
    part = compressed(tensors, total)
    assert total / 6 < part[2] < total / 4
    assert part[:2] == pytest.approx(whole[:2], rel=0.02)


def test_without_the_libraries_nothing_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lz4.block", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    found = measure_size(tiny_model(), variant="x")
    assert (found.transfer_bytes, found.zstd_bytes, found.estimated_from) == (None, None, 0)


def test_files_of_another_kind_are_not_weights(tmp_path: Path) -> None:
    assert file_bytes(tmp_path) is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"12345")
    assert file_bytes(tmp_path) == 5
    (tmp_path / "model.safetensors").write_bytes(b"123")
    assert file_bytes(tmp_path) == 3


def test_resident_memory_grows_with_the_model(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    found = {}
    for name, width in (("small", 64), ("large", 1024)):
        config = LlamaConfig(
            vocab_size=8192, hidden_size=width, intermediate_size=width, num_hidden_layers=2, num_attention_heads=4
        )
        model = LlamaForCausalLM(config)
        model.save_pretrained(tmp_path / name)
        found[name] = resident_bytes(tmp_path / name), model.num_parameters() * 4
    grown = found["large"][0] - found["small"][0]
    assert grown == pytest.approx(found["large"][1] - found["small"][1], rel=0.25)


def test_a_process_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="measures the memory of .* ended with 1"):
        resident_bytes(tmp_path)
