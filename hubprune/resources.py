"""Where the files that are no code lie: model card templates and Space folders.

A wheel carries them inside the package; a checkout and an editable install have them at the repository root.
"""

from __future__ import annotations

from pathlib import Path

from hubprune.errors import HubPruneError

PACKAGE = Path(__file__).resolve().parent


def resource_folder(name: str, package: Path = PACKAGE) -> Path:
    """Return the folder ``templates`` or ``spaces``.

    Args:
        name: The folder's name.
        package: The installed package's own folder.

    Raises:
        HubPruneError: The folder is in neither place, so the installation is incomplete.
    """
    inside, beside = package / name, package.parent / name
    if inside.is_dir():
        return inside
    # Beside the package counts only in a source tree: next to an installed package lie other projects' folders.
    if beside.is_dir() and (package.parent / "pyproject.toml").is_file():
        return beside
    raise HubPruneError(f"the installation of hubprune lacks its {name!r} folder at {inside}: install hubprune again")
