"""The shape of the tree: small classes, small functions, few modules in a folder, no dead public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("cli.py", "simulator", "workloads", "reports", "hardware_profiles")
LONGEST_CLASS, LONGEST_FUNCTION = 200, 80
"""Lines."""
MOST_MODULES = 16
"""Of a folder, its `__init__` not counted."""
MOST_LOOSE = 8
"""Modules in `simulator/` that lie in no package of it."""


def modules() -> list[Path]:
    """Every Python file of the program, relative to the root."""
    found = [
        path for name in SOURCES for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    ]
    assert len(found) > 200
    return [path.relative_to(ROOT) for path in found]


def test_no_class_and_no_function_is_long() -> None:
    long = []
    for path in modules():
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                if lines > (LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION):
                    long.append(f"{path}:{node.lineno}: {node.name} has {lines} lines")
    assert long == []


def test_no_folder_is_crowded() -> None:
    count = Counter(str(path.parent) for path in modules() if path.name != "__init__.py")
    assert {folder: many for folder, many in count.items() if many > MOST_MODULES} == {}
    assert 0 < count["simulator"] <= MOST_LOOSE


def test_there_are_no_dead_names() -> None:
    done = subprocess.run([sys.executable, "-m", "vulture"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
