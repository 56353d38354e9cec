"""Gradients narrower than the masters are widened for the update, when nothing is kept of the forward any more."""

from __future__ import annotations

import pytest

from simulator.estimate.estimate import estimate
from simulator.estimate.shared_prices import SharedPrices
from simulator.inputs import load_scenario
from simulator.memory.account import curve_of, memory_of, memory_of_rows
from simulator.results.simulate import prepare, timeline_of
from simulator.spec.scenario import Scenario

SMALL = [
    "layout.tp=1",
    "layout.pp=1",
    "gpus=1",
    "batch.microbatch_size=1",
    "batch.global_batch_size=2",
    "layout.zero=1",
]
FEW = ["batch.sequence_length=256", "hardware=h200", "model.num_hidden_layers=4", "precision.recipe=bf16"]


def scenario(*more: str) -> Scenario:
    return load_scenario("llama-3-8b", [*SMALL, *FEW, "stack=megatron-core", "optimizer.gradients=bf16", *more])


def test_few_tokens_peak_in_the_update() -> None:
    """Masters, two moments and the widened gradients in FP32, weights and gradients in BF16: 20 bytes a parameter."""
    built, schedule = prepare(scenario())
    found = memory_of_rows(built, schedule).worst
    parameters = found.group("optimizer") / 12
    assert found.group("temporary") == pytest.approx(4 * parameters)
    assert found.group("activations") == 0.0
    assert (found.during, found.at) == ("the update", None)


def test_fp32_gradients_and_software_without_copies_need_none() -> None:
    for more in ("optimizer.gradients=fp32", "stack.weights_copied=false"):
        built, schedule = prepare(scenario(more))
        assert memory_of_rows(built, schedule).worst.during != "the update"


def test_many_tokens_peak_before_it_and_every_account_agrees() -> None:
    for tokens in (256, 8192):
        job = scenario(f"batch.sequence_length={tokens}")
        built, schedule = prepare(job)
        timeline = timeline_of(built, schedule, "longest-path")
        report = memory_of(built, schedule, timeline)
        assert (report.worst.during == "the update") == (tokens == 256)
        assert report.peak == pytest.approx(memory_of_rows(built, schedule).peak)
        assert report.peak == pytest.approx(estimate(job, SharedPrices(job, "longest-path")).memory)
        curve = curve_of(built, schedule, timeline, 0)
        assert report.peak == pytest.approx(max(map(sum, zip(*curve.groups.values(), strict=True))))
        before, update, end = curve.times[-3:]
        assert before <= update < end == timeline.makespan
        assert curve.groups["temporary"][-2:] == [curve.groups["temporary"][-1]] * 2  # from the last backward on
