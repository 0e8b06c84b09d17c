"""Imports point one way: flows → tasks → storage, and inside tasks as docs/architecture.md draws the rooms."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSES = ("flows", "trackstar", "tasks", "storage")
# A room imports from rooms on floors below its own; two rooms on one floor know nothing of each other.
FLOORS = (
    ("numerics", "runtime"),
    ("models",),
    ("index",),
    ("scoring", "evaluation"),
    ("methods",),
    ("report",),
    ("asking", "reindex", "demo", "mnist"),
    ("serving",),
)
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
MODULES = sorted(path for house in HOUSES for path in (ROOT / house).rglob("*.py"))
PYTHON = sorted({*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")})


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            yield node.module


def place(name: str) -> tuple[str, str]:
    """House and room of a module of ours, by its import name."""
    parts = name.split(".")
    house = parts[1] if len(parts) > 1 and parts[1] in HOUSES else "trackstar"
    return house, parts[2] if house == "tasks" and len(parts) > 2 else ""


def may_import(importer: tuple[str, str], imported: tuple[str, str]) -> bool:
    (house, room), (other_house, other_room) = importer, imported
    if house == "storage":
        return other_house == "storage"
    if room == "numerics":
        return other_room == "numerics"
    if house == "tasks" and other_house == "tasks":
        return room == other_room or FLOOR_OF[other_room] < FLOOR_OF[room]
    return house == other_house or HOUSES.index(other_house) > HOUSES.index(house)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_imports_only_what_lies_below_it(path):
    importer = place(".".join(("trackstar", *path.relative_to(ROOT).with_suffix("").parts)))
    for name in imports(path):
        if name.split(".")[0] == "trackstar":
            assert may_import(importer, place(name)), name
        if importer[0] == "storage" or importer[1] == "numerics":
            assert name.split(".")[0] != "prefect"


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_is_imported_by_the_name_of_its_folder(path):
    bare = {name for name in imports(path) if name.split(".")[0] in ("flows", "tasks", "storage")}
    assert not bare, f"import trackstar.{min(bare)}: a wheel installs no other name"


def test_the_order_forbids_what_it_should():
    assert not may_import(("storage", ""), ("tasks", "index"))
    assert not may_import(("tasks", "models"), ("tasks", "index"))
    assert not may_import(("tasks", "scoring"), ("tasks", "evaluation"))
    assert may_import(("tasks", "report"), ("tasks", "methods"))


def test_every_room_has_a_floor():
    rooms = {path.relative_to(ROOT / "tasks").parts[0] for path in MODULES if path.is_relative_to(ROOT / "tasks")}
    assert rooms - {"__init__.py"} == set(FLOOR_OF)


def test_the_drawing_of_the_rooms_is_the_order_that_is_tested():
    drawn = re.search(r"```mermaid\n(.*?)```", (ROOT / "docs/architecture.md").read_text("utf-8"), re.DOTALL)[1]
    arrows = {tuple(arrow) for arrow in re.findall(r"^ *(\w+) --> (\w+)$", drawn, re.MULTILINE)}
    used = set()
    for path in (path for path in MODULES if path.is_relative_to(ROOT / "tasks") and path.parent != ROOT / "tasks"):
        room = path.relative_to(ROOT / "tasks").parts[0]
        others = {place(name)[1] for name in imports(path) if name.startswith("trackstar.tasks.")}
        used |= {(room, other) for other in others - {room, ""}}
    assert arrows == used
