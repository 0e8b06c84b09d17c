"""What a wheel of ours puts into an environment: one top-level name, whole, and light to import."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("trackstar", "flows", "tasks", "storage")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the sources: a build leaves its own files beside them."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(copy / "dist"), str(copy))
    (built,) = (copy / "dist").glob("*.whl")
    return built


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_a_wheel_holds_every_file_of_the_packages(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    for name in SOURCES:
        for path in (
            path for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".j2", ".css", ".js", ".html")
        ):
            installed = path.relative_to(ROOT).as_posix()
            assert (installed if name == "trackstar" else f"trackstar/{installed}") in held


def test_a_fresh_environment_gets_one_top_level_name_that_imports_alone(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "fresh"], check=True)
    python = tmp_path / "fresh/bin/python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    (packages,) = (tmp_path / "fresh").glob("lib/python*/site-packages")
    assert {path.name for path in packages.iterdir() if path.suffix != ".dist-info"} == {"trackstar"}
    subprocess.run([python, "-c", "import trackstar; trackstar.__version__"], check=True, cwd=tmp_path)
