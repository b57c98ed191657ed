"""What ``hubprune eval`` prints: models side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hubprune.cli.tables import SHORT, numbers, perplexities

if TYPE_CHECKING:
    from rich.table import Table

    from hubprune.facts import Perplexity
    from hubprune.outcomes import Answer, Evaluation, SizeFacts, SpeedFacts, TaskScore

SHOWN = 160  # characters of an answer that are shown


def measured(found: Evaluation) -> list[Any]:
    """Tables and lines of everything that was measured."""
    shown: list[Any] = []
    if found.perplexities:
        shown += [perplexities(found.perplexities), *_how(found.perplexities)]
    if found.tasks:
        shown += [_tasks(found.tasks)]
    if found.answers:
        shown += [
            "Answers (the likeliest token each time):",
            *(line for row in found.answers for line in _answer(row)),
        ]
    if found.sizes:
        shown += [_sizes(found.sizes), *_estimate(found.sizes)]
    if found.speeds:
        shown += [_speeds(found.speeds), _where(found)]
    return shown


def _how(rows: Sequence[Perplexity]) -> list[Any]:
    """How perplexities were measured, and bits per byte where they are known."""
    said = (
        "exp of the mean negative log likelihood per predicted token, in nats, with its standard error over windows."
    )
    first = {(row.corpus, row.fingerprint): row for row in reversed(rows)}
    lines = [f"{row.corpus}: {_protocol(row)}" for row in reversed(first.values())]
    bits = [row for row in rows if row.bits_per_byte is not None]
    if not bits:
        return [said, *lines]
    names = list(dict.fromkeys(row.variant for row in bits))
    found = {(row.corpus, row.variant): f"{row.bits_per_byte:.4f}" for row in bits}
    texts = dict.fromkeys(row.corpus for row in bits)
    table = numbers(
        ("bits per byte on", *names), [(text, *(found.get((text, name), "-") for name in names)) for text in texts]
    )
    return [said, *lines, table]


def _protocol(row: Perplexity) -> str:
    layout = {
        "packed": "documents packed one after the other",
        "joined": f"documents joined by {row.join!r}",
        "separate": "each document by itself",
    }
    start = "each begins with the start token" if row.bos else "no start token"
    places = " + ".join(row.sources) or "texts given"
    return (
        f"{row.tokens:,} tokens predicted in {row.windows:,} windows of up to {row.window:,} tokens, one every "
        f"{row.stride:,}; {start}; {layout[row.layout]}; from {places}; fingerprint {row.fingerprint[:SHORT]}"
    )


def _tasks(rows: Sequence[TaskScore]) -> Table:
    names = list(dict.fromkeys(row.variant for row in rows))
    found = {(row.task, row.metric, row.variant): row for row in rows}
    others = [name for name in names if any(row.variant == name and row.recovered is not None for row in rows)]
    lines = []
    for task, metric in dict.fromkeys((row.task, row.metric) for row in rows):
        line = [found.get((task, metric, name)) for name in names]
        any_row = next(row for row in line if row is not None)
        reached = [found.get((task, metric, name)) for name in others]
        lines.append(
            (
                f"{task}, {metric}",
                *(_score(row) for row in line),
                *("-" if row is None or row.recovered is None else f"{row.recovered:.1%}" for row in reached),
                f"{any_row.examples:,}",
                str(any_row.fewshot),
            )
        )
    return numbers(("task", *names, *(f"{name} recovers" for name in others), "examples", "few-shot"), lines)


def _score(row: TaskScore | None) -> str:
    if row is None:
        return "-"
    return f"{row.value:.4f}" + (f" ± {row.stderr:.4f}" if row.stderr is not None else "")


def _answer(row: Answer) -> list[str]:
    text = " ".join(row.text.split())
    cut = text if len(text) <= SHOWN else text[:SHOWN] + "..."
    return [f"  {row.variant}: {' '.join(row.prompt.split())} [{cut}]" + (f": {row.problem}" if row.problem else "")]


def _sizes(rows: Sequence[SizeFacts]) -> Table:
    from hubprune.card import size

    def count(value: int | None) -> str:
        return "-" if value is None else f"{value:,}"

    def byte(value: int | None) -> str:
        return "-" if value is None else size(value)

    lines: list[tuple[str, Callable[[SizeFacts], int | None], Callable[[int | None], str]]] = [
        ("parameters", lambda row: row.parameters, count),
        ("not zero", lambda row: row.nonzeros, count),
        ("weights in memory", lambda row: row.memory_bytes, byte),
        ("weight files", lambda row: row.file_bytes, byte),
        ("after LZ4, as the Hub transfers (estimate)", lambda row: row.transfer_bytes, byte),
        ("after zstandard (estimate)", lambda row: row.zstd_bytes, byte),
        ("resident memory of a process with it", lambda row: row.resident_bytes, byte),
    ]
    base = next((row for row in rows if row.variant == "base"), None)
    others = [row for row in rows if row.variant != "base"] if base is not None else []
    table = []
    for name, read, write in lines:
        values = [read(row) for row in rows]
        if any(value is not None for value in values):
            dense = read(base) if base is not None else None
            ratios = [_ratio(read(row), dense) for row in others]
            table.append((name, *(write(value) for value in values), *ratios))
    return numbers(("size", *(row.variant for row in rows), *(f"{row.variant} / base" for row in others)), table)


def _ratio(value: float | None, base: float | None) -> str:
    return "-" if value is None or not base else f"{value / base:.3f}"


def _estimate(rows: Sequence[SizeFacts]) -> list[str]:
    sample = max(row.estimated_from for row in rows)
    return [f"The estimates are made from {sample / 2**20:,.1f} MiB of the weights, in chunks."] if sample else []


def _speeds(rows: Sequence[SpeedFacts]) -> Table:
    base = next((row for row in rows if row.variant == "base"), None)
    lines = []
    for row in rows:
        against = (_ratio(row.prefill, base.prefill), _ratio(row.decode, base.decode)) if base is not None else ()
        lines.append(
            (row.variant, _rate(row.prefill, row.prefill_spread), _rate(row.decode, row.decode_spread), *against)
        )
    header = ("speed", "prefill, tokens/s", "decode, tokens/s")
    return numbers((*header, "prefill / base", "decode / base") if base is not None else header, lines)


def _rate(median: float, spread: tuple[float, float]) -> str:
    return f"{median:,.1f} ({spread[0]:,.1f} to {spread[1]:,.1f})"


def _where(found: Evaluation) -> str:
    row = found.speeds[0]
    place = found.hardware.get("gpu") if row.device not in ("cpu",) else found.hardware.get("processor")
    threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
    return (
        f"Medians (lowest to highest) of {row.rounds} warm rounds in which the models took turns; {row.prompt_tokens} "
        f"tokens read, {row.new_tokens} written, one sequence; {place}, {threads}, {row.dtype}."
    )
