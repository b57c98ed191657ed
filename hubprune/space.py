"""A report turned into a Space that shows the model beside its base: a folder of files, all of them from the report.

The Space needs gradio and plain transformers, not hubprune, and loads the commits that its ``space.json`` names.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

import hubprune
from hubprune import drawing, figures
from hubprune.card import ITEM_BYTES, card_title, domains, size
from hubprune.errors import OutputError, UsageError
from hubprune.facts import Perplexity
from hubprune.presets import METHODS
from hubprune.prompts import example_prompts
from hubprune.readme import own_parts, read_readme, unique, write_section
from hubprune.recipe import HUB_ID, base_on_hub, public
from hubprune.report import PruningReport, write_text
from hubprune.resources import resource_folder

TEMPLATE = "compare"
DATA = "space.json"
GRADIO = "6.31.0"  # what the app is tested with; the Space installs it by its sdk_version
REQUIRED = ("torch", "transformers")
PYTHON = "3.12"  # where the report does not say which one the run had
SHORT_DESCRIPTION = 60  # characters that the Hub allows
UNUSUAL = re.compile(r"[^\w\s.,:;/%+()'-]")


def space_data(report: PruningReport, model: str | None, commit: str | None) -> dict[str, Any]:
    """What the app shows and loads.

    Args:
        report: The record of the run.
        model: Repository of the pruned model; None for one that is in a folder only.
        commit: Its commit.

    Returns:
        Plain JSON types.
    """
    totals, on_hub = report.totals, base_on_hub(report)
    left = totals.left or totals.parameters
    base_name = _clean(public(report.base.model_id))
    item = ITEM_BYTES.get(report.base.dtype, 4)
    title = _clean(card_title(report, model))
    gone = f"{totals.share_of_all:.1%} of its parameters zero"
    smaller = f"{left:,} parameters" if report.application == "remove" else gone
    return {
        "title": title,
        "lead": _lead(report, base_name),
        "loader": report.base.loader,
        "trust_remote_code": report.base.trust_remote_code,
        "base": {
            "name": base_name,
            "about": f"{totals.parameters:,} parameters",
            "repo": report.base.model_id if on_hub else None,
            "revision": report.base.commit if on_hub else None,
            "parameters": totals.parameters,
            "item_bytes": item,
            "gated": report.base.gated,
        },
        "pruned": {
            "name": _clean(model) if model else title,
            "about": smaller,
            "repo": model,
            "revision": commit,
            "parameters": left,
            "item_bytes": item,
        },
        "facts": _tiles(report),
        "tables": [
            table
            for table in (_perplexities(report), _tasks(report), _sizes(report), _speeds(report))
            if table["rows"]
        ],
        "figures": [],
        "examples": example_prompts(report),
        "recorded": {
            "base": _recorded(report, ("base",)),
            "pruned": _recorded(report, ("recovered", "pruned")),
        },
    }


def _clean(text: str) -> str:
    """A name without signs that mean something in Markdown or HTML."""
    return re.sub(r"\s+", " ", UNUSUAL.sub("", text)).strip()


def _lead(report: PruningReport, base: str) -> str:
    method = METHODS[report.method].title if report.method in METHODS else _clean(report.method)
    kept = domains(report)
    aim = f", kept for {' and '.join(kept)} text" if kept else ""
    recovery = f", then recovered by {_clean(report.recovery.what)}" if report.recovery else ""
    if report.units:
        what = f"{_clean(report.pattern)} {'cut out' if report.application == 'remove' else 'set to zero'}"
    else:
        what = f"{report.totals.sparsity:.1%} of the weights of its blocks set to zero"
    return f"{base} with {what} by {method}{aim}{recovery}."


def _tiles(report: PruningReport) -> list[list[str]]:
    """The few numbers that sum a run up, each with what it is."""
    totals = report.totals
    tiles = [
        [f"{totals.sparsity:.1%}", "of the targeted weights removed"],
        [f"{totals.share_of_all:.1%}", "of all parameters removed"],
    ]
    if report.application == "remove":
        tiles.append([_short(totals.left), f"parameters left of {_short(totals.parameters)}"])
    else:
        tiles.append([_short(totals.parameters), "parameters, zeros included"])
    for corpus, row in report.perplexities().items():
        final = row.get("recovered", row.get("pruned"))
        if final is not None and "base" in row and len(tiles) < 6:
            ratio = final.perplexity / row["base"].perplexity
            tiles.append([f"× {ratio:.2f}", f"the base's perplexity on {_clean(corpus)} text"])
    return tiles


def _short(count: int) -> str:
    """A large number in its unit."""
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= unit:
            return f"{count / unit:.3g} {letter}"
    return str(count)


def _variants(names: Iterable[str]) -> list[str]:
    """The names that a table has columns for: base and pruned first."""
    found = unique(list(names))
    return [name for name in ("base", "pruned") if name in found] + [
        name for name in found if name not in ("base", "pruned")
    ]


def _perplexities(report: PruningReport) -> dict[str, Any]:
    names = _variants(row.variant for row in report.evaluation)
    others = [name for name in names if name != "base"] if "base" in names else []
    rows = []
    for corpus, row in report.perplexities().items():
        base = row.get("base")
        ratios = [f"{row[name].perplexity / base.perplexity:.2f}" if base and name in row else "-" for name in others]
        rows.append([corpus, *(_value(row.get(name)) for name in names), *ratios])
    head = ["text", *names, *(f"{name} / base" for name in others)]
    note = "exp of the mean negative log likelihood per predicted token, with its standard error; lower is better."
    return {"title": "Perplexity", "head": head, "rows": rows, "note": note}


def _value(row: Perplexity | None) -> str:
    return "-" if row is None else f"{row.perplexity:.2f} ± {row.stderr:.2f}"


def _tasks(report: PruningReport) -> dict[str, Any]:
    names = _variants(row.variant for row in report.tasks)
    found = {(row.task, row.metric, row.variant): row for row in report.tasks}
    rows = [
        [
            f"{task}, {metric}",
            *(f"{found[key].value:.4f}" if (key := (task, metric, name)) in found else "-" for name in names),
        ]
        for task, metric in unique([(row.task, row.metric) for row in report.tasks])
    ]
    return {"title": "Tasks", "head": ["task", *names], "rows": rows, "note": "Scores of lm-evaluation-harness."}


def _sizes(report: PruningReport) -> dict[str, Any]:
    sizes = {row.variant: row for row in report.sizes}
    names = _variants(sizes)
    lines = {
        "parameters": [f"{sizes[name].parameters:,}" for name in names],
        "not zero": [f"{sizes[name].nonzeros:,}" for name in names],
        "in memory": [size(sizes[name].memory_bytes) for name in names],
    }
    rows = [[what, *values] for what, values in lines.items()] if names else []
    return {"title": "Size", "head": ["", *names], "rows": rows, "note": ""}


def _speeds(report: PruningReport) -> dict[str, Any]:
    speeds = {row.variant: row for row in report.speeds}
    names = _variants(speeds)
    rows = [
        ["reading, tokens/s", *(f"{speeds[name].prefill:,.1f}" for name in names)],
        ["writing, tokens/s", *(f"{speeds[name].decode:,.1f}" for name in names)],
    ]
    where = report.measured_on.get("gpu") or report.measured_on.get("processor") or ""
    note = f"Medians of warm rounds in which the models took turns{f', on {_clean(where)}' if where else ''}."
    return {"title": "Speed when it was measured", "head": ["", *names], "rows": rows if names else [], "note": note}


def _recorded(report: PruningReport, variants: Iterable[str]) -> list[dict[str, Any]]:
    """What the first of these models that was asked wrote."""
    for variant in variants:
        rows = [row for row in report.answers if row.variant == variant]
        if rows:
            return [{"prompt": row.prompt, "text": row.text, "tokens": row.tokens} for row in rows]
    return []


def requirements(report: PruningReport) -> dict[str, str]:
    """What the Space installs, in the versions of the run; what the report does not name, as it is here."""
    found = {}
    for name in REQUIRED:
        version = report.versions.get(name) or importlib.metadata.version(name)
        found[name] = version.partition("+")[0]
    return found


def space_metadata(report: PruningReport, data: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML head of the Space's README.

    Args:
        report: The record of the run.
        data: What the app shows.
    """
    license_, python = report.base.card.get("license"), report.versions.get("python", PYTHON)
    models = [data[name]["repo"] for name in ("pruned", "base") if data[name]["repo"]]
    described = f"{data['title']} beside its base model"
    head = {
        "title": data["title"],
        "emoji": "✂️",
        "colorFrom": "yellow",
        "colorTo": "red",
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "python_version": ".".join(python.split(".")[:2]),
        "app_file": "app.py",
        "pinned": False,
        "license": license_ if isinstance(license_, str) else None,
        "models": models or None,
        "tags": ["hubprune", "pruned"],
        "short_description": described if len(described) <= SHORT_DESCRIPTION else "A pruned model beside its base",
        "suggested_hardware": "cpu-basic",
    }
    return {key: value for key, value in head.items() if value is not None}


def write_space(
    report: PruningReport,
    folder: str | Path,
    *,
    model: str | None = None,
    commit: str | None = None,
    model_folder: str | Path | None = None,
    existing: str | None = None,
) -> list[str]:
    """Write the folder of a Space that shows a pruned model beside its base.

    Args:
        report: The record of the run; the only source of what is shown.
        folder: Where to write: a new or empty folder, or that of an earlier Space, whose files are replaced. What a
            user wrote in its README stays.
        model: Repository of the pruned model; None for one that is in a folder only, which the app then finds by the
            variable ``PRUNED_MODEL``.
        commit: Commit of that repository that the Space loads.
        model_folder: Folder of the model, for its figures; where it has none they are drawn, if matplotlib is here.
        existing: Text of the README that a published Space has already.

    Returns:
        Paths of the files, from the folder on.

    Raises:
        UsageError: A repository without a commit, or a name that is none of a repository.
        OutputError: The folder holds something else, or cannot be written.
    """
    if model is not None and (commit is None or HUB_ID.fullmatch(model) is None):
        raise UsageError(
            f"a Space loads one commit of a repository of the Hub, got {model!r} at {commit!r}: give both"
        )
    target, source = Path(folder), resource_folder("spaces") / TEMPLATE
    check_space_folder(target)
    data = space_data(report, model, commit)
    own = own_parts(existing if existing is not None else read_readme(target))
    try:
        target.mkdir(parents=True, exist_ok=True)
        figure = _take_figure(report, target, model_folder)
        for path in sorted(source.iterdir()):
            if path.is_file() and path.suffix != ".jinja":
                shutil.copyfile(path, target / path.name)
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error.strerror}): give a folder that is writable") from error
    if figure is not None:
        data["figures"] = [{"file": figure.path, "title": figure.title, "caption": figure.caption}]
    loader = jinja2.FileSystemLoader(source)
    templates = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    values = {
        "data": data,
        "requirements": requirements(report),
        "gradio": GRADIO,
        "version": report.versions.get("hubprune", hubprune.__version__),
    }
    body = templates.get_template("README.md.jinja").render(values).strip("\n")
    write_text(target / "README.md", write_section(body, space_metadata(report, data), own))
    write_text(target / "requirements.txt", templates.get_template("requirements.txt.jinja").render(values))
    write_text(target / DATA, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    return space_files(target)


def space_files(folder: Path) -> list[str]:
    """The files of a Space's folder that belong to the Space, as paths from the folder on."""
    source = resource_folder("spaces") / TEMPLATE
    names = [DATA, *(path.name.removesuffix(".jinja") for path in source.iterdir() if path.is_file())]
    drawn = [kind.path for kind in figures.figures_in(folder)]
    return sorted([*(name for name in names if (folder / name).is_file()), *drawn])


def check_space_folder(folder: Path) -> None:
    """Refuse a place for a Space that holds something else.

    Raises:
        OutputError: It is a file, or a folder with other files.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"a Space is written into a folder, and {folder} is a file: give another path")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / DATA).is_file():
        raise OutputError(
            f"the folder of a Space must be empty or hold one that hubprune wrote, and {folder} holds other files: "
            "give another folder"
        )


def _take_figure(report: PruningReport, target: Path, model_folder: str | Path | None) -> figures.FigureKind | None:
    """Put the figure of where the model was pruned into the Space; None where there is none."""
    shutil.rmtree(target / figures.FOLDER, ignore_errors=True)
    there = figures.figures_in(model_folder) if model_folder is not None else []
    if there:
        (target / figures.FOLDER).mkdir()
        shutil.copyfile(Path(str(model_folder)) / there[0].path, target / there[0].path)
        return there[0]
    drawn = figures.write_figures(report, target) if drawing.has_matplotlib() else []
    for kind in drawn[1:]:
        (target / kind.path).unlink()
    return drawn[0] if drawn else None
