"""The interval of a step time: nothing uncertain gives no width, more gives more, and the parts add up."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from simulator.engine.lower import price_model
from simulator.engine.power import highest_demand
from simulator.errors import InputError
from simulator.estimate.estimate import estimate, repriced
from simulator.estimate.shared_prices import SharedPrices, one_stage
from simulator.inputs import load_scenario, load_stack
from simulator.spec.job import Routing
from simulator.spec.scenario import Scenario
from simulator.studies.known_errors import KnownError, known_errors, spread_of, transferred, widening
from simulator.studies.uncertainty import ClassError, Interval, interval, sources_of
from simulator.studies.uncertainty.repricing import Draw, Repricer, priceable, without_power
from simulator.studies.uncertainty.sources import UNCALIBRATED, AssumedNumber, SlowestClock, UnknownLoads

GEMM = "gemm.bf16"


@pytest.fixture(scope="module")
def dense() -> Scenario:
    return load_scenario("llama-3-8b")


@pytest.fixture(scope="module")
def found(dense: Scenario) -> Interval:
    return interval(dense, draws=40)


def error(shared: float = 0.0, each: float = 0.0, name: str = GEMM) -> ClassError:
    return ClassError(name=name, cls=name, group="kernels", shared=shared, each=each, text="made up")


def skewed(*loads: float) -> tuple[Routing, ...]:
    return tuple(Routing(kind="skewed", max_over_mean=load) for load in loads)


def test_nothing_uncertain_has_no_width(dense: Scenario) -> None:
    sure = interval(dense, draws=5, sources=())
    assert sure.p10_s == sure.p50_s == sure.p90_s == sure.forecast_s
    assert sure.contributions == ()


@pytest.mark.parametrize("job", ["llama-3-8b", "tiny-dualpipe", "tiny-bf16"])
def test_unmoved_it_is_the_quick_engine(job: str) -> None:
    scenario = load_scenario(job)
    quick = estimate(scenario, SharedPrices(scenario, "events")).step
    # the quick engine interpolates between clocks, here the clock is the step's own
    assert interval(scenario, draws=2, sources=()).forecast_s == pytest.approx(quick, rel=2e-4)


@pytest.mark.slow
def test_a_wider_error_of_a_class_widens_the_interval(dense: Scenario) -> None:
    widths = []
    for sigma in (0.01, 0.05, 0.2):
        one = interval(dense, draws=40, sources=[error(shared=sigma)])
        widths.append(one.half_width)
    assert 0.0 < widths[0] < widths[1] < widths[2]


def test_errors_of_single_kernels_cancel_where_shared_ones_do_not(dense: Scenario) -> None:
    shared = interval(dense, draws=40, sources=[error(shared=0.1)])
    each = interval(dense, draws=40, sources=[error(each=0.1)])
    assert 0.0 < each.half_width < 0.8 * shared.half_width


def test_scaled_classes_cost_what_pricing_them_anew_says(dense: Scenario) -> None:
    """Kernels that follow the clock twice as long are those of half the clock, but for the gaps behind the kernels."""
    unlimited = without_power(dense)
    known = priceable(unlimited)
    slower = price_model(one_stage(unlimited), 1, pace=2.0).price
    tensor = sorted({one.op.cls for one in known.priced if slower(one.op).durations[0] > 1.5 * one.durations[0]})
    repricer = Repricer(known, [error(shared=1.0, name=cls) for cls in tensor])
    slow = repricer.step_time(Draw(at=np.full(len(tensor), np.log(2.0)), each=repricer.nothing().each))
    again = repriced(unlimited, price_model(one_stage(unlimited), 1, pace=2.0), known.placed.stages)
    assert slow == pytest.approx(again, rel=0.01)
    assert slow > 1.5 * repricer.step_time(repricer.nothing())


def test_contributions_sum_to_one(found: Interval) -> None:
    assert sum(one.share for one in found.contributions) + found.rest == pytest.approx(1.0)
    assert 0.8 < sum(one.share for one in found.contributions) <= 1.0 + 1e-9
    assert sum(found.groups.values()) == pytest.approx(sum(one.share for one in found.contributions))
    shares = [one.share for one in found.contributions]
    assert shares == sorted(shares, reverse=True)


def test_of_two_classes_the_one_that_varies_more_contributes_more(dense: Scenario) -> None:
    two = [error(shared=0.1), error(shared=0.1, name="norm.fwd")]
    first, second = interval(dense, draws=40, sources=two).contributions
    assert (first.source, second.source) == (GEMM, "norm.fwd")
    assert first.share > 10 * second.share


def test_quantiles_are_in_order_and_around_the_forecast(found: Interval) -> None:
    assert found.p10_s < found.p50_s < found.p90_s
    assert found.forecast_s < found.p50_s  # no source shortens a step on the whole, some only lengthen it
    assert bool(found.remark) == (found.forecast_s < 0.9 * found.p10_s + 0.1 * found.p90_s)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(dense: Scenario, found: Interval) -> None:
    assert json.dumps(interval(dense, draws=40).as_dict()) == json.dumps(found.as_dict())
    other = interval(dense, draws=40, seed=1)
    assert other.p10_s != found.p10_s
    assert other.half_width == pytest.approx(found.half_width, rel=0.6)


def test_a_source_draws_the_same_whatever_else_is_uncertain(dense: Scenario) -> None:
    """So that jobs can be compared, and one more source changes nothing about the others."""
    lone = interval(dense, draws=10, sources=[error(shared=0.1)])
    beside = interval(dense, draws=10, sources=[error(shared=0.0, name="norm.fwd"), error(shared=0.1)])
    assert (lone.p10_s, lone.p90_s) == (beside.p10_s, beside.p90_s)


def test_scaled_to_another_forecast_it_keeps_its_relative_width(found: Interval) -> None:
    other = found.scaled_to(2.0 * found.forecast_s)
    assert other.p90_s == 2.0 * found.p90_s
    assert other.half_width == pytest.approx(found.half_width)


def test_uneven_loads_only_lengthen_the_step() -> None:
    scenario = load_scenario("tiny-dualpipe")
    loads = UnknownLoads(points=skewed(1.0, 1.3), rest=0, least=0.0, text="made up")
    one = interval(scenario, draws=20, sources=[loads])
    assert one.forecast_s < one.p10_s < one.p90_s
    wider = interval(scenario, draws=20, sources=[replace(loads, points=skewed(1.0, 2.0))])
    assert wider.half_width > one.half_width


@pytest.mark.slow
def test_an_assumed_number_matters_by_its_range(dense: Scenario) -> None:
    power = dense.cluster.gpu.power
    assert power is not None

    def width(low: float, high: float, path: str = "hardware.gpu.power.tensor", value: float = power.tensor) -> float:
        number = AssumedNumber(name=path, value=value, low=low, high=high, text="made up")
        return interval(dense, draws=20, sources=[number]).half_width

    assert width(power.tensor, power.tensor) == 0.0
    assert 0.0 < width(0.95 * power.tensor, 1.05 * power.tensor) < width(0.8 * power.tensor, 1.2 * power.tensor)
    link = dense.cluster.node.nvlink.bandwidth
    assert width(0.5 * link, 2.0 * link, "hardware.node.nvlink.bandwidth", link) > 0.0
    host = 2e-3  # so slow a host holds kernels back
    assert width(0.5 * host, 2.0 * host, "stack.host_kernel", host) > 0.0


@pytest.mark.slow
def test_the_slowest_gpu_spreads_around_the_expected_one(dense: Scenario) -> None:
    one = interval(dense, draws=200, sources=[SlowestClock(gpus=dense.job.gpus, text="made up")])
    assert one.p10_s < one.forecast_s < one.p90_s
    many = interval(dense, draws=200, sources=[SlowestClock(gpus=100_000, text="made up")])
    assert many.half_width < one.half_width  # the largest of very many is well known
    assert highest_demand(100_000) > highest_demand(dense.job.gpus)


def test_sources_name_errors_as_measured(dense: Scenario) -> None:
    sources = {source.name: source for source in sources_of(dense, priceable(dense).priced)}
    gemm = sources[GEMM]
    assert isinstance(gemm, ClassError)
    spread = spread_of(known_errors("h100")[GEMM])
    assert (gemm.shared, gemm.each) == (spread.shared, spread.each)
    links = {name for name, source in sources.items() if source.group == "links"}
    assert "comm.tp.all_gather" in links
    loose = [s for s in sources.values() if isinstance(s, ClassError) and s.group == "uncalibrated"]
    assert loose
    assert all(one.shared == UNCALIBRATED for one in loose)
    assert "slowest GPU" in sources


def test_what_nobody_measured_is_less_sure_than_what_was_held_out() -> None:
    held_out = spread_of(KnownError(mape=0.03, bias=0.0, samples=100, part="held out"))
    fitted = spread_of(KnownError(mape=0.03, bias=0.0, samples=100, part="fitted"))
    assert fitted.each == pytest.approx(widening() * held_out.each)
    assert widening() > 1.0
    assert held_out.each < transferred() < UNCALIBRATED


def test_what_all_kernels_share_is_the_bias_or_what_few_samples_leave_open() -> None:
    few = spread_of(KnownError(mape=0.03, bias=0.0, samples=4, part="unseen"))
    many = spread_of(KnownError(mape=0.03, bias=0.0, samples=400, part="unseen"))
    biased = spread_of(KnownError(mape=0.03, bias=-0.03, samples=400, part="unseen"))
    assert many.shared < few.shared < biased.shared
    total = [s.shared**2 + s.each**2 for s in (few, many, biased)]
    assert total == pytest.approx([total[0]] * 3)


def test_bad_requests_are_one_line(dense: Scenario) -> None:
    with pytest.raises(InputError, match="--draws: 1 is too few"):
        interval(dense, draws=1)
    broken = replace(dense, job=replace(dense.job, gpus=7))
    with pytest.raises(InputError, match="gpus"):
        interval(broken, draws=2)


def test_an_assumed_time_of_the_host_lies_in_the_range_of_its_source(dense: Scenario) -> None:
    old = replace(dense, stack=load_stack("megatron-lm"))
    numbers = {one.name: one for one in sources_of(old, ()) if isinstance(one, AssumedNumber)}
    gemm = numbers["stack.host_gemm"]
    assert (gemm.low, gemm.high) == (2e-5, 1.1e-4)
    assert not [one for one in sources_of(dense, ()) if one.name.startswith("stack.host_")]  # measured
    slow = [replace(gemm, high=1e-2)]
    assert interval(old, draws=10, sources=slow).p90_s > interval(old, draws=10, sources=[gemm]).p90_s
    known = load_scenario("deepseek-v3-pretrain")  # a trace shows that its host is ahead
    assert not [one for one in sources_of(known, ()) if one.name.startswith("stack.host_")]
