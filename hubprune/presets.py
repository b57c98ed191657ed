"""The tables a user picks from by name: pruning methods and calibration presets. Rows of data, no logic.

Adding a method is a file in ``criteria/`` and a row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# What is done to the weights; only units can be removed.
Application = Literal["zero", "compensate", "remove"]
APPLICATIONS: tuple[str, ...] = ("zero", "compensate", "remove")


@dataclass(frozen=True)
class Method:
    """One pruning method: a criterion with its usual scope and application.

    Attributes:
        name: What a user writes.
        criterion: Module and class of the criterion, ``module:Class`` inside ``hubprune.criteria``.
        scope: Default scope of an unstructured run.
        application: Default of what is done to the weights.
        corpora: Corpora that the method cannot do without. ``("any",)`` asks for at least one of any name.
        title: The method's name in prose.
        summary: One sentence.
        arxiv: Identifier of the paper, empty when there is none.
        unit: What it removes: single weights, or a unit of the model.
        sparsity: Default fraction removed.
        options: The method's own settings with their defaults.
        choices: Allowed values of the settings that are words.
        sequence_length: Tokens in a sequence of its calibration text where nobody says it, and the model can read so
            many; None for the usual length.
    """

    name: str
    criterion: str
    scope: str
    application: Application
    corpora: tuple[str, ...]
    title: str
    summary: str
    arxiv: str = ""
    unit: str = "weight"
    sparsity: float = 0.5
    options: Mapping[str, float | str] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sequence_length: int | None = None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="d-pruner",
            criterion="d_pruner:DPruner",
            scope="matrix",
            application="zero",
            corpora=("general", "domain"),
            title="D-Pruner",
            summary="Dual pruning: the domain loss refined by the importance of each weight for general text.",
            arxiv="2405.06275",
            options={"general_weight": 10.0, "form": "dual", "terms": "both"},
            choices={
                "form": ("dual", "additive", "paper"),
                "terms": ("both", "no-general", "no-domain", "general-only"),
            },
        ),
        Method(
            name="magnitude",
            criterion="magnitude:Magnitude",
            scope="matrix",
            application="zero",
            corpora=(),
            title="Magnitude",
            summary="The smallest weights go; needs no data.",
        ),
        Method(
            name="wanda",
            criterion="wanda:Wanda",
            scope="row",
            application="zero",
            corpora=("any",),
            title="Wanda",
            summary="Weight times the norm of its input, compared inside each output row.",
            arxiv="2306.11695",
        ),
        Method(
            name="sparsegpt",
            criterion="sparsegpt:SparseGPT",
            scope="block",
            application="compensate",
            corpora=("any",),
            title="SparseGPT",
            summary="Second-order selection inside a column sweep that repairs the remaining weights.",
            arxiv="2301.00774",
        ),
        Method(
            name="ria",
            criterion="ria:RIA",
            scope="matrix",
            application="zero",
            corpora=("any",),
            title="RIA",
            summary="Weight relative to its row and column, times the root of its input's norm.",
            options={"activation_power": 0.5},
        ),
        Method(
            name="gblm",
            criterion="gblm:GBLM",
            scope="row",
            application="zero",
            corpora=("any",),
            title="GBLM-Pruner",
            summary="Weight times its input's norm plus the norm of its gradients.",
            arxiv="2311.04902",
            options={"gradient_weight": 1.0},
        ),
        Method(
            name="cross-calibration",
            criterion="cross_calibration:CrossCalibration",
            scope="block",
            application="compensate",
            corpora=("general", "domain"),
            title="Cross-calibration",
            summary="SparseGPT with a Hessian mixed from general and domain text.",
            arxiv="2502.18424",
            options={"domain_ratio": 0.5},
        ),
        Method(
            name="cus-prun",
            criterion="cus_prun:CusPrun",
            scope="",
            application="remove",
            corpora=("any",),
            title="Cus-Prun",
            summary="Units that matter to none of language, domain and task go; no training.",
            arxiv="2506.02561",
            unit="ffn_neuron",
            sparsity=0.25,
            options={"documents": "max"},
            choices={"documents": ("max", "mean", "p95")},
            sequence_length=512,
        ),
        Method(
            name="attribution",
            criterion="attribution:Attribution",
            scope="",
            application="remove",
            corpora=("task",),
            title="Attribution",
            summary="Units that contribute little to the answers of a task go; labels may be the model's own.",
            arxiv="2205.04157",
            unit="ffn_neuron",
            sparsity=0.25,
            options={
                "variant": "abs",
                "target": "logprob",
                "labels": "given",
                "per_label": "no",
                "confidence": 0.5,
                "answer_tokens": 16.0,
            },
            choices={
                "variant": ("abs", "signed"),
                "target": ("logprob", "prob"),
                "labels": ("given", "pseudo"),
                "per_label": ("no", "yes"),
            },
        ),
        Method(
            name="mutual-information",
            criterion="mutual_information:MutualInformation",
            scope="",
            application="remove",
            corpora=("any",),
            title="Mutual information",
            summary="Weak neurons go of which others say the same; names their stand-ins.",
            arxiv="2406.00030",
            unit="ffn_neuron",
            sparsity=0.1,
            options={"strategy": "stand-in", "alpha": 2.0, "positions": 128.0},
            choices={"strategy": ("stand-in", "greedy", "random")},
        ),
        Method(
            name="wanda-sp",
            criterion="wanda:Wanda",
            scope="",
            application="remove",
            corpora=("any",),
            title="Wanda-sp",
            summary="Wanda's scores, added up over the weights of a unit.",
            arxiv="2306.11695",
            unit="ffn_neuron",
            sparsity=0.25,
        ),
        Method(
            name="taylor",
            criterion="taylor:Taylor",
            scope="",
            application="remove",
            corpora=("any",),
            title="Taylor",
            summary="Weight times its gradient, added up over the weights of a unit (LLM-Pruner).",
            arxiv="2305.11627",
            unit="ffn_neuron",
            sparsity=0.25,
        ),
        Method(
            name="random",
            criterion="random:Random",
            scope="",
            application="remove",
            corpora=(),
            title="Random",
            summary="Units drawn by lot: what every other method has to beat.",
            unit="ffn_neuron",
            sparsity=0.25,
        ),
        Method(
            name="block-influence",
            criterion="block_influence:BlockInfluence",
            scope="",
            application="remove",
            corpora=("any",),
            title="Block influence",
            summary="Layers that hardly turn what flows through them go (ShortGPT).",
            arxiv="2403.03853",
            unit="layer",
            sparsity=0.25,
        ),
    )
}

# Those that choose single weights.
WEIGHT_METHODS: dict[str, Method] = {name: method for name, method in METHODS.items() if method.unit == "weight"}


@dataclass(frozen=True)
class SourceRow:
    """One data set inside a corpus preset.

    Attributes:
        dataset: Repository, as ``repo[:config[:split]]``.
        weight: Share of the samples, relative to the other sources of the preset.
        template: Text with ``{column}`` fields, dots for nested ones; inner braces are filled first, so that
            ``{holding_{label}}`` is the column that the label names. None: the text column is found by name.
        answer: The end of the template that answers what stands before it; its first field is what examples are told
            apart by. None: it is all text.
    """

    dataset: str
    weight: float = 1.0
    template: str | None = None
    answer: str | None = None


# Task-formatted text, prompt + answer + a sentence that explains the answer, is what D-Pruner calibrates on
# (arXiv:2405.06275, section 4). The mixes follow its 600 : 400 and 500 : 500 proportions as far as the sets are
# public.
CORPORA: dict[str, tuple[SourceRow, ...]] = {
    "general": (
        SourceRow("Salesforce/wikitext:wikitext-2-raw-v1:validation"),
        SourceRow("roneneldan/TinyStories:default:train"),
    ),
    "medical": (
        SourceRow(
            "qiaojin/PubMedQA:pqa_labeled:train",
            0.6,
            "Abstract: {context.contexts}\nQuestion: {question}\nAnswer: {final_decision}. {long_answer}",
            "{final_decision}. {long_answer}",
        ),
        SourceRow("lavita/MedQuAD:default:train", 0.4, "Question: {question}\nAnswer: {answer}", "{answer}"),
    ),
    "legal": (
        SourceRow(
            "casehold/casehold:all:train",
            0.5,
            "{citing_prompt}\nHolding: {holding_{label}}",
            "{holding_{label}}",
        ),
        SourceRow("FiscalNote/billsum:default:train", 0.5, "{text}\nSummary: {summary}", "{summary}"),
    ),
    "code": (SourceRow("google-research-datasets/mbpp:full:train", 1.0, '"""{text}"""\n{code}', "{code}"),),
    "math": (SourceRow("openai/gsm8k:main:train", 1.0, "Question: {question}\nAnswer: {answer}", "{answer}"),),
}

# The text of these data sets is made from several columns, so naming one alone is enough.
TEMPLATES: dict[str, str] = {
    row.dataset.partition(":")[0]: row.template
    for rows in CORPORA.values()
    for row in rows
    if row.template is not None
}

# Which end of these templates is the answer.
ANSWERS: dict[str, str] = {
    row.dataset.partition(":")[0]: row.answer for rows in CORPORA.values() for row in rows if row.answer is not None
}
# Text to measure on whose rows are lines of one text: joined in their own order by what stands here, as the papers on
# pruning and quantisation do it (IST-DASLab/gptq), so that perplexities can be compared.
JOINED: dict[str, str] = {"Salesforce/wikitext": "\n\n"}
# Names for text that is only measured on.
MEASURED_TEXTS: dict[str, str] = {"wikitext2": "Salesforce/wikitext:wikitext-2-raw-v1:test"}
