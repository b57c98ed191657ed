"""Every row of the tables is one that the rest of the package can use."""

from __future__ import annotations

import re

import pytest
import torch

from hubprune.config import PruningConfig
from hubprune.corpora import parse_corpus, parse_source
from hubprune.criterion import Criterion, load_criterion
from hubprune.filling import Field, parse_template, split_template
from hubprune.presets import APPLICATIONS, CORPORA, METHODS, TEMPLATES, Method
from hubprune.sparsity import SCOPES
from hubprune.unit_criterion import UnitCriterion

each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_corpus = pytest.mark.parametrize("name", CORPORA)


@each_method
def test_a_method_builds_its_criterion_and_its_words_are_known(method: Method) -> None:
    assert METHODS[method.name] is method
    assert method.unit != "weight" or method.scope in SCOPES
    assert method.application in APPLICATIONS
    assert method.title
    assert method.summary.endswith(".")
    assert re.fullmatch(r"(\d{4}\.\d{5})?", method.arxiv)
    criterion = load_criterion(PruningConfig(method.name))
    assert isinstance(criterion, Criterion)
    for name, value in method.options.items():
        assert name in method.choices or getattr(criterion, name) == value


@each_method
def test_a_criterion_asks_for_the_corpora_of_its_row(method: Method) -> None:
    words = {"any": "all"}
    asked = load_criterion(PruningConfig(method.name)).required_corpora()
    assert sorted(asked) == sorted(words.get(name, name) for name in method.corpora)


@each_method
def test_every_choice_of_an_option_builds_and_scores(method: Method) -> None:
    assert set(method.choices) <= set(method.options)
    assert all(isinstance(value, float) for name, value in method.options.items() if name not in method.choices)
    weight, summary, gradient = torch.randn(4, 8), torch.rand(8) + 0.5, torch.rand(4, 8)
    for name, allowed in method.choices.items():
        assert method.options[name] in allowed
        for value in allowed:
            criterion = load_criterion(PruningConfig(method.name, options={name: value}))
            if isinstance(criterion, UnitCriterion):
                continue  # held to their formulas in test_unit_criteria
            scores = criterion.scores(
                weight,
                summary if criterion.summary else None,
                gradient if criterion.gradients else None,
            )
            assert scores.shape == weight.shape
            assert scores.isfinite().all()


def test_an_option_reaches_the_criterion() -> None:
    criterion = load_criterion(PruningConfig("ria", options={"activation_power": 0.25}))
    assert vars(criterion) == {"activation_power": 0.25, "seed": 0}


@each_corpus
def test_a_corpus_names_data_sets_of_the_hub_in_full(name: str) -> None:
    rows, sources = CORPORA[name], parse_corpus(name).sources
    assert len(rows) == len(sources)
    for row, source in zip(rows, sources, strict=True):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.dataset)
        assert f"{source.dataset}:{source.config}:{source.split}" == row.dataset
        assert (source.template, source.weight, source.answer) == (row.template, row.weight, row.answer)


@each_corpus
def test_the_templates_of_a_corpus_can_be_filled(name: str) -> None:
    for row in CORPORA[name]:
        if row.template is not None:
            assert any(isinstance(part, Field) for part in parse_template(row.template))
            assert row.answer is not None
            question, answer = split_template(row.template, row.answer)
            assert any(isinstance(part, Field) for part in question)
            assert isinstance(answer[0], Field)


def test_a_data_set_of_a_preset_has_one_template_wherever_it_is_named() -> None:
    templated = [row for rows in CORPORA.values() for row in rows if row.template is not None]
    assert len(templated) == len(TEMPLATES)
    for row in templated:
        source = parse_source(row.dataset)
        assert (source.template, source.answer) == (row.template, row.answer)
