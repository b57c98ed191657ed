"""The folder of a Space says and loads what the report states, and nothing else goes into it."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import get_session

from hubprune import drawing
from hubprune.errors import OutputError, UsageError
from hubprune.facts import CorpusFacts, SourceFacts
from hubprune.outcomes import Answer
from hubprune.prompts import example_prompts
from hubprune.report import PruningReport
from hubprune.space import DATA, GRADIO, requirements, write_space
from tests.pruned import BASE_COMMIT, prune_by_hand, tiny_model

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "f" * 40
MODULES = ["answers.py", "app.py", "facts.py", "models.py", "show.py"]
FILES = sorted(["README.md", "requirements.txt", DATA, "style.css", *MODULES])
QUESTION = "Question: {question}\nAnswer: {answer}"


@pytest.fixture(scope="module")
def report() -> PruningReport:
    found = prune_by_hand(tiny_model())
    found.versions |= {"transformers": "5.23.0", "torch": "2.13.0+cu130", "python": "3.12.4"}
    found.answers = [Answer("base", "Once", "upon a time", 3), Answer("pruned", "Once", "upon", 1)]
    return found


@pytest.fixture(scope="module")
def folder(report: PruningReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("space")
    files = write_space(report, found, model="me/tiny", commit=COMMIT)
    assert files == sorted([*FILES, "figures/sparsity.png"])  # drawn, as there is no folder to take it from
    return found


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    return json.loads((folder / DATA).read_text())


def metadata(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def test_the_commits_of_both_models_are_pinned(data: dict[str, Any]) -> None:
    places = {name: (data[name]["repo"], data[name]["revision"]) for name in ("base", "pruned")}
    assert places == {"base": ("org/base", BASE_COMMIT), "pruned": ("me/tiny", COMMIT)}


def test_what_is_shown_is_what_the_report_states(data: dict[str, Any], report: PruningReport) -> None:
    assert data["facts"][0] == ["50.0%", "of the targeted weights removed"]
    assert f"{report.totals.parameters:,} parameters" == data["base"]["about"]
    (table,) = data["tables"]
    assert table["head"] == ["text", "base", "pruned", "pruned / base"]
    assert table["rows"] == [
        ["general", "21.25 ± 0.21", "34.00 ± 0.34", "1.60"],
        ["domain", "18.50 ± 0.18", "17.25 ± 0.17", "0.93"],
    ]
    assert data["recorded"] == {
        "base": [{"prompt": "Once", "text": "upon a time", "tokens": 3}],
        "pruned": [{"prompt": "Once", "text": "upon", "tokens": 1}],
    }


def test_requirements_are_the_versions_of_the_run_and_no_more(folder: Path, report: PruningReport) -> None:
    lines = [line for line in (folder / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["torch==2.13.0", "transformers==5.23.0"]
    unknown = replace(report, versions={})
    assert all(re.fullmatch(r"\d+(\.\d+)+", version) for version in requirements(unknown).values())


def test_gradio_is_the_version_that_is_tested() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line[1:])
    assert pins["gradio"] == GRADIO


def test_app_is_python_that_needs_neither_hubprune_nor_anything_that_is_not_installed(folder: Path) -> None:
    trees = [ast.parse((folder / name).read_text()) for name in MODULES]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    outer = {name.split(".")[0] for name in names} - {name.removesuffix(".py") for name in MODULES}
    # gradio and the package of ZeroGPU come with a Space, the client with transformers.
    assert {"gradio", "torch", "transformers", "huggingface_hub", "spaces"} == outer - STANDARD


def test_the_package_of_zero_gpu_comes_before_torch(folder: Path) -> None:
    first = [node for node in ast.parse((folder / "app.py").read_text()).body if not isinstance(node, ast.Expr)]
    tried = next(index for index, node in enumerate(first) if isinstance(node, ast.Try))
    earlier = {str(node.module) for node in first[:tried] if isinstance(node, ast.ImportFrom)}
    earlier |= {alias.name for node in first[:tried] if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in earlier} <= STANDARD


STANDARD = set("__future__ base64 collections dataclasses html json os pathlib secrets threading time typing".split())


@pytest.mark.usefixtures("hub")
def test_metadata_is_what_the_hub_takes_for_a_space(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    answer = get_session().post(
        f"{constants.ENDPOINT}/api/validate-yaml", json={"content": text, "repoType": "space"}, headers={}
    )
    assert (answer.status_code, answer.json()) == (200, {"errors": [], "warnings": []})
    head = metadata(folder)
    expected = {
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "app_file": "app.py",
        "python_version": "3.12",
        "license": "mit",
    }
    assert {key: head[key] for key in expected} == expected
    assert head["models"] == ["me/tiny", "org/base"]
    assert len(head["short_description"]) <= 60


def test_no_file_holds_a_token_or_a_path_of_this_machine(
    report: PruningReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    here = replace(report, base=replace(report.base, model_id="/home/somebody/base", commit=None))
    write_space(here, tmp_path / "space")
    text = "".join(path.read_text() for path in (tmp_path / "space").iterdir())
    assert re.findall(r"hf_[A-Za-z0-9]{6,}|/home/|/tmp/", text) == []
    data = json.loads((tmp_path / "space" / DATA).read_text())
    assert (data["base"]["repo"], data["pruned"]["repo"], data["base"]["name"]) == (None, None, "./base")
    assert "models" not in metadata(tmp_path / "space")


def test_names_cannot_break_out_of_the_page(report: PruningReport, tmp_path: Path) -> None:
    odd = replace(report, base=replace(report.base, model_id="a`|<b>*", commit=None))
    write_space(odd, tmp_path / "space")
    text = (tmp_path / "space" / "README.md").read_text().split("<!-- hubprune:metadata")[0]
    assert not {"<b>", "`|"} & {text[i : i + 3] for i in range(len(text))} | {m for m in ("<b>", "`|<") if m in text}


def test_a_users_words_in_the_readme_stay(report: PruningReport, tmp_path: Path) -> None:
    write_space(report, tmp_path, model="me/tiny", commit=COMMIT)
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text().replace("colorTo: red", "colorTo: blue") + "\n## My own words\n")
    write_space(report, tmp_path, model="me/tiny", commit="e" * 40)
    assert readme.read_text().count("## My own words") == 1
    assert "`" + "e" * 40 + "`" in readme.read_text()
    assert metadata(tmp_path)["colorTo"] == "blue"


def test_another_folder_is_left_alone(report: PruningReport, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds other files: give another folder"):
        write_space(report, tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        write_space(report, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_repository_needs_its_commit(report: PruningReport, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one commit of a repository"):
        write_space(report, tmp_path / "space", model="me/tiny")


def test_the_figure_of_the_model_comes_along(
    report: PruningReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "has_matplotlib", lambda: False)
    (tmp_path / "model" / "figures").mkdir(parents=True)
    for name in ("sparsity.png", "overlap.png"):
        (tmp_path / "model" / "figures" / name).write_bytes(name.encode())
    files = write_space(report, tmp_path / "space", model_folder=tmp_path / "model")
    assert set(files) - set(FILES) == {"figures/sparsity.png"}
    assert (tmp_path / "space" / "figures" / "sparsity.png").read_bytes() == b"sparsity.png"
    data = json.loads((tmp_path / "space" / DATA).read_text())
    assert [figure["file"] for figure in data["figures"]] == ["figures/sparsity.png"]
    assert write_space(report, tmp_path / "space") == FILES  # it is gone with the next model


# Examples


def corpus(name: str, samples: list[str], template: str | None = None, answer: str | None = None) -> CorpusFacts:
    source = SourceFacts("org/set", template=template, answer=answer)
    return CorpusFacts(name, [source], samples=samples)


def test_a_question_is_asked_up_to_its_answer(report: PruningReport) -> None:
    samples = ["Question: What is a cold?\nAnswer: A disease.", "Question: " + "long " * 60]
    asked = corpus("task", samples, QUESTION, "{answer}")
    first, second, *_ = example_prompts(replace(report, corpora=[corpus("general", ["A cat sat."]), asked]))
    assert first == "Question: What is a cold?\nAnswer:"
    assert second.startswith("Question: long long")
    assert len(second) <= 160


def test_prose_is_broken_off_where_there_is_something_to_say(report: PruningReport) -> None:
    text = "The patient had a cough. It was dry and lasted for a week."
    found = example_prompts(replace(report, corpora=[corpus("domain", [text])], answers=[]))
    assert found == ["The patient had a cough. It was"]


def test_domain_comes_first_and_recorded_prompts_have_a_place(report: PruningReport) -> None:
    corpora = [corpus("general", ["Once there was", "Long ago there was"]), corpus("domain", ["The court held that"])]
    assert example_prompts(replace(report, corpora=corpora)) == [
        "The court held that",
        "Once there was",
        "Long ago there was",
        "Once",
    ]


@pytest.mark.parametrize(("dataset", "word"), [("qiaojin/PubMedQA", "iron"), ("casehold/casehold", "court")])
def test_without_samples_the_presets_domain_is_asked(report: PruningReport, dataset: str, word: str) -> None:
    facts = CorpusFacts("domain", [SourceFacts(dataset)])
    assert word in "".join(example_prompts(replace(report, corpora=[facts], answers=[])))
    assert example_prompts(replace(report, corpora=[], answers=[]))


def test_api_is_not_needed(report: PruningReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Space is written from the report alone."""
    monkeypatch.setattr(HfApi, "__init__", lambda *_, **__: pytest.fail("a client was made"))
    write_space(report, tmp_path / "space", model="me/tiny", commit=COMMIT)
