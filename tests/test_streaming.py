"""A model that is never in memory whole: the same loss, scores, masks and files as one that is."""

from __future__ import annotations

import filecmp

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hubprune import PruningConfig
from hubprune.activations import Activations
from hubprune.architecture import find_matrices
from hubprune.errors import ConfigError, UnsupportedModelError, UsageError
from hubprune.presets import WEIGHT_METHODS
from hubprune.pruner import prune
from hubprune.shards import Shards
from hubprune.weights import StreamedWeights, Weights, blocks_on_disk, touched_by, weights_of
from hubprune.work import WorkFolder
from tests.families import FAMILIES, build, token_ids

CORPORA = {"general": token_ids(5, 24, seed=1), "domain": token_ids(5, 24, seed=2)}


def on_disk(model, folder, **keywords):
    """Save a model and open it with its blocks left on disk."""
    model.save_pretrained(folder / "base", **keywords)
    offload = folder / "offload"
    offload.mkdir()
    return AutoModelForCausalLM.from_pretrained(
        folder / "base", device_map=blocks_on_disk(model), offload_folder=offload, dtype="auto"
    )


def pruned_in_memory(model, folder, config, **keywords):
    """Prune the resident model and save it with transformers."""
    model.save_pretrained(folder / "copy", **keywords)
    loaded = AutoModelForCausalLM.from_pretrained(folder / "copy", dtype="auto")
    report = prune(loaded, None, config, CORPORA, progress=False)
    loaded.save_pretrained(folder / "resident", **keywords)
    return report


def pruned_from_disk(model, folder, config, *, activations=None, **keywords):
    """Prune the same model block by block, into the files of a work folder."""
    weights = weights_of(on_disk(model, folder, **keywords))
    work = WorkFolder(folder / "work", {"run": 1})
    shards = Shards(weights.model, work.model, **keywords)
    work.lay_out(shards, weights.outside())
    report = prune(weights, None, config, CORPORA, progress=False, journal=work, activations=activations)
    return report, work


def assert_same_files(left, right):
    names = sorted(path.name for path in left.glob("model*"))
    assert names == sorted(path.name for path in right.glob("model*"))
    assert [name for name in names if not filecmp.cmp(left / name, right / name, shallow=False)] == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["d-pruner", "sparsegpt", "cross-calibration"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_family_gives_the_same_files_as_in_memory(family, method, dtype, tmp_path):
    model, config = build(family, dtype), PruningConfig(method, sparsity=0.6)
    expected = pruned_in_memory(model, tmp_path, config)
    report, work = pruned_from_disk(model, tmp_path, config)
    assert_same_files(tmp_path / "resident", work.model)
    assert report.matrices == expected.matrices
    assert report.totals == expected.totals
    assert report.untouched_sha256 == expected.untouched_sha256


def test_a_checkpoint_in_float16_gives_the_same_files_too(tmp_path):
    model, config = build("llama", torch.float16), PruningConfig("d-pruner", sparsity=0.6)
    pruned_in_memory(model, tmp_path, config)
    _, work = pruned_from_disk(model, tmp_path, config)
    assert_same_files(tmp_path / "resident", work.model)
    assert {value.dtype for value in load_file(work.model / "model.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("application", ["zero", "compensate"])
@pytest.mark.parametrize("pattern", ["row", "2:4"])
def test_every_method_gives_the_same_files_as_in_memory(method, application, pattern, tmp_path):
    chosen = {"pattern": pattern} if ":" in pattern else {"scope": pattern}
    model, config = build("llama"), PruningConfig(method, application=application, block_size=16, **chosen)
    pruned_in_memory(model, tmp_path, config)
    _, work = pruned_from_disk(model, tmp_path, config)
    assert_same_files(tmp_path / "resident", work.model)


@pytest.mark.parametrize("method", ["d-pruner", "wanda"])
def test_activations_beyond_the_budget_wait_in_a_file_and_change_nothing(method, tmp_path):
    model, config = build("llama", torch.bfloat16), PruningConfig(method)
    pruned_in_memory(model, tmp_path, config)
    activations = Activations(budget=2000, folder=tmp_path)
    _, work = pruned_from_disk(model, tmp_path, config, activations=activations)
    assert_same_files(tmp_path / "resident", work.model)
    assert activations.in_file > activations.budget >= activations.in_memory
    assert not list(tmp_path.glob("activations-*"))


def test_a_block_is_in_memory_only_while_it_is_held(tmp_path):
    weights = weights_of(on_disk(build("llama"), tmp_path))
    assert isinstance(weights, StreamedWeights)
    with weights.block(1):
        held = {name for name, parameter in weights.model.named_parameters() if not parameter.is_meta}
        assert {name for name in held if ".layers." in name} == {n for n in held if n.startswith("model.layers.1.")}
    assert all(parameter.is_meta for parameter in weights.blocks.parameters())
    assert dict(weights.named()).keys() == dict(weights.model.named_parameters()).keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_several_files_hold_what_one_would(family, tmp_path):
    model = build(family, torch.bfloat16)
    report, work = pruned_from_disk(model, tmp_path, PruningConfig("magnitude"), max_shard_size="20KB")
    files = list(work.model.glob("model-*.safetensors"))
    assert len(files) > 2
    (tmp_path / "work" / "model").joinpath("config.json").write_bytes((tmp_path / "base/config.json").read_bytes())
    loaded, info = AutoModelForCausalLM.from_pretrained(work.model, dtype="auto", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = build(family, torch.bfloat16)
    prune(expected, None, PruningConfig("magnitude"), CORPORA, progress=False)
    for (name, left), right in zip(expected.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(left, right), name
    assert report.untouched_sha256 == Weights(loaded).untouched_sha256(touched_by(find_matrices(loaded)))


def test_what_cannot_stay_on_disk_is_refused(tmp_path):
    weights = weights_of(on_disk(build("llama"), tmp_path))
    with pytest.raises(UsageError, match="into a folder"):
        prune(weights, None, PruningConfig(), CORPORA, progress=False)
    work = WorkFolder(tmp_path / "work", {})
    with pytest.raises(ConfigError, match="scope 'model'"):
        prune(weights, None, PruningConfig(scope="model"), CORPORA, progress=False, journal=work)


def test_only_blocks_may_stay_on_disk(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path)
    places = {**blocks_on_disk(model), "lm_head": "disk"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    with pytest.raises(UnsupportedModelError, match=r"only decoder blocks can stay on disk, and lm_head\.weight"):
        weights_of(loaded)
