"""CONTRIBUTING.md names files that exist, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from simulator.inputs import Architecture
from simulator.inputs.typed import field_names
from simulator.schedule import SCHEDULES, ScheduleRecord, validate
from simulator.spec.model import ModelSpec

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:md|txt|toml|py))`")
SECTIONS = ("a GPU", "an architecture", "a schedule", "the cost of an op", "a workload")


def section(title: str) -> str:
    """The text below the first heading that starts so."""
    found = re.search(rf"^## {re.escape(title)}.*?\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def paths(text: str) -> list[str]:
    return [path for path in PATH.findall(text) if path != "pyproject.toml"]


@pytest.mark.parametrize("path", sorted(set(paths(TEXT))))
def test_a_named_path_exists(path: str) -> None:
    """NAME stands for whatever is there already: the place is right if it has others."""
    assert list(ROOT.glob(path.replace("NAME", "*"))), path


@pytest.mark.parametrize("title", SECTIONS)
def test_each_addition_lists_its_files(title: str) -> None:
    rows = [line for line in section(f"Add {title}").splitlines() if line.startswith("| `")]
    assert len(rows) >= 3
    assert all(paths(row.split("|")[1]) for row in rows)


def test_ten_changes_have_a_place() -> None:
    rows = [line.split("|") for line in section("Where does it go?").splitlines() if line.startswith("| ")]
    assert len(rows[1:]) == 10
    assert all(paths(row[2]) for row in rows[1:])


def test_names_in_the_places_are_there() -> None:
    """``WHAT_IFS` in `simulator/studies/whatif.py`` and the like: the file has the name."""
    named = re.findall(r"`(\w+)`,? (?:in|of) `([\w./]+\.py)`", TEXT)
    assert len(named) >= 8
    assert [(name, file) for name, file in named if not re.search(rf"\b{name}\b", (ROOT / file).read_text())] == []


def example(title: str) -> dict[str, Any]:
    """What the Python of a section defines."""
    names: dict[str, Any] = {}
    for cell in re.findall(r"```python\n(.*?)```", section(title), re.DOTALL):
        exec(compile(cell, "CONTRIBUTING.md", "exec"), names)
    return names


def test_the_schedule_of_the_example_is_one() -> None:
    (record,) = example("Add a schedule")["RECORDS"]
    assert isinstance(record, ScheduleRecord)
    assert record.name not in SCHEDULES
    for pp, microbatches in ((1, 1), (4, 8), (5, 3)):
        validate(record(pp, microbatches))


def test_the_architecture_of_the_example_is_one() -> None:
    found = example("Add an architecture")["NOVA"]
    assert isinstance(found, Architecture)
    assert {*found.keys.values(), *found.fixed} <= set(field_names(ModelSpec))


def test_every_shipped_schedule_has_a_golden_file_and_a_source() -> None:
    recorded = {path.stem.rpartition("-")[0] for path in (ROOT / "tests" / "golden" / "schedules").glob("*.txt")}
    assert recorded == set(SCHEDULES.shipped)
    for record in SCHEDULES.shipped.values():
        assert record.source
        assert record.description
        assert not record.description.endswith(".")
