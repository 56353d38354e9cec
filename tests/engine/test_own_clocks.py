"""GPUs with power demands of their own, and all groups of a stage instead of the first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.engine.lower import price_model
from simulator.engine.power import slowdown_above
from simulator.engine.ranks.uneven import columns_of
from simulator.engine.ranks.whole_step import uneven_step
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.results.simulate import prepare, simulate, timeline_of

DENSE = [
    "gpus=8",
    "layout.tp=1",
    "layout.pp=1",
    "batch.global_batch_size=32",
    "batch.sequence_length=2048",
]
DRAWN = "stragglers.clocks=drawn"
TWO_GROUPS = ["gpus=128", "layout.ep=8", "batch.global_batch_size=256"]


def test_a_step_lasts_as_long_as_on_the_gpu_that_demands_most() -> None:
    """Replicas wait for each other only at the end: the step is that of one whose GPU has the highest demand drawn."""
    dense = [*DENSE, "hardware.node.host_pace=0"]  # what a host waits for is reckoned at the mean clock
    built, schedule = prepare(load_scenario("llama-3-8b", [*dense, DRAWN, "stragglers.seed=3"]))
    assert built.watts is not None
    assert built.pace > 1.0
    step = uneven_step(built, schedule)
    above = float(np.random.default_rng((3, 0)).standard_normal((8, 1)).max())
    gpu = built.scenario.cluster.gpu
    worst = slowdown_above(built.watts, gpu, above)
    assert step.columns.pace[0].max() == pytest.approx(worst / built.pace)
    scenario = load_scenario("llama-3-8b", dense)
    alike = timeline_of(price_model(scenario, schedule.stages, pace=worst), schedule, "longest-path").makespan
    assert step.timeline.makespan == pytest.approx(alike, rel=1e-9)


def test_all_waiting_for_the_expected_slowest_is_near_the_mean_over_draws() -> None:
    """The closed form (Blom) is what seeds scatter around."""
    slowest = simulate(load_scenario("llama-3-8b", DENSE), engine="longest-path").metrics["step_time_s"]
    steps = [
        simulate(load_scenario("llama-3-8b", [*DENSE, DRAWN, f"stragglers.seed={seed}"]), engine="longest-path")
        for seed in range(6)
    ]
    found = [one.metrics["step_time_s"] for one in steps]
    assert len(set(found)) == len(found)
    assert np.mean(found) == pytest.approx(slowest, rel=0.01)
    assert steps[0].waits is not None
    assert steps[0].waits.by_cause["hardware"] > 0.0
    assert any("power demand of its own" in line for line in steps[0].warnings)


def test_clocks_are_equal_below_the_power_limit_and_without_a_spread() -> None:
    cold = load_scenario("llama-3-8b", [*DENSE, DRAWN, "hardware.gpu.tdp=2000"])
    assert (columns_of(cold, 1, 400.0).pace == 1.0).all()
    even = load_scenario("llama-3-8b", [*DENSE, DRAWN])
    gpu = even.cluster.gpu
    assert gpu.power is not None
    none = replace(even, cluster=replace(even.cluster, gpu=replace(gpu, power=replace(gpu.power, spread=0.0))))
    assert any(one.key == "stragglers.clocks" for one in check(none))
    assert simulate(none).uneven is None


def test_groups_have_tokens_of_their_own_and_wait_for_each_other_at_the_end() -> None:
    overrides = [*TWO_GROUPS, "routing.kind=sampled", "routing.microbatch_cv=0.5"]
    first, every = (
        simulate(load_scenario("tiny-1f1b", [*overrides, *more])) for more in ([], ["stragglers.groups=all"])
    )
    assert first.uneven is not None
    assert every.uneven is not None
    assert every.uneven.columns.names == tuple(range(32))
    assert every.uneven.columns.starts == (0, 8, 16, 24)
    loads = every.uneven.columns.loads(2, 1)[:-1].reshape(4, 8)
    assert (loads[0] == first.uneven.columns.loads(2, 1)[:-1]).all()
    assert not (loads[0] == loads[1]).any()
    assert loads.mean(axis=1) == pytest.approx(1.0)
    assert every.uneven.timeline.makespan > first.uneven.timeline.makespan


def test_settings_without_a_use_are_named() -> None:
    found = check(load_scenario("tiny-1f1b", ["stragglers.groups=all"]))
    assert [one.key for one in found if one.rule == "slow GPUs"] == ["stragglers.groups"]
