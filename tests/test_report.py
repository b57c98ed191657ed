"""The record of a run comes back from its file as it was, and a file is there whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubprune.carddata import PrunedModelCardData
from hubprune.corpora import CorpusConfig, SourceConfig
from hubprune.errors import OutputError, UsageError
from hubprune.facts import (
    BaseFacts,
    CorpusFacts,
    EnergyFacts,
    MatrixFacts,
    Perplexity,
    Probe,
    SourceFacts,
    Totals,
    UnitFacts,
    Verification,
    pack_removed,
)
from hubprune.outcomes import Answer, Evaluation, LossPoint, RecoveryFacts, SizeFacts, SpeedFacts, TaskScore
from hubprune.report import REPORT_NAME, SCHEMA_VERSION, PruningReport, write_text

LAID_OUT = ("joined", "; ", 4000, 1.25)


def full_report() -> PruningReport:
    """A report in which no field has its default."""
    source = SourceFacts(
        *("org/set", "small", "train", "c" * 40, "{text} {label}"),
        rows=7,
        text_column="text",
        weight=2.0,
        filters=[("lang", "de")],
        answer="{label}",
    )
    corpus = CorpusFacts(
        "domain", [source], 8, 64, 512, False, 3, "e" * 64, "f" * 64, ["première ligne\n"], 8, 3, 1, " ", 6, 2
    )
    return PruningReport(
        base=BaseFacts(
            *("org/base", "v1", "a" * 40, "t5", "T5ForConditionalGeneration", "bfloat16", True, True),
            card={"license": "mit"},
            loader="AutoModelForSeq2SeqLM",
            context_length=4096,
        ),
        config={"method": "wanda", "options": {"x": 1.5}},
        pattern="2:4",
        application="zero",
        options={"x": 1.5},
        corpora=[corpus],
        matrices=[
            MatrixFacts("model.layers.1.mlp.up_proj", 1, "up_proj", (48, 32), 768, 770, 0.1, {"general/domain": 0.4})
        ],
        totals=Totals(1536, 768, 770, 20_000, 18_000, 19_000),
        untouched_sha256="b" * 64,
        probe=Probe([1, 2, 3], [0.5, -1.25]),
        evaluation=[
            Perplexity("base", "domain", 12.5, 0.25, 1000, 16, 64, 32, True, ["org/set::test"], "d" * 64, *LAID_OUT),
            Perplexity("pruned", "domain", 14.5, 0.5, 1000, 16, 64, 32, True, ["org/set::test"], "d" * 64, *LAID_OUT),
        ],
        units=[
            UnitFacts(
                "model.layers.0.mlp",
                0,
                "ffn_neuron",
                6,
                pack_removed([False, True, False, False, False, True]),
                96,
                scores={"min": 0.5, "max": 2.0},
                reached=0.75,
                overlap={"language/domain": 0.5},
                each=[0.5, 0.25],
                fewer={"8": 0.75},
                stand_ins=[(1, 0, 1.5)],
                damping=0.01,
            )
        ],
        tasks=[TaskScore("pruned", "pairs", "acc", 0.5, 0.1, 20, 2, True, "1.0", 0.9)],
        answers=[Answer("pruned", "Once", "upon a", 2, 0.25, "repeats itself")],
        sizes=[SizeFacts("pruned", 20_000, 19_232, "bfloat16", 40_000, 40_100, 30_000, 29_000, 40_000, 2**28)],
        speeds=[SpeedFacts("pruned", 900.5, 50.5, (800.0, 950.0), (49.0, 51.0), 256, 32, 7, 2, "gpu", "bfloat16")],
        measured_on={"processor": "a processor"},
        recovery=RecoveryFacts(
            config={"adapter": "lora"},
            corpora=[
                CorpusFacts(
                    "general", [source], 8, 64, 512, False, 3, "e" * 64, "f" * 64, ["a line"], 8, 3, 1, " ", 6, 2
                )
            ],
            trained=7,
            held_out=1,
            adapter="masked lora",
            parameters=96,
            matrices=1,
            steps=40,
            kept_step=20,
            tokens=9000,
            curve=[LossPoint(20, 3.5, 3.75)],
            teacher="in memory",
            zeros_kept=770,
            groups_kept=384,
            timings={"train": 2.5},
            peak_memory_bytes=2**29,
            energy=EnergyFacts(0.5, 0.25, "DEU"),
            versions={"peft": "0.21.2"},
            created="2026-01-02T04:04:05+00:00",
        ),
        timings={"forward": 1.5},
        peak_memory_bytes=2**30,
        peak_gpu_memory_bytes=2**31,
        hardware={"cores": 2, "gpu": None},
        versions={"hubprune": "0.1.0"},
        energy=EnergyFacts(0.125, 0.0625, "DEU"),
        warnings=["a word"],
        space="me/medical-space",
        model_card=PrunedModelCardData(
            *"title description intended prompt people contact citation".split(),
            ["a limit"],
            *"mit name link tag".split(),
            ["de"],
            ["tag"],
            ["org/set"],
            {"thumbnail": "x"},
        ),
        verification=Verification({"finite": "all"}, True, "5.23.0"),
        created="2026-01-02T03:04:05+00:00",
    )


def defaults_left(value: Any) -> list[str]:
    """Fields, at any depth, that still have their default; the version of the layout has no other value."""
    if isinstance(value, list):
        return [name for item in value for name in defaults_left(item)]
    if not dataclasses.is_dataclass(value):
        return []
    left = []
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        no_default = field.default is field.default_factory is dataclasses.MISSING
        default = None if no_default else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        left += [field.name] if not no_default and inner == default else defaults_left(inner)
    return left


def test_every_field_survives_the_file(tmp_path: Path) -> None:
    report = full_report()
    assert defaults_left(report) == ["schema_version"]
    path = report.save(tmp_path)
    assert path == tmp_path / REPORT_NAME
    again = PruningReport.load(tmp_path)
    assert again == report
    assert isinstance(again.matrices[0].shape, tuple)
    assert again.units[0].removed_indices == [1, 5]
    assert again.units[0].kept == 4
    assert "première ligne" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == [REPORT_NAME]


numbers = st.floats(allow_nan=False, allow_infinity=False)
reports = st.builds(
    PruningReport,
    base=st.builds(BaseFacts, card=st.dictionaries(st.text(), st.text() | st.lists(st.text()) | st.none())),
    config=st.dictionaries(st.text(), numbers | st.text()),
    options=st.dictionaries(st.text(), numbers | st.text()),
    corpora=st.lists(st.builds(CorpusFacts), max_size=2),
    matrices=st.lists(st.builds(MatrixFacts, damping=st.none() | numbers), max_size=2),
    probe=st.none() | st.builds(Probe, logits=st.lists(numbers)),
    evaluation=st.lists(st.builds(Perplexity, perplexity=numbers, stderr=numbers), max_size=2),
    timings=st.dictionaries(st.text(), numbers),
    peak_gpu_memory_bytes=st.none() | st.integers(0),
    hardware=st.just({}),
    verification=st.none() | st.builds(Verification),
    schema_version=st.just(SCHEMA_VERSION),
)


@settings(max_examples=50, deadline=None)
@given(reports)
def test_any_report_comes_back_from_json(report: PruningReport) -> None:
    assert PruningReport.from_dict(json.loads(report.to_json())) == report


def test_what_a_later_version_adds_is_dropped_and_what_an_older_lacks_has_its_default() -> None:
    data = full_report().to_dict()
    data["from_the_future"] = 1
    data["base"]["from_the_future"] = data["corpora"][0]["sources"][0]["from_the_future"] = 1
    assert PruningReport.from_dict(data) == full_report()
    del data["warnings"], data["base"]["gated"]
    older = PruningReport.from_dict(data)
    assert (older.warnings, older.base.gated) == ([], False)


def test_what_is_measured_later_takes_the_place_of_what_was_measured_of_the_same() -> None:
    report = full_report()
    speed = SpeedFacts("base", 1.0, 2.0)
    found = Evaluation(
        perplexities=[Perplexity("pruned", "domain", 1.5, 0.1, 10, 1, 8, 8, False), report.evaluation[0]],
        tasks=[TaskScore("base", "pairs", "acc", 0.75)],
        answers=[Answer("pruned", "Twice", "told"), Answer("base", "Twice", "told")],
        sizes=[SizeFacts("pruned", 10, 9)],
        speeds=[speed],
        notes=["a word", "another word"],
        hardware={"processor": "another"},
    )
    report.record(found)
    assert [(row.variant, row.perplexity) for row in report.evaluation] == [("base", 12.5), ("pruned", 1.5)]
    assert [row.variant for row in report.tasks] == ["pruned", "base"]
    assert [(row.variant, row.prompt) for row in report.answers] == [("pruned", "Twice"), ("base", "Twice")]
    assert (report.sizes, report.speeds, report.measured_on) == (found.sizes, [speed], {"processor": "another"})
    assert report.warnings == ["a word", "another word"]
    report.record(Evaluation())
    assert (report.speeds, report.measured_on) == ([speed], {"processor": "another"})


def test_rows_that_were_measured_in_another_way_are_dropped() -> None:
    def row(variant: str, corpus: str, window: int, fingerprint: str = "f") -> Perplexity:
        return Perplexity(variant, corpus, 9.0, 0.1, 90, 3, window, window, False, [], fingerprint)

    report = PruningReport(evaluation=[row(v, c, 64) for c in ("legal", "news") for v in ("base", "pruned")])
    report.record(Evaluation([row("base", "legal", 128), row("recovered", "legal", 128)]))
    assert [(one.variant, one.corpus, one.window) for one in report.evaluation] == [
        ("base", "news", 64),
        ("pruned", "news", 64),
        ("base", "legal", 128),
        ("recovered", "legal", 128),
    ]


def test_a_text_of_the_record_is_read_by_the_template_of_the_calibration() -> None:
    source = SourceFacts("org/qa", None, "train", template="{q} {a}", answer="{a}")
    report = PruningReport(corpora=[CorpusFacts("domain", [source])])
    row = Perplexity("base", "domain", 9.0, 0.1, 90, 3, 64, 64, False, ["org/qa:default:test"])
    config = report.text_of(row)
    assert isinstance(config, CorpusConfig)
    assert config.sequence_length == 64
    assert config.sources == (SourceConfig("org/qa", "default", "test", template="{q} {a}", answer="{a}"),)
    assert report.text_of(dataclasses.replace(row, sources=["org/other:default:test"])) == "org/other:default:test"


def test_the_summary_recognises_a_pruned_model() -> None:
    assert full_report().summary() == {
        "schema_version": SCHEMA_VERSION,
        "version": "0.1.0",
        "base_model": "org/base",
        "base_commit": "a" * 40,
        "method": "wanda",
        "pattern": "2:4",
        "application": "zero",
        "sparsity": 0.5,
        "share_of_all_parameters": 0.0384,
        "corpora": {"domain": ["org/set"]},
        "report": REPORT_NAME,
        "recovery": "masked LoRA",
    }


def test_shares_are_of_the_matrix_of_the_targeted_and_of_all_parameters() -> None:
    report = full_report()
    matrix, totals = report.matrices[0], report.totals
    assert (matrix.numel, matrix.sparsity) == (48 * 32, 768 / (48 * 32))
    assert (totals.sparsity, totals.share_of_all) == (768 / 1536, 768 / 20_000)
    assert (Totals().sparsity, Totals().share_of_blocks, Totals().share_of_all) == (0.0, 0.0, 0.0)


def test_perplexities_are_found_by_text_and_variant() -> None:
    report = full_report()
    assert report.perplexities() == {"domain": {"base": report.evaluation[0], "pruned": report.evaluation[1]}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "a pruning report is a JSON object with a schema_version, got '[]'"),
        ({"a": 1}, "a pruning report is a JSON object with a schema_version, got \"{'a': 1}\""),
        (
            {"schema_version": SCHEMA_VERSION + 1},
            f"this report has layout {SCHEMA_VERSION + 1}, this hubprune reads up to {SCHEMA_VERSION}: "
            "upgrade hubprune",
        ),
        (
            {"schema_version": 1, "base": "org/base"},
            "this is no pruning report of layout 1 (BaseFacts must be an object, got 'org/base'): "
            "restore it or prune again",
        ),
        (
            {"schema_version": 1, "matrices": 3},
            "this is no pruning report of layout 1 ('int' object is not iterable): restore it or prune again",
        ),
    ],
)
def test_what_is_no_report_is_refused(data: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        PruningReport.from_dict(data)
    assert str(caught.value) == message


def test_a_matrix_without_its_counts_is_refused() -> None:
    data = full_report().to_dict()
    del data["matrices"][0]["pruned"]
    with pytest.raises(UsageError, match=r"no pruning report of layout 1 \(.*'pruned'\): restore it or prune again"):
        PruningReport.from_dict(data)


def test_a_folder_without_a_report_and_a_broken_one_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "weights"):
        with pytest.raises(UsageError) as caught:
            PruningReport.load(place)
        assert str(caught.value) == f"{place} holds no {REPORT_NAME}: give the folder of a model pruned by hubprune"
    (tmp_path / REPORT_NAME).write_text("{broken")
    with pytest.raises(UsageError, match=rf"{REPORT_NAME} is not valid JSON \(.*\): restore it or prune again"):
        PruningReport.load(tmp_path)
    (tmp_path / "odd" / REPORT_NAME).mkdir(parents=True)
    with pytest.raises(UsageError, match=rf"{REPORT_NAME} cannot be read \(Is a directory\): give a file"):
        PruningReport.load(tmp_path / "odd")


def test_writing_replaces_a_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "a.txt", "old")
    assert path.stat().st_mode & 0o777 == 0o644
    replace, seen = os.replace, []

    def watched(source: str, target: Path) -> None:
        seen.append((Path(source).read_text(), target.read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_text(path, "new")
    assert seen == [("new", "old")]
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError) as caught:
        write_text(path, "new")
    assert str(caught.value) == (
        f"cannot write {path} (No space left on device): give a folder that is writable and has room"
    )
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_is_not_saved_where_there_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, reason in (("nowhere", "No such file or directory"), ("file", "Not a directory")):
        with pytest.raises(OutputError, match=rf"cannot write .*{folder}.*\({reason}\): give a folder that is"):
            full_report().save(tmp_path / folder)
