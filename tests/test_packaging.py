"""What an installation holds: the wheel carries the files that are no code, and finds them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import hubprune

ROOT = Path(__file__).resolve().parents[1]
RESOURCES = ("templates", "spaces")
FIND = "from hubprune.resources import resource_folder; print(resource_folder({name!r}))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("*.whl")
    return found


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def run_python(code: str, path: Path, folder: Path) -> str:
    """Run code with one folder on the module path, away from the source tree; return what it prints."""
    env = {**os.environ, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_wheel_holds_the_package_the_resources_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"hubprune/{name}" for name in files_below(ROOT / "hubprune")}
    expected |= {f"hubprune/{folder}/{name}" for folder in RESOURCES for name in files_below(ROOT / folder)}
    expected ^= {"hubprune/cli/optimum_register.py", "optimum/commands/register/register_hubprune.py"}  # moved there
    assert held == expected


def test_wheel_carries_the_demo_model_and_says_that_it_is_typed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    base = {f"hubprune/demo/base/{name}" for name in "config.json model.safetensors tokenizer.json README.md".split()}
    assert base | {"hubprune/py.typed"} <= held


@pytest.mark.parametrize("name", RESOURCES)
def test_resources_are_found_in_an_unpacked_wheel(wheel: Path, tmp_path: Path, name: str) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    found = Path(run_python(FIND.format(name=name), site, tmp_path))
    assert found == site / "hubprune" / name
    assert files_below(found) == files_below(ROOT / name)


@pytest.mark.parametrize("name", RESOURCES)
def test_resources_are_found_in_a_checkout(tmp_path: Path, name: str) -> None:
    assert Path(run_python(FIND.format(name=name), ROOT, tmp_path)) == ROOT / name


def test_optimum_finds_the_command_in_an_unpacked_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "from optimum.commands.optimum_cli import load_optimum_namespace_cli_commands as load; "
        "import optimum.commands.register as register; print({command.COMMAND.name for command, _ in load()}, "
        "*register.__path__)"
    )
    # An installation of this source tree, where there is one, registers the same command beside it.
    names, *places = run_python(code, tmp_path / "site", tmp_path).split()
    assert names == "{'prune'}"
    assert str(tmp_path / "site" / "optimum" / "commands" / "register") in places


def test_wheel_names_the_version_the_command_and_the_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        texts = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert f"\nVersion: {hubprune.__version__}\n" in texts["METADATA"]
    assert "\nRequires-Python: >=3.11\n" in texts["METADATA"]
    for extra in ("all", "browser", "demo", "eval", "export", "figures", "optimum", "peft", "test"):
        assert f"\nProvides-Extra: {extra}\n" in texts["METADATA"]
    assert "hubprune = hubprune.cli:main" in texts["entry_points.txt"]
    assert "hf-prune = hubprune.cli.hf_extension:hf_prune" in texts["entry_points.txt"]


def test_constraints_pin_every_requirement_exactly() -> None:
    """A requirement without a pin would let an installation differ from the one that was tested."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {name.lower().replace("_", "-") for name in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {line.split("[")[0].split(">")[0].split("<")[0].lower().replace("_", "-") for line in asked}
    assert names - {"hubprune"} <= pinned
    assert pins["torch"] == "2.13.0"
