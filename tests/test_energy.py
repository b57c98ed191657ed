"""Electricity is taken by codecarbon where it is installed; nothing is asked for or said where it is not."""

from __future__ import annotations

import importlib.util
import logging
import sys
import types
from typing import Any

import pytest
import torch

from hubprune.card import card_metadata, render_card
from hubprune.config import PruningConfig
from hubprune.energy import metered
from hubprune.facts import EnergyFacts
from hubprune.outcomes import RecoveryFacts
from hubprune.pruner import prune
from hubprune.report import PruningReport
from tests.pruned import tiny_model

CORPUS = {"general": torch.arange(64).reshape(2, 32) % 90}


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """codecarbon with a meter that always reads the same, and the meters that were made."""
    made: list[Any] = []

    class OfflineEmissionsTracker:
        def __init__(self, **settings: Any) -> None:
            self.settings, self.running = settings, False
            logging.getLogger("codecarbon").warning("a word about itself")
            made.append(self)

        def start(self) -> None:
            self.running = True

        def stop(self) -> float:
            self.running = False
            self.final_emissions_data = types.SimpleNamespace(
                energy_consumed=0.25, emissions=0.125, country_iso_code="DEU" if len(made) < 3 else None
            )
            return 0.125

    module = types.ModuleType("codecarbon")
    module.__spec__ = importlib.machinery.ModuleSpec("codecarbon", None)
    monkeypatch.setattr(module, "OfflineEmissionsTracker", OfflineEmissionsTracker, raising=False)
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    return made


def test_a_run_has_its_electricity_in_the_record(meters: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    report = prune(tiny_model(), None, PruningConfig("wanda"), CORPUS, progress=False)
    assert report.energy == EnergyFacts(0.25, 0.125, "DEU")
    assert [meter.running for meter in meters] == [False]
    assert meters[0].settings == {"save_to_file": False, "save_to_api": False, "allow_multiple_runs": True}
    assert caplog.text == ""
    assert PruningReport.from_dict(report.to_dict()).energy == report.energy
    assert "| energy, pruning | 0.25 kWh, 0.125 kg of CO2 equivalents in `DEU`" in render_card(report)


def test_a_run_that_fails_stops_the_meter_and_keeps_its_error(meters: list[Any]) -> None:
    found: list[EnergyFacts] = []
    with pytest.raises(ZeroDivisionError), metered(found.append):
        raise ZeroDivisionError
    assert ([meter.running for meter in meters], found) == ([False], [])


def test_without_codecarbon_nothing_is_recorded() -> None:
    report = prune(tiny_model(), None, PruningConfig("wanda"), CORPUS, progress=False)
    assert report.energy is None
    assert "energy" not in render_card(report)


def test_emissions_are_metadata_when_they_are_known_of_every_stage() -> None:
    report = PruningReport(energy=EnergyFacts(0.5, 0.0001234, "DEU"), hardware={"processor": "a processor"})
    said = card_metadata(report)["co2_eq_emissions"]
    assert (said["emissions"], said["source"], said["geographical_location"]) == (0.1234, "codecarbon", "DEU")
    report.recovery = RecoveryFacts(config={"method": "adapter"}, energy=EnergyFacts(0.25))
    assert "co2_eq_emissions" not in card_metadata(report)
    report.recovery.energy = EnergyFacts(0.25, 0.0001, "DEU")
    assert card_metadata(report)["co2_eq_emissions"]["emissions"] == 0.2234
