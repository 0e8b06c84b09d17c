"""Imports point one way, flows → trackstar → tasks → storage; numerics and storage know nothing of Prefect."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "storage": {"storage"},
    "tasks/numerics": {"trackstar.tasks.numerics"},
    "tasks": {"storage", "tasks"},
    "trackstar": {"storage", "tasks", "trackstar"},
    "flows": {"storage", "tasks", "flows", "trackstar"},
}
ALLOWED_BY_DEPTH = sorted(ALLOWED, key=len, reverse=True)  # a folder before the one it is in
OURS = ("trackstar", "flows", "tasks", "storage", "tests", "benchmarks")


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            yield node.module


def _house_of(path):
    relative = path.relative_to(ROOT).as_posix()
    return next(house for house in ALLOWED_BY_DEPTH if relative.startswith(f"{house}/"))


MODULES = sorted(path for house in ("trackstar", "flows", "tasks", "storage") for path in (ROOT / house).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_imports_only_what_lies_below_it(path):
    house = _house_of(path)
    for name in _imports(path):
        if name.split(".")[0] in OURS:
            assert any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[house]), name
        if house in ("storage", "tasks/numerics"):
            assert name.split(".")[0] != "prefect"


def test_every_house_was_looked_at():
    assert {_house_of(path) for path in MODULES} == set(ALLOWED)
