"""Speed of the full DeepSeek-V3 step (PP16, 120 microbatches, op level), and how it grows.

Run with `make bench`. Nothing here asserts a time: the table is for people and for comparing commits.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from simulator.engine.des import simulate as run_events
from simulator.engine.longest_path import longest_path
from simulator.engine.lower import PricedModel, lower
from simulator.inputs import load_scenario
from simulator.results.simulate import prepare
from simulator.schedule import Schedule

JOB = "deepseek-v3-pretrain"


def prepared(*overrides: str) -> tuple[PricedModel, Schedule]:
    return prepare(load_scenario(JOB, overrides))


def test_command_line_from_start_to_report(benchmark: BenchmarkFixture) -> None:
    """What a user waits for, and its peak memory."""
    command = [sys.executable, "-m", "cli", "simulate", JOB, "-q"]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=3)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    benchmark.extra_info["peak_memory_mb"] = round(peak / 1024)


def test_command_line_with_trace(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """The same with a Perfetto trace of all 16 ranks."""
    file = tmp_path / "v3.json.gz"
    command = [sys.executable, "-m", "cli", "simulate", JOB, "-q", "--trace", str(file)]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=1)
    benchmark.extra_info["trace_mb"] = round(file.stat().st_size / 1e6, 1)


def test_help(benchmark: BenchmarkFixture) -> None:
    """Start-up."""
    command = [sys.executable, "-m", "cli", "--help"]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=5)


def test_prepare(benchmark: BenchmarkFixture) -> None:
    """Graph, prices, split, schedule."""
    scenario = load_scenario(JOB)
    benchmark(prepare, scenario)


def test_lower(benchmark: BenchmarkFixture) -> None:
    """Unrolling the schedule into tasks."""
    built, schedule = prepared()
    tasks = benchmark(lower, built, schedule)
    benchmark.extra_info["tasks"] = len(tasks.lane)


@pytest.mark.parametrize("engine", [run_events, longest_path], ids=["events", "longest-path"])
def test_engine(benchmark: BenchmarkFixture, engine: Callable[[object], object]) -> None:
    """One pass of each engine over the full step."""
    built, schedule = prepared()
    tasks = lower(built, schedule)
    benchmark.pedantic(engine, args=(tasks,), rounds=3)


@pytest.mark.parametrize("microbatches", [60, 120, 240, 480])
def test_growth_in_microbatches(benchmark: BenchmarkFixture, microbatches: int) -> None:
    """Time per microbatch should stay the same."""
    built, schedule = prepared(f"batch.global_batch_size={128 * microbatches}")
    tasks = lower(built, schedule)
    benchmark.pedantic(run_events, args=(tasks,), rounds=1)
    benchmark.extra_info["us_per_microbatch"] = round(benchmark.stats["mean"] / microbatches * 1e6)


@pytest.mark.parametrize("ranks", [8, 16, 32])
def test_growth_in_pipeline_ranks(benchmark: BenchmarkFixture, ranks: int) -> None:
    """Time per rank should stay the same, with as many layers on each."""
    built, schedule = prepared(
        f"layout.pp={ranks}", f"gpus={128 * ranks}", f"model.num_hidden_layers={4 * ranks - 3}", "routing.kind=uniform"
    )
    tasks = lower(built, schedule)
    benchmark.pedantic(run_events, args=(tasks,), rounds=1)
    benchmark.extra_info["us_per_rank"] = round(benchmark.stats["mean"] / ranks * 1e6)


@pytest.mark.parametrize("layers", [31, 61, 122])
def test_growth_in_layers(benchmark: BenchmarkFixture, layers: int) -> None:
    """Time per layer should stay the same."""
    built, schedule = prepared(f"model.num_hidden_layers={layers}")
    tasks = lower(built, schedule)
    benchmark.pedantic(run_events, args=(tasks,), rounds=1)
    benchmark.extra_info["us_per_layer"] = round(benchmark.stats["mean"] / layers * 1e6)
