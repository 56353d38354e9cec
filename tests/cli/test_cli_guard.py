"""The last guard, outputs that would overwrite inputs, and streams that are closed or full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job of one's own."""
    file = tmp_path / "in.toml"
    text = (ROOT / "workloads/jobs/tiny-1f1b.toml").read_text(encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    return file


def invoke(*args: str) -> Any:
    """The command line, errors kept."""
    return CliRunner().invoke(cli.foretrain, list(args), prog_name="foretrain")


@pytest.mark.parametrize("debug", [False, True])
def test_what_nobody_foresaw_is_one_line_and_exit_code_1(monkeypatch: pytest.MonkeyPatch, debug: bool) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division\nby \u202e zero")

    monkeypatch.setattr("simulator.inputs.load_scenario", broken)
    result = invoke(*(["--debug"] if debug else []), "simulate", "tiny-1f1b")
    assert result.exit_code == 1
    assert result.stdout == ""
    *before, last = result.stderr.splitlines()
    assert last.startswith(
        "foretrain: ZeroDivisionError: division by \\u202e zero: this is a fault of foretrain, please"
    )
    assert bool(before) == debug
    assert ("Traceback" in result.stderr) == debug


def test_too_little_memory_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("simulator.inputs.load_scenario", broken)
    result = invoke("simulate", "tiny-1f1b")
    assert (result.exit_code, result.stderr) == (1, "foretrain: there is not enough memory for this\n")


def test_an_output_is_no_input_and_no_other_output(job: Path, tmp_path: Path) -> None:
    before = job.read_bytes()
    over = tmp_path / "over.toml"
    over.write_text('extends = "in.toml"\n')
    link = tmp_path / "link.html"
    link.symlink_to(job)
    cases = (
        ("simulate", str(job), "--html", str(job)),
        ("simulate", str(job), "--html", str(link)),
        ("simulate", str(over), "--trace", str(job)),
        ("numerics", "--job", str(job), "--loads-out", str(job)),
        ("simulate", "tiny-1f1b", "--set", f"layout.schedule={tmp_path}/x", "--html", f"{tmp_path}/x"),
        ("simulate", "tiny-1f1b", "--trace", f"{tmp_path}/x", "--html", f"{tmp_path}/../{tmp_path.name}/x"),
    )
    for case in cases:
        result = invoke(*case)
        assert result.exit_code == 2, case
        assert "names or needs, too; give another file" in result.stderr, case
        assert len(result.stderr.splitlines()) == 1
    assert job.read_bytes() == before


def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop.html"
    loop.symlink_to(loop)
    result = invoke("simulate", "tiny-1f1b", "--html", str(loop))
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "the link leads back to itself" in result.stderr


def test_a_table_of_a_search_is_written_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from reports.terminal import search_tables

    file = tmp_path / "a.csv"
    file.write_text("old")

    def full(*_: object) -> dict[str, object]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(search_tables, "record", full)
    result = invoke(
        "search", "tiny-1f1b", "--over", "layout.pp=1,2", "--jobs", "1", "--confirm", "0", "--csv", str(file)
    )
    assert result.exit_code == 2
    assert f"{file}: cannot be written: No space left on device" in result.stderr
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_check_of_too_few_gpus_is_an_answer_in_json() -> None:
    for change in ("gpus=2", "layout.pp=128"):
        result = invoke("check", "tiny-1f1b", "--set", change, "--json")
        assert result.exit_code == 2
        found = json.loads(result.stdout)
        assert not found["fine"]
        assert found["derived"]["microbatches"] == 0


def test_steps_of_more_than_can_be_simulated_are_refused() -> None:
    result = invoke("show", "schedule", "gpipe", "--pp", "100000", "--microbatches", "100000")
    assert result.exit_code == 2
    assert "their product may be 50,000" in result.stderr
    changes = ("layout.pp=1", "layout.ep=8", "batch.global_batch_size=6400000")
    result = invoke("simulate", "tiny-1f1b", *(text for change in changes for text in ("--set", change)))
    assert result.exit_code == 2
    assert "more than can be simulated: 50,000" in result.stderr


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, with the streams that `command` gives it."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    line = f"{sys.executable} -m cli {command}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, env=env, check=False)


@pytest.mark.long
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("show hardware h800 >&-", 2, "foretrain: stdout is closed: redirect it to /dev/null"),
        ("show hardware h800 >/dev/full", 2, "foretrain: output: No space left on device"),
        ("show hardware nowhere 2>/dev/full", 2, ""),
        ("show hardware nowhere 2>&-", 2, ""),
        ("simulate tiny-1f1b 2>/dev/full", 0, ""),
        ("simulate /dev/zero", 2, "foretrain: /dev/zero: has more than 4 MiB"),
    ],
)
def test_streams_that_take_nothing(command: str, code: int, said: str) -> None:
    done = shell(command)
    assert (done.returncode, done.stderr.startswith(said)) == (code, True), done.stderr
    assert len(done.stderr.splitlines()) == (1 if said else 0)
