"""The electricity of a computation, where codecarbon is installed to take it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hubprune.facts import EnergyFacts


@contextmanager
def metered(record: Callable[[EnergyFacts], None]) -> Iterator[None]:
    """Have codecarbon, where it is installed, take the electricity of what is done meanwhile; it sends nothing.

    Where its settings name a country (``CODECARBON_COUNTRY_ISO_CODE=DEU``), the emissions are taken as well.

    Args:
        record: Called with what was found.
    """
    if importlib.util.find_spec("codecarbon") is None:
        yield
        return
    told = logging.getLogger("codecarbon")
    before, told.disabled = told.disabled, True
    try:
        from codecarbon import OfflineEmissionsTracker

        # Several at once, because a lock file would be left behind by a run that is killed.
        meter: Any = OfflineEmissionsTracker(save_to_file=False, save_to_api=False, allow_multiple_runs=True)
        meter.start()
        try:
            yield
        finally:
            meter.stop()
        found = meter.final_emissions_data
        country = found.country_iso_code or ""
        record(EnergyFacts(float(found.energy_consumed), float(found.emissions) if country else None, country))
    finally:
        told.disabled = before
