"""What the Space shows, as ``space.json`` says it, and what it allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SPACE: dict[str, Any] = json.loads((HERE / "space.json").read_text(encoding="utf-8"))
VARIANTS = ("base", "pruned")

MAX_CHARACTERS = 4_000  # of a prompt
MAX_INPUT_TOKENS = 1_024
MAX_NEW_TOKENS = 256
MAX_TEMPERATURE = 2.0
MIN_TOP_P = 0.05
MAX_WAITING = 16  # visitors in the queue
