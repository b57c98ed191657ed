"""What the choice of units showed, in sentences.

How far texts agree, how far down their rankings the choice went, how many examples would have done.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from hubprune.facts import UnitFacts


def findings(rows: Sequence[UnitFacts]) -> list[str]:
    """Say what the rows of units in a report show besides their counts; nothing where there is nothing to say."""
    return [*_overlap(rows), *_reached(rows), *_fewer(rows)]


def _overlap(rows: Sequence[UnitFacts]) -> Iterable[str]:
    for pair in _keys(row.overlap for row in rows):
        left, right = pair.split("/")
        values = [row.overlap[pair] for row in rows if pair in row.overlap]
        yield (
            f"On their own, {left} and {right} text would have removed sets with a Jaccard index of "
            f"{_summary(values, len(rows))}."
        )


def _reached(rows: Sequence[UnitFacts]) -> Iterable[str]:
    values = [row.reached for row in rows if row.reached is not None]
    if values:
        yield (
            f"What was removed lies in the lowest {100 * statistics.fmean(values):.1f} % of every text's own ranking "
            f"(mean of {len(values)} places; {100 * max(values):.1f} % at most)."
        )


def _fewer(rows: Sequence[UnitFacts]) -> Iterable[str]:
    counts = _keys(row.fewer for row in rows)
    if counts:
        means = (statistics.fmean(row.fewer[count] for row in rows if count in row.fewer) for count in counts)
        yield (
            f"Scores by {', '.join(counts)} of the examples have a rank correlation of "
            f"{', '.join(f'{value:.3f}' for value in means)} with those by all (Spearman's, mean of {len(rows)} "
            "places)."
        )


def _keys(found: Iterable[dict[str, float]]) -> list[str]:
    """Keys of several dictionaries, each once, in their order."""
    return list(dict.fromkeys(key for each in found for key in each))


def _summary(values: Sequence[float], places: int) -> str:
    if places == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.fmean(values):.2f} (mean of {len(values)} places; {min(values):.2f} to {max(values):.2f})"
