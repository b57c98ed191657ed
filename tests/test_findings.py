"""What the choice of units showed, in sentences."""

from __future__ import annotations

from hubprune.card import render_card
from hubprune.cli.tables import result
from hubprune.facts import UnitFacts
from hubprune.findings import findings
from tests.pruned import prune_by_hand, tiny_model

ROWS = [
    UnitFacts("a", 0, "ffn_neuron", 8, "c0", 9, reached=0.25, overlap={"general/domain": 0.5}, fewer={"8": 0.8}),
    UnitFacts("b", 1, "ffn_neuron", 8, "c0", 9, reached=0.5, overlap={"general/domain": 1.0}, fewer={"8": 0.9}),
]
SENTENCES = [
    "On their own, general and domain text would have removed sets with a Jaccard index of 0.75 (mean of 2 places; "
    "0.50 to 1.00).",
    "What was removed lies in the lowest 37.5 % of every text's own ranking (mean of 2 places; 50.0 % at most).",
    "Scores by 8 of the examples have a rank correlation of 0.850 with those by all (Spearman's, mean of 2 places).",
]


def test_what_was_found_is_said_in_sentences() -> None:
    assert findings(ROWS) == SENTENCES
    assert findings([UnitFacts("a", 0, "ffn_neuron", 8, "c0", 9)]) == []


def test_one_place_has_no_mean() -> None:
    (sentence,) = findings([UnitFacts("m", 0, "layer", 8, "c0", 9, overlap={"general/domain": 0.5})])
    assert sentence.endswith("a Jaccard index of 0.50.")


def test_card_and_table_say_it() -> None:
    report = prune_by_hand(tiny_model(), method="cus-prun")
    report.units, report.totals.blocks = ROWS, 1000
    card = render_card(report)
    assert all(sentence in card for sentence in SENTENCES)
    told = result(report, {})[0]
    cells = [cell for column in told.columns for cell in column.cells]
    assert [cell for cell in cells if cell in SENTENCES] == SENTENCES
