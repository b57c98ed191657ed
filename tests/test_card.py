"""A card says what the report says, parses on the Hub, cannot be broken from inside, and keeps what a user wrote."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hubprune.card import card_metadata, render_card
from hubprune.citations import PAPERS
from hubprune.config import PruningConfig
from hubprune.corpora import CorpusConfig, SourceConfig, parse_corpus
from hubprune.errors import OutputError
from hubprune.facts import BaseFacts, CorpusFacts, MatrixFacts, Perplexity, SourceFacts, Totals, Verification
from hubprune.figures import FIGURES
from hubprune.outcomes import Answer, LossPoint, RecoveryFacts, SizeFacts, SpeedFacts, TaskScore
from hubprune.presets import ANSWERS, CORPORA, METHODS, TEMPLATES
from hubprune.readme import BEGIN, END, join_own, own_parts
from hubprune.recovery_config import RecoveryConfig
from hubprune.report import PruningReport

REPO = "me/base-medical-50"
HOSTILE = [
    END,
    f"\n{END}\n",
    "---\nlicense: evil\n---",
    "```\n# broken out\n```",
    "<script>alert(1)</script>",
    "| a | b |\n|---|---|",
    "]] --> <img src=x onerror=y>",
    "{{ 1 + 1 }}{% endif %}",
    "`` ` ```",
    "\x00\r\n\u2028#",
    '"; rm -rf / #',
]


def perplexity(variant: str, name: str, value: float, stderr: float, source: str) -> Perplexity:
    return Perplexity(variant, name, value, stderr, 4321, 16, 128, 128, True, [source] if source else [], "f" * 64)


@pytest.fixture
def report() -> PruningReport:
    general = SourceFacts("roneneldan/TinyStories", None, "train", "b" * 40, None, 31)
    name = "qiaojin/PubMedQA"
    domain = SourceFacts(name, "pqa_labeled", "train", "c" * 40, TEMPLATES[name], 32, answer=ANSWERS[name])
    return PruningReport(
        base=BaseFacts(
            model_id="org/base",
            revision="main",
            commit="a" * 40,
            model_type="llama",
            architecture="LlamaForCausalLM",
            dtype="bfloat16",
            card={
                "license": "other",
                "license_name": "own-licence",
                "license_link": "https://example.org/licence",
                "language": ["en", False],
                "pipeline_tag": "text-generation",
                "tags": ["biology", "pytorch", "base_model:grand/parent", "biology"],
                "base_model": "grand/parent",
            },
        ),
        config=PruningConfig(sparsity=0.5).to_dict(),
        pattern="50 % per matrix",
        application="zero",
        options={"general_weight": 10.0},
        corpora=[
            CorpusFacts(
                "general", [general], 24, 64, 1536, seed=0, fingerprint="1" * 64, samples=["Once upon", "a time"]
            ),
            CorpusFacts("domain", [domain], 24, 64, 1500, seed=0, fingerprint="2" * 64, samples=["Abstract: x", "y"]),
        ],
        matrices=[
            MatrixFacts("model.layers.0.q_proj", 0, "q_proj", (64, 64), 2048, 2050),
            MatrixFacts("model.layers.1.q_proj", 1, "q_proj", (64, 64), 2048, 2048),
            MatrixFacts("model.layers.0.up_proj", 0, "up_proj", (160, 64), 5120, 5121),
        ],
        totals=Totals(targeted=18432, pruned=9216, zeros=9219, parameters=1_048_576),
        evaluation=[
            perplexity("base", "general", 12.34, 0.21, "roneneldan/TinyStories::validation"),
            perplexity("base", "domain", 20.5, 0.4, "qiaojin/PubMedQA:pqa_labeled:test"),
            perplexity("pruned", "general", 30.85, 0.52, "roneneldan/TinyStories::validation"),
            perplexity("pruned", "domain", 19.47, 0.39, "qiaojin/PubMedQA:pqa_labeled:test"),
        ],
        timings={"forward": 12.5, "backward": 30.25},
        peak_memory_bytes=3 * 2**30,
        hardware={"processor": "a processor", "cores": 2},
        versions={"hubprune": "0.1.0", "torch": "2.13.0"},
        warnings=["a first warning"],
        verification=Verification({"finite": "21 tensors, all finite"}, True, "5.23.0"),
        created="2026-01-02T03:04:05+00:00",
    )


def tables(card: str) -> dict[str, list[list[str]]]:
    """The rows of each table, below its heading; code marks removed."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in ModelCard(card).text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|") and not line.startswith("|---"):
            cells = [cell.strip().strip("`*") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.setdefault(heading, []).append(cells)
    return found


def test_metadata_is_that_of_the_run_and_the_base(report: PruningReport) -> None:
    data = ModelCard(render_card(report, REPO)).data.to_dict()
    assert data["base_model"] == "org/base"
    assert data["base_model_relation"] == "finetune"
    assert data["library_name"] == "transformers"
    assert (data["license"], data["license_name"]) == ("other", "own-licence")
    assert data["license_link"] == "https://example.org/licence"
    assert data["language"] == ["en", "no"]
    assert data["pipeline_tag"] == "text-generation"
    assert data["tags"] == ["biology", "pruned", "sparse", "hubprune", "d-pruner", "unstructured-sparsity", "medical"]
    assert data["datasets"] == ["roneneldan/TinyStories", "qiaojin/PubMedQA"]
    assert data == card_metadata(report, repo_id=REPO)


def test_model_index_holds_the_pruned_results_only(report: PruningReport) -> None:
    results = ModelCard(render_card(report, REPO)).data.eval_results
    pruned = [row for row in report.evaluation if row.variant == "pruned"]
    assert [result.metric_value for result in results] == [round(row.perplexity, 4) for row in pruned]
    assert [result.dataset_type for result in results] == ["roneneldan/TinyStories", "qiaojin/PubMedQA"]
    assert [result.dataset_split for result in results] == ["validation", "test"]
    assert results[1].dataset_config == "pqa_labeled"


def test_every_number_of_the_tables_is_the_reports(report: PruningReport) -> None:
    found = tables(render_card(report, REPO))
    expected = []
    for name, row in report.perplexities().items():
        base, pruned = row["base"], row["pruned"]
        expected.append(
            [
                name,
                f"{base.perplexity:.2f} ± {base.stderr:.2f}",
                f"{pruned.perplexity:.2f} ± {pruned.stderr:.2f}",
                f"{100 * base.perplexity / pruned.perplexity:.2f} %",
            ]
        )
    assert found["Results"][1:] == expected

    kinds: dict[str, list[MatrixFacts]] = {}
    for matrix in report.matrices:
        kinds.setdefault(matrix.kind, []).append(matrix)
    rows = [
        [
            kind,
            str(len(rows)),
            f"{rows[0].shape[0]} x {rows[0].shape[1]}",
            f"{sum(m.numel for m in rows):,}",
            f"{sum(m.pruned for m in rows):,}",
            f"{sum(m.zeros for m in rows):,}",
            f"{100 * sum(m.pruned for m in rows) / sum(m.numel for m in rows):.2f} %",
        ]
        for kind, rows in kinds.items()
    ]
    assert found["Sparsity by matrix"][1:-1] == rows
    totals = report.totals
    last = [f"{totals.targeted:,}", f"{totals.pruned:,}", f"{totals.zeros:,}", f"{100 * totals.sparsity:.2f} %"]
    assert found["Sparsity by matrix"][-1] == ["all", str(len(report.matrices)), "", *last]

    corpora = [[r[0], r[1], r[2], r[3], r[5], r[6]] for r in found["Calibration text"][1:]]
    assert corpora == [
        [c.name, f"{c.num_sequences:,}", f"{c.sequence_length:,}", f"{c.tokens:,}", str(c.seed), c.fingerprint[:16]]
        for c in report.corpora
    ]
    made = dict(found["How it was made"])
    assert made["commit"] == report.base.commit
    assert made["peak memory"] == "3.0 GiB"
    assert {made["time, `forward"], made["time, `backward"]} == {"12.50 s", "30.25 s"}


def test_what_was_measured_later_is_shown_as_it_is(report: PruningReport) -> None:
    plain = render_card(report, REPO)
    assert "## Tasks" not in plain
    assert "## Sample answers" not in plain
    report.evaluation.append(perplexity("recovered", "domain", 18.25, 0.3, "qiaojin/PubMedQA:pqa_labeled:test"))
    report.evaluation[3].bits_per_byte = 1.25
    report.tasks = [
        TaskScore("base", "pairs", "acc", 0.8, 0.02, 400, 0, True, "1"),
        TaskScore("recovered", "pairs", "acc", 0.6, 0.03, 400, 0, True, "1", 0.75),
    ]
    report.answers = [Answer("recovered", "Once `upon`", "a time\n# not a heading", 4, 0.75, "repeats itself")]
    report.sizes = [
        SizeFacts("base", 1000, 990, "bfloat16", 2048, 4096, 3000, 2500, 2000, 2**28),
        SizeFacts("recovered", 700, 690, "bfloat16", 1400),
    ]
    report.speeds = [SpeedFacts("base", 900.5, 50.25, (800.0, 950.0), (49.0, 51.0), 256, 32, 7, 1, "cpu", "bfloat16")]
    report.measured_on = {"processor": "another processor"}
    card = render_card(report, REPO)
    found = tables(card)
    assert found["Results"][0] == ["text", "base", "pruned", "recovered", "recovery", "won back"]
    assert found["Results"][1][3:] == ["not measured", "-", "-"]
    assert found["Results"][2][3:] == ["18.25 ± 0.30", f"{100 * 20.5 / 18.25:.2f} %", "-"]  # it had cost nothing
    assert found["Tasks"][1:] == [
        ["pairs", "acc", "base", "0.8000 ± 0.0200", "-", "400", "0"],
        ["pairs", "acc", "recovered", "0.6000 ± 0.0300", "75.00 %", "400", "0"],
    ]
    sizes, speeds = found["Size and speed"][:3], found["Size and speed"][3:]
    assert sizes[1] == ["base", "1,000", "990", "2.0 KiB", "4.0 KiB", "2.9 KiB", "2.4 KiB", "256.0 MiB"]
    assert sizes[2] == ["recovered", "700", "690", "1.4 KiB", *["not measured"] * 4]
    for row in report.sizes:
        row.transfer_bytes = row.zstd_bytes = None
    assert tables(render_card(report))["Size and speed"][0][4:] == ["weight files", "memory of a process"]
    assert speeds[1] == ["base", "900.50 (800.00 to 950.00)", "50.25 (49.00 to 51.00)"]
    for said in (
        "Medians (lowest to highest) of 7 warm rounds",
        "`another processor`, 1 thread.",
        "After `` Once `upon` ``:\n\nrecovered, **repeats itself**:\n\n```text\na time\n# not a heading\n```",
        "Bits per byte: pruned 1.2500",
        "of these, only what the tasks above ask was tested",
    ):
        assert said in card
    results = ModelCard(card).data.eval_results
    assert [(result.metric_type, result.metric_value) for result in results] == [("perplexity", 18.25), ("acc", 0.6)]
    assert ModelCard(card).data.metrics == ["perplexity", "acc"]


def test_the_text_is_honest(report: PruningReport) -> None:
    text = render_card(report, REPO)
    assert "On general text the perplexity rises from 12.34 to 30.85 (2.50 times the base's)" in text
    assert "On domain text the perplexity falls from 20.50 to 19.47 (0.95 times the base's)" in text
    assert "**50.00 %**" in text
    assert "0.88 % of all 1,048,576 parameters" in text
    assert "2.0 MiB, as many as the base has" in text
    assert "Memory and speed in transformers, vLLM and other common runtimes are those of the base" in text
    assert "a first warning" in text
    assert "21 tensors, all finite" in text
    assert "arXiv:2405.06275" in text
    report.verification = None
    assert "have not been verified" in render_card(report, REPO)


def python_block(card: str, heading: str) -> str:
    return re.search(rf"## {heading}.*?```python\n(.*?)\n```", card, re.DOTALL)[1]


def called_with(source: str) -> tuple[tuple[Any, ...], dict[str, Any], list[str]]:
    """Run a snippet against a recorder in place of the Auto class."""
    calls: list[Any] = []

    class Recorder:
        def push_to_hub(self, repo_id: str) -> None:
            calls.append(repo_id)

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Recorder:
            calls.extend([args, kwargs])
            return cls()

    body = "\n".join(line for line in source.splitlines() if not line.startswith("from hubprune"))
    names = {"CorpusConfig": CorpusConfig, "SourceConfig": SourceConfig, "PruningConfig": PruningConfig}
    exec(body, {"AutoPrunedModelForCausalLM": Recorder, "domain_texts": ["given in memory"], **names})
    return calls[0], calls[1], calls[2:]


def test_the_recipe_repeats_the_run(report: PruningReport) -> None:
    args, keywords, pushed = called_with(python_block(render_card(report, REPO), "How it was made"))
    assert args == ("org/base",)
    assert keywords.pop("revision") == "a" * 40
    assert keywords.pop("dtype") == "bfloat16"
    assert pushed == [REPO]
    general = parse_corpus(keywords.pop("general"), num_samples=24, sequence_length=64).sources
    assert general == (SourceConfig("roneneldan/TinyStories", None, "train", "b" * 40),)
    domain = parse_corpus(keywords.pop("domain")).sources
    name = "qiaojin/PubMedQA"
    wanted = SourceConfig(name, "pqa_labeled", "train", "c" * 40, TEMPLATES[name], answer=ANSWERS[name])
    assert domain == (wanted,)
    assert (keywords.pop("num_samples"), keywords.pop("sequence_length")) == (24, 64)
    assert PruningConfig(**keywords).to_dict() == report.config


def test_the_command_says_the_same(report: PruningReport) -> None:
    command = re.search(r"command line:\n\n```bash\n(.*?)\n```", render_card(report, REPO))[1]
    assert command.startswith(
        f"hubprune prune org/base --revision {'a' * 40} --method d-pruner --sparsity 0.5 --general "
    )
    assert command.endswith(f"--num-samples 24 --sequence-length 64 --dtype bfloat16 --push {REPO}")


def test_templates_weights_and_other_settings_are_in_the_recipe(report: PruningReport) -> None:
    rows = CORPORA["medical"]
    config = PruningConfig(method="sparsegpt", pattern="2:4", damping=0.05, ignore=("re:.*down_proj",))
    report.config = config.to_dict()
    wanted = []
    for row, source in zip(rows, parse_corpus("medical").sources, strict=True):
        wanted.append(dataclasses.replace(source, revision="e" * 40, template=row.template, weight=row.weight))
    facts = [
        SourceFacts(s.dataset, s.config, s.split, s.revision, s.template, 9, weight=s.weight, answer=s.answer)
        for s in wanted
    ]
    report.corpora = [CorpusFacts("domain", facts, 8, 32, 256, packing=False, seed=3)]
    text = render_card(report, REPO)
    _, keywords, _ = called_with(python_block(text, "How it was made"))
    assert keywords["pruning_config"] == config
    assert keywords["domain"] == CorpusConfig(
        sources=tuple(wanted), num_samples=8, sequence_length=32, packing=False, seed=3
    )
    assert "On the command line" not in text

    report.config = PruningConfig(sparsity=0.5).to_dict()
    report.corpora[0].packing, report.corpora[0].seed = True, 0
    assert "--domain medical --num-samples 8" in render_card(report, REPO)  # the preset brings the weights


def test_filters_and_answers_are_told(report: PruningReport) -> None:
    corpus, source = report.corpora[1], report.corpora[1].sources[0]
    corpus.name, corpus.packing = "task", False
    source.filters = [("lang", "de"), ("kind", "a|b")]
    corpus.examples, corpus.distinct_answers, corpus.passed_over = 24, 3, 2
    report.evaluation[3].sources = ["qiaojin/PubMedQA:pqa_labeled:test?lang=de"]
    text = render_card(report, REPO)
    rows = tables(text)["Calibration text"]
    assert r"`pqa_labeled` `train` `?lang=de&kind=a\|b` (32 rows)" in rows[2][4]
    assert "rows picked by `?lang=de&kind=a|b`, rows written as `Abstract:" in text
    assert "of which `{final_decision}. {long_answer}` is the answer." in text
    assert (
        "The task corpus holds 24 examples, each with its answer; 3 different answers, and 2 examples were passed "
        "over, since their answer alone is longer than a sequence." in text
    )
    task = parse_corpus(called_with(python_block(text, "How it was made"))[1]["task"]).sources
    assert task[0].filters == (("lang", "de"), ("kind", "a|b"))
    assert "?lang=de&kind=a|b'" in re.search(r"command line:\n\n```bash\n(.*?)\n```", text)[1]
    result = ModelCard(text).data.eval_results[1]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == (
        "qiaojin/PubMedQA",
        "pqa_labeled",
        "test",
    )
    assert "kept for **medical** text" in text


def test_what_is_missing_is_said_and_not_invented() -> None:
    text = render_card(PruningReport(config={"method": "magnitude"}, base=BaseFacts("./models/mine")))
    data = ModelCard(text).data.to_dict()
    assert "base_model" not in data
    assert "license" not in data
    assert "datasets" not in data
    assert "model-index" not in data
    assert "No quality was measured" in text
    assert "states no licence" in text
    assert "The base model was a local folder" in text


def test_paths_of_this_machine_are_not_published(report: PruningReport) -> None:
    report.base.model_id, report.base.commit = "/home/somebody/models/base", None
    report.corpora[0].sources = [SourceFacts("/home/somebody/notes.jsonl", None, None, None, None, 4)]
    report.evaluation[0].sources = report.evaluation[2].sources = ["/home/somebody/notes.jsonl"]
    text = render_card(report, REPO)
    assert "somebody" not in text
    args, keywords, _ = called_with(python_block(text, "How it was made"))
    assert args == ("./base",)
    assert keywords["general"] == "./notes.jsonl"


def test_local_files_and_texts_are_no_hub_datasets(report: PruningReport) -> None:
    report.corpora[0].sources = [SourceFacts("notes/mine", None, "train", None, None, 4), SourceFacts("data.jsonl")]
    report.corpora[1].sources = []
    report.evaluation = [
        perplexity("pruned", "general", 3.0, 0.1, ""),
        perplexity("pruned", "mine", 4.0, 0.1, "a.txt"),
    ]
    text = render_card(report, REPO)
    data = ModelCard(text).data
    assert data.datasets is None
    assert [(r.dataset_name, r.metric_value) for r in data.eval_results] == [("general", 3.0), ("mine", 4.0)]
    assert "given in memory" in text
    assert called_with(python_block(text, "How it was made"))[1]["domain"] == ["given in memory"]
    assert "On the command line" not in text


def test_a_criterion_of_the_users_own_has_no_recipe(report: PruningReport) -> None:
    report.config["method"] = "MyCriterion"
    text = render_card(report, REPO)
    assert "`MyCriterion`, which is not part of hubprune" in text
    assert "bibtex\n@article" not in text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_strings_break_nothing(report: PruningReport, hostile: str) -> None:
    report.base.model_id = report.base.revision = hostile
    report.base.card = {"license": hostile, "tags": [hostile, {"no": "tag"}], "language": hostile}
    report.corpora[0].samples = [hostile, hostile]
    report.corpora[0].sources[0].dataset = report.corpora[1].sources[0].template = hostile
    report.corpora[1].sources[0].filters = [(hostile, hostile)]
    report.matrices[0].kind = report.warnings[0] = report.pattern = hostile
    report.evaluation[0].corpus = report.evaluation[2].corpus = report.evaluation[2].sources[0] = hostile
    report.hardware = {hostile: hostile}
    report.versions = {hostile: hostile}
    text = render_card(report, "me/x")
    assert render_card(report, "me/x", text) == text
    assert own_parts(text) == ({}, "", "")
    assert ModelCard(text).data.license != "evil"

    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(ModelCard(text).text)
    inner = [child for token in tokens for child in token.children or ()]
    assert not [t for t in inner if t.type in ("html_inline", "image")]
    blocks = [t.content.strip() for t in tokens if t.type == "html_block"]
    ours = (
        r"<!-- hubprune:[^<>]*-->(\n<!-- hubprune:[^<>]*-->)*|<details>\n<summary>[a-zA-Z ,.-]+</summary>|</details>"
    )
    assert all(re.fullmatch(ours, block) for block in blocks)
    assert blocks.count("</details>") == sum(block.startswith("<details>") for block in blocks)
    heads = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert heads[1:] == [
        "At a glance",
        "Use",
        "Results",
        "Size and speed",
        "What was removed, and where",
        "Sparsity by matrix",
        "How it was made",
        "Calibration text",
        "Limits",
        "Verification",
        "Citation",
    ]
    assert len({len(row) for row in tables(text)["Results"]}) == 1


def test_what_a_user_wrote_stays(report: PruningReport) -> None:
    header = "license: mit\ntags:\n- mine\nwidget:\n- text: hi\nbase_model: grand/parent"
    first = f"---\n{header}\n---\n# My page\n\nMy words.\n"
    text = render_card(report, REPO, first)
    assert ModelCard(text).text.strip().startswith("# My page\n\nMy words.\n\n" + BEGIN)
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "mit"
    assert data["widget"] == [{"text": "hi"}]
    assert data["base_model"] == "org/base"
    assert {"mine", "pruned"} <= set(data["tags"])

    edited = text.replace("- mine\n", "- mine\n- later\n") + "\n## My notes\n\nMore words.\n"
    report.base.card["tags"] = []
    report.corpora = report.corpora[:1]
    report.evaluation = []
    again = render_card(report, REPO, edited)
    assert again.count(BEGIN) == again.count(END) == 1
    assert again.endswith(f"{END}\n\n## My notes\n\nMore words.\n")
    data = ModelCard(again).data.to_dict()
    assert {"mine", "later"} <= set(data["tags"])
    assert "biology" not in data["tags"]  # was ours and is no longer true
    assert "model-index" not in data
    assert data["datasets"] == ["roneneldan/TinyStories"]


def test_results_of_others_stay_in_the_model_index(report: PruningReport) -> None:
    theirs = {
        "name": "base",
        "results": [
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": "Exam", "type": "org/exam"},
                "metrics": [{"type": "accuracy", "value": 0.5}],
            }
        ],
    }
    existing = f"---\n{yaml.safe_dump({'model-index': [theirs]})}---\n"
    text = render_card(report, REPO, existing)
    report.evaluation[2].perplexity = 31.5
    values = [result.metric_value for result in ModelCard(render_card(report, REPO, text)).data.eval_results]
    assert values == [31.5, 19.47, 0.5]


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=40), st.booleans())
def test_rendering_again_changes_nothing(words: str, windows: bool) -> None:
    report = PruningReport(config={"method": "magnitude"}, base=BaseFacts("org/base", commit="a" * 40))
    existing = f"Before {words}\n"
    text = render_card(report, "me/x", existing)
    assert f"Before {words}".rstrip("\n") in text
    assert render_card(report, "me/x", text.replace("\n", "\r\n") if windows else text) == text


def test_two_readmes_are_joined(report: PruningReport) -> None:
    first = render_card(report, REPO, "---\nlicense: mit\n---\n# Page\n\nSame.\n\n## Remote\n\nOne.\n")
    second = render_card(report, REPO, "---\nlicense: gpl\ntags: [local]\n---\n# Page\n\nSame.\n\n## Local\n\nTwo.\n")
    joined = own_parts(join_own(first, second))
    assert joined.before == "# Page\n\nSame.\n\n## Remote\n\nOne.\n\n## Local\n\nTwo."
    assert joined.metadata == {"license": "mit", "tags": ["local"]}
    assert own_parts(join_own(None, None)) == ({}, "", "")


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ("---\na: [1\n---\n", "not valid YAML"),
        ("---\n- a\n---\n", "key: value"),
        (f"{BEGIN}\nno end\n", "must hold both"),
        (f"{END}\n{BEGIN}\n", "must hold both"),
    ],
)
def test_a_readme_that_cannot_be_merged_is_an_error(report: PruningReport, existing: str, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        render_card(report, REPO, existing)


def test_rendering_needs_no_torch_and_no_transformers() -> None:
    code = "import sys, hubprune.card; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_recovered_model_is_shown_beside_the_pruned_and_the_base(report: PruningReport) -> None:
    report.evaluation += [
        perplexity("recovered", "general", 15.5, 0.3, "roneneldan/TinyStories::validation"),
        perplexity("recovered", "domain", 18.25, 0.3, "qiaojin/PubMedQA:pqa_labeled:test"),
    ]
    report.recovery = RecoveryFacts(
        config=RecoveryConfig(adapter="shira", steps=40).resolved().to_dict(),
        corpora=report.corpora,
        trained=43,
        held_out=5,
        adapter="shira",
        parameters=4096,
        matrices=3,
        steps=40,
        kept_step=20,
        tokens=9000,
        curve=[LossPoint(0, None, 4.5), LossPoint(20, 3.5, 3.75), LossPoint(40, 3.25, 4.0)],
        zeros_kept=9219,
    )
    card = render_card(report, "me/recovered")
    shown = tables(card)
    won = f"{100 * (30.85 - 15.5) / (30.85 - 12.34):.2f} %"
    assert shown["Results"][0] == ["text", "base", "pruned", "recovered", "recovery", "won back"]
    assert shown["Results"][1] == ["general", "12.34 ± 0.21", "30.85 ± 0.52", "15.50 ± 0.30", "79.61 %", won]
    assert ["20", "3.5", "3.75"] in shown["Recovery"]
    assert ["adapter", "shira"] in shown["Recovery"]
    assert "rises from 12.34 to 15.50 (1.26 times the base's; 30.85 after pruning alone)" in card
    assert "were recovered by SHiRA; all 9,219 zeros stayed zero" in card
    assert "was not trained after pruning" not in card
    assert 'model.recover(adapter="shira", steps=40)' in card
    assert "hubprune recover pruned-model --adapter shira --steps 40" in card
    results = card_metadata(report)["model-index"][0]["results"]
    assert [row["metrics"][0]["value"] for row in results] == [15.5, 18.25]
    assert "recovered" in card_metadata(report)["tags"]


def test_a_reconstruction_shows_the_error_of_each_block(report: PruningReport) -> None:
    report.recovery = RecoveryFacts(
        config=RecoveryConfig("reconstruct").resolved().to_dict(),
        matrices=3,
        curve=[LossPoint(0, 0.5, 0.125), LossPoint(1)],
        groups_kept=12,
    )
    card = render_card(report)
    assert ["0", "0.5", "0.125"] in tables(card)["Recovery"]
    assert ["1", "nothing to fit", ""] in tables(card)["Recovery"]
    assert "recovered by layer-wise reconstruction" in card
    assert tables(card)["Results"][0] == ["text", "base", "pruned"]  # it was not measured after the recovery


def test_figures_of_the_training_stand_with_it(report: PruningReport) -> None:
    report.recovery = RecoveryFacts(config={"method": "adapter"}, curve=[LossPoint(1, 2.0, 3.0)], steps=1)
    card = render_card(report, REPO, figures=FIGURES)
    order = [
        card.index(word) for word in ("## What was removed", "figures/sparsity.png", "## Recovery", "figures/loss.png")
    ]
    assert order == sorted(order)


def test_a_recovered_model_that_was_measured_on_new_text_shows_it_beside_the_base(report: PruningReport) -> None:
    report.recovery = RecoveryFacts(config={"method": "adapter"}, steps=3)
    report.evaluation = [perplexity("base", "law", 10.0, 0.1, ""), perplexity("recovered", "law", 12.5, 0.1, "")]
    card = render_card(report, REPO)
    assert "On law text the perplexity rises from 10.00 to 12.50 (1.25 times the base's)." in card
    assert tables(card)["Results"][:2] == [
        ["text", "base", "recovered", "recovery"],
        ["law", "10.00 ± 0.10", "12.50 ± 0.10", "80.00 %"],
    ]
    assert [row.metric_value for row in ModelCard(card).data.eval_results] == [12.5]


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.arxiv or name in PAPERS])
def test_every_method_with_a_paper_is_cited(report: PruningReport, method: str) -> None:
    report.config["method"] = method
    cited = re.search(r"The method:\n\n```bibtex\n(@.*?)\n```", render_card(report, REPO), re.DOTALL)
    assert cited is not None
    assert METHODS[method].arxiv in cited[1]
    assert cited[1].count("{") == cited[1].count("}")


def test_nothing_in_a_card_is_empty(report: PruningReport) -> None:
    for card in (render_card(report, REPO), render_card(PruningReport(config={"method": "magnitude"}))):
        text = ModelCard(card).text
        assert not re.search(r"\n#+ [^\n]*\n+(?=#)(?!### )", text), "a heading with nothing below it"
        assert "not recorded" not in text
        assert "None" not in re.sub(r"None (were measured|: the method)|None: the method", "", text)
