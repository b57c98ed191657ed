"""What the package offers at its top."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import hubprune

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "huggingface_hub", "datasets", "gradio", "typer")


@pytest.mark.parametrize("name", hubprune.__all__)
def test_exported_name_is_there_described_and_documented(name: str) -> None:
    for module in {*hubprune._EXPORTS.values()}:
        importlib.import_module(f"hubprune.{module}")
    value = getattr(hubprune, name)
    assert not isinstance(value, ModuleType), f"hubprune.{name} is hidden by the module of that name"
    if name != "__version__":
        assert (value.__doc__ or "").strip()
        pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
        text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
        assert re.search(rf"\b{name}\b", text), f"{name} is in neither README.md nor docs/"


def test_dir_lists_what_is_exported_and_nothing_else_is_found() -> None:
    assert dir(hubprune) == sorted(hubprune.__all__)
    with pytest.raises(AttributeError, match="Prunner"):
        getattr(hubprune, "Prunner")  # noqa: B009


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, hubprune; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
