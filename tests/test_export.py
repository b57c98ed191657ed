"""A graph is handed over only when it is the model: same logits, same zeros; it generates as transformers does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import openvino
import pytest
import torch
from huggingface_hub import CommitInfo, HfApi
from openvino.tools.ovc import convert_impl
from openvino.tools.ovc.telemetry_utils import init_ovc_telemetry
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hubprune import exporting, graphcheck
from hubprune.architecture import find_matrices
from hubprune.calibration import corpus_from_tokens
from hubprune.cli import main
from hubprune.errors import (
    AccessError,
    ConfigError,
    NotFoundError,
    OutputError,
    UnsupportedModelError,
    UsageError,
    VerificationError,
)
from hubprune.evaluation import perplexity
from hubprune.exported import ExportedModelForCausalLM
from hubprune.exporthub import find_export, publish_export
from hubprune.exporting import export
from hubprune.exportrecord import RECORD_NAME, ExportRecord, weights_sha256
from hubprune.publisher import UploadPlan, publish_folder
from hubprune.rounding import round_onnx, round_openvino
from hubprune.saving import save
from hubprune.verifier import CHECKS, verify
from tests.families import build, token_ids
from tests.pruned import prune_by_hand, tiny_model, tiny_tokenizer

# A family, a runtime and a kind of pruning each; the whole matrix is what --slow adds.
SHAPES = ("llama", "qwen2", "gpt2")
QUICK = {("llama", "onnx", "zeros"), ("qwen2", "openvino", "zeros"), ("gpt2", "openvino", "shrunk")}
MATRIX = [
    pytest.param((family, format, kind), id=f"{family}-{format}-{kind}", marks=())
    if (family, format, kind) in QUICK
    else pytest.param((family, format, kind), id=f"{family}-{format}-{kind}", marks=pytest.mark.slow)
    for family in SHAPES
    for format in ("onnx", "openvino")
    for kind in ("zeros", "shrunk")
]
TWO_LAYERS: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2},
    "qwen2": {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
    "gpt2": {"n_layer": 2},
}
NARROW = {"llama": {"intermediate_size": 32}, "qwen2": {"intermediate_size": 32}, "gpt2": {"n_inner": 96}}


def make(family: str, kind: str) -> PreTrainedModel:
    """A tiny model with half of its weights zero, or with fewer neurons."""
    model = build(family, **TWO_LAYERS[family], **(NARROW[family] if kind == "shrunk" else {}))
    if kind == "zeros":
        for matrix in find_matrices(model):
            weights = matrix.view()
            weights[weights.abs() < weights.abs().median()] = 0
    return model


class Exported:
    """A model in a folder, and its graph with 8-bit weights and in float32."""

    def __init__(self, folder: Path, family: str, format: str, kind: str) -> None:
        self.model, self.folder, self.format = make(family, kind), folder, format
        self.model.save_pretrained(folder)
        self.consents: list[bool] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("CI", raising=False)
            patch.setattr(convert_impl, "init_ovc_telemetry", self.noted)
            self.full = export(folder, format=format, progress=False)
            patch.setattr(exporting, "trace", None)  # the graph is there already
            self.small = export(folder, format=format, int8=True, progress=False)
            self.environment = dict(os.environ)

    def noted(self, *words: Any, **more: Any) -> Any:
        """Stand in for what OpenVINO starts to report to its makers with."""
        telemetry = init_ovc_telemetry(*words, **more)
        self.consents.append(telemetry.consent)
        return telemetry


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, str, str]], Exported]:
    done: dict[tuple[str, str, str], Exported] = {}

    def get(case: tuple[str, str, str]) -> Exported:
        if case not in done:
            done[case] = Exported(tmp_path_factory.mktemp("export") / "-".join(case), *case)
        return done[case]

    return get


@pytest.mark.parametrize("case", MATRIX)
def test_round_trip(case: tuple[str, str, str], exports: Callable[[Any], Exported]) -> None:
    """The graph has the model's logits for prompts, padded rows and single tokens, and all of its zeros."""
    done = exports(case)
    _, format, kind = case
    zeros = sum(int((matrix.view() == 0).sum()) for matrix in find_matrices(done.model))
    assert (done.full.zeros, done.full.matrices) == (zeros, len(find_matrices(done.model)))
    assert zeros > 0 if kind == "zeros" else zeros == 0
    assert done.full.difference < 1e-4
    assert done.full.agreement == 1
    ids, mask = token_ids(3, 20), torch.ones(3, 20, dtype=torch.long)
    mask[0, :6] = mask[1, :1] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        wanted = done.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    graph = ExportedModelForCausalLM.from_pretrained(done.folder, format=format, int8=False)
    got = graph(input_ids=ids, attention_mask=mask).logits
    assert ((got - wanted).abs() * mask[..., None]).max() < 1e-4
    for options in ({}, {"num_beams": 3}):
        asked: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        asked |= {"attention_mask": mask, **options}
        assert torch.equal(graph.generate(ids, **asked), cast(Any, done.model).generate(ids, **asked))


@pytest.mark.parametrize("case", MATRIX)
def test_8_bit_weights_are_smaller_and_keep_every_zero(
    case: tuple[str, str, str], exports: Callable[[Any], Exported]
) -> None:
    done = exports(case)
    full, small = (done.folder / done.format / facts.file for facts in (done.full, done.small))
    weights = [value for name, value in done.full.files.items() if name != done.full.file]
    smaller = [value for name, value in done.small.files.items() if name != done.small.file]
    assert sum(smaller) < 0.6 * sum(weights)  # the tiny models are half scales and embeddings
    assert graphcheck.compare_zeros(full, small) == done.small.rounded_to_zero
    assert done.small.zeros == done.full.zeros
    assert 1e-4 < done.small.difference < done.small.tolerance
    assert done.small.agreement > 0.9


def test_a_folder_holds_both_graphs_and_loads_the_one_asked_for(exports: Callable[[Any], Exported]) -> None:
    done = exports(("llama", "onnx", "zeros"))
    folder = done.folder / "onnx"
    assert {path.name for path in folder.iterdir()} == {
        *("model.onnx", "model.onnx_data", "model_int8.onnx", "model_int8.onnx_data"),
        *("config.json", "generation_config.json", RECORD_NAME),
    }
    record = ExportRecord.load(folder)
    assert record is not None
    assert record.graphs == {"model.onnx": done.full, "model_int8.onnx": done.small}
    assert [find_export(done.folder, int8=int8).name for int8 in (None, False, True)] == [
        *("model.onnx", "model.onnx", "model_int8.onnx"),
    ]
    with pytest.raises(NotFoundError, match="no graph for openvino: make one with hubprune export"):
        find_export(done.folder, format="openvino")


def test_onnx_runtime_alone_runs_the_graph(exports: Callable[[Any], Exported]) -> None:
    """Under the names that optimum and transformers.js know, with nothing of this library."""
    done = exports(("llama", "onnx", "zeros"))
    code = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
ids = np.array(json.loads(sys.argv[2]))
past = {f"past_key_values.{i}.{k}": np.zeros((1, 2, 0, 8), np.float32) for i in (0, 1) for k in ("key", "value")}
answers = []
for n, token in enumerate(ids):
    feed = {"input_ids": [[token]], "position_ids": [[n]], "attention_mask": [[1] * (n + 1)]}
    logits, *present = session.run(None, {k: np.array(v) for k, v in feed.items()} | past)
    names = [o.name.replace("present", "past_key_values") for o in session.get_outputs()[1:]]
    past = dict(zip(names, present))
    answers.append(logits[0, -1].tolist())
assert not {"torch", "transformers", "hubprune"} & set(sys.modules)
print(json.dumps(answers))
"""
    ids = token_ids(1, 6)
    words = [sys.executable, "-c", code, str(done.folder / "onnx" / "model.onnx"), json.dumps(ids[0].tolist())]
    out = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    with torch.no_grad():
        wanted = done.model(input_ids=ids).logits[0]
    assert torch.allclose(torch.tensor(json.loads(out.stdout)), wanted, atol=1e-4)


def test_nothing_of_this_machine_is_in_the_files(exports: Callable[[Any], Exported]) -> None:
    for case in QUICK:
        done = exports(case)
        for path in (done.folder / done.format).iterdir():
            content = path.read_bytes()
            assert not [
                place for place in (str(Path.home()), sys.prefix, str(done.folder)) if place.encode() in content
            ]


def test_perplexity_of_a_graph_is_that_of_the_model(exports: Callable[[Any], Exported]) -> None:
    done = exports(("gpt2", "openvino", "shrunk"))
    corpus = corpus_from_tokens(token_ids(4, 16), "text")
    graph = ExportedModelForCausalLM.from_pretrained(done.folder, int8=False)
    values = [perplexity(model, corpus, progress=False).perplexity for model in (done.model, graph)]
    assert values[1] == pytest.approx(values[0], rel=1e-4)


def test_generation_stops_and_streams_as_in_transformers(exports: Callable[[Any], Exported]) -> None:
    done = exports(("llama", "onnx", "zeros"))
    graph = ExportedModelForCausalLM.from_pretrained(done.folder)
    ids = token_ids(1, 5)
    free = graph.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    stop = int(free[0, 8])
    stopped = graph.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=stop)
    assert stopped.tolist() == free[:, : free[0].tolist().index(stop, 5) + 1].tolist()
    torch.manual_seed(0)
    drawn = graph.generate(ids, max_new_tokens=6, do_sample=True, top_p=0.9, eos_token_id=None)
    torch.manual_seed(0)
    wanted = cast(Any, done.model).generate(ids, max_new_tokens=6, do_sample=True, top_p=0.9, eos_token_id=None)
    assert torch.equal(drawn, wanted)
    with pytest.raises(UsageError, match="goes on with the cache it returned"):
        graph(ids, past_key_values=object())


# What is refused


def test_a_graph_that_is_not_the_model_is_not_written(
    exports: Callable[[Any], Exported], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One weight off in the traced model: the weights differ; one bias off: the logits do."""
    done = exports(("gpt2", "openvino", "shrunk"))
    program = openvino.Core().read_model(str(done.folder / "openvino" / done.full.file))

    def changed(name: str) -> Callable[[PreTrainedModel, str], Any]:
        def tampered(model: PreTrainedModel, format: str) -> Any:
            with torch.no_grad():
                model.get_parameter(name).view(-1)[0].add_(1)  # after the tracing: the graph is that of before
            return program

        return tampered

    for name, told in (
        ("transformer.h.1.mlp.c_fc.weight", r"transformer\.h\.1\.mlp\.c_fc\.weight are not: nothing was written"),
        ("transformer.ln_f.bias", r"must give the logits of transformers up to 0\.0001 of the largest, and differs"),
    ):
        monkeypatch.setattr(exporting, "trace", changed(name))
        with pytest.raises(VerificationError, match=told):
            export(done.folder, tmp_path / "out", format="openvino", progress=False)
        assert list(tmp_path.iterdir()) == []


def test_a_zero_that_is_lost_by_rounding_is_found(
    exports: Callable[[Any], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = exports(("llama", "onnx", "zeros"))
    full, small = done.folder / "onnx" / done.full.file, tmp_path / done.small.file
    round_onnx(full, small)
    assert graphcheck.compare_zeros(full, small) == done.small.rounded_to_zero
    weights = tmp_path / "model_int8.onnx_data"
    content = weights.read_bytes()
    weights.unlink()  # another program may have it mapped
    weights.write_bytes(bytes(value + 1 if value == graphcheck.ZERO else value for value in content))
    with pytest.raises(VerificationError, match="every zero must stay one with 8-bit weights"):
        graphcheck.compare_zeros(full, small)

    done = exports(("qwen2", "openvino", "zeros"))
    full, small = done.folder / "openvino" / done.full.file, tmp_path / done.small.file
    round_half = np.rint
    with monkeypatch.context() as patch:
        patch.setattr(np, "rint", lambda values: round_half(values) + (values == 0))
        round_openvino(full, small)
    with pytest.raises(VerificationError, match="every zero must stay one with 8-bit weights"):
        graphcheck.compare_zeros(full, small)


def test_what_cannot_be_exported_is_refused_before_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    build("llama", num_hidden_layers=2).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ConfigError, match="there is no format 'onx': did you mean 'onnx'"):
        export(folder, format="onx")
    with pytest.raises(ConfigError, match="say where to write it"):
        export("org/model")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="must be empty or hold an export to onnx"):
        export(folder, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "free_memory", lambda: 1000)
        with pytest.raises(UsageError, match=r"holds the weights 3 times in float32, .* and 1,000 bytes of memory"):
            export(folder)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UsageError, match=r'onnx and onnxscript and onnxruntime: pip install "hubprune\[export\]"'):
            export(folder)
    config = json.loads((folder / "config.json").read_text())
    for changes, told in (
        ({"max_position_embeddings": 8}, "traced on 12 tokens, and .* reads 8"),
        ({"quantization_config": {"quant_method": "awq"}}, "already quantised"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UnsupportedModelError, match=told):
            export(folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}


def test_what_the_exporter_cannot_follow_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama", num_hidden_layers=2)
    model.save_pretrained(tmp_path / "model")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a deep\nreason")

    monkeypatch.setattr("torch.export.export", fail)
    with pytest.raises(UnsupportedModelError, match=r"cannot turn LlamaForCausalLM into onnx .*a deep reason"):
        export(tmp_path / "model", progress=False)


def test_a_graph_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    from hubprune.session import open_session

    for name in ("model.onnx", "openvino_model.xml"):
        (tmp_path / name).write_bytes(b"not a graph")
        with pytest.raises(OutputError, match="cannot be loaded .*: export the model again"):
            open_session(tmp_path / name)


def test_openvino_is_kept_from_reporting(exports: Callable[[Any], Exported]) -> None:
    """Its converter sends what it converts to its makers unless told that it runs in a test."""
    done = exports(("gpt2", "openvino", "shrunk"))
    assert done.consents == [False]
    assert "CI" not in done.environment


# Published


@pytest.fixture
def without_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check that starts a process; test_verifier.py holds it."""
    monkeypatch.delitem(CHECKS, "reload")


@pytest.fixture
def published(
    hub: Any, hub_api: Callable[..., HfApi], exports: Callable[[Any], Exported], tmp_path: Path, without_reload: None
) -> Any:
    """A pruned model on the Hub, its folder with a graph in it that the Hub has not."""
    done = exports(("llama", "onnx", "zeros"))
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    report = prune_by_hand(model)
    folder = save(model, tmp_path / "model", report=report, tokenizer=tiny_tokenizer())
    api = hub_api("me")
    publish_folder(folder, "me/graphs", api=api)
    yield folder, api, done
    api.delete_repo("me/graphs")


def graph_of(folder: Path, done: Exported, names: tuple[str, ...] = ("model.onnx", "model_int8.onnx")) -> Path:
    """The graphs of another export, put into a model's folder with a record that names its weights."""
    record = ExportRecord.load(done.folder / "onnx")
    assert record is not None
    target = folder / "onnx"
    shutil.copytree(done.folder / "onnx", target, dirs_exist_ok=True)
    graphs = {name: record.graphs[name] for name in names}
    for name in record.files - {file for graph in graphs.values() for file in graph.files}:
        (target / name).unlink()
    ExportRecord(weights_sha256(folder), graphs).save(target)
    return target


def test_graphs_go_beside_the_weights_in_one_commit_and_are_found_there(
    published: Any, exports: Callable[[Any], Exported]
) -> None:
    folder, api, done = published
    graphs = graph_of(folder, done, ("model.onnx",))
    head = api.model_info("me/graphs").sha
    plan = publish_export(graphs, "me/graphs", api=api, dry_run=True)
    assert isinstance(plan, UploadPlan)
    assert (plan.creates_repo, plan.deletes, api.model_info("me/graphs").sha) == (False, (), head)
    commit = publish_export(graphs, "me/graphs", api=api)
    assert isinstance(commit, CommitInfo)
    files = set(api.list_repo_files("me/graphs"))
    assert {name for name in files if name.startswith("onnx/")} == {name for name, _ in plan.files}
    assert len(api.list_repo_commits("me/graphs")) == 3  # the empty repository, the model, the graph
    graph = ExportedModelForCausalLM.from_pretrained("me/graphs", token=api.token)
    ids = token_ids(1, 5)
    with torch.no_grad():
        assert torch.allclose(graph(ids).logits, done.model(ids).logits, atol=1e-4)
    with pytest.raises(NotFoundError, match="me/graphs holds no graph with 8-bit weights for onnx or openvino"):
        ExportedModelForCausalLM.from_pretrained("me/graphs", int8=True, token=api.token)
    # The other graph of the same weights later: the first one stays.
    publish_export(graph_of(folder, done, ("model_int8.onnx",)), "me/graphs", api=api)
    assert {"onnx/model.onnx", "onnx/model_int8.onnx"} <= set(api.list_repo_files("me/graphs"))
    assert find_export("me/graphs", int8=True, token=api.token).name == "model_int8.onnx"
    assert find_export("me/graphs", token=api.token).name == "model.onnx"


def test_a_graph_of_other_weights_is_not_sent(
    published: Any, hub_api: Callable[..., HfApi], exports: Callable[[Any], Exported]
) -> None:
    folder, api, done = published
    with pytest.raises(OutputError, match="me/graphs holds others: push the model first"):
        publish_export(done.folder / "onnx", "me/graphs", api=api)
    with pytest.raises(NotFoundError, match="there is no me/nothing: push the model first"):
        publish_export(done.folder / "onnx", "me/nothing", api=api)
    with pytest.raises(UsageError, match="holds no export"):
        publish_export(folder, "me/graphs", api=api)
    graphs = graph_of(folder, done)
    with pytest.raises(AccessError):
        publish_export(graphs, "me/graphs", api=hub_api("guest"))
    (graphs / "model.onnx_data").write_bytes(b"shorter")
    with pytest.raises(OutputError, match=r"model\.onnx_data is not the file that was checked: export again"):
        publish_export(graphs, "me/graphs", api=api)


def test_stale_graphs_are_deleted_on_the_hub_and_refused_in_a_folder(published: Any, tmp_path: Path) -> None:
    folder, api, done = published
    graph_of(folder, done)
    assert verify(folder).checks["exports"] == "the graphs in onnx are of these weights"
    publish_folder(folder, "me/graphs", api=api)
    assert "onnx/model_int8.onnx" in api.list_repo_files("me/graphs")
    # Without a graph in the folder, those on the Hub stay: they are of these weights.
    shutil.move(folder / "onnx", tmp_path / "onnx")
    publish_folder(folder, "me/graphs", api=api)
    assert "onnx/model_int8.onnx" in api.list_repo_files("me/graphs")
    shutil.move(tmp_path / "onnx", folder / "onnx")
    # Pruned again: the graphs in the folder are those of the weights before.
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        find_matrices(model)[0].view()[0] = 0
    save(model, folder, report=prune_by_hand(model), tokenizer=tiny_tokenizer())
    with pytest.raises(VerificationError, match="exports: the graphs in onnx are of other weights"):
        verify(folder)
    shutil.rmtree(folder / "onnx")
    publish_folder(folder, "me/graphs", api=api)
    assert not [name for name in api.list_repo_files("me/graphs") if name.endswith((".onnx", ".onnx_data"))]
    graphs = graph_of(folder, done, ("model.onnx",))
    publish_export(graphs, "me/graphs", api=api)
    left = {name for name in api.list_repo_files("me/graphs") if name.startswith("onnx/")}
    assert left == {f"onnx/{path.name}" for path in graphs.iterdir()}


# On the command line


def test_command_exports_publishes_and_tells(
    hub: Any,
    hub_api: Callable[..., HfApi],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    without_reload: None,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    model, api = tiny_model(layers=1), hub_api("me")
    folder = save(model, tmp_path / "model", report=prune_by_hand(model), tokenizer=tiny_tokenizer())
    publish_folder(folder, "me/exported", api=api)
    words = ["export", str(folder), "--out", str(tmp_path / "out"), "--push", "me/exported", "--token", api.token]
    assert main(words) == 0
    out = capsys.readouterr().out
    record = ExportRecord.load(tmp_path / "out")
    assert record is not None
    facts = record.graphs["model.onnx"]
    assert f"{facts.zeros:,} in 7 matrices, all zeros in the graph" in out
    assert f"differ from transformers by {facts.difference:.2g} of the largest (allowed: 0.0001)" in out
    assert "/me/exported/commit/" in out
    assert {"onnx/model.onnx", "onnx/model.onnx_data"} <= set(api.list_repo_files("me/exported"))
    # Away from the model's folder the tokenizer comes along, but not to the repository, which has one.
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w5 w6")["input_ids"] == [5, 6]
    assert "onnx/tokenizer.json" not in api.list_repo_files("me/exported")
    api.delete_repo("me/exported")


def test_failed_push_keeps_the_graph_and_says_so(
    exports: Callable[[Any], Exported], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = exports(("llama", "onnx", "zeros"))
    monkeypatch.setattr(exporting, "export", lambda *_, **__: done.full)
    assert main(["export", str(done.folder), "--push", "me/nothing"]) == 2
    told = capsys.readouterr().err
    assert f"the graph is in {done.folder}/onnx; push it with: hubprune export {done.folder}" in told
    assert main(["export", str(done.folder), "--create-pr"]) == 2
    assert "go with --push REPO" in capsys.readouterr().err
    assert main(["export", str(done.folder), "--format", "tflite"]) == 2
    assert "tflite" in capsys.readouterr().err
