"""Runs that cut units out: the same files streamed and in memory, gone on with where they were killed, verified."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from hubprune import PruningConfig, PruningReport, prune, runs, shrink, verify
from hubprune.calibration import corpus_from_tokens
from hubprune.errors import ConfigError, OutputError, VerificationError
from hubprune.opening import Opening
from hubprune.removal import kept_layers
from hubprune.report import REPORT_NAME
from hubprune.verifier import CHECKS
from hubprune.work import WorkFolder
from tests.families import FAMILIES, build, token_ids
from tests.test_resume import stop_after

CORPORA = {"general": token_ids(5, 24, seed=1), "domain": token_ids(5, 24, seed=2)}
TASK = dataclasses.replace(corpus_from_tokens(token_ids(5, 20, seed=3), "task"), answers=(15,) * 5)


def texts(config: PruningConfig) -> dict:
    """The texts that a method can use."""
    return {"task": TASK} if config.method == "attribution" else CORPORA


def folder_of(model, tmp_path):
    """The model as a folder."""
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def into(base, out, config, *, streamed=False):
    """Prune a folder into another one, its blocks in memory or on disk whatever there is room for."""
    plan = runs._prepared(base, None, config, texts(config), None, False, {})
    with WorkFolder(runs.work_folder(out), runs.fingerprint(plan)) as work:
        report = runs.produce(plan, out, work, streamed=streamed, progress=False)
        work.remove()
    return report


@pytest.fixture
def without_fresh_process(monkeypatch):
    """The check in a fresh process takes seconds, and other tests make it."""
    monkeypatch.delitem(CHECKS, "reload")


@pytest.mark.usefixtures("without_fresh_process")
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_and_in_memory_give_the_same_smaller_model(family, tmp_path):
    model, config = build(family), PruningConfig("cus-prun")
    base = folder_of(model, tmp_path)
    resident = into(base, tmp_path / "resident", config)
    streamed = into(base, tmp_path / "streamed", config, streamed=True)
    files = [tmp_path / name / "model.safetensors" for name in ("resident", "streamed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert streamed.units == resident.units
    assert streamed.matrices == resident.matrices
    assert verify(tmp_path / "streamed").passed
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "streamed")
    assert sum(p.numel() for p in small.parameters()) == streamed.totals.left < streamed.totals.parameters


@pytest.mark.usefixtures("without_fresh_process")
@pytest.mark.parametrize("application", ["zero", "compensate", "remove"])
@pytest.mark.parametrize(
    "method", ["magnitude", "random", "taylor", "d-pruner", "attribution", "mutual-information", "sparsegpt"]
)
def test_every_method_gives_the_same_files_either_way(method, application, tmp_path):
    config = PruningConfig(method, unit="ffn_neuron", sparsity=0.25, application=application)
    base = folder_of(build("llama", torch.bfloat16), tmp_path)
    resident = into(base, tmp_path / "resident", config)
    streamed = into(base, tmp_path / "streamed", config, streamed=True)
    files = [tmp_path / name / "model.safetensors" for name in ("resident", "streamed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert streamed.units == resident.units
    assert verify(tmp_path / "resident").passed


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize(
    "config",
    [
        PruningConfig("cus-prun"),
        PruningConfig("d-pruner", unit="ffn_neuron+kv_group", sparsity=0.5),
        PruningConfig("attribution", options={"target": "prob"}),
        PruningConfig("taylor", application="zero"),
        PruningConfig("block-influence", sparsity=0.3),
    ],
    ids=lambda config: config.method,
)
@pytest.mark.usefixtures("without_fresh_process")
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(config, blocks, tmp_path, monkeypatch):
    base = folder_of(build("llama"), tmp_path)
    expected = into(base, tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        stop_after(patch, blocks)
        try:
            into(base, tmp_path / "out", config)
        except OutputError:
            assert (tmp_path / ".out-run").is_dir()
    report = into(base, tmp_path / "out", config)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert (report.units, report.matrices, report.totals) == (expected.units, expected.matrices, expected.totals)


def test_a_smaller_model_loads_in_a_fresh_process_and_its_card_says_so(tmp_path):
    base = folder_of(build("llama"), tmp_path)
    config = PruningConfig("wanda-sp", sparsity=0.5)
    report = prune(base, None, config, CORPORA, out=tmp_path / "out", evaluation=None, progress=False)
    assert report.verification.passed
    assert set(report.verification.checks) >= {"units", "untouched", "zeros", "reload"}
    assert report.pattern == "50 % of the FFN neurons of every layer"
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "**50 % of the FFN neurons of every layer** cut out by Wanda-sp" in card
    assert f"{report.totals.left:,} are left" in card
    assert report.config["multiple"] == 4  # eight, halved where there are few neurons
    assert "How many neurons are left in a layer was rounded to a multiple of 4." in card
    assert "| `ffn_neuron` | 3 | 48 | 24 | 72 |" in card
    assert "structured-pruning" in card
    assert "Memory and speed in transformers, vLLM" not in card


@pytest.mark.usefixtures("without_fresh_process")
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen3_moe"])
def test_layers_that_turn_little_go(family, streamed, tmp_path):
    model = build(family)
    with torch.no_grad():  # the second layer hardly does anything
        for name, parameter in model.named_parameters():
            if ".1." in name and parameter.dim() > 1:
                parameter.mul_(1e-3)
    base = folder_of(model, tmp_path)
    report = into(base, tmp_path / "out", PruningConfig("block-influence", sparsity=0.3), streamed=streamed)
    (row,) = report.units
    assert (row.unit, row.count, row.removed_indices) == ("layer", 3, [1])
    assert kept_layers(report.units) == [0, 2]
    assert verify(tmp_path / "out").passed
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert small.config.num_hidden_layers == 2
    assert sum(p.numel() for p in small.parameters()) == report.totals.left


def test_what_is_not_there_any_more_is_noticed(tmp_path):
    base = folder_of(build("llama"), tmp_path)
    into(base, tmp_path / "out", PruningConfig("random"))
    report = PruningReport.load(tmp_path / "out")
    report.units[1].removed = "0" * 12
    report.save(tmp_path / "out")
    with pytest.raises(VerificationError, match=r"units: model\.layers\.1\.mlp has 36 units, reported 48"):
        verify(tmp_path / "out")
    assert (tmp_path / "out" / REPORT_NAME).is_file()


def test_masked_units_that_are_not_zero_are_noticed(tmp_path):
    model = build("llama")
    report = prune(model, None, PruningConfig("random", application="zero"), CORPORA, progress=False)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[:, report.units[2].removed_indices[0]] = 1.0
    model.save_pretrained(tmp_path)
    report.probe = runs.make_probe(model)
    runs.saving.write_record(tmp_path, report, model=model)
    with pytest.raises(VerificationError, match=r"model\.layers\.2\.mlp has weights in units that were removed"):
        verify(tmp_path)


def test_an_estimate_knows_units(tmp_path):
    base = folder_of(build("llama"), tmp_path)
    for method in ("cus-prun", "block-influence", "taylor"):
        config = PruningConfig(method, sparsity=0.4)
        assert runs.plan(base, None, config, CORPORA, progress=False, evaluation=None).seconds > 0


def test_a_kv_count_that_cannot_be_is_refused_before_weights_are_read(tmp_path, monkeypatch):
    base = folder_of(build("gpt2"), tmp_path)
    monkeypatch.setattr(Opening, "weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match="remove FFN neurons"):
        prune(base, None, PruningConfig("random", unit="kv_group", sparsity=0.5), CORPORA, out=tmp_path / "out")


def test_a_multiple_holds_for_masked_units_too_and_shrinking_records_it():
    for multiple, left in ((None, 38), (16, 32)):
        model = build("llama")
        config = PruningConfig("wanda-sp", sparsity=0.2, application="compensate", multiple=multiple)
        report = prune(model, None, config, CORPORA, progress=False)
        assert {row.kept for row in report.units} == {left}
        assert shrink(model, report).config.intermediate_size == left
        # What repeats this run cuts units out, and must not round to what suits the size of the model.
        assert report.config["multiple"] == (multiple or 1)


def test_shrunk_in_memory_is_what_the_folder_holds(tmp_path):
    model = build("llama")
    base = folder_of(model, tmp_path)
    into(base, tmp_path / "out", PruningConfig("wanda-sp"))
    report = prune(model, None, PruningConfig("wanda-sp", application="compensate"), CORPORA, progress=False)
    small = shrink(model, report)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for (name, left), right in zip(small.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(left, right), name
