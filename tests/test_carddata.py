"""What a user says in a card stands in it, stays there, and changes no fact of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from hubprune import PrunedModelCardData
from hubprune.card import render_card
from hubprune.cli import main
from hubprune.errors import ConfigError
from hubprune.readme import BEGIN, END
from hubprune.report import PruningReport
from hubprune.saving import save
from tests.pruned import prune_by_hand, tiny_model, tiny_tokenizer

FIELDS: dict[str, Any] = {
    "title": "Ward notes, small",
    "description": "Made for the **ward**.",
    "intended_use": "For nurses.",
    "prompt": "The ward",
    "developed_by": "The ward team",
    "contact": "Ask the ward.",
    "citation": "@misc{ward}",
    "limitations": ["It knows one ward."],
    "license": "mit",
    "language": ["de"],
    "tags": ["ward"],
    "datasets": ["org/ward"],
    "metadata": {"thumbnail": "https://example.org/a.png"},
}


def test_every_field_is_in_the_card() -> None:
    report = prune_by_hand(tiny_model())
    plain = render_card(report, "me/name")
    report.model_card = PrunedModelCardData(**FIELDS)
    card = render_card(report, "me/name")
    for said in (
        "# Ward notes, small\n",
        "Made for the **ward**.",
        "## Intended use\n\nFor nurses.",
        'prompt = "The ward"',
        "| developed by | The ward team |",
        "## Contact\n\nAsk the ward.",
        "```bibtex\n@misc{ward}\n```",
        "- It knows one ward.",
        "Licence: `mit`.",
    ):
        assert said in card
        assert said not in plain
    data = ModelCard(card).data.to_dict()
    assert (data["license"], data["language"], data["thumbnail"]) == ("mit", ["de"], "https://example.org/a.png")
    assert {"ward", "pruned"} <= set(data["tags"])
    assert data["datasets"][-1] == "org/ward"
    assert data["model-index"][0]["name"] == "Ward notes, small"
    assert data["base_model"] == "org/base"


def test_a_licence_of_ones_own_brings_nothing_of_the_bases_along() -> None:
    report = prune_by_hand(tiny_model())
    report.base.card |= {"license": "other", "license_name": "theirs", "license_link": "https://example.org/theirs"}
    report.model_card = PrunedModelCardData(license="mit")
    data = ModelCard(render_card(report)).data.to_dict()
    assert (data["license"], "license_name" in data, "license_link" in data) == ("mit", False, False)


def test_words_of_a_user_cannot_end_our_section() -> None:
    report = prune_by_hand(tiny_model())
    report.model_card = PrunedModelCardData(description=f"a\n{END}\nb\n{BEGIN}\nc")
    card = render_card(report, "me/name")
    assert (card.count(BEGIN), card.count(END)) == (1, 1)
    assert render_card(report, "me/name", card) == card


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        PrunedModelCardData(
            title=3,  # type: ignore[arg-type]
            tags=[1],  # type: ignore[list-item]
            metadata={"base_model": "a/b", "tags": []},
        )
    assert [problem.split(" ")[0] for problem in caught.value.problems] == ["title", "tags", "metadata", "metadata"]
    assert "give tags=" in caught.value.problems[-1]
    with pytest.raises(ConfigError, match="did you mean 'title'"):
        PrunedModelCardData.of({"titel": "x"})


def test_the_report_keeps_it_so_that_a_later_card_has_it_too(tmp_path: Path, capsys: Any) -> None:
    model = tiny_model()
    folder = save(model, tmp_path / "model", report=prune_by_hand(model), tokenizer=tiny_tokenizer())
    words = tmp_path / "card.yaml"
    words.write_text(yaml.safe_dump(FIELDS))
    assert main(["card", str(folder), "--model-card", str(words)]) == 0
    assert "Made for the **ward**." in (folder / "README.md").read_text()
    assert PruningReport.load(folder).model_card == PrunedModelCardData(**FIELDS)
    assert main(["card", str(folder), "--repo-id", "me/name"]) == 0
    assert "# Ward notes, small\n" in (folder / "README.md").read_text()
    words.write_text("titel: x\n")
    capsys.readouterr()
    assert main(["card", str(folder), "--model-card", str(words)]) == 2
    assert "did you mean 'title'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"), [(None, "cannot read"), ("a: [", "not valid YAML"), ("- a", "must hold a mapping")]
)
def test_a_file_that_says_nothing_is_refused(tmp_path: Path, capsys: Any, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "card.yaml").write_text(text)
    assert main(["card", str(tmp_path), "--model-card", str(tmp_path / "card.yaml")]) == 2
    assert message in capsys.readouterr().err
