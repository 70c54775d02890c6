"""Who may import whom: the core is pure, shells stand on it, services stand alone."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "libs" / "armature"
SERVICES = ROOT / "services"

CORE = {"blocks", "index", "performance", "routing", "scheduling", "offload", "planning", "sim"}
# What a core may take from the standard library: nothing that waits, reads a clock, does I/O or draws from a
# module-level generator. `random` is absent on purpose: a core is handed its generator. numpy is arithmetic.
QUIET = {
    "__future__", "abc", "array", "bisect", "collections", "dataclasses", "difflib", "enum", "functools",
    "hashlib", "heapq", "itertools", "math", "numpy", "operator", "statistics", "struct", "types", "typing",
}  # fmt: skip


def python_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if "_pb2" not in path.name]


@cache
def imported(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; path is name, write it out"
            assert node.module is not None
            found.append(node.module)
    return found


def core_files() -> list[Path]:
    return [path for name in sorted(CORE) if (LIBRARY / name).is_dir() for path in python_files(LIBRARY / name)]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", core_files(), ids=relative)
def test_core_imports_only_core_and_quiet_standard_library(path: Path) -> None:
    for module in imported(path):
        top, *rest = module.split(".")
        allowed = top in QUIET or (top == "armature" and rest and rest[0] in CORE)
        assert allowed, f"{relative(path)} imports {module}"


@pytest.mark.parametrize("path", python_files(LIBRARY), ids=relative)
def test_the_library_never_imports_a_service(path: Path) -> None:
    assert not [module for module in imported(path) if module.split(".")[0] == "services"]


@pytest.mark.parametrize("path", python_files(SERVICES), ids=relative)
def test_a_service_imports_no_other_service(path: Path) -> None:
    own = path.relative_to(SERVICES).parts[0]
    for module in imported(path):
        parts = module.split(".")
        if parts[0] == "services":
            assert parts[1:2] == [own], f"{relative(path)} imports {module}"


@pytest.mark.parametrize("path", python_files(ROOT / "libs") + python_files(SERVICES), ids=relative)
def test_the_library_is_imported_by_its_one_name(path: Path) -> None:
    """`libs.armature` would load everything twice."""
    assert not [module for module in imported(path) if module.split(".")[0] == "libs"]


@pytest.mark.parametrize("path", python_files(ROOT / "libs") + python_files(SERVICES), ids=relative)
def test_nothing_at_run_time_depends_on_the_tests(path: Path) -> None:
    assert not [module for module in imported(path) if module.split(".")[0] == "tests"]
