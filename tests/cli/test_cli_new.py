"""`foretrain new` writes jobs that load, are valid and fit; `plan` takes job files; missing keys are named at once."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from simulator.inputs import load_scenario
from simulator.memory import memory_of_rows
from simulator.results.simulate import prepare, simulate
from simulator.studies.feasibility import problems
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("args", "stack", "gpus"),
    [
        ((), "torch-compile", None),
        (("--model", "llama-3-70b", "--gpus", "128"), "megatron-core", 128),
        (("--model", "mixtral-8x7b", "--hardware", "h200", "--gpus", "32"), "megatron-core", 32),
        (("--model", "deepseek-v3-tiny", "--hardware", "h800", "--gpus", "16"), "deepseek", 16),
        (("--model", "llama-3-8b", "--hardware", "a100", "--gpus", "8", "--stack", "torch"), "torch", 8),
    ],
)
def test_the_job_is_complete_valid_and_fits(
    args: tuple[str, ...], stack: str, gpus: int | None, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "job.toml"
    done = run("new", *args, "--out", str(file))
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    scenario = load_scenario(str(file))
    assert scenario.job.stack == stack
    assert gpus in (None, scenario.job.gpus)
    assert [one for one in problems(scenario) if one.severity == "error"] == []
    assert memory_of_rows(*prepare(scenario)).fits
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if "=" in line and not line.startswith("#")]
    assert sum("#" in line for line in lines) >= len(lines) - 1


def test_the_layout_is_faster_than_its_neighbours(run: Run, tmp_path: Path) -> None:
    """Experts over as few ranks as fit travel least: not the simplest choice, nor that with the lowest memory."""
    file = tmp_path / "job.toml"
    assert (
        run("new", "--model", "mixtral-8x7b", "--hardware", "h200", "--gpus", "32", "--out", str(file)).exit_code == 0
    )
    base = load_scenario(str(file))
    step = simulate(base, engine="longest-path").metrics["step_time_s"]
    for ep in (1, 2, 4, 8):
        other = simulate(load_scenario(str(file), [f"layout.ep={ep}"]), engine="longest-path")
        assert not other.memory.fits or other.metrics["step_time_s"] >= step * 0.999


def test_it_is_printed_without_a_file_and_overwrites_none(run: Run, tmp_path: Path) -> None:
    text = run("new", "--gpus", "16").stdout
    assert tomllib.loads(text)["gpus"] == 16
    file = tmp_path / "job.toml"
    file.write_text("mine", encoding="utf-8")
    done = run("new", "--out", str(file))
    assert done.exit_code == 2
    assert "is there already" in done.stderr
    assert file.read_text(encoding="utf-8") == "mine"


def test_what_cannot_fit_is_said(run: Run) -> None:
    done = run("new", "--model", "llama-3.1-405b", "--gpus", "8")
    assert done.exit_code == 2
    assert "no layout that was tried fits on 8 GPUs" in done.stderr


def test_plan_takes_a_job_file(run: Run, tmp_path: Path) -> None:
    whole = tmp_path / "whole.toml"
    whole.write_text(run("new", "--gpus", "16").stdout, encoding="utf-8")
    short = tmp_path / "short.toml"
    short.write_text('extends = "tiny-1f1b"\n', encoding="utf-8")
    for file in (whole, short):
        done = run("plan", str(file), "--engine", "longest-path", "-q")
        assert done.exit_code == 0, done.stderr
        assert "training" in done.stdout


def test_all_missing_keys_are_named_at_once(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('model = "llama-3-8b"\n[batch]\nmicrobatch_size = 1\n', encoding="utf-8")
    said = run("check", str(file)).stderr
    assert len(said.splitlines()) == 1
    for key in ("hardware (a string)", "gpus (an integer)", "batch.sequence_length", "batch.global_batch_size"):
        assert key in said
    assert "microbatch_size" not in said
