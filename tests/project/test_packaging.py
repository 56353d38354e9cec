"""The wheel and the source archive hold every module and every data file, and the command's entry point."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("simulator", "workloads", "reports", "hardware_profiles")
DATA = (".py", ".toml", ".json", ".csv", ".jinja", ".html", ".md")


def shipped() -> set[str]:
    """Every file that belongs into a distribution, relative to the root."""
    found = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in DATA and "__pycache__" not in path.parts
    }
    return found | ({"cli.py"} if (ROOT / "cli.py").exists() else set())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and a source archive."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_everything(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        entry_points = wheel.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert shipped() - names == set()
    assert "foretrain = cli:main" in entry_points
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} <= {*PACKAGES, "cli.py"}


def test_the_source_archive_holds_everything(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert shipped() | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_data_packages_are_packages() -> None:
    """An `__init__.py` in every folder with data files that can be one: tools that look for packages find them."""
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.toml")}
    assert {folder for folder in folders if not (folder / "__init__.py").exists()} == set()


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if not line.startswith("#")}
    names = {dependency.partition(">")[0].lower().replace("_", "-") for dependency in wanted}
    assert names - pinned == set()
