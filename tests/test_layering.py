"""The rules that keep the package readable from top to bottom; imports inside functions count."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hubprune

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hubprune"

# The reading order: a module imports only from those above it.
ORDER = (
    "errors resources ranks environment sparsity fields presets corpora config recovery_config facts outcomes "
    "energy carddata report exportrecord huberrors hub jobs filling sources tokens architecture units removal "
    "weights activations shards work sequences calibration inputs recording engine replay stats criterion "
    "unit_criterion criteria attention evidence masks allocation apply zeros sweeps scoring choosing weightwise "
    "unit_evidence unit_ranking unitwise whole labelling loop layers pruner evaluation opening quantized "
    "reloading verifier readme recipe usage citations drawing unit_figures figures similarity metadata findings "
    "card evalresults page uploads prompts space saving space_publisher publisher comparison flow footprint probe "
    "estimate runs adapters training teacher reconstruct recovery_text recovery_plan recovery recoverer protocol "
    "calibrated variants measured harness answers sizes speed sidebyside modeling quantizer tracing session "
    "rounding graphcheck exporthub exported exporting doctor cli __main__"
).split()
BESIDE = {"localhub": {"errors", "resources"}, "demo": set(ORDER) - {"cli", "__main__"} | {"localhub"}}
MAY_USE_BESIDE = {"cli": {"localhub", "demo"}}

NO_TORCH = set(
    "errors resources sparsity fields presets corpora config recovery_config facts outcomes energy carddata "
    "report exportrecord huberrors hub jobs filling sources readme recipe usage citations drawing unit_figures "
    "figures similarity metadata findings card evalresults page uploads prompts space".split()
)
NO_TORCH |= {"localhub", "__init__"}
REGISTERS_HOOKS = {"engine", "replay", "whole"}
# The trainer of the demo's base model hands its weights to an optimizer; statistics add up in tensors of their own,
# and a masked adapter forms its sum and its gradient in some.
WRITES_WEIGHTS = {"apply"}
WRITES_OWN_TENSORS = {"stats": {"add_", "masked_fill_"}, "adapters": {"masked_fill_"}}
IN_PLACE = set("add_ addcmul_ addmm_ copy_ div_ fill_ index_copy_ masked_fill_ mul_ sub_ zero_".split())
TALKS_TO_HUB = {"hub", "jobs", "saving", "space_publisher", "publisher", "exporthub", "doctor", "localhub", "demo"}
CLIENT = {"HfApi", "fetch_job_logs", "hf_hub_download", "load_dataset", "run_uv_job", "snapshot_download"}
MAX_LINES = 400

FILES = sorted(PACKAGE.rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def module_of(path: Path) -> str:
    """The name in the reading order: a package counts as one module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names of all that a file imports, with the line; `from a import b` gives `a.b`."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def test_every_module_has_its_place_in_the_order() -> None:
    assert {module_of(path) for path in FILES} - {"__init__"} <= {*ORDER, *BESIDE}
    assert [name for name in ORDER if not (PACKAGE / name).is_dir() and not (PACKAGE / f"{name}.py").is_file()] == []


@each_file
def test_imports_point_up(path: Path) -> None:
    module = module_of(path)
    if module == "__init__":
        allowed: set[str] = set()
    elif module in BESIDE:
        allowed = BESIDE[module] | {module}
    else:
        allowed = {*ORDER[: ORDER.index(module)]} | MAY_USE_BESIDE.get(module, set())
        allowed |= {module} if path.parent != PACKAGE and module != "criteria" else set()
    for name, line in imports_of(path):
        parts = name.split(".")
        if parts[0] == "hubprune" and len(parts) > 1 and not parts[1].startswith("__version"):
            assert parts[1] in allowed, f"{path}:{line}: {module} must not import {parts[1]}"


@each_file
def test_light_modules_import_neither_torch_nor_transformers(path: Path) -> None:
    if module_of(path) in NO_TORCH:
        heavy = [name for name, _ in imports_of(path) if name.split(".")[0] in ("torch", "transformers")]
        assert heavy == []


@each_file
def test_only_the_engines_register_hooks_and_only_apply_writes_weights(path: Path) -> None:
    module = module_of(path)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            if name.startswith("register_") and name.endswith("hook"):
                assert module in REGISTERS_HOOKS, f"{path}:{node.lineno}: {name}"
            if name in IN_PLACE - WRITES_OWN_TENSORS.get(module, set()):
                assert module in WRITES_WEIGHTS, f"{path}:{node.lineno}: {name}"
        for target in [*getattr(node, "targets", []), *([node.target] if isinstance(node, ast.AugAssign) else [])]:
            inner = target.value if isinstance(target, ast.Subscript) else target
            if isinstance(inner, ast.Attribute) and inner.attr in ("data", "weight"):
                assert module in WRITES_WEIGHTS, f"{path}:{target.lineno}: assigns to .{inner.attr}"


@each_file
def test_only_some_modules_talk_to_the_hub(path: Path) -> None:
    used = {name.split(".")[-1] for name, _ in imports_of(path)}
    used |= {node.attr for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
    if module_of(path) not in TALKS_TO_HUB:
        assert used & CLIENT == set()


@each_file
def test_no_file_holds_two_ideas_or_works_when_imported(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    quiet = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.AnnAssign)
    for node in tree_of(path).body:
        said = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        named = isinstance(node, ast.Assign) and all(isinstance(t, ast.Name | ast.Tuple) for t in node.targets)
        test = ast.unparse(node.test) if isinstance(node, ast.If) else ""
        chosen = test in ("TYPE_CHECKING", "__name__ == '__main__'")
        assert isinstance(node, quiet) or said or named or chosen, f"{path}:{node.lineno} runs when it is imported"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "spaces").rglob("*.py")), ids=lambda path: path.parent.name + path.stem
)
def test_spaces_are_as_short_and_use_public_names_only(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    public = set(hubprune.__all__)
    for name, line in imports_of(path):
        parts = name.split(".")
        assert parts[0] != "hubprune" or len(parts) == 1 or parts[1] in public, f"{path}:{line}: {name}"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hubprune":
            assert node.attr in public, f"{path}:{node.lineno}: hubprune.{node.attr}"
