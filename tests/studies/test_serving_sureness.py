"""Intervals and sensitivities of serving steps."""

from __future__ import annotations

import pytest

from simulator.inputs import load_scenario
from simulator.results.simulate import prepare, simulate, timeline_of
from simulator.studies.sensitivity import step_time, tornado
from simulator.studies.uncertainty import ClassError, interval
from simulator.studies.uncertainty.repricing import Repricer, priceable
from simulator.studies.uncertainty.sources import sources_of
from tests.serving_jobs import SERVING

FEW = ("deepseek-v3-decode-ep128", "llama-3-8b-prefill")


@pytest.mark.parametrize("job", [pytest.param(job, marks=() if job in FEW else pytest.mark.slow) for job in SERVING])
def test_without_errors_the_draws_are_the_forecast(job: str) -> None:
    scenario = load_scenario(job)
    found = interval(scenario, draws=6)
    assert found.forecast_s == pytest.approx(simulate(scenario).metrics["step_time_s"], rel=2e-3)
    assert found.p10_s < found.p90_s


def test_every_op_is_priced_and_counted() -> None:
    scenario = load_scenario("deepseek-v3-decode-ep128")
    known = priceable(scenario)
    core = next(at for at, one in enumerate(known.priced) if one.op.name == "attn.core")
    assert known.uses[core] == 2 * 61  # layers, and microbatches
    repricer = Repricer(known, sources_of(scenario, known.priced))
    assert {source.name for source in repricer.sources} >= {"gemm.fp8", "attn.decode.mla@flashmla", "routing"}
    assert not any("grad" in source.name or "loss" in source.name for source in repricer.sources)


def test_twice_as_slow_kernels_take_the_step_with_them() -> None:
    """Every class off by the same factor: what a step consists of, all in all, gets that much longer."""
    scenario = load_scenario("llama-3-8b-decode")
    known = priceable(scenario)
    sources = [one for one in sources_of(scenario, known.priced) if isinstance(one, ClassError)]
    sources = [one for one in sources if one.group != "releases"]
    repricer = Repricer(known, sources)
    draw = repricer.nothing()
    for at, source in enumerate(sources):
        if source.shared:
            draw.at[at] = 0.1 / source.shared
        else:
            draw.each[at, repricer.members[at]] = 0.1 / source.each
    assert repricer.step_time(draw) / repricer.step_time(repricer.nothing()) == pytest.approx(1.105, rel=0.01)


def test_numbers_moved_by_the_quick_engine_are_those_of_the_longest_path() -> None:
    for job in ("deepseek-v3-decode-ep128", "llama-3-8b-prefill"):
        whole = timeline_of(*prepare(load_scenario(job)), "longest-path").makespan
        assert step_time(job, "longest-path", ()) == pytest.approx(whole, rel=1e-9)


def test_more_memory_bandwidth_makes_a_decode_step_shorter() -> None:
    found = tornado("llama-3-8b-decode", processes=1)
    built, schedule = prepare(load_scenario("llama-3-8b-decode"))
    assert found.base == pytest.approx(timeline_of(built, schedule, "longest-path").makespan)
    swing = next(one for one in found.swings if one.knob.path == "hardware.gpu.hbm_bandwidth")
    assert swing.at_low > found.base > swing.at_high
    assert found.engine == "longest-path"
