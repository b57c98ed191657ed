"""A README has two authors: each rendering replaces its own section and metadata, and nothing of the user's."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from hubprune.errors import OutputError
from hubprune.readme import BEGIN, END, OwnParts, as_list, join_own, merge_metadata, own_parts, unique, write_section

NOTHING = OwnParts({}, "", "")


def metadata_of(text: str) -> dict[str, Any]:
    loaded = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(loaded, dict)
    return loaded


def result(name: str, value: float) -> dict[str, Any]:
    return {"dataset": {"name": name, "type": f"org/{name}"}, "metrics": [{"type": "perplexity", "value": value}]}


@pytest.mark.parametrize("text", [None, "", "\ufeff", "\n\n"])
def test_an_empty_readme_holds_nothing(text: str | None) -> None:
    assert own_parts(text) == NOTHING


def test_a_readme_without_our_section_is_the_users() -> None:
    text = "---\nlicense: mit\ntags: [a]\n---\n\n# Page\n\nWords.\n"
    assert own_parts(text) == OwnParts({"license": "mit", "tags": ["a"]}, "# Page\n\nWords.", "")
    assert own_parts("\ufeff" + text.replace("\n", "\r\n")) == own_parts(text)


def test_text_around_the_section_is_the_users_and_the_section_is_not() -> None:
    text = f"# Page\n\n{BEGIN}\nrendered\n{END}\n\n## Notes\n"
    assert own_parts(text) == OwnParts({}, "# Page", "## Notes")


def test_a_marker_inside_a_sentence_is_text() -> None:
    text = f"The section begins at {BEGIN} and ends at {END}."
    assert own_parts(text).before == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\na: [1\n---\n", r"the metadata of the existing README.md is not valid YAML \(.*\): mend it"),
        ("---\n- a\n---\n", "the metadata of the existing README.md must be 'key: value' lines: mend it"),
        (f"{BEGIN}\n", "must hold both .*begin.* and .*end.*, in this order: restore or remove them"),
        (f"{END}\n{BEGIN}\n", "must hold both .*begin.* and .*end.*, in this order: restore or remove them"),
        (
            f"{BEGIN}\n<!-- hubprune:metadata {{broken}} -->\n{END}\n",
            "the line 'hubprune:metadata' of the existing README.md is damaged: restore or remove it",
        ),
    ],
)
def test_a_readme_that_cannot_be_separated_is_refused_on_one_line(text: str, message: str) -> None:
    with pytest.raises(OutputError, match=message) as caught:
        own_parts(text)
    assert "\n" not in str(caught.value)


def test_a_section_is_written_between_what_is_the_users() -> None:
    own = OwnParts({"license": "mit"}, "# Page", "## Notes")
    text = write_section("Rendered.", {"tags": ["pruned"]}, own)
    card = ModelCard(text)
    assert card.data.to_dict() == {"tags": ["pruned"], "license": "mit"}
    body = card.text.strip().split("\n\n")
    assert (body[0], body[-1]) == ("# Page", "## Notes")
    assert body[1].startswith(f"{BEGIN}\nRendered.\n<!-- ")
    assert body[1].endswith(f"\n{END}")
    assert own_parts(text) == own


def test_our_metadata_is_replaced_and_the_users_changes_stay() -> None:
    first = write_section("One.", {"license": "mit", "tags": ["a", "b"], "pipeline_tag": "x"}, NOTHING)
    edited = first.replace("license: mit", "license: gpl\nwidget: [1]").replace("- b\n", "- b\n- mine\n", 1)
    own = own_parts(edited)
    assert own.metadata == {"license": "gpl", "widget": [1], "tags": ["mine"]}
    second = write_section("Two.", {"license": "mit", "tags": ["c"]}, own)
    assert metadata_of(second) == {"license": "gpl", "tags": ["c", "mine"], "widget": [1]}
    assert "One." not in second


def test_results_of_the_user_stay_and_ours_are_replaced() -> None:
    ours = {"model-index": [{"name": "m", "results": [result("a", 1.0)]}]}
    data = metadata_of(write_section("One.", ours, NOTHING))
    theirs = result("exam", 0.5)
    data["model-index"][0]["results"].append(theirs)
    record = write_section("One.", ours, NOTHING).split("---\n", 2)[2]
    own = own_parts(f"---\n{yaml.safe_dump(data)}---\n{record}")
    assert own.metadata == {"model-index": [{"name": "m", "results": [theirs]}]}
    new = {"model-index": [{"name": "m", "results": [result("a", 2.0)]}]}
    assert merge_metadata(new, own.metadata)["model-index"] == [*new["model-index"], *own.metadata["model-index"]]


def test_where_the_weights_come_from_is_known_better_by_the_run() -> None:
    own = {"base_model": "old/base", "library_name": "other", "license": "gpl", "datasets": "mine"}
    ours = {"base_model": "org/base", "license": "mit", "datasets": ["ours", "mine"]}
    assert merge_metadata(ours, own) == {
        "base_model": "org/base",
        "library_name": "other",  # the run says nothing of it
        "license": "gpl",
        "datasets": ["ours", "mine"],
    }


def test_lists_of_metadata_may_be_single_items() -> None:
    assert as_list(None) == []
    assert as_list("a") == as_list(["a"]) == as_list(("a",)) == ["a"]
    assert unique([1, {"a": 1}, 1, {"a": 1}]) == [1, {"a": 1}]


@pytest.mark.parametrize("value", ["\x85", "a\u2028b", " \u2029 ", "M\u00fcnchen"])
def test_metadata_of_any_language_is_read_again_as_it_was(value: str) -> None:
    text = write_section("body", {"title_of": value}, own_parts(None))
    assert own_parts(text).metadata == {}  # what is as we wrote it is not the user's
    assert (value in text) == (value == "M\u00fcnchen")  # letters stay letters


lines = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"])).map(str.strip)
prose = st.lists(lines.filter(lambda line: line not in (BEGIN, END, "---"))).map(
    lambda found: "\n".join(found).strip("\n")
)
hostile = st.sampled_from([BEGIN, END, '<!-- hubprune:metadata {"license": "evil"} -->', "---", "# Title"])
bodies = st.lists(lines | hostile).map("\n".join)
values = st.text() | st.integers() | st.booleans() | st.lists(st.text(max_size=5), max_size=3)
keys = st.from_regex(r"[a-z_]{3,12}", fullmatch=True).filter(lambda key: key not in ("tags", "datasets", "metrics"))
metadata = st.dictionaries(keys, values, max_size=4)


@settings(max_examples=60, deadline=None)
@given(prose, prose, metadata, bodies, metadata, st.booleans())
def test_what_a_user_wrote_is_found_again(
    before: str, after: str, theirs: dict[str, Any], body: str, ours: dict[str, Any], windows: bool
) -> None:
    own = OwnParts({key: value for key, value in theirs.items() if key not in ours}, before, after)
    text = write_section(body, ours, own)
    assert own_parts(text.replace("\n", "\r\n") if windows and "\r" not in text else text) == own
    assert write_section(body, ours, own_parts(text)) == text


def test_what_two_readmes_say_is_joined_and_the_first_wins() -> None:
    ours = {"license": "apache-2.0", "tags": ["pruned"]}
    first = write_section("Ours.", ours, OwnParts({"tags": ["web"], "widget": 1}, "# Page", "## Web\n\nOne."))
    second = write_section(
        "Ours.", ours, OwnParts({"tags": ["web", "local"], "widget": 2, "x": 3}, "# Page", "## Local\n\nTwo.")
    )
    joined = own_parts(join_own(first, second))
    assert joined.metadata == {"tags": ["web", "local"], "widget": 1, "x": 3}
    assert (joined.before, joined.after) == ("# Page", "## Web\n\nOne.\n\n## Local\n\nTwo.")


@pytest.mark.parametrize("nothing", [None, "", f"{BEGIN}\nrendered\n{END}\n"])
def test_joining_with_a_readme_of_ours_alone_changes_nothing(nothing: str | None) -> None:
    own = OwnParts({"license": "mit"}, "# Page", "## Notes")
    text = write_section("Ours.", {}, own)
    assert own_parts(join_own(text, nothing)) == own
    assert own_parts(join_own(nothing, text)) == own
    assert own_parts(join_own(text, text)) == own
