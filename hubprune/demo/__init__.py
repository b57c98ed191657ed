"""The demo world: a tiny base model and the three invented corpora that it learned from, laid out as on a Hub."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubprune.demo.world import write_world

MODEL_ID = "hubprune-demo/tiny-base"
GENERAL_ID = "hubprune-demo/general"
MEDICAL_ID = "hubprune-demo/medical"
LEGAL_ID = "hubprune-demo/legal"

__all__ = ["GENERAL_ID", "LEGAL_ID", "MEDICAL_ID", "MODEL_ID", "write_world"]


def __getattr__(name: str) -> Any:
    if name != "write_world":
        raise AttributeError(f"module 'hubprune.demo' has no attribute {name!r}")
    return importlib.import_module("hubprune.demo.world").write_world
