"""A template is cut in front of its answer, and filled with the answer's place and label known."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubprune.errors import CorpusError
from hubprune.filling import Filled, fill_template, parse_template, split_template


def fill(template: str, answer: str | None, row: dict[str, Any]) -> Filled | None:
    return fill_template(*split_template(template, answer), row, "rows")


@pytest.mark.parametrize(
    ("template", "answer", "row", "filled"),
    [
        ("Q: {q}\nA: {a}", "{a}", {"q": "why", "a": "so"}, Filled("Q: why\nA: so", 10, "so")),
        ("Q: {q}\nA: {a}", " {a}", {"q": "why", "a": " so"}, Filled("Q: why\nA:  so", 9, "so")),
        (
            "{q} {a}. {long}",
            "{a}. {long}",
            {"q": "x", "a": "yes", "long": "It is."},
            Filled("x yes. It is.", 2, "yes"),
        ),
        ("{q}: {h_{n}}", "{h_{n}}", {"q": "x", "n": 1, "h_1": "one"}, Filled("x: one", 3, "one")),
        ("{{{q}}} {{{a}}}", "{{{a}}}", {"q": "x", "a": "y"}, Filled("{x} {y}", 4, "y")),
        ("{q} {a}", "{a}", {"q": "x", "a": None}, Filled("x ")),
        ("{q} {a}", None, {"q": "x", "a": "y"}, Filled("x y")),
        ("{q} {a}", "{a}", {"q": "", "a": " "}, None),
    ],
)
def test_it_is_known_where_the_answer_begins_and_what_it_is_called(
    template: str, answer: str | None, row: dict[str, Any], filled: Filled | None
) -> None:
    assert fill(template, answer, row) == filled


@pytest.mark.parametrize(
    ("template", "answer"),
    [("{q} {a}", "a}"), ("{q} {h_{a}}", "{a}}"), ("{q} {a}.", "."), ("{q} {{{a}", "{{a}"), ("{q} {a}", "{b}")],
)
def test_an_answer_that_cuts_a_place_or_has_none_is_refused(template: str, answer: str) -> None:
    with pytest.raises(CorpusError) as caught:
        split_template(template, answer)
    assert str(caught.value) == (
        f"an answer is the end of its template and holds at least one whole place, got {answer!r} for {template!r}: "
        "cut it in front of a brace"
    )


pieces = st.lists(st.sampled_from(["{a}", "{b}", "{c_{n}}", "{{", "}}", " ", "word"]), max_size=5).map("".join)


@settings(deadline=None)
@given(pieces, pieces)
def test_question_and_answer_make_the_template(question: str, rest: str) -> None:
    answer = "{a}" + rest
    parts = split_template(question + answer, answer)
    assert (*parts[0], *parts[1]) == (*parse_template(question + answer),)
    row = {"a": "yes", "b": "no", "c_1": "one", "n": 1}
    found = fill(question + answer, answer, row)
    plain = fill("x" + question + answer, None, row)
    assert found is not None
    assert plain is not None
    assert found.text == plain.text[1:]
    assert found.text[found.answer :].startswith("yes")
    assert found.label == "yes"
