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
    from hubprune.exportrecord import GraphFacts
    from hubprune.facts import CorpusFacts, Perplexity, Verification
    from hubprune.flow import Outline, Plan
    from hubprune.jobs import JobPlan
    from hubprune.recovery_plan import RecoveryPlan
    from hubprune.report import PruningReport

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
    show(facts_table([(method.name, _about(method)) for method in METHODS.values()], "Methods"))


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
        if request.publishing["space"]:
            rows.append(("would publish", f"the Space {request.push}, which shows it"))
    return facts_table([*rows, *_warnings(plan.warnings)], "Nothing was pruned (--dry-run)")


def forecast(plan: Plan, outline: Outline, found: Estimate, threads: int) -> Table:
    """What a run would take.

    Args:
        plan: The run, text read.
        outline: What is known of the model.
        found: What it would take.
        threads: Threads that torch uses.
    """
    machine = f"this machine ({threads} thread{'s' if threads > 1 else ''})"
    taken, how = "not estimated: no one block stands for both stacks of an encoder-decoder", "estimated"
    if found.seconds is not None:
        taken = f"about {_duration(found.seconds)} on {machine}, without download and evaluation"
        how = "estimated; one random block was pruned"
    return facts_table(
        [*_run(plan, outline), *_needs_of(found), ("time", taken), *_warnings(plan.warnings)],
        f"What the run would take ({how})",
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
    in_memory = f"{size(memory.resident())} with all blocks in memory"
    streams = not (memory.paired or memory.scores)
    return [
        ("download", size(found.download) if found.download else "nothing, the weights are here"),
        ("disk", f"{size(found.disk)} for the result and the work folder"),
        ("memory", f"{in_memory}, from {size(memory.streamed(0))} streamed" if streams else in_memory),
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
    return facts_table(rows, "Nothing was submitted (--dry-run)")


def result(report: PruningReport, places: Mapping[str, str]) -> list[Table]:
    """What a run did.

    Args:
        report: Its record.
        places: Where the result lies.
    """
    from hubprune.card import size
    from hubprune.findings import findings

    totals = report.totals
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.timings.items())
    memory = size(report.peak_memory_bytes)
    multiple = report.config.get("multiple")
    if report.peak_gpu_memory_bytes is not None:
        memory += f", on the GPU {size(report.peak_gpu_memory_bytes)}"
    rows = [
        ("base", _base(report.base.model_id, report.base.commit)),
        ("method", _method(report.method, report.application, report.options)),
        ("pattern", report.pattern),
        *((f"{corpus.name} text", _text(corpus)) for corpus in report.corpora),
        ("sparsity of the targeted weights", f"{_percent(totals.sparsity)} of {totals.targeted:,}"),
        *_of_blocks(report),
        ("of all parameters", f"{_percent(totals.share_of_all)} of {totals.parameters:,}"),
        *([("parameters left", f"{totals.left:,}")] if report.application == "remove" else []),
        *([("neurons left in a layer", f"a multiple of {multiple}")] if (multiple or 1) > 1 else []),
        *(("found", sentence) for sentence in findings(report.units)),
        ("time", f"{sum(report.timings.values()):.1f} s ({stages})"),
        ("peak memory", memory),
        *places.items(),
        *([("verified", _verified(report.verification))] if report.verification is not None else []),
        *_warnings(report.warnings),
    ]
    return [facts_table(rows, "Pruned"), *([perplexities(report.evaluation)] if report.evaluation else [])]


def _of_blocks(report: PruningReport) -> list[tuple[str, str]]:
    totals = report.totals
    share = f"{_percent(totals.share_of_blocks)} of {totals.blocks:,}"
    return [("of the block parameters", share)] if report.units else []


def recovery_plan(plan: RecoveryPlan, report: PruningReport, target: object) -> Table:
    """What a recovery would do.

    Args:
        plan: The recovery, text read.
        report: The record of the pruning.
        target: Folder that would be written.
    """
    rows = [
        ("base", _base(report.base.model_id, report.base.commit)),
        ("pattern", report.pattern),
        ("recovery", _settings(plan.config.to_dict())),
        *((f"{corpus.name} text", _text(corpus.facts)) for corpus in plan.corpora.values()),
        *((f"evaluation on {label}", _text(corpus.facts)) for label, corpus in plan.evaluation.items()),
        ("would write", str(target)),
        *_warnings(plan.warnings),
    ]
    return facts_table(rows, "Nothing was recovered (--dry-run)")


def recovered(report: PruningReport, places: Mapping[str, str]) -> list[Table]:
    """What a recovery did.

    Args:
        report: The record of the model.
        places: Where the result lies.
    """
    from hubprune.card import size

    facts = report.recovery
    assert facts is not None  # it was just recovered
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in facts.timings.items())
    groups = "" if facts.groups_kept is None else f", {facts.groups_kept:,} groups of {report.pattern} right"
    rows = [
        ("recovery", f"{facts.what}, {facts.parameters:,} parameters in {facts.matrices} matrices"),
        ("settings", _settings(facts.config)),
        *((f"{corpus.name} text", _text(corpus)) for corpus in facts.corpora),
        ("steps", f"{facts.steps:,} ({facts.tokens:,} tokens), those of step {facts.kept_step:,} kept"),
        ("zeros", f"all {facts.zeros_kept:,} still zero{groups}"),
        *([("dense base", facts.teacher)] if facts.teacher else []),
        ("time", f"{sum(facts.timings.values()):.1f} s ({stages})"),
        ("peak memory", size(facts.peak_memory_bytes)),
        *places.items(),
        *([("verified", _verified(report.verification))] if report.verification is not None else []),
        *_warnings(report.warnings),
    ]
    return [facts_table(rows, "Recovered"), *([perplexities(report.evaluation)] if report.evaluation else [])]


def _settings(config: Mapping[str, Any]) -> str:
    """The fields of a recovery config that differ from the defaults, the method first."""
    from hubprune.recipe import recovery_settings

    more = {name: value for name, value in recovery_settings(config).items() if name != "method"}
    return ", ".join([str(config["method"]), *(f"{name}={value}" for name, value in more.items())])


def perplexities(rows: Sequence[Perplexity]) -> Table:
    """Perplexities: a line for each text, a column for each model, and how many times the base's each is."""
    names = list(dict.fromkeys(row.variant for row in rows))
    names = [name for name in ("base",) if len(names) > 1] + [
        name for name in names if name != "base" or len(names) == 1
    ]
    found = {(row.corpus, row.variant): row for row in rows}
    lines = []
    for label in dict.fromkeys(row.corpus for row in rows):
        base = found.get((label, "base"))
        others = [found.get((label, name)) for name in names if name != "base"]
        ratios = [
            f"{row.perplexity / base.perplexity:.3f}" if base is not None and row is not None else "-"
            for row in others
        ]
        lines.append((label, *(_value(found.get((label, name))) for name in names), *ratios))
    ratios = [f"{name} / base" for name in names if name != "base"] if "base" in names else []
    width = 1 + len(names) + len(ratios)
    return numbers(("perplexity on", *names, *ratios), [line[:width] for line in lines])


def stamp(verification: Verification) -> Table:
    """The checks that a folder passed."""
    title = f"Verified with transformers {verification.transformers_version}"
    return facts_table(list(verification.checks.items()), title)


def exported(facts: GraphFacts, places: Mapping[str, str]) -> Table:
    """What an export wrote and what was measured on it.

    Args:
        facts: The graph.
        places: Where it is.
    """
    from hubprune.card import size

    zeros = f"{facts.zeros:,} in {facts.matrices:,} matrices, all zeros in the graph"
    if facts.int8:
        zeros += f", and {facts.rounded_to_zero:,} more in all of it by rounding"
    logits = f"differ from transformers by {facts.difference:.2g} of the largest (allowed: {facts.tolerance:g})"
    rows = [
        ("graph", f"{facts.file}, {'8-bit weights' if facts.int8 else 'float32'}, {size(facts.bytes)}"),
        ("logits", f"{logits}, {_percent(facts.agreement)} of {facts.tokens} tokens the same"),
        ("zeros", zeros),
        ("time", _duration(facts.seconds)),
        *places.items(),
    ]
    return facts_table(rows, "Exported")


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


def _ratio(row: Perplexity | None, base: Perplexity | None) -> str:
    return "-" if row is None or base is None else f"{row.perplexity / base.perplexity:.3f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def facts_table(rows: Iterable[tuple[str, str]], title: str) -> Table:
    """A table of facts, each with its name."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def numbers(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is words and whose others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
