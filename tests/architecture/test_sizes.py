"""Small files, thin services: the ceilings that we hold ourselves to."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE_CEILING = 400
FUNCTION_CEILING = 50
SERVICE_CEILING = 500


def own_files() -> list[Path]:
    paths = [path for folder in ("libs", "services") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in paths if "_pb2" not in path.name]


@pytest.mark.parametrize("path", own_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_stays_under_its_ceiling(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= FILE_CEILING, f"{lines} lines: is it one idea?"


@pytest.mark.parametrize("path", own_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_function_stays_under_its_ceiling(path: Path) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    sizes = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert not {name: lines for name, lines in sizes.items() if lines > FUNCTION_CEILING}


@pytest.mark.parametrize("service", sorted(path for path in (ROOT / "services").iterdir() if path.is_dir()), ids=str)
def test_a_service_stays_thin(service: Path) -> None:
    lines = sum(path.read_text().count("\n") for path in service.rglob("*.py"))
    assert lines <= SERVICE_CEILING, f"{service.name} has {lines} lines: decisions belong to the core, shells to libs"
