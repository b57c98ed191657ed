"""Every number in a card is one of the report, or follows from the report by a sum, a ratio or a unit that is here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from hubprune.card import render_card
from hubprune.facts import CorpusFacts, EnergyFacts, MatrixFacts, Perplexity, UnitFacts, pack_removed
from hubprune.figures import FIGURES
from hubprune.outcomes import Answer, LossPoint, RecoveryFacts, SizeFacts, SpeedFacts, TaskScore
from hubprune.recovery_config import RecoveryConfig
from hubprune.report import PruningReport
from tests.pruned import prune_by_hand, tiny_model

NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d+)*(?:\.\d+)?(?:e-?\d+)?(?!\w)")
# Of the text itself: 100 % is as good as the base, 2:4, Jaccard indices up to 1, the middle 90 % of scores.
OF_THE_TEXT = {"100", "2", "4", "1", "90"}


def perplexity(variant: str, text: str, value: float) -> Perplexity:
    return Perplexity(variant, text, value, value / 70, 4321, 17, 131, 67, True, [f"org/{text}"], "e" * 64, "packed")


def recovered() -> PruningReport:
    """A report with every part that a card has a place for, in which few numbers are alike."""
    report = prune_by_hand(tiny_model())
    rows = [("base", 21.25, 18.5), ("pruned", 34.0, 27.25), ("recovered", 25.75, 19.125)]
    report.evaluation = [
        perplexity(name, text, value)
        for name, *values in rows
        for text, value in zip(("general", "domain"), values, strict=True)
    ]
    report.evaluation[0].bits_per_byte = 1.23456
    report.base.context_length = 1536
    report.tasks = [
        TaskScore("base", "pairs", "acc", 0.8125, 0.0213, 413, 3, True, "1"),
        TaskScore("recovered", "pairs", "acc", 0.6375, 0.0311, 413, 3, True, "1", 0.6375 / 0.8125),
    ]
    report.answers = [Answer("base", "A prompt", "says so"), Answer("recovered", "A prompt", "says", problem="short")]
    report.sizes = [
        SizeFacts("base", 20_011, 20_007, "float32", 80_044, 81_920, 70_001, 65_537, 60_000, 2**28 + 5),
        SizeFacts("recovered", 20_011, 12_345, "float32", 80_044, 81_920),
    ]
    report.speeds = [SpeedFacts("base", 901.5, 50.25, (802.0, 953.0), (49.0, 51.5), 257, 31, 7, 3)]
    report.measured_on = {"processor": "a processor"}
    report.energy = EnergyFacts(0.0123456, 0.00456789, "DEU")
    report.recovery = RecoveryFacts(
        config=RecoveryConfig(adapter="shira", steps=43).resolved().to_dict(),
        corpora=[CorpusFacts("domain", [], 37, 61, 2222, fingerprint="3" * 64)],
        trained=33,
        held_out=4,
        adapter="shira",
        parameters=4099,
        matrices=14,
        steps=43,
        kept_step=23,
        tokens=9001,
        curve=[LossPoint(0, None, 4.53), LossPoint(23, 3.59, 3.77), LossPoint(43, 3.23, 4.07)],
        zeros_kept=report.totals.zeros,
        groups_kept=report.totals.zeros // 2,
        timings={"train": 19.75},
        peak_memory_bytes=5 * 2**30 + 12345678,
        energy=EnergyFacts(0.0654321),
        versions={"peft": "0.21.2"},
        created="2026-03-04T05:06:07+00:00",
    )
    return report


def cut() -> PruningReport:
    """A report of units that were cut out."""
    report = prune_by_hand(tiny_model(), method="cus-prun")
    report.application, report.config = "remove", {"method": "cus-prun", "sparsity": 0.25, "seed": 3}
    report.pattern = "25 % of the FFN neurons"
    report.units = [
        UnitFacts(f"m.{block}.mlp", block, "ffn_neuron", 48, pack_removed([index < gone for index in range(48)]), 96)
        for block, gone in enumerate((12, 13))
    ]
    report.totals.pruned, report.totals.targeted = 25 * 96, 2 * 48 * 96
    report.totals.blocks, report.totals.left = 14_000, report.totals.parameters - 25 * 96
    return report


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from (leaf for pair in value.items() for part in pair for leaf in leaves(part))
    elif isinstance(value, list | tuple):
        yield from (leaf for part in value for leaf in leaves(part))
    else:
        yield value


def forms(value: float) -> set[str]:
    return {str(value), f"{value:,}", f"{value:.2f}", f"{value:.4f}", f"{value:.4g}"}


def in_units(count: int) -> str:
    power = max(0, (max(count, 1).bit_length() - 1) // 10)
    return f"{count:,}" if power == 0 else f"{count / 1024**power:,.1f}"


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f}"


def derived(report: PruningReport) -> set[str]:
    """What a card works out."""
    totals, found = report.totals, set()
    for part, whole in ((totals.pruned, totals.targeted), (totals.pruned, totals.parameters)):
        found.add(percent(part, whole))
    kinds: dict[str, list[MatrixFacts]] = {}
    for matrix in report.matrices:
        kinds.setdefault(matrix.kind, []).append(matrix)
    for rows in (*kinds.values(), report.matrices):
        sums = [sum(getattr(row, name) for row in rows) for name in ("numel", "pruned", "zeros")]
        found |= {f"{len(rows):,}", *(f"{value:,}" for value in sums), percent(sums[1], sums[0])}
    gone = sum(row.count - row.kept for row in report.units)
    if gone:
        weights = sum((row.count - row.kept) * row.weights for row in report.units)
        whole = sum(row.count * row.weights for row in report.units)
        found |= {str(len(report.units)), str(gone), f"{weights:,}", *(str(row.kept) for row in report.units)}
        found |= {percent(weights, one) for one in (whole, totals.blocks, totals.parameters)}
    for row in report.perplexities().values():
        base, pruned, own = row["base"].perplexity, row["pruned"].perplexity, row[report.result].perplexity
        found |= {percent(base, own), f"{own / base:.2f}", percent(pruned - own, pruned - base)}
    for score in report.tasks:
        found.add(f"{100 * (score.recovered or 0):.2f}")
    sizes = [report.peak_memory_bytes, 4 * totals.parameters, 4 * totals.left]
    sizes += [report.recovery.peak_memory_bytes] if report.recovery else []
    for row in report.sizes:
        sizes += [row.memory_bytes, row.file_bytes, row.transfer_bytes, row.zstd_bytes, row.resident_bytes]
    return found | {in_units(size) for size in sizes if size is not None}


def numbers(text: str) -> set[str]:
    return set(NUMBER.findall(text))


def card_numbers(report: PruningReport) -> set[str]:
    """Numbers of a card outside of its metadata and of code, which others test."""
    text = render_card(report, "me/name", figures=FIGURES)
    text = re.sub(r"\A---\n.*?\n---\n|<!-- hubprune:metadata .*|```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)|`[0-9a-f]{7,64}`|arXiv:[\d.]+", "", text.replace("\\", ""))
    return numbers(text)


@pytest.mark.parametrize("make", [recovered, cut])
def test_every_number_of_a_card_follows_from_its_report(make: Any) -> None:
    report = make()
    known = set(OF_THE_TEXT)
    for leaf in leaves(report.to_dict()):
        if isinstance(leaf, str):
            known |= numbers(leaf)
        elif isinstance(leaf, int | float) and not isinstance(leaf, bool):
            known |= forms(leaf)
    assert sorted(card_numbers(report) - known - derived(report)) == []


def test_a_wrong_number_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    report = recovered()
    right = card_numbers(report)
    monkeypatch.setattr(type(report.totals), "share_of_all", 0.123456)
    assert card_numbers(report) - right == {"12.35"}


def test_each_measurement_is_in_the_card() -> None:
    report = recovered()
    shown = card_numbers(report)
    for row in report.evaluation:
        assert {f"{row.perplexity:.2f}", f"{row.stderr:.2f}"} <= shown
    assert {"0.8125", "0.6375", "901.50", "0.01235", "0.004568", "0.06543", "1,536", "4,099", "9,001"} <= shown
