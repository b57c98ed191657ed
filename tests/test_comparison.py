"""Masks of pruned models compared from what lies on disk; every index here is worked out by hand or counted anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image

import hubprune
from hubprune.architecture import find_matrices
from hubprune.cli import main
from hubprune.errors import NotFoundError, UsageError
from hubprune.facts import BaseFacts, MatrixFacts, UnitFacts, pack_removed
from hubprune.report import PruningReport
from tests.families import FAMILIES, build
from tests.pruned import prune_by_hand, save_plain, tiny_model

KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def halves(folder: Path, method: str, start: Callable[[int, str, int], int], **saving: Any) -> Path:
    """Save a model that lost half of the columns of each matrix, counted from one on (block, kind, width), round."""
    model = tiny_model()
    report = prune_by_hand(tiny_model(), method=method)
    with torch.no_grad():
        for matrix in find_matrices(model):
            width = matrix.shape[1]
            first = start(matrix.block, matrix.kind, width)
            columns = [(first + step) % width for step in range(width // 2)]
            matrix.view()[:, columns] = 0
    model.save_pretrained(folder, **saving)
    report.save(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs on one base.

    The second removed other columns than the first: all of them in `k_proj` of layer 0, half of them elsewhere in
    that layer, none in layer 1. The third removed what the first kept.
    """
    folder = tmp_path_factory.mktemp("runs")

    def moved(block: int, kind: str, width: int) -> int:
        return 0 if block else width // 2 if kind == "k_proj" else width // 4

    return [
        halves(folder / "first", "wanda", lambda block, kind, width: 0),
        halves(folder / "second", "d-pruner", moved, max_shard_size="20KB"),
        halves(folder / "third", "magnitude", lambda block, kind, width: width // 2),
    ]


def test_indices_are_those_worked_out_by_hand(runs: list[Path]) -> None:
    found = hubprune.compare(runs[:2], progress=False)
    assert found.kinds == KINDS
    assert found.blocks == [0, 1]
    assert [run.name for run in found.runs] == ["first", "second"]
    assert [run.method for run in found.runs] == ["wanda", "d-pruner"]
    # Of two halves that overlap by a quarter of the columns, a third of what either removed was removed by both.
    assert found.similarity(block=0, kind="up_proj")[0][1] == pytest.approx(1 / 3)
    assert found.similarity(block=0, kind="k_proj")[0][1] == 0
    assert found.similarity(block=1)[0][1] == 1
    shapes = {row.kind: row.shape for row in PruningReport.load(runs[0]).matrices}
    weights = {kind: rows * columns for kind, (rows, columns) in shapes.items()}
    total, k = sum(weights.values()), weights["k_proj"]
    # Layer 0: a quarter in common (nothing in k_proj), three quarters touched (all of k_proj). Layer 1: the same half.
    both = Fraction(total - k, 4) + Fraction(total, 2)
    either = Fraction(3 * (total - k), 4) + k + Fraction(total, 2)
    assert found.similarity() == [[1, pytest.approx(float(both / either))], [pytest.approx(float(both / either)), 1]]
    assert found.similarity(kind="k_proj")[0][1] == pytest.approx((k / 2) / (k + k / 2))
    assert found.removed(1) == (total, 2 * total)
    assert found.by_chance()[0][1] == pytest.approx(1 / 3)


def test_three_runs_give_each_pair(runs: list[Path]) -> None:
    found = hubprune.compare(runs, progress=False)
    assert found.pairs == [(0, 1), (0, 2), (1, 2)]
    square = found.similarity()
    assert square[0][2] == square[2][0] == 0
    assert [square[index][index] for index in range(3)] == [1, 1, 1]
    assert square[0][1] == hubprune.compare(runs[:2], progress=False).similarity()[0][1]
    assert found.similarity(block=0, kind="k_proj")[1][2] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_every_family_are_read(family: str, tmp_path: Path) -> None:
    masks: list[dict[tuple[int, str], list[torch.Tensor]]] = []
    for run in range(2):
        model = build(family)
        generator = torch.Generator().manual_seed(run)
        rows, kept = [], {}
        with torch.no_grad():
            for matrix in find_matrices(model):
                gone = torch.rand(matrix.shape, generator=generator) < 0.3 + 0.2 * run
                matrix.view()[gone] = 0
                kept.setdefault((matrix.block, matrix.kind), []).append(gone)
                count = int(gone.sum())
                rows.append(MatrixFacts(matrix.name, matrix.block, matrix.kind, matrix.shape, count, count))
        folder = tmp_path / str(run)
        model.save_pretrained(folder)
        PruningReport(base=BaseFacts("org/base"), config={"method": "wanda"}, matrices=rows).save(folder)
        masks.append(kept)
    found = hubprune.compare([tmp_path / "0", tmp_path / "1"], progress=False)
    assert {(place.block, place.kind) for place in found.places} == masks[0].keys()
    for place in found.places:
        left, right = (torch.cat([mask.flatten() for mask in kept[place.block, place.kind]]) for kept in masks)
        counts = ((int(left.sum()), int((left & right).sum())), (int((left & right).sum()), int(right.sum())))
        assert (place.count, place.shared) == (left.numel(), counts)


def structured(folder: Path, rows: list[UnitFacts]) -> Path:
    folder.mkdir()
    PruningReport(base=BaseFacts("org/base"), config={"method": "cus-prun"}, units=rows).save(folder)
    return folder


def units(name: str, block: int, unit: str, removed: set[int], count: int, weights: int) -> UnitFacts:
    bits = pack_removed([index in removed for index in range(count)])
    return UnitFacts(name, block, unit, count, bits, weights)


def test_units_are_compared_from_the_reports_alone(tmp_path: Path) -> None:
    one = structured(
        tmp_path / "one",
        [units("m.0.mlp", 0, "ffn_neuron", {0, 1, 2, 3}, 10, 30), units("m.0.attn", 0, "kv_group", {1}, 4, 100)],
    )
    two = structured(
        tmp_path / "two",
        [
            units("m.0.mlp", 0, "ffn_neuron", {2, 3, 4, 9}, 10, 30),
            units("m.0.attn", 0, "kv_group", {1}, 4, 100),
            units("m.1.mlp", 1, "ffn_neuron", {5}, 10, 30),
        ],
    )
    found = hubprune.compare([one, two])
    assert found.unit == "units"
    assert found.similarity(kind="kv_group") == [[1, 1], [1, 1]]
    assert found.similarity(block=0, kind="ffn_neuron")[0][1] == pytest.approx(2 / 6)
    assert found.similarity(block=1) == [[None, 0], [0, 1]]
    # Neurons of 30 weights and groups of 100: in weights, 2 x 30 + 100 of 7 x 30 + 100.
    assert found.similarity()[0][1] == pytest.approx(160 / 310)
    assert found.by_chance(block=0, kind="ffn_neuron")[0][1] == pytest.approx(1.6 / 6.4)
    assert found.draw(tmp_path / "units.png").is_file()


def test_runs_on_the_hub_are_compared_by_their_names(
    runs: list[Path], hub_api: Callable[..., HfApi], capsys: pytest.CaptureFixture[str]
) -> None:
    api = hub_api()
    for name, folder in zip(("me/first-run", "me/second-run"), runs, strict=False):
        api.create_repo(name, exist_ok=True)
        api.create_branch(name, branch="kept", exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, revision="kept")
    names = ["me/first-run@kept", "me/second-run@kept"]
    found = hubprune.compare(names, progress=False)
    assert found.similarity() == hubprune.compare(runs[:2], progress=False).similarity()
    assert [run.name for run in found.runs] == ["first-run@kept", "second-run@kept"]
    with pytest.raises(UsageError, match="me/first-run has no record of what was removed"):
        hubprune.compare(["me/first-run", names[1]])
    assert main(["compare", *names, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["similarity"] == found.similarity()


def test_command_prints_tables_and_draws_the_figure(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *map(str, runs)]) == 0
    rows = {
        line.split("  ")[1].strip(): line.split()[-3:] for line in capsys.readouterr().out.splitlines() if "  " in line
    }
    found = hubprune.compare(runs, progress=False)
    for title, square in {
        "all": found.similarity(),
        "by chance": found.by_chance(),
        "k_proj": found.similarity(kind="k_proj"),
        "layer 0": found.similarity(block=0),
    }.items():
        assert rows[title] == [f"{square[left][right]:.3f}" for left, right in found.pairs]
    with Image.open("mask-similarity.png") as image:
        assert image.format == "PNG"
    assert main(["compare", *map(str, runs), "--json", "--out", "other.png"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(json.dumps(found.to_dict()))
    assert err == "other.png\n"
    assert Path("other.png").read_bytes() == Path("mask-similarity.png").read_bytes()


def with_report(folder: Path, source: Path, **changes: Any) -> Path:
    """A folder that holds a changed copy of a report."""
    folder.mkdir()
    data = PruningReport.load(source).to_dict()
    PruningReport.from_dict({**data, **changes}).save(folder)
    return folder


def test_what_cannot_be_compared_is_refused(runs: list[Path], tmp_path: Path) -> None:
    first = runs[0]
    data = PruningReport.load(first).to_dict()
    other = with_report(
        tmp_path / "other", first, base={**data["base"], "model_id": "org/other"}, untouched_sha256="0" * 64
    )
    wider = [{**row, "shape": [64, 64]} for row in data["matrices"]]
    shaped = with_report(tmp_path / "shaped", first, matrices=wider)
    elsewhere = with_report(tmp_path / "elsewhere", first, matrices=[{**data["matrices"][0], "name": "lm_head"}])
    whole = structured(tmp_path / "whole", [units("m.0.mlp", 0, "ffn_neuron", {0}, 4, 3)])
    alike = with_report(tmp_path / "alike", whole, base=data["base"])
    empty = with_report(tmp_path / "empty", first, matrices=[])
    lost = with_report(tmp_path / "lost", first)
    for given, told in {
        (first,): "a comparison needs two runs or more, each named once, got .*first",
        (): "a comparison needs two runs or more, each named once, got none",
        (first, first): "each named once",
        (first, other): "runs are compared on one base, and .*first was made from org/base, .*other from org/other: ",
        (first, shaped): r"layers.0.self_attn.q_proj has \(32, 32\) in .*first, \(64, 64\) in .*shaped: compare runs",
        (
            first,
            alike,
        ): "single weights and whole units cannot be compared, and .*first removed single weights, .*alike u",
        (first, elsewhere): "pruned nothing of the same kind: compare runs with the same targets",
        (first, empty): "empty has no record of what was removed: give the folder or repository",
        (first, tmp_path): "has no record of what was removed",
    }.items():
        with pytest.raises(UsageError, match=told):
            hubprune.compare(given)
    with pytest.raises(NotFoundError, match="must hold its weights as safetensors"):
        hubprune.compare([first, lost])
    with pytest.raises(NotFoundError, match="there is no folder"):
        hubprune.compare([first, tmp_path / "nowhere"])


def test_a_base_is_known_by_its_weights_where_its_name_differs(runs: list[Path], tmp_path: Path) -> None:
    data = PruningReport.load(runs[1]).to_dict()
    renamed = tmp_path / "renamed"
    model = tiny_model()
    save_plain(model, prune_by_hand(model), renamed)
    PruningReport.from_dict({**data, "base": {**data["base"], "model_id": "/somewhere/base"}}).save(renamed)
    assert hubprune.compare([runs[0], renamed], progress=False).similarity()[0][0] == 1


def test_damaged_and_foreign_weight_files_are_refused(runs: list[Path], tmp_path: Path) -> None:
    damaged = with_report(tmp_path / "damaged", runs[0])
    whole = (runs[0] / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UsageError, match="model.safetensors is damaged .*: get a sound copy of .*damaged"):
        hubprune.compare([runs[0], damaged], progress=False)
    foreign = with_report(tmp_path / "foreign", runs[0])
    build("gpt2").save_pretrained(foreign)
    wider = with_report(tmp_path / "wider", runs[0])
    build("llama", hidden_size=64, vocab_size=96).save_pretrained(wider)
    with pytest.raises(UsageError, match=r"q_proj.weight is \(\d+, \d+\) and \(\d+, \d+\) in their files: compare"):
        hubprune.compare([runs[0], wider], progress=False)
    with pytest.raises(UsageError, match="q_proj.weight was pruned, and its weight files do not hold it"):
        hubprune.compare([runs[0], foreign], progress=False)
