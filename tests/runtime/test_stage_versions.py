"""A stage's artifact is kept as long as its version is: changed code under an old version would be a stale result.

python -m tests.runtime.test_stage_versions      record the present sources, after raising the version of each stage
                                               whose bytes they change
"""

import ast
import hashlib
import importlib
import json
import pkgutil
from pathlib import Path

import trackstar.tasks as tasks
from trackstar.storage.layout import location
from trackstar.storage.results import write_text
from trackstar.tasks.runtime.stage import StageRequest

ROOT = Path(__file__).parent.parent.parent
RECORD = Path(__file__).with_suffix(".json")
# Orchestration and display: no byte of an artifact depends on them.
NEUTRAL = {
    "trackstar.tasks",
    "trackstar.tasks.runtime.stage",
    "trackstar.tasks.runtime.prefect_context",
    "trackstar.tasks.runtime.prefect_tasks",
    "trackstar.tasks.report.artifacts",
    "trackstar.tasks.runtime.progress",
    "trackstar.tasks.runtime.shards",
}


def stages() -> dict[str, type[StageRequest]]:
    for module in pkgutil.walk_packages(tasks.__path__, "trackstar.tasks."):
        importlib.import_module(module.name)
    return {f"{c.__module__}.{c.__name__}": c for c in subclasses(StageRequest) if hasattr(c, "version")}


def subclasses(cls):
    for subclass in cls.__subclasses__():
        if subclass.__module__.startswith("trackstar.tasks."):
            yield subclass
        yield from subclasses(subclass)


def file_of(module: str) -> Path:
    path = ROOT / module.removeprefix("trackstar.").replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def sources(module: str, seen: set[str]) -> set[str]:
    """The module and all of the project's modules that it imports, directly or not."""
    if module in NEUTRAL or module in seen or not file_of(module).is_file():
        return seen
    seen.add(module)
    for node in ast.walk(ast.parse(file_of(module).read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("trackstar.tasks", "trackstar.storage")):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                sources(name, seen)
    return seen


def normalised(source: str) -> str:
    """The syntax tree without docstrings: comments, layout and words change no result."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def digest(module: str) -> str:
    text = "".join(f"{name}\n{normalised(file_of(name).read_text('utf-8'))}" for name in sorted(sources(module, set())))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def present() -> dict[str, dict[str, object]]:
    return {
        name: {"version": stage.version, "source": digest(stage.__module__)} for name, stage in sorted(stages().items())
    }


def test_a_stage_whose_source_changed_has_a_new_version_or_a_recorded_reason_not_to():
    recorded, now = json.loads(RECORD.read_bytes()), present()
    changed = sorted(name for name in recorded | now if recorded.get(name) != now.get(name))
    assert not changed, (
        f"the source behind {', '.join(changed)} is not the recorded one: raise `version` where it writes other bytes, "
        "then run `python -m tests.runtime.test_stage_versions`"
    )


def test_a_changed_number_is_noticed_and_a_changed_comment_or_docstring_is_not():
    source = 'def f(x):\n    """Twice."""\n    return 2 * x\n'
    assert normalised(source) == normalised('def f(x):  # fast\n    """Two times x."""\n    return (2 * x)\n')
    assert normalised(source) != normalised(source.replace("2 *", "3 *"))


def test_the_numerics_behind_a_stage_are_among_its_sources():
    assert {"trackstar.tasks.numerics.gradients", "trackstar.tasks.numerics.projection"} <= sources(
        "trackstar.tasks.index.shards", set()
    )
    assert "trackstar.tasks.numerics.mixing" in sources("trackstar.tasks.scoring.score_pass", set())


def test_every_room_that_holds_a_stage_was_walked():
    rooms = {name.split(".")[2] for name in stages()}
    assert {"index", "scoring", "methods", "evaluation", "mnist", "demo"} <= rooms


if __name__ == "__main__":
    write_text(location(RECORD), json.dumps(present(), indent=1) + "\n")
