"""The report tells how far two corpora alone would have removed the same weights."""

from __future__ import annotations

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


def run(**settings: object) -> tuple[PruningReport, dict[str, torch.Tensor]]:
    """Prune the tiny model; the report, and where each matrix is zero."""
    model = tiny_model()
    report = prune(model, None, PruningConfig("d-pruner", **settings), CORPORA, progress=False)  # type: ignore[arg-type]
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
