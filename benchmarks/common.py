"""What the benchmark scripts share: tables, targets, and the embedded Hub seeded with real models and data."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

REAL = Path(os.environ.get("HUBPRUNE_REAL", Path(__file__).parents[2] / "shared" / "real"))


@contextmanager
def real_hub() -> Iterator[None]:
    """Serve the real models and data sets on an embedded Hub and point the Hub client at it.

    To be entered before huggingface_hub is imported, because the client reads its endpoint when it is imported.
    """
    if not REAL.is_dir():
        sys.exit(
            f"this benchmark reads real models and data laid out like Hub repositories, and {REAL} is not there: "
            "set HUBPRUNE_REAL"
        )
    from hubprune.localhub import EmbeddedHub

    with tempfile.TemporaryDirectory() as folder, EmbeddedHub(Path(folder) / "hub", seed=[REAL]) as hub:
        os.environ["HF_ENDPOINT"] = hub.url
        os.environ["HF_HOME"] = str(Path(folder) / "home")
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        yield


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table, so that it can be pasted into the documentation as it is."""
    print(f"\n{title}\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


class Targets:
    """Collects what a benchmark must show; ``exit`` prints a line for each and leaves with 1 when one falls short."""

    def __init__(self) -> None:
        self.lines: list[tuple[bool, str]] = []

    def at_most(self, name: str, value: float, limit: float, unit: str = "") -> None:
        """Require ``value <= limit``."""
        self.lines.append((value <= limit, f"{name}: {value:.3g}{unit} (target: at most {limit:g}{unit})"))

    def at_least(self, name: str, value: float, limit: float, unit: str = "") -> None:
        """Require ``value >= limit``."""
        self.lines.append((value >= limit, f"{name}: {value:.3g}{unit} (target: at least {limit:g}{unit})"))

    def exit(self) -> None:
        """Print the verdicts and end the script."""
        for passed, line in self.lines:
            print(f"{'ok   ' if passed else 'short'} {line}")
        sys.exit(0 if all(passed for passed, _ in self.lines) else 1)
