"""A pruned model that a user quantises keeps its zeros, and where it does not, that is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hubprune import verify
from hubprune.cli import main
from hubprune.errors import UsageError, VerificationError
from hubprune.quantized import effective_weight
from tests.pruned import prune_by_hand, save_plain, tiny_model

# What bitsandbytes says of inputs in float32.
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pruned model, and the same one in int8 as bitsandbytes saves it."""
    folder = tmp_path_factory.mktemp("quantised")
    model = tiny_model()
    pruned = save_plain(model, prune_by_hand(model), folder / "pruned")
    config = BitsAndBytesConfig(load_in_8bit=True)
    quantised = AutoModelForCausalLM.from_pretrained(pruned, quantization_config=config, device_map="cpu")
    quantised.save_pretrained(folder / "int8")
    return pruned, folder / "int8"


def test_int8_keeps_every_zero_and_every_group(folders: tuple[Path, Path], capsys) -> None:
    pruned, quantised = folders
    before = sorted(path.name for path in quantised.iterdir())
    stamp = verify(quantised, pruned=pruned)
    assert stamp.passed
    assert "bitsandbytes" in stamp.checks["quantised"]
    assert stamp.checks["zeros"].startswith("all 7,680 zeros of the pruned model in 14 matrices kept")
    assert stamp.checks["groups"] == "3,840 groups of 4, none with more than 2 weights kept"
    assert sorted(path.name for path in quantised.iterdir()) == before
    assert main(["verify", str(quantised), "--pruned", str(pruned)]) == 0
    assert "all 7,680 zeros" in capsys.readouterr().out


def test_lost_zeros_are_found(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pruned, quantised = folders
    for path in quantised.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    codes = tensors["model.layers.0.mlp.up_proj.weight"]
    assert codes.dtype == torch.int8
    codes[codes == 0] = 1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerificationError, match=r"768 in model\.layers\.0\.mlp\.up_proj; 384 of 3,840 groups"):
        verify(tmp_path, pruned=pruned)


def test_a_quantised_model_is_no_pruned_one_to_publish(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pruned, quantised = folders
    for path in quantised.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "hubprune_report.json").write_bytes((pruned / "hubprune_report.json").read_bytes())
    with pytest.raises(VerificationError, match="quantization_config.*name the pruned one"):
        verify(tmp_path)
    with pytest.raises(UsageError, match="goes with a quantised model"):
        verify(pruned, pruned=pruned)


def test_a_layer_tells_its_weights_in_parts_and_without_its_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubprune.quantized.ROWS", 3)
    layer = torch.nn.Linear(7, 5)
    found = effective_weight(layer, 7, torch.float32, torch.device("cpu"))
    assert torch.allclose(found, layer.weight, atol=1e-6)
