"""The program as a process: how it starts, ends and is interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "cli"]
LIGHT = ("numpy", "pandas", "pydantic", "rich", "matplotlib", "networkx", "simulator.results.simulate")


def foretrain(*args: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **extra}
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, check=False, env=env, timeout=60)


@pytest.mark.parametrize("args", [("--help",), ("simulate", "--help"), ("compare", "--help"), ("show", "--help")])
def test_help_loads_nothing_heavy(args: tuple[str, ...]) -> None:
    code = (
        "import sys, cli\n"
        f"try: cli.foretrain({list(args)!r}, prog_name='foretrain')\n"
        "except SystemExit: pass\n"
        f"print([name for name in {LIGHT!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.strip() == "[]"


def test_version() -> None:
    done = foretrain("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("foretrain ")


def test_a_mistake_is_one_line_and_no_traceback() -> None:
    done = foretrain("simulate", "tiny-1f1b", "--set", "layout.ppp=2")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == 'foretrain: --set: layout.ppp: "2": unknown key; did you mean layout.pp?\n'


def test_a_reader_that_leaves_is_no_error() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*COMMAND, "simulate", "tiny-1f1b", "-q", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_several_variants_run_in_processes() -> None:
    """A spawned process must find its way without this one's state."""
    code = (
        "from reports.views import variants as compare\n"
        "compare._WORTH_A_PROCESS = 0.0\n"
        "if __name__ == '__main__':\n"
        "    chosen = compare.variants(['tiny-1f1b'], [('layout.pp', ['2', '4', '3'])], [])\n"
        "    for outcome in compare.run_all(chosen): print(outcome.variant.varied, bool(outcome.result))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"(('layout.pp', '{pp}'),) {ran}" for pp, ran in ((2, True), (4, True), (3, False))
    ]


def test_an_ascii_terminal_gets_its_report() -> None:
    done = foretrain("simulate", "tiny-1f1b", "-q", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "step time" in done.stdout
