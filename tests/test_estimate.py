"""What a run will take is told before it starts, and is close to what it then takes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hubprune import PruningConfig, environment, flow, plan, probe
from hubprune.architecture import find_blocks, find_matrices
from hubprune.calibration import corpus_from_tokens
from hubprune.errors import ConfigError, CorpusError
from hubprune.estimate import choose, estimate
from hubprune.footprint import Memory, peak_memory
from hubprune.hub import missing_bytes, resolve_model
from hubprune.opening import Opening
from hubprune.presets import METHODS, WEIGHT_METHODS
from hubprune.saving import SPARE_BYTES
from hubprune.weights import blocks_on_disk
from tests.families import FAMILIES, build, token_ids

ROOT = Path(__file__).resolve().parents[1]
CORPORA = {"general": token_ids(6, 24, seed=1), "domain": token_ids(6, 24, seed=2)}
MIB, GIB = 2**20, 2**30
# One boundary of one of these texts, in float32, in which a CPU runs: 6 sequences, 24 tokens, 32 wide.
BOUNDARY = 6 * 24 * 32 * 4


@pytest.fixture
def from_nothing(monkeypatch):
    """What Python and its libraries take is left out."""
    monkeypatch.setattr("hubprune.environment.resident_memory", lambda: 0)


def planned(folder, method="d-pruner", *, family="llama", dtype=None, corpora=None, model=None, **options):
    """A run on a folder that holds a config and no weights.

    Args:
        folder: Where.
        method: The method; it gets the texts that it can use.
        family: A key of ``FAMILIES``.
        dtype: Type asked for; the config says bfloat16.
        corpora: Other texts.
        model: Fields of the config to set.
        options: Fields of the pruning config.
    """
    config = FAMILIES[family]()
    config.dtype = torch.bfloat16
    for name, value in (model or {}).items():
        setattr(config, name, value)
    config.save_pretrained(folder)
    texts = ({} if method == "magnitude" else CORPORA) if corpora is None else corpora
    opening = Opening(str(folder), None, {} if dtype is None else {"dtype": dtype})
    if METHODS[method].corpora == ("task",):
        task = corpus_from_tokens(texts["domain"], "task")
        texts = {"task": dataclasses.replace(task, answers=(12,) * len(task.sequences))}
    return flow.prepare(opening, PruningConfig(method, **options), texts, settings={}, evaluation=None)


# Memory


@pytest.mark.usefixtures("from_nothing")
def test_more_layers_take_more_memory_only_where_all_are_in_memory(tmp_path):
    few, many = (peak_memory(planned(tmp_path, "wanda", model={"num_hidden_layers": count})) for count in (2, 20))
    assert many.blocks == 10 * few.blocks
    assert many.block == few.block == few.blocks // 2
    assert many.streamed() == few.streamed()
    assert many.resident() - few.resident() == 9 * few.blocks


@pytest.mark.usefixtures("from_nothing")
def test_a_sweep_back_keeps_what_is_at_every_boundary_up_to_the_budget(tmp_path):
    few, many = (peak_memory(planned(tmp_path, model={"num_hidden_layers": count})) for count in (2, 20))
    assert many.activations - few.activations == 18 * BOUNDARY
    assert many.streamed(few.activations) == few.streamed()
    assert many.streamed(0) == few.streamed() - few.activations


def test_text_that_a_method_does_not_read_takes_nothing(tmp_path):
    assert peak_memory(planned(tmp_path, "magnitude", corpora=CORPORA)).activations == 0
    assert peak_memory(planned(tmp_path, "wanda")).activations == 2 * BOUNDARY
    assert peak_memory(planned(tmp_path, options={"terms": "no-domain"})).activations == BOUNDARY


@pytest.mark.usefixtures("from_nothing")
def test_what_a_method_collects_is_counted(tmp_path):
    model = {"hidden_size": 256, "intermediate_size": 512}
    common = {method: peak_memory(planned(tmp_path, method, model=model)).common for method in WEIGHT_METHODS}
    hessian = 512 * 512 * 4
    assert common["magnitude"] <= common["wanda"] == common["ria"]
    assert common["sparsegpt"] > common["wanda"] + 2 * hessian
    assert common["cross-calibration"] >= common["sparsegpt"] + hessian
    assert common["gblm"] > common["wanda"]
    assert peak_memory(planned(tmp_path, "wanda", model=model, application="compensate")).common == common["sparsegpt"]


@pytest.mark.usefixtures("from_nothing")
def test_experts_have_hessians_of_their_own_and_few_see_a_token(tmp_path):
    model = {"hidden_size": 128, "num_experts": 16}
    common = {
        (method, met): peak_memory(
            planned(tmp_path, method, family="qwen3_moe", model={**model, "num_experts_per_tok": met})
        ).common
        for method in ("sparsegpt", "wanda")
        for met in (1, 16)
    }
    assert common["sparsegpt", 1] > common["wanda", 1] + 16 * 128 * 128 * 4
    assert common["wanda", 16] > common["wanda", 1]


def test_the_type_is_that_of_the_config_or_the_one_asked_for(tmp_path):
    half, wide = planned(tmp_path), planned(tmp_path, dtype="float32")
    assert (half.base.dtype, wide.base.dtype) == (torch.bfloat16, torch.float32)
    assert planned(tmp_path, dtype=torch.float16).base.dtype == torch.float16
    assert 2 * peak_memory(half).blocks == peak_memory(wide).blocks
    assert peak_memory(half).activations == peak_memory(wide).activations  # both run in float32


def test_scores_of_all_weights_are_counted_where_they_compete(tmp_path):
    run = planned(tmp_path, "magnitude", scope="model")
    memory, weights = peak_memory(run), sum(m.view().numel() for m in find_matrices(run.base.outline))
    assert memory.scores > 16 * weights
    assert memory.resident() == memory.common + memory.blocks + memory.scores


MEASURED = """
import json, sys, torch
from hubprune import PruningConfig, flow, runs
from hubprune.footprint import peak_memory
from hubprune.opening import Opening
from hubprune.work import WorkFolder
from pathlib import Path

folder, config = Path(sys.argv[1]), PruningConfig("gblm", targets=("up_proj",))
text = {"domain": torch.randint(3, 500, (2, 64))}
run = flow.prepare(Opening(str(folder / "base"), None, {}), config, text, settings={}, evaluation=None)
estimated = peak_memory(run).streamed()
with WorkFolder(folder / "work", {}) as work:
    runs.produce(run, folder / "out", work, streamed=True, progress=False)
# Unlike ru_maxrss, this one does not count the process that started this one.
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([estimated, peak]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is asked of Linux")
def test_the_estimate_is_close_to_the_measured_peak(tmp_path):
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2, "vocab_size": 512}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=16, max_position_embeddings=256)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    words = [sys.executable, "-c", MEASURED, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    estimated, peak = json.loads(done.stdout.splitlines()[-1])
    assert 0.9 < estimated / peak < 1.4


# The choice

ROOMY = Memory(common=2 * GIB, blocks=8 * GIB, block=GIB // 4, activations=3 * GIB)


def test_what_fits_stays_in_memory():
    choice = choose(ROOMY, 16 * GIB)
    assert (choice.streamed, choice.budget) == (False, None)
    assert str(choice) == "In memory: the whole model in memory takes about 13.0 GiB (max_memory: 16.0 GiB)"
    assert not choose(ROOMY, 11 * GIB, GIB).streamed


def test_what_does_not_fit_is_streamed_and_the_rest_is_for_activations():
    choice = choose(ROOMY, 4 * GIB)
    assert (choice.streamed, choice.budget) == (True, 4 * GIB - ROOMY.streamed(0))
    assert str(choice) == (
        "Streaming: blocks come from disk one at a time, about 4.0 GiB; the whole model would take about 13.0 GiB "
        "(max_memory: 4.0 GiB)"
    )
    assert choose(ROOMY, 4 * GIB, GIB).budget == GIB


def test_without_a_limit_what_is_free_decides(monkeypatch):
    monkeypatch.setattr(environment, "free_memory", lambda: 5 * GIB)
    monkeypatch.setattr(environment, "resident_memory", lambda: GIB)
    assert "(free memory: 6.0 GiB)" in choose(ROOMY, None).reason
    monkeypatch.setattr(environment, "free_memory", lambda: 0)
    assert choose(ROOMY, None).budget == 0  # it is only an estimate, and nobody set a limit


def test_a_limit_that_not_even_one_block_fits_into_is_refused():
    with pytest.raises(ConfigError, match=r"must hold one block .*, about 2\.2 GiB, got 2\.0 GiB: raise it, lower"):
        choose(ROOMY, 2 * GIB)
    with pytest.raises(ConfigError, match=r"about 3\.2 GiB, got 3\.0 GiB"):
        choose(ROOMY, 3 * GIB, GIB)


def test_a_run_that_needs_all_scores_at_once_is_not_streamed():
    memory = Memory(common=GIB, blocks=GIB, block=MIB, activations=0, scores=6 * GIB)
    assert not choose(memory, 8 * GIB).streamed
    with pytest.raises(
        ConfigError, match=r"scope 'model' .* about 8\.0 GiB, got max_memory: 4\.0 GiB: choose another"
    ):
        choose(memory, 4 * GIB)


def test_activations_need_not_be_in_memory_where_all_scores_do():
    memory = Memory(common=GIB, blocks=GIB, block=MIB, activations=50 * GIB, scores=6 * GIB)
    choice = choose(memory, 10 * GIB)
    assert (choice.streamed, choice.budget) == (False, 2 * GIB)
    assert "activations beyond 2.0 GiB in a scratch file" in str(choice)


# Disk and download


@pytest.mark.usefixtures("from_nothing")
def test_disk_holds_the_result_where_the_sweeps_have_got_to_and_what_is_beyond_the_budget(tmp_path):
    run = planned(tmp_path, "wanda", model={"num_hidden_layers": 60})
    memory = peak_memory(run)
    result = 2 * sum(parameter.numel() for parameter in run.base.outline.parameters())
    kept = result + 2 * 2 * BOUNDARY + SPARE_BYTES
    found = estimate(run, limit=memory.resident(), timed=False)
    assert (found.choice.streamed, found.disk, found.download, found.seconds) == (False, kept, 0, None)
    found = estimate(run, limit=memory.streamed(0) + BOUNDARY, timed=False)
    assert (found.choice.streamed, found.choice.budget, found.disk) == (True, BOUNDARY, kept + BOUNDARY)


@pytest.mark.usefixtures("from_nothing")
@pytest.mark.parametrize(("family", "dtype"), [("llama", None), ("llama", "float32"), ("mixtral", None)])
def test_what_is_copied_since_the_files_hold_another_form_is_counted(family, dtype, tmp_path):
    run = planned(tmp_path / "outline", "magnitude", family=family, dtype=dtype)
    found = estimate(run, limit=peak_memory(run).streamed(), timed=False)
    result = sum(p.numel() for p in run.base.outline.parameters()) * run.base.dtype.itemsize
    assert found.choice.streamed
    model, offload = build(family).to(torch.bfloat16), tmp_path / "offload"
    model.save_pretrained(tmp_path / "base")
    offload.mkdir()
    AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", device_map=blocks_on_disk(model), offload_folder=offload, dtype=run.base.dtype
    )
    copied = [tensor for path in offload.glob("*.safetensors") for tensor in load_file(path).values()]
    assert bool(copied) == (family == "mixtral")
    assert found.disk == result + SPARE_BYTES + sum(tensor.nbytes for tensor in copied)


def test_only_weights_that_are_not_in_the_cache_are_downloaded(hub, hub_api, tmp_path):
    build("llama").save_pretrained(tmp_path / "model")
    size = (tmp_path / "model/model.safetensors").stat().st_size
    for name in (
        "consolidated.safetensors",
        "pytorch_model.bin",
    ):  # the same weights, and transformers passes them over
        (tmp_path / "model" / name).write_bytes(b"0" * 1000)
    api, cache = hub_api("me"), tmp_path / "cache"
    api.create_repo("me/estimated")
    api.upload_folder(repo_id="me/estimated", folder_path=tmp_path / "model")
    repo = resolve_model("me/estimated", api=api)
    assert missing_bytes(repo, api=api, cache_dir=cache) == size
    assert missing_bytes(repo, api=api, cache_dir=cache, local_files_only=True) == 0
    AutoModelForCausalLM.from_pretrained("me/estimated", revision=repo.commit, cache_dir=cache)
    assert missing_bytes(repo, api=api, cache_dir=cache) == 0
    assert missing_bytes(resolve_model(str(tmp_path / "model"))) == 0


# Time


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_of_every_family_is_measured_and_leaves_no_trace(family, tmp_path, capfd):
    run = planned(tmp_path, family=family)
    torch.manual_seed(7)
    before, verbosity = torch.get_rng_state(), transformers.logging.get_verbosity()
    assert 0 < probe.seconds(run) < 3600
    assert torch.equal(torch.get_rng_state(), before)
    assert transformers.logging.get_verbosity() == verbosity
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_measured(method, tmp_path):
    weights = {"pattern": "2:4", "targets": ("q_proj", "down_proj")}
    assert probe.seconds(planned(tmp_path, method, **(weights if method in WEIGHT_METHODS else {}))) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_large_block_is_measured_at_a_fraction_of_its_widths(family, tmp_path, monkeypatch):
    """A block has thousands of weights here; a limit of a quarter halves its widths once, and once more to compare."""
    run, seen = planned(tmp_path, "magnitude", family=family), []
    monkeypatch.setattr("hubprune.probe.MOST_PARAMETERS", probe._size(find_blocks(run.base.outline)[1][0]) // 3)

    def note(model, *_, **__):
        seen.append([matrix.shape for matrix in find_matrices(model)])

    monkeypatch.setattr(probe, "prune", note)
    probe.seconds(run)
    whole = [matrix.shape for matrix in find_matrices(run.base.outline) if matrix.block == 0]
    assert seen[0] == [(rows // 2, columns // 2) for rows, columns in whole]
    assert seen[-1] == [(rows // 4, columns // 4) for rows, columns in whole]


def test_time_grows_with_blocks_and_text(tmp_path, monkeypatch):
    """On a machine that takes a second for a block, and one for each sequence of each text."""

    def seconds(self, halvings, sequences):
        self.sizes[halvings] = 1
        return 1.0 + sequences

    monkeypatch.setattr(probe._Probe, "__call__", seconds)
    for layers in (2, 5):
        assert probe.seconds(planned(tmp_path, "wanda", model={"num_hidden_layers": layers})) == layers * (1 + 6)
        assert probe.seconds(planned(tmp_path, "magnitude", model={"num_hidden_layers": layers})) == layers * 2


def test_what_a_large_block_takes_is_drawn_out_by_its_weights_and_by_a_power_of_its_widths(tmp_path, monkeypatch):
    def seconds(self, halvings, sequences):
        self.sizes[halvings] = 4**-halvings
        return 8.0**-halvings + sequences * 4.0**-halvings

    monkeypatch.setattr(probe._Probe, "__call__", seconds)
    monkeypatch.setattr(probe, "_size", lambda _: 1)
    monkeypatch.setattr(probe._Probe, "halvings", lambda self, size: 2)
    assert probe.seconds(planned(tmp_path, "wanda")) == pytest.approx(3 * (1 + 6))


# The door for Python


def test_a_run_is_planned_with_the_arguments_of_prune(tmp_path):
    build("llama", torch.bfloat16).save_pretrained(tmp_path / "base")
    config = PruningConfig("wanda")
    run = {"progress": False, "evaluation": None, "out": tmp_path / "out", "fresh": True, "max_memory": "64GiB"}
    found = plan(str(tmp_path / "base"), None, config, CORPORA, **run)
    assert found.seconds > 0
    assert str(found.choice).startswith("In memory: ")
    assert found.download == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]
    with pytest.raises(ConfigError, match="max_memory must hold one block"):
        plan(tmp_path / "base", None, config, CORPORA, **{**run, "max_memory": "1MB"})
    with pytest.raises(CorpusError, match="vocabulary"):
        plan(tmp_path / "base", None, config, {"general": token_ids() + 1000}, **run)
