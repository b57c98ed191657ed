"""A report turned into the page that people read: text, tables, and the merge with a README that a user has edited.

Everything shown comes from the report; nothing is measured here, and neither torch nor the network is needed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import jinja2

from hubprune.carddata import PrunedModelCardData
from hubprune.citations import cite
from hubprune.corpora import filter_text
from hubprune.facts import EnergyFacts
from hubprune.figures import FigureKind
from hubprune.findings import findings
from hubprune.metadata import card_metadata, card_title, domains, hub_datasets, own_metadata
from hubprune.presets import METHODS
from hubprune.readme import own_parts, write_section
from hubprune.recipe import HUB_ID, base_on_hub, cli_recipe, public, python_recipe, yaml_recipe
from hubprune.report import PruningReport
from hubprune.resources import resource_folder
from hubprune.usage import usage

__all__ = ["card_metadata", "card_title", "render_card", "size"]

ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def _repaired(report: PruningReport) -> bool:
    """Whether the remaining weights were changed."""
    if report.units:
        return any(row.damping is not None for row in report.units)
    return report.application == "compensate"


def _share(report: PruningReport) -> float:
    """Fraction removed of the matrices in the table."""
    weights = sum(row.numel for row in report.matrices)
    return sum(row.pruned for row in report.matrices) / weights if weights else 0.0


def _energy(report: PruningReport) -> dict[str, EnergyFacts]:
    """Electricity of each stage that it is known of."""
    found = {"pruning": report.energy, "recovery": report.recovery.energy if report.recovery else None}
    return {stage: energy for stage, energy in found.items() if energy is not None}


def size(count: int) -> str:
    """Bytes in the unit that leaves between 1 and 1,024 of them."""
    value, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{count:,} bytes" if units[0] == "bytes" else f"{value:,.1f} {units[0]}"


def _code(value: Any) -> str:
    """A code span that holds any text."""
    text = re.sub(r"\s+", " ", str(value)).strip() or " "
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{'`' * (longest + 1)}{pad}{text}{pad}{'`' * (longest + 1)}"


def _cell(value: Any) -> str:
    """A code span inside a table, where a bar ends the cell even in code."""
    return _code(value).replace("|", "\\|")


def _plain(value: Any) -> str:
    """Prose without any Markdown or HTML meaning."""
    text = re.sub(r"\s+", " ", str(value)).strip()
    text = re.sub(r"([\\`*_\[\]()|~$!#])", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fence(value: Any, language: str = "text") -> str:
    """A fenced block that its content cannot close; our markers are disarmed."""
    text = re.sub(r"[^\S\n\t ]|[\x00-\x08\x0b-\x1f\x7f]", " ", str(value).replace("\r\n", "\n").replace("\r", "\n"))
    text = text.replace("<!-- hubprune:", "<!- - hubprune:")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    bar = "`" * max(3, longest + 1)
    return f"{bar}{language}\n{text}\n{bar}"


def _markdown(value: Any) -> str:
    """A user's own Markdown; our markers are disarmed."""
    return re.sub(r"<!--\s*hubprune:", "<!- - hubprune:", str(value).replace("\r\n", "\n").replace("\r", "\n")).strip()


def _link(repo_id: str, kind: str = "") -> str:
    """A link to a repository, or its bare name when that is no id of the Hub."""
    if HUB_ID.fullmatch(repo_id) is None:
        return _code(repo_id)
    return f"[{_code(repo_id)}](https://huggingface.co/{kind}{repo_id})"


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(resource_folder("templates"))
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters.update(
        code=_code,
        cell=_cell,
        plain=_plain,
        fence=_fence,
        link=_link,
        markdown=_markdown,
        public=public,
        count=lambda value: f"{value:,}",
        percent=lambda value: f"{100 * value:.2f} %",
        decimals=lambda value: f"{value:.2f}",
        digits=lambda value: f"{value:.4g}",
        filters=filter_text,
        size=size,
    )
    return environment.get_template("model_card.md.jinja")


def render_card(
    report: PruningReport,
    repo_id: str | None = None,
    existing: str | None = None,
    *,
    figures: Sequence[FigureKind] = (),
) -> str:
    """Render the README of a pruned model.

    Args:
        report: The run's report; the only source of facts.
        repo_id: Repository that the card is for; None for a folder.
        existing: Text of the README that is there already: what the user wrote in it stays.
        figures: Figures that lie beside it, to be shown.

    Raises:
        OutputError: The existing README cannot be read.
    """
    own = own_parts(existing)
    ours = own_metadata(report, repo_id)
    place = repo_id or "path/to/this/folder"
    text = _template().render(
        report=report,
        given=report.model_card or PrunedModelCardData(),
        title=None if own.before else card_title(report, repo_id),
        on_hub=base_on_hub(report),
        ours=ours,
        usage=usage(report, place),
        method=METHODS.get(report.method),
        repaired=_repaired(report),
        findings=findings(report.units),
        all_sparsity=_share(report),
        domains=domains(report),
        item_bytes=ITEM_BYTES.get(report.base.dtype),
        energy=_energy(report),
        python=python_recipe(report, repo_id),
        command=cli_recipe(report, repo_id),
        run_file=yaml_recipe(report, repo_id),
        paper=cite(report.method),
        hub_datasets=hub_datasets(report),
        figures=figures,
    )
    body = re.sub(r"\n{3,}", "\n\n", text).strip("\n")
    return write_section(body, ours, own)
