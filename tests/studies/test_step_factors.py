"""Factors on a whole step, other releases' kernels and published loads in the interval of a step time."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest

from simulator.estimate.estimate import estimate
from simulator.estimate.shared_prices import SharedPrices
from simulator.inputs import load_scenario
from simulator.routing.published_loads import default_loads
from simulator.spec.scenario import Scenario
from simulator.studies.uncertainty import ClassError, interval, sources_of
from simulator.studies.uncertainty.load_waits import between
from simulator.studies.uncertainty.releases import _off, release_spread
from simulator.studies.uncertainty.repricing import Repricer, priceable
from simulator.studies.uncertainty.sources import by_group, unknown_loads
from simulator.studies.uncertainty.step_factors import (
    ASSUMED_CHANCE,
    FROM_GPUS,
    WASTED_OTHERWISE,
    StepFactor,
    settings,
    step_factors,
)


@pytest.fixture(scope="module")
def tiny() -> Scenario:
    return load_scenario("tiny-1f1b")


def factor(*logs: float) -> StepFactor:
    chances = tuple(np.linspace(0.0, 1.0, len(logs)).tolist())
    return StepFactor(name="made up", group="loop", chances=chances, logs=logs, text="made up")


def test_a_factor_is_drawn_from_its_distribution() -> None:
    two = StepFactor(name="x", group="loop", chances=(0.0, 0.5, 1.0), logs=(0.0, 0.1, 0.5), text="")
    assert two.drawn(np.array([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() == pytest.approx([0.0, 0.05, 0.1, 0.3, 0.5])


def test_a_factor_scales_the_whole_step(tiny: Scenario) -> None:
    one = interval(tiny, draws=100, sources=[factor(0.0, 0.2)])
    assert one.p90_s / one.p10_s == pytest.approx(exp(0.16), rel=0.03)
    assert one.p10_s == pytest.approx(one.forecast_s * exp(0.02), rel=0.02)
    (alone,) = one.contributions
    assert alone.share == pytest.approx(1.0)
    still = interval(tiny, draws=5, sources=[factor(0.0, 0.0)])
    assert still.p10_s == still.p90_s == still.forecast_s


def test_two_factors_share_the_variance_by_their_own(tiny: Scenario) -> None:
    wide = replace(factor(0.0, 0.3), name="wide")
    found = {one.source: one.share for one in interval(tiny, draws=60, sources=[factor(0.0, 0.1), wide]).contributions}
    assert found["wide"] == pytest.approx(0.9, abs=0.06)  # variances as 9 to 1


def test_slow_workers_cost_what_is_left_of_the_published_waste(tiny: Scenario) -> None:
    large = replace(tiny, job=replace(tiny.job, gpus=FROM_GPUS))
    (one,) = (source for source in step_factors(large) if source.name == "slow workers")
    tenth = float(one.drawn(np.array([0.9]))[0])
    assert exp(-tenth) == pytest.approx(1.0 - WASTED_OTHERWISE * 0.213)
    assert exp(float(one.drawn(np.array([0.575]))[0])) == pytest.approx(1.0 / (1.0 - WASTED_OTHERWISE / 11.0), rel=1e-3)
    assert list(one.logs) == sorted(one.logs)
    small = replace(tiny, job=replace(tiny.job, gpus=FROM_GPUS - 1))
    assert "slow workers" not in {source.name for source in step_factors(small)}


def test_a_serving_step_has_no_factors() -> None:
    assert not list(step_factors(load_scenario("llama-3-8b-decode")))


def test_an_assumed_setting_is_drawn_with_what_its_other_values_cost(tiny: Scenario) -> None:
    stack = replace(tiny.stack, sources={**tiny.stack.sources, "swiglu_fused": "assumed: made up"})
    scenario = replace(tiny, stack=stack)
    one = next(source for source in settings(scenario) if source.name == "stack.swiglu_fused")
    other = replace(scenario, stack=replace(stack, swiglu_fused=not stack.swiglu_fused))
    base, changed = (estimate(each, SharedPrices(each, "events")).step for each in (scenario, other))
    assert base is not None
    assert changed is not None
    drawn = one.drawn(np.array([0.2, 0.8]))
    assert sorted(drawn.tolist()) == pytest.approx(sorted([0.0, log(changed / base)]))
    assert "is assumed; as likely one of" in one.text


def test_a_choice_of_many_is_as_assumed_in_half_of_the_draws() -> None:
    scenario = load_scenario("llama-3-8b")
    sources = {**scenario.stack.sources, "loss": "assumed: made up"}
    scenario = replace(scenario, stack=replace(scenario.stack, sources=sources))
    loss = next(source for source in settings(scenario) if source.name == "stack.loss")
    drawn = loss.drawn(np.random.default_rng(0).random(4000))
    assert np.mean(drawn == 0.0) == pytest.approx(ASSUMED_CHANCE, abs=0.03)
    assert len(set(np.round(drawn, 12))) == len(set(loss.logs))


def test_releases_differ_by_what_all_shapes_share_and_what_each_has() -> None:
    assert _off([0.1, 0.1]) == pytest.approx((0.1, 0.0))
    assert _off([0.2, 0.0]) == pytest.approx((0.1, 0.1))
    spread = release_spread()
    assert 0.01 < spread.shared < spread.each < 0.2


def test_another_release_moves_gemms_and_attention_only() -> None:
    asked = load_scenario("tiny-1f1b", ["routing.kind=published"])
    sources = sources_of(asked, priceable(asked).priced)
    moved = {one.cls for one in sources if isinstance(one, ClassError) and one.group == "releases"}
    assert moved
    assert all(cls.startswith(("gemm.", "attn.")) for cls in moved)
    assert len({one.name for one in sources}) == len(sources)
    assert set(by_group({one.name: 0.1 for one in sources}, sources)) >= {"kernels", "releases", "loads", "loop"}


def test_published_loads_are_drawn_around_what_a_job_takes() -> None:
    (own,) = unknown_loads(load_scenario("tiny-1f1b", ["routing.kind=published"]))
    taken = next(one for one in default_loads() if one.gate == "bias")
    assert [point.cv for point in own.points] == list(taken.cv)
    assert [own.place(at) for at in (-1.0, 0.0, 1.0)] == [0.0, 1.0, 2.0]


@pytest.mark.slow
def test_draws_of_published_loads_lie_around_their_forecast() -> None:
    asked = load_scenario("tiny-1f1b", ["routing.kind=published"])
    around = interval(asked, draws=8, sources=list(unknown_loads(asked)), shares=False)
    assert around.p10_s < around.p90_s
    known = priceable(asked)
    repricer = Repricer(known, list(unknown_loads(asked)))
    quick = estimate(asked, SharedPrices(asked, "events")).step
    assert around.forecast_s == repricer.step_time(repricer.nothing()) == pytest.approx(quick, rel=0.02)


def test_loads_that_a_job_states_are_known() -> None:
    for stated in ("routing.kind=uniform", "routing.kind=skewed", "routing.kind=sampled"):
        assert not list(unknown_loads(load_scenario("tiny-1f1b", [stated])))
    assert not list(unknown_loads(load_scenario("deepseek-v2-pretrain")))  # drops tokens above the mean


def test_between_points_is_straight() -> None:
    points = [np.array([0.0, 1.0]), np.array([1.0, 3.0]), np.array([5.0, 5.0])]
    assert between(points, 0.5).tolist() == [0.5, 2.0]
    assert between(points, 2.0).tolist() == [5.0, 5.0]
    assert between(points[:1], 0.0).tolist() == [0.0, 1.0]
