"""The report tells how far two corpora alone would have removed the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hubprune import PruningConfig, PruningReport, prune
from hubprune.architecture import find_matrices
from hubprune.facts import UnitFacts
from tests.pruned import VOCABULARY, tiny_model

CORPORA = {
    name: torch.randint(3, VOCABULARY, (6, 16), generator=torch.Generator().manual_seed(seed))
    for seed, name in enumerate(("general", "domain"))
}


def run(
    method: str = "d-pruner", corpora: dict[str, torch.Tensor] = CORPORA, **settings: object
) -> tuple[PruningReport, dict[str, torch.Tensor]]:
    """Prune the tiny model; the report, and where each matrix is zero."""
    model = tiny_model()
    report = prune(model, None, PruningConfig(method, **settings), corpora, progress=False)  # type: ignore[arg-type]
    return report, {matrix.name: matrix.view() == 0 for matrix in find_matrices(model)}


@pytest.mark.parametrize("pattern", [{"sparsity": 0.4}, {"pattern": "1:4"}, {"sparsity": 0.5, "scope": "row"}])
def test_overlap_is_that_of_the_masks_which_each_corpus_alone_gives(pattern: dict[str, object]) -> None:
    report, _ = run(**pattern)
    _, general = run(**pattern, options={"terms": "no-domain"})
    _, domain = run(**pattern, options={"terms": "no-general"})
    first = [row for row in report.matrices if row.block == 0]  # later blocks of the general run saw pruned inputs
    for row in first:
        left, right = general[row.name], domain[row.name]
        expected = int((left & right).sum()) / int((left | right).sum())
        assert row.overlap == {"general/domain": pytest.approx(expected, abs=1e-4)}
    assert all(row.overlap.keys() == {"general/domain"} for row in report.matrices)


@pytest.mark.parametrize("more", [{"application": "compensate"}, {"scope": "model"}])
def test_overlap_is_kept_until_the_weights_are_written(more: dict[str, object]) -> None:
    report, _ = run(sparsity=0.4, **more)
    plain, _ = run(sparsity=0.4)
    assert [row.overlap for row in report.matrices] == [row.overlap for row in plain.matrices]


@pytest.mark.parametrize("options", [{"form": "paper"}, {"terms": "no-domain"}, {"terms": "general-only"}])
def test_where_corpora_are_not_weighed_against_each_other_nothing_is_told(options: dict[str, object]) -> None:
    report, _ = run(sparsity=0.4, options=options)
    assert [row.overlap for row in report.matrices if row.overlap] == []


def test_overlap_of_units_is_that_of_the_choices_which_each_corpus_alone_gives() -> None:
    def units(**settings: object) -> list[UnitFacts]:
        return run(unit="ffn_neuron", sparsity=0.4, application="zero", **settings)[0].units

    together = units()
    alone = [units(options={"terms": terms}) for terms in ("no-domain", "no-general")]
    assert all(row.overlap.keys() == {"general/domain"} for row in together)
    general, domain = (set(rows[0].removed_indices) for rows in alone)
    assert together[0].overlap["general/domain"] == pytest.approx(
        len(general & domain) / len(general | domain), abs=1e-4
    )


DISTINCT = {"general": torch.full((6, 16), 5), "domain": torch.full((6, 16), 70)}


@pytest.mark.parametrize("method", ["wanda-sp", "ria", "taylor", "gblm", "cus-prun"])
def test_overlap_of_texts_that_count_alike_is_that_of_runs_on_each_alone(method: str) -> None:
    settings = {"unit": "ffn_neuron", "sparsity": 0.4, "application": "zero"}
    (first, *_) = run(method, DISTINCT, **settings)[0].units
    general, domain = (
        set(run(method, {name: text}, **settings)[0].units[0].removed_indices) for name, text in DISTINCT.items()
    )
    assert first.overlap == {"general/domain": pytest.approx(len(general & domain) / len(general | domain), abs=1e-4)}
    assert general != domain


STRUCTURED = ["wanda-sp", "taylor", "cus-prun", "mutual-information", "block-influence"]


@pytest.fixture
def units_of(tmp_path: Path) -> Callable[..., list[UnitFacts]]:
    """Half of the neurons masked in memory, or half of the layers taken out of a folder."""

    def units(method: str, corpora: dict[str, torch.Tensor]) -> list[UnitFacts]:
        if method != "block-influence":
            return run(method, corpora, sparsity=0.5, application="zero")[0].units
        base, config = tmp_path / "base", PruningConfig(method, sparsity=0.5)
        tiny_model().save_pretrained(base)
        return prune(base, None, config, corpora, out=tmp_path / "out", evaluation=None, progress=False).units

    return units


@pytest.mark.parametrize("method", STRUCTURED)
def test_one_text_under_two_names_agrees_with_itself(method: str, units_of: Callable[..., list[UnitFacts]]) -> None:
    same = {"general": CORPORA["domain"], "domain": CORPORA["domain"]}
    assert [row.overlap for row in units_of(method, same)] == [{"general/domain": 1.0}] * (
        1 if method == "block-influence" else 2
    )


@pytest.mark.parametrize("method", STRUCTURED)
def test_one_text_has_nothing_to_overlap_with(method: str, units_of: Callable[..., list[UnitFacts]]) -> None:
    assert not any(row.overlap for row in units_of(method, {"domain": CORPORA["domain"]}))


def test_overlap_of_neurons_with_much_in_common_is_told(units_of: Callable[..., list[UnitFacts]]) -> None:
    assert all(0 <= row.overlap["general/domain"] < 1 for row in units_of("mutual-information", CORPORA))


def test_layers_have_their_scores_and_what_each_text_alone_says(units_of: Callable[..., list[UnitFacts]]) -> None:
    (row,) = units_of("block-influence", CORPORA)
    alone = [units_of("block-influence", {name: text})[0] for name, text in CORPORA.items()]
    assert len(row.each) == row.count
    (gone,) = row.removed_indices
    assert row.each[gone] == min(row.each) == pytest.approx(row.scores["min"], abs=1e-6)
    mean = [sum(pair) / 2 for pair in zip(*(each.each for each in alone), strict=True)]
    assert row.each == pytest.approx(mean, abs=1e-5)  # as many tokens of each
    assert row.overlap["general/domain"] == float(alone[0].removed == alone[1].removed)
