"""What the commands print. Everything comes from reports, plans and the tables of presets."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hubprune.presets import METHODS, Method

if TYPE_CHECKING:
    from rich.table import Table

    from hubprune.cli.prune import Request
    from hubprune.estimate import Estimate
    from hubprune.facts import CorpusFacts, Perplexity, SourceFacts, Verification
    from hubprune.flow import Outline, Plan
    from hubprune.jobs import JobPlan
    from hubprune.report import PruningReport
    from hubprune.similarity import Comparison, Square

SHORT = 12  # characters of a hash that are shown


def show(*tables: Any) -> None:
    """Print tables and lines."""
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    for table in tables:
        console.print(table)


def warn(sentences: Iterable[str]) -> None:
    """Print what the user should know to the error stream."""
    for sentence in sentences:
        print("warning: " + " ".join(sentence.split()), file=sys.stderr)


def methods() -> None:
    """List the pruning methods: what each needs, its defaults and its options."""
    show(_facts([(method.name, _about(method)) for method in METHODS.values()], "Methods"))


def _about(method: Method) -> str:
    lines = [
        method.summary + (f" arXiv:{method.arxiv}" if method.arxiv else ""),
        f"needs {_needs(method)}; {_competes(method)}, application {method.application}",
    ]
    for name, default in method.options.items():
        values = "|".join(method.choices.get(name, ("NUMBER",)))
        lines.append(f"--option {name}={values} (without it: {default})")
    return "\n".join(lines) + "\n"


def _competes(method: Method) -> str:
    return f"scope {method.scope}" if method.unit == "weight" else f"unit {method.unit}"


def _needs(method: Method) -> str:
    if method.corpora == ("any",):
        return "any text"
    return " and ".join(method.corpora) + " text" if method.corpora else "no text"


def dry_run(request: Request, plan: Plan, outline: Outline, found: Estimate, is_new: bool) -> Table:
    """What a run would do.

    Args:
        request: What was asked for.
        plan: The run, text read.
        outline: What is known of the model.
        found: What it would take.
        is_new: Whether the repository to push to would be created.
    """
    rows = [*_run(plan, outline), *_needs_of(found)]
    if request.out is not None:
        rows.append(("would write", str(request.out)))
    if request.push is not None:
        what = "would open a pull request on" if request.publishing["create_pr"] else "would push to"
        rows.append((what, f"{request.push}, {_kind(is_new)}"))
    return _facts([*rows, *_warnings(plan.warnings)], "Nothing was pruned (--dry-run)")


def forecast(plan: Plan, outline: Outline, found: Estimate, threads: int) -> Table:
    """What a run would take.

    Args:
        plan: The run, text read.
        outline: What is known of the model.
        found: What it would take.
        threads: Threads that torch uses.
    """
    machine = f"this machine ({threads} thread{'s' if threads > 1 else ''})"
    time = ("time", f"about {_duration(found.seconds or 0.0)} on {machine}, without download and evaluation")
    return _facts(
        [*_run(plan, outline), *_needs_of(found), time, *_warnings(plan.warnings)],
        "What the run would take (estimated; one random block was pruned)",
    )


def _run(plan: Plan, outline: Outline) -> list[tuple[str, str]]:
    config = plan.config
    return [
        ("base", _base(plan.base.repo.repo_id, plan.base.repo.commit)),
        ("architecture", f"{outline.facts.architecture}, {outline.parameters:,} parameters"),
        ("method", _method(config.method, config.resolved_application(), config.resolved_options())),
        ("would remove", _would_remove(plan, outline)),
        *((f"{name} text", _text(corpus.facts)) for name, corpus in plan.corpora.items()),
        *((f"evaluation on {label}", _text(corpus.facts)) for label, corpus in plan.evaluation.items()),
    ]


def _would_remove(plan: Plan, outline: Outline) -> str:
    pattern = plan.config.resolved_pattern()
    if outline.matrices:
        return f"{pattern} of {outline.targeted:,} weights in {outline.matrices} matrices"
    share = f"{outline.pruned:,} weights, {_percent(outline.pruned / outline.parameters)} of all parameters"
    return f"{pattern}: {share}; {outline.left:,} parameters would be left"


def _needs_of(found: Estimate) -> list[tuple[str, str]]:
    from hubprune.card import size

    memory = found.memory
    return [
        ("download", size(found.download) if found.download else "nothing, the weights are here"),
        ("disk", f"{size(found.disk)} for the result and the work folder"),
        ("memory", f"{size(memory.resident())} with all blocks in memory, from {size(memory.streamed(0))} streamed"),
        ("would run", str(found.choice)),
    ]


def _warnings(sentences: Iterable[str]) -> list[tuple[str, str]]:
    return [("warning", sentence) for sentence in sentences]


def _duration(seconds: float) -> str:
    """A time in words, as exact as an estimate is."""
    if seconds < 1:
        return "1 s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def job(plan: JobPlan, push: str, is_new: bool) -> Table:
    """What a job would do.

    Args:
        plan: The job.
        push: Repository that it would push to.
        is_new: Whether it would be created.
    """
    rows = [
        ("would run on", plan.flavor),
        ("for at most", plan.timeout or "30 minutes, the Hub's own limit"),
        ("would install", plan.requirement),
        ("would run", str(plan)),
        ("would push to", f"{push}, {_kind(is_new)}"),
    ]
    return _facts(rows, "Nothing was submitted (--dry-run)")


def result(report: PruningReport, places: Mapping[str, str]) -> list[Table]:
    """What a run did.

    Args:
        report: Its record.
        places: Where the result lies.
    """
    from hubprune.card import size

    totals = report.totals
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.timings.items())
    memory = size(report.peak_memory_bytes)
    if report.peak_gpu_memory_bytes is not None:
        memory += f", on the GPU {size(report.peak_gpu_memory_bytes)}"
    rows = [
        ("base", _base(report.base.model_id, report.base.commit)),
        ("method", _method(report.method, report.application, report.options)),
        ("pattern", report.pattern),
        *((f"{corpus.name} text", _text(corpus)) for corpus in report.corpora),
        ("sparsity of the targeted weights", f"{_percent(totals.sparsity)} of {totals.targeted:,}"),
        *(
            [("of the block parameters", f"{_percent(totals.share_of_blocks)} of {totals.blocks:,}")]
            if report.units
            else []
        ),
        ("of all parameters", f"{_percent(totals.share_of_all)} of {totals.parameters:,}"),
        *([("parameters left", f"{totals.left:,}")] if report.application == "remove" else []),
        ("time", f"{sum(report.timings.values()):.1f} s ({stages})"),
        ("peak memory", memory),
        *places.items(),
        *([("verified", _verified(report.verification))] if report.verification is not None else []),
        *_warnings(report.warnings),
    ]
    return [_facts(rows, "Pruned"), *([_comparison(report)] if report.evaluation else [])]


def _of_blocks(report: PruningReport) -> list[tuple[str, str]]:
    totals = report.totals
    share = f"{_percent(totals.share_of_blocks)} of {totals.blocks:,}"
    return [("of the block parameters", share)] if report.units else []


def _comparison(report: PruningReport) -> Table:
    rows = []
    for label, found in report.perplexities().items():
        base, pruned = found.get("base"), found.get("pruned")
        ratio = f"{pruned.perplexity / base.perplexity:.3f}" if base is not None and pruned is not None else "-"
        rows.append((label, _value(base), _value(pruned), ratio))
    return _numbers(("perplexity on", "base", "pruned", "pruned / base"), rows)


def measurements(rows: Sequence[Perplexity]) -> list[Any]:
    """Perplexities of one model, and how they were measured."""
    table = _numbers(("text", "perplexity"), [(row.corpus, _value(row)) for row in rows])
    said = (
        "exp of the mean negative log likelihood per predicted token, in nats, with its standard error over windows."
    )
    return [table, said, *(f"{row.corpus}: {_protocol(row)}" for row in rows)]


def _protocol(row: Perplexity) -> str:
    start = "each begins with the start token" if row.bos else "no start token"
    return (
        f"{row.tokens:,} tokens predicted in {row.windows} windows of up to {row.window} tokens, one every "
        f"{row.stride}; {start}; from {' + '.join(row.sources)}; fingerprint {row.fingerprint[:SHORT]}"
    )


def comparison(found: Comparison) -> list[Any]:
    """How alike the masks of several runs are."""
    names = [run.name for run in found.runs]

    def line(title: str, square: Square) -> list[str]:
        return [title, *(_index(square[left][right]) for left, right in found.pairs)]

    runs = []
    for place, run in enumerate(found.runs):
        removed, count = found.removed(place)
        runs.append((run.name, f"{run.method}, {run.pattern}: {removed:,} of {count:,} {found.unit} removed"))
    square = [[name, *map(_index, row)] for name, row in zip(names, found.similarity(), strict=True)]
    pairs = [found.name_pair(pair) for pair in found.pairs]
    rows = [line("all", found.similarity()), line("by chance", found.by_chance())]
    rows += [line(kind, found.similarity(kind=kind)) for kind in found.kinds]
    rows += [line(f"layer {block}", found.similarity(block=block)) for block in found.blocks]
    return [
        _facts(runs, f"What the runs removed from {found.base}"),
        _numbers(("Jaccard index", *names), square),
        _numbers(("Jaccard index", *pairs), rows),
        f"Jaccard index: {found.unit} that both removed, of those that at least one did. By chance: of masks drawn at "
        "random with as many removed in each place.",
    ]


def _index(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def calibrated_on(report: PruningReport | None, texts: Iterable[CorpusFacts]) -> list[str]:
    """Warnings about texts that come from where the text of a model's calibration came from.

    Args:
        report: The model's record, None for a model that hubprune did not prune.
        texts: The texts.
    """
    corpora = report.corpora if report is not None else []
    used = [(source, corpus.name) for corpus in corpora for source in corpus.sources]
    found = {
        f"the model was calibrated on text of {source.dataset} ({source.split}), as its {name} corpus, and the "
        f"{text.name} text comes from there too: its perplexity may be too good": None
        for text in texts
        for source in text.sources
        for known, name in used
        if _may_share_rows(source, known)
    }
    return list(found)


def _may_share_rows(one: SourceFacts, other: SourceFacts) -> bool:
    """Whether two sources read the same split, and no filter tells their rows apart."""
    theirs = dict(other.filters)
    apart = any(theirs.get(column, value) != value for column, value in one.filters)
    same = (one.dataset, one.config, one.split) == (other.dataset, other.config, other.split)
    return same and not apart


def stamp(verification: Verification) -> Table:
    """The checks that a folder passed."""
    title = f"Verified with transformers {verification.transformers_version}"
    return _facts(list(verification.checks.items()), title)


def destination(done: Any) -> str:
    """Where a push went, or what it would do: the address of the pull request or commit, or the plan."""
    return str(getattr(done, "pr_url", None) or getattr(done, "commit_url", None) or done)


def _kind(is_new: bool) -> str:
    return "a new repository" if is_new else "which exists"


def _base(model_id: str, commit: str | None) -> str:
    return f"{model_id} at {commit[:SHORT]}" if commit else model_id


def _method(name: str, application: str, options: Mapping[str, Any]) -> str:
    settings = "".join(f", {key}={value}" for key, value in options.items())
    return f"{name}, {application}{settings}"


def _text(facts: CorpusFacts) -> str:
    from hubprune.corpora import filter_text

    places = " + ".join(
        ":".join(filter(None, (source.dataset, source.config, source.split))) + filter_text(source.filters)
        for source in facts.sources
    )
    kind = f"examples with {facts.distinct_answers} different answers" if facts.examples else "sequences"
    left_out = (
        f"; {facts.passed_over} examples were passed over, their answers are longer" if facts.passed_over else ""
    )
    return (
        f"{facts.num_sequences} {kind} of up to {facts.sequence_length} tokens ({facts.tokens:,} in all) from "
        f"{places or 'texts given'}{left_out}"
    )


def _verified(verification: Verification) -> str:
    passed = "passed" if verification.passed else "FAILED; these passed"
    return f"{passed}: {', '.join(verification.checks)} (transformers {verification.transformers_version})"


def _value(row: Perplexity | None) -> str:
    return "-" if row is None else f"{row.perplexity:.2f} ± {row.stderr:.2f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _facts(rows: Iterable[tuple[str, str]], title: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _numbers(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
