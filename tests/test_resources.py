"""Templates are found in a wheel and in a source tree, and never in somebody else's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubprune.errors import HubPruneError
from hubprune.resources import resource_folder


def test_templates_of_this_installation_are_found() -> None:
    assert (resource_folder("templates") / "model_card.md.jinja").is_file()


def test_inside_the_package_comes_first_then_the_source_tree(tmp_path: Path) -> None:
    package = tmp_path / "hubprune"
    (tmp_path / "templates").mkdir()
    with pytest.raises(HubPruneError, match="install hubprune again"):
        resource_folder("templates", package)  # another project's folder beside an installed package
    (tmp_path / "pyproject.toml").touch()
    assert resource_folder("templates", package) == tmp_path / "templates"
    (package / "templates").mkdir(parents=True)
    assert resource_folder("templates", package) == package / "templates"
