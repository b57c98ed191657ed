"""A report turned into the head of a README: what the Hub reads of a model, and searches by."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hubprune.carddata import PrunedModelCardData
from hubprune.corpora import SourceConfig, parse_source
from hubprune.presets import CORPORA
from hubprune.readme import as_list, merge_metadata, own_parts, unique
from hubprune.recipe import HUB_ID, base_on_hub
from hubprune.report import PruningReport

DATA_SUFFIX = re.compile(r"\.(jsonl?|csv|parquet|txt)(\.gz)?$")

# Tags that say how a repository stores or serves the base's weights; they would be wrong on the pruned ones, or the
# Hub adds them by itself.
STORAGE_TAGS = re.compile(
    r"(?i)base_model:.*|dataset:.*|license:.*|region:.*|arxiv:.*|doi:.*|model-index|safetensors|pytorch|tf|jax|flax|onnx|"
    r"openvino|gguf|ggml|mlx|gptq|awq|fp8|\d-?bit|int\d|bitsandbytes|compressed-tensors|transformers|custom_code|"
    r"generated_from_trainer|.*_compatible|text-generation-inference|has_space|.*model_hub_mixin"
)
LICENCE = ("license", "license_name", "license_link")


def hub_datasets(report: PruningReport) -> list[str]:
    """Hub ids of the calibration, recovery and evaluation sets; files and folders are no ids."""
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


def card_title(report: PruningReport, repo_id: str | None = None) -> str:
    """Name of the model: what the user calls it, the repository's, or the base's with the method."""
    given = report.model_card.title if report.model_card else None
    name = repo_id or f"{report.base.model_id.rstrip('/')}-{report.method}"
    return re.sub(r"\s+", " ", given or name.rpartition("/")[2]).strip() or "pruned-model"


def card_metadata(report: PruningReport, existing: str | None = None, repo_id: str | None = None) -> dict[str, Any]:
    """Metadata of the card, merged with what a user put into an existing README.

    Args:
        report: The run's report.
        existing: Text of the README that is there already.
        repo_id: Repository that the card is for; names the entry in ``model-index``.

    Raises:
        OutputError: The existing README cannot be read.
    """
    return merge_metadata(own_metadata(report, repo_id), own_parts(existing).metadata)


def own_metadata(report: PruningReport, repo_id: str | None) -> dict[str, Any]:
    """Metadata of the card before it is merged: what the run, the base's card and the user's card data say."""
    card, on_hub = report.base.card, base_on_hub(report)
    given = report.model_card or PrunedModelCardData()
    text = {key: next(iter(_texts(card.get(key))), None) for key in (*LICENCE, "pipeline_tag")}
    if any(getattr(given, key) for key in LICENCE):  # the parts of a licence belong together
        text |= {key: getattr(given, key) for key in LICENCE}
    pattern = report.config.get("pattern")
    shape = str(pattern).strip().replace(":", "of") if pattern else "unstructured-sparsity"
    kinds = unique([row.unit.replace("_", "-") for row in report.units])
    family, *shapes = ["structured-pruning", *kinds] if kinds else ["sparse", shape]
    tags = [tag for tag in _texts(card.get("tags")) if not STORAGE_TAGS.fullmatch(tag)]
    recovery = [] if report.recovery is None else ["recovered"]
    tags += ["pruned", family, "hubprune", report.method, *shapes, *recovery, *domains(report), *given.tags]
    results = _results(report)
    data = ModelCardData(
        license=text["license"],
        license_name=text["license_name"],
        license_link=text["license_link"],
        language=given.language or _texts(card.get("language")) or None,
        base_model=report.base.model_id if on_hub else None,
        base_model_relation="finetune" if on_hub else None,
        library_name="transformers",
        pipeline_tag=given.pipeline_tag or text["pipeline_tag"] or _task(report),
        tags=unique(tags),
        datasets=unique([*hub_datasets(report), *given.datasets]) or None,
        metrics=unique([result.metric_type for result in results]) or None,
        model_name=card_title(report, repo_id),
        eval_results=results or None,
        **_emissions(report),
    )
    metadata = data.to_dict()
    metadata.pop("model_name", None)
    return {**metadata, **given.metadata}


def _task(report: PruningReport) -> str:
    """What the Hub calls the task of such a model."""
    return "text2text-generation" if report.base.paired else "text-generation"


def _texts(value: Any) -> list[str]:
    """The strings of a metadata value; YAML reads Norwegian's ``no`` as false."""
    return [
        re.sub(r"\s+", " ", "no" if item is False else item)
        for item in as_list(value)
        if item is False or isinstance(item, str)
    ]


def _results(report: PruningReport) -> list[EvalResult]:
    """The model's own results: the base's are not, nor are those from before it was trained."""
    datasets, results, kind = hub_datasets(report), [], _task(report)
    for row in (row for row in report.evaluation if row.variant == report.result):
        known = [parsed for text in row.sources if text and (parsed := parse_source(text)).dataset in datasets]
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
    for score in (score for score in report.tasks if score.variant == report.result):
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
    return results


def _emissions(report: PruningReport) -> dict[str, Any]:
    """What the Hub shows as a model's emissions, in grams; nothing where they are not known of every stage."""
    stages = [report.energy, report.recovery.energy] if report.recovery else [report.energy]
    known = [energy for energy in stages if energy is not None and energy.emissions_kg is not None]
    if len(known) < len(stages):
        return {}
    grams = sum(1000 * (energy.emissions_kg or 0.0) for energy in known)
    hardware = report.hardware.get("gpu") or report.hardware.get("processor")
    return {
        "co2_eq_emissions": {
            "emissions": float(f"{grams:.4g}"),
            "source": "codecarbon",
            "training_type": "pruning" if report.recovery is None else "pruning and recovery",
            "geographical_location": known[0].country,
            **({"hardware_used": str(hardware)} if hardware else {}),
        }
    }
