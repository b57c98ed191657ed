"""A report turned into a model card: metadata, text, and the merge with a README that a user has edited.

Everything shown comes from the report; nothing is measured here, and neither torch nor the network is needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from hubprune.corpora import SourceConfig, filter_text, parse_source
from hubprune.figures import FigureKind
from hubprune.presets import CORPORA, METHODS
from hubprune.readme import as_list, merge_metadata, own_parts, unique, write_section
from hubprune.recipe import HUB_ID, base_on_hub, cli_recipe, public, python_recipe, quote
from hubprune.report import PruningReport
from hubprune.resources import resource_folder

DATA_SUFFIX = re.compile(r"\.(jsonl?|csv|parquet|txt)(\.gz)?$")

# Tags that say how a repository stores or serves the base's weights; they would be wrong on the pruned ones, or the
# Hub adds them by itself.
STORAGE_TAGS = re.compile(
    r"(?i)base_model:.*|dataset:.*|license:.*|region:.*|arxiv:.*|doi:.*|model-index|safetensors|pytorch|tf|jax|flax|onnx|"
    r"openvino|gguf|ggml|mlx|gptq|awq|fp8|\d-?bit|int\d|bitsandbytes|compressed-tensors|transformers|custom_code|"
    r"generated_from_trainer|.*_compatible|text-generation-inference|has_space|.*model_hub_mixin"
)
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def _hub_datasets(report: PruningReport) -> list[str]:
    """Hub ids of the calibration and evaluation sets; files and folders are no ids."""
    corpora = [*report.corpora, *(report.recovery.corpora if report.recovery else [])]
    sources = [source for corpus in corpora for source in corpus.sources]
    local = {source.dataset for source in sources if source.commit is None}
    measured = [parse_source(text).dataset for row in report.evaluation for text in row.sources if text]
    names = [*(source.dataset for source in sources), *measured]
    return unique([n for n in names if n not in local and HUB_ID.fullmatch(n) and not DATA_SUFFIX.search(n)])


def domains(report: PruningReport) -> list[str]:
    """Names of the preset domains that the domain and the task belong to, such as ``medical``."""
    presets = {name: {parse_source(row.dataset).dataset for row in rows} for name, rows in CORPORA.items()}
    used = [s.dataset for corpus in report.corpora if corpus.name in ("domain", "task") for s in corpus.sources]
    return [
        name
        for name, datasets in presets.items()
        if name != "general" and any(d in datasets or d.rpartition("/")[2].lower() == name for d in used)
    ]


def _texts(value: Any) -> list[str]:
    """The strings of a metadata value; YAML reads Norwegian's ``no`` as false."""
    return [
        re.sub(r"\s+", " ", "no" if item is False else item)
        for item in as_list(value)
        if item is False or isinstance(item, str)
    ]


def _own_metadata(report: PruningReport, repo_id: str | None) -> dict[str, Any]:
    card, on_hub = report.base.card, base_on_hub(report)
    text = {
        key: next(iter(_texts(card.get(key))), None)
        for key in ("license", "license_name", "license_link", "pipeline_tag")
    }
    pattern = report.config.get("pattern")
    shape = str(pattern).strip().replace(":", "of") if pattern else "unstructured-sparsity"
    kinds = unique([row.unit.replace("_", "-") for row in report.units])
    family, *shapes = ["structured-pruning", *kinds] if kinds else ["sparse", shape]
    tags = [tag for tag in _texts(card.get("tags")) if not STORAGE_TAGS.fullmatch(tag)]
    datasets = _hub_datasets(report)
    recovery = [] if report.recovery is None else ["recovered"]
    results = []
    kind = "text2text-generation" if report.base.paired else "text-generation"
    # The base's numbers are not this model's results, nor are those from before it was trained.
    own = "recovered" if any(row.variant == "recovered" for row in report.evaluation) else "pruned"
    for row in (row for row in report.evaluation if row.variant == own):
        known = [parsed for text_ in row.sources if text_ and (parsed := parse_source(text_)).dataset in datasets]
        source = known[0] if len(row.sources) == 1 and known else SourceConfig(f"text-{row.corpus}")
        results.append(
            EvalResult(
                task_type=kind,
                dataset_type=source.dataset,
                dataset_name=row.corpus,
                dataset_config=source.config,
                dataset_split=source.split,
                metric_type="perplexity",
                metric_name=f"Perplexity ({row.corpus} text)",
                metric_value=round(row.perplexity, 4),
                metric_args={"window": row.window, "stride": row.stride, "bos": row.bos, "tokens": row.tokens},
            )
        )
    for score in (score for score in report.tasks if score.variant == own):
        results.append(
            EvalResult(
                task_type=kind,
                dataset_type=f"task-{score.task}",
                dataset_name=score.task,
                metric_type=score.metric,
                metric_name=f"{score.metric} ({score.task}, lm-evaluation-harness)",
                metric_value=round(score.value, 4),
                metric_args={"num_fewshot": score.fewshot, "examples": score.examples, "version": score.version},
            )
        )
    data = ModelCardData(
        license=text["license"],
        license_name=text["license_name"],
        license_link=text["license_link"],
        language=_texts(card.get("language")) or None,
        base_model=report.base.model_id if on_hub else None,
        base_model_relation="finetune" if on_hub else None,
        library_name="transformers",
        pipeline_tag=text["pipeline_tag"] or kind,
        tags=unique([*tags, "pruned", family, "hubprune", report.method, *shapes, *recovery, *domains(report)]),
        datasets=datasets or None,
        metrics=unique([result.metric_type for result in results]) or None,
        model_name=card_title(report, repo_id),
        eval_results=results or None,
    )
    metadata = data.to_dict()
    metadata.pop("model_name", None)
    return metadata


def card_title(report: PruningReport, repo_id: str | None = None) -> str:
    """Name of the model: the repository's, or the base's with the method."""
    name = repo_id or f"{report.base.model_id.rstrip('/')}-{report.method}"
    return re.sub(r"\s+", " ", name.rpartition("/")[2]).strip() or "pruned-model"


def _repaired(report: PruningReport) -> bool:
    """Whether the remaining weights were changed."""
    if report.units:
        return any(row.damping is not None for row in report.units)
    return report.application == "compensate"


def _share(report: PruningReport) -> float:
    """Fraction removed of the matrices in the table."""
    weights = sum(row.numel for row in report.matrices)
    return sum(row.pruned for row in report.matrices) / weights if weights else 0.0


def card_metadata(report: PruningReport, existing: str | None = None, repo_id: str | None = None) -> dict[str, Any]:
    """Metadata of the card, merged with what a user put into an existing README.

    Args:
        report: The run's report.
        existing: Text of the README that is there already.
        repo_id: Repository that the card is for; names the entry in ``model-index``.

    Raises:
        OutputError: The existing README cannot be read.
    """
    return merge_metadata(_own_metadata(report, repo_id), own_parts(existing).metadata)


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


def _link(repo_id: str, kind: str = "") -> str:
    """A link to a repository, or its bare name when that is no id of the Hub."""
    if HUB_ID.fullmatch(repo_id) is None:
        return _code(repo_id)
    return f"[{_code(repo_id)}](https://huggingface.co/{kind}{repo_id})"


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
    ours = _own_metadata(report, repo_id)
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
        quote=quote,
        public=public,
        count=lambda value: f"{value:,}",
        percent=lambda value: f"{100 * value:.2f} %",
        decimals=lambda value: f"{value:.2f}",
        filters=filter_text,
        size=size,
    )
    text = environment.get_template("model_card.md.jinja").render(
        report=report,
        title=None if own.before else card_title(report, repo_id),
        place=repo_id or "path/to/this/folder",
        on_hub=base_on_hub(report),
        license=ours.get("license_name") or ours.get("license"),
        license_link=ours.get("license_link"),
        method=METHODS.get(report.method),
        repaired=_repaired(report),
        all_sparsity=_share(report),
        domains=domains(report),
        item_bytes=ITEM_BYTES.get(report.base.dtype),
        python=python_recipe(report, repo_id),
        command=cli_recipe(report, repo_id),
        hub_datasets=_hub_datasets(report),
        figures=figures,
    )
    body = re.sub(r"\n{3,}", "\n\n", text).strip("\n")
    return write_section(body, ours, own)
