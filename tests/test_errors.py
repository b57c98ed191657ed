"""The tree of errors is the one drawn, and an unknown name is answered with what there is."""

from __future__ import annotations

import inspect
import re

import pytest

from hubprune import errors
from hubprune.errors import ConfigError, HubPruneError, did_you_mean

CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__ == errors.__name__
}


def drawn_tree() -> dict[str, str]:
    """The drawing at the top of the file as ``{class: parent}``; three columns are one level."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        node = re.match(r"    ([| ]*)(?:[|`]-- )?([A-Z]\w+Error)\b", line)
        if node is None:
            continue
        depth = line.index(node[2]) // 4 - 1
        del path[depth:]
        parents[node[2]] = path[-1] if path else "Exception"
        path.append(node[2])
    return parents


def test_the_drawn_tree_is_the_real_one() -> None:
    assert drawn_tree() == {name: kind.__bases__[0].__name__ for name, kind in CLASSES.items()}


@pytest.mark.parametrize("name", CLASSES)
def test_one_except_clause_catches_every_error(name: str) -> None:
    with pytest.raises(HubPruneError, match="what to do"):
        raise CLASSES[name]("what to do")


def test_a_users_mistake_is_a_value_error_and_others_are_not() -> None:
    mistakes = {name for name, kind in CLASSES.items() if issubclass(kind, ValueError)}
    assert mistakes == {"UsageError", "ConfigError", "CorpusError", "UnsupportedModelError"}


def test_a_config_error_keeps_its_problems_apart_and_shows_all() -> None:
    assert ConfigError("one").problems == ("one",)
    error = ConfigError(["one", "two"])
    assert error.problems == ("one", "two")
    assert str(error) == "one; two"


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ("dpruner", "did you mean 'd-pruner'?"),
        ("sparsegp", "did you mean 'sparsegpt' or 'sparse'?"),
        ("zzz", "known: d-pruner, sparse, sparsegpt"),
        ("", "known: d-pruner, sparse, sparsegpt"),
    ],
)
def test_near_names_are_proposed_and_all_are_listed_when_none_is_near(value: str, remedy: str) -> None:
    assert did_you_mean(value, {"sparsegpt", "sparse", "d-pruner"}) == remedy
