"""Bubbles and memory of every schedule against published formulas and independently simulated numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ScheduleError
from simulator.schedule import (
    Schedule,
    build,
    closed_form_bubble,
    dualpipe,
    dualpipev,
    interleaved,
    peak_in_flight,
    uniform_times,
    zb2p,
)

duration = st.integers(1, 50)
"""Whole numbers, so that formulas hold to the last bit."""


def idle(schedule: Schedule, **times: float) -> tuple[float, ...]:
    return uniform_times(schedule, **times).idle


@given(pp=st.integers(1, 8), rounds=st.integers(1, 3), f=duration, i=duration, w=duration)
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_whole_backward_schedules_idle_for_one_pipeline_fill(
    name: str, pp: int, rounds: int, f: int, i: int, w: int
) -> None:
    schedule = build(name, pp=pp, microbatches=rounds * pp)
    assert idle(schedule, f=f, i=i, w=w) == ((pp - 1) * (f + i + w),) * pp
    assert closed_form_bubble(name, pp, f, i, w) == (pp - 1) * (f + i + w)


@given(pp=st.integers(1, 6), rounds=st.integers(1, 3), vpp=st.integers(2, 4), f=duration, i=duration, w=duration)
def test_interleaving_divides_the_bubble_by_vpp(pp: int, rounds: int, vpp: int, f: int, i: int, w: int) -> None:
    microbatches = rounds * pp
    whole = uniform_times(build("1f1b", pp=pp, microbatches=microbatches), f=f * vpp, i=i * vpp, w=w * vpp)
    thin = uniform_times(interleaved(pp, microbatches, vpp), f=f, i=i, w=w)
    assert thin.busy == whole.busy
    assert [vpp * time for time in thin.idle] == list(whole.idle)
    assert thin.idle[0] == closed_form_bubble("interleaved", pp, f, i, w)


@given(pp=st.integers(1, 8), extra=st.integers(0, 9), f=duration, i=duration, w=duration)
@pytest.mark.parametrize(("name", "fill"), [("zb1p", 1), ("zb2p", 2)])
def test_handcrafted_zero_bubble_spans(name: str, fill: int, pp: int, extra: int, f: int, i: int, w: int) -> None:
    w = min(f, i, w)
    times = uniform_times(build(name, pp=pp, microbatches=fill * pp + extra), f=f, i=i, w=w)
    assert max(times.idle_in_span) == closed_form_bubble(name, pp, f, i, w)


@given(pp=st.integers(1, 8), extra=st.integers(0, 9), unit=duration)
@pytest.mark.parametrize(
    ("name", "share"), [("1f1b", 1), ("zb1p", 1 / 3), ("zb2p", 0), ("zbv", 0), ("zb1p-auto", 1 / 3), ("zb2p-auto", 0)]
)
def test_bubble_in_span_for_equal_parts(name: str, share: float, pp: int, extra: int, unit: int) -> None:
    """With F = I = W, on the rank with the longest span: 1F1B's bubble, a third of it, and none."""
    times = uniform_times(build(name, pp=pp, microbatches=2 * pp + extra), f=unit, i=unit, w=unit)
    assert max(times.idle_in_span) == share * 3 * unit * (pp - 1)
    assert closed_form_bubble(name, pp, unit, unit, unit) == max(times.idle_in_span)


@pytest.mark.parametrize(
    ("name", "span"), [("1f1b", 405), ("zb1p", 375), ("zb2p", 360), ("zb1p-auto", 375), ("zb2p-auto", 360)]
)
def test_spans_published_by_zero_bubbles_own_scheduler(name: str, span: int) -> None:
    """p = 16, m = 120, F = I = W = 1; the longest rank."""
    assert max(uniform_times(build(name, pp=16, microbatches=120), f=1, i=1, w=1).spans) == span


@pytest.mark.parametrize("name", ["zb2p", "zbv"])
def test_no_bubble_in_the_span_is_still_one_in_the_step(name: str) -> None:
    """Ranks begin one after another, so somebody always waits for the last one."""
    times = uniform_times(build(name, pp=16, microbatches=120), f=1, i=1, w=1)
    assert set(times.idle_in_span) == {0}
    assert set(times.idle) == {15}


STEP_TABLE = [
    # P, M, F, B, W, F&B, makespan, idle outermost rank, idle middle rank, formula, peak
    (8, 20, 1, 2, 1, 3, 66.0, 6.0, 6.0, 6.0, 9),
    (16, 32, 1, 2, 1, 3, 110.0, 14.0, 14.0, 14.0, 17),
    (16, 120, 1, 2, 1, 3, 374.0, 14.0, 14.0, 14.0, 17),
    (16, 120, 1, 2, 1, 2.6, 330.0, 8.8, 11.2, 11.2, 17),
    (8, 20, 1, 2.2, 0.9, 2.7, 64.2, 4.7, 5.7, 6.6, 9),
    (16, 120, 1.3, 2.4, 1.0, 3.3, 421.0, 15.8, 18.2, 18.9, 17),
    (4, 8, 1, 2, 1, 3, 26.0, 2.0, 2.0, 2.0, 5),
]


@pytest.mark.parametrize(
    ("p", "m", "f", "b", "w", "pair", "makespan", "outermost", "middle", "formula", "peak"), STEP_TABLE
)
def test_dualpipe_as_simulated_independently(
    p: int,
    m: int,
    f: float,
    b: float,
    w: float,
    pair: float,
    makespan: float,
    outermost: float,
    middle: float,
    formula: float,
    peak: int,
) -> None:
    schedule = dualpipe(p, m)
    times = uniform_times(schedule, f=f, i=b - w, w=w, pair=pair)
    assert times.makespan == pytest.approx(makespan)
    assert (times.idle[0], times.idle[-1]) == pytest.approx((outermost, outermost))
    assert times.idle[p // 2 - 1 : p // 2 + 1] == pytest.approx((middle, middle))
    assert min(times.idle) >= outermost - 1e-9
    assert closed_form_bubble("dualpipe", p, f, b - w, w, pair) == pytest.approx(formula)
    assert peak_in_flight(schedule) == (peak,) * p


@pytest.mark.parametrize(
    ("p", "m", "f", "b", "w", "pair", "makespan", "outermost", "middle", "formula", "peak"), STEP_TABLE
)
def test_dualpipev_idles_like_dualpipe_of_as_many_stages(
    p: int,
    m: int,
    f: float,
    b: float,
    w: float,
    pair: float,
    makespan: float,
    outermost: float,
    middle: float,
    formula: float,
    peak: int,
) -> None:
    """Half the ranks, each with the work of all microbatches: the same idle time, the same memory."""
    schedule = dualpipev(p // 2, m)
    times = uniform_times(schedule, f=f, i=b - w, w=w, pair=pair)
    assert (times.idle[0], times.idle[-1]) == pytest.approx((outermost, middle))
    assert closed_form_bubble("dualpipev", p // 2, f, b - w, w, pair) == pytest.approx(formula)
    assert peak_in_flight(schedule) == (peak,) * (p // 2)


def test_dualpipe_idle_rises_towards_the_middle_and_is_symmetric() -> None:
    times = uniform_times(dualpipe(8, 20), f=1, i=1.3, w=0.9, pair=2.7)
    assert times.idle == pytest.approx((4.7, 5.2, 5.7, 5.7, 5.7, 5.7, 5.2, 4.7))


@given(half=st.integers(2, 6), extra=st.integers(0, 6), f=duration, i=duration, w=duration, saved=duration)
@pytest.mark.parametrize("name", ["dualpipe", "dualpipev"])
def test_where_the_dualpipe_formula_holds(name: str, half: int, extra: int, f: int, i: int, w: int, saved: int) -> None:
    """For W <= F: exact in the middle, where ranks idle most, if I = F; large if I > F, small if I < F."""
    pp, middle = (2 * half, half) if name == "dualpipe" else (half, half - 1)
    w = min(w, f)
    pair = max(f, i + w, f + i + w - saved)
    times = uniform_times(build(name, pp=pp, microbatches=2 * pp + 2 * extra), f=f, i=i, w=w, pair=pair)
    formula = closed_form_bubble(name, pp, f, i, w, pair)
    assert times.idle[middle] == max(times.idle)
    assert (formula > max(times.idle), formula < max(times.idle)) == (i > f, i < f)


@given(half=st.integers(1, 6), extra=st.integers(0, 6), f=duration, w=duration)
@pytest.mark.parametrize("name", ["dualpipe", "dualpipev"])
def test_dualpipe_ranks_idle_alike_where_pairs_save_nothing(name: str, half: int, extra: int, f: int, w: int) -> None:
    pp, w = (2 * half if name == "dualpipe" else half), min(f, w)
    times = uniform_times(build(name, pp=pp, microbatches=2 * pp + 2 * extra), f=f, i=f, w=w)
    assert set(times.idle) == {closed_form_bubble(name, pp, f, f, w)}


@given(pp=st.integers(1, 8), microbatches=st.integers(1, 24))
def test_peak_in_flight_of_schedules_with_a_stage_a_rank(pp: int, microbatches: int) -> None:
    def peak(name: str) -> list[int]:
        return list(peak_in_flight(build(name, pp=pp, microbatches=microbatches)))

    assert peak("gpipe") == [microbatches] * pp
    assert peak("1f1b") == [min(pp - rank, microbatches) for rank in range(pp)]
    assert peak("zb1p") == [min(pp, microbatches)] * pp
    assert peak("zb2p") == [min(2 * pp - 1, microbatches)] * pp


@given(pp=st.integers(1, 8), extra=st.integers(0, 9))
def test_zbv_needs_the_memory_of_1f1bs_first_rank(pp: int, extra: int) -> None:
    """2 x pp thin stages on every rank are as much as pp whole ones."""
    assert peak_in_flight(build("zbv", pp=pp, microbatches=2 * pp - 1 + extra)) == (2 * pp,) * pp


@given(pp=st.integers(1, 6), rounds=st.integers(2, 4), vpp=st.integers(2, 4))
def test_interleaving_costs_memory(pp: int, rounds: int, vpp: int) -> None:
    """The forwards that a rank runs ahead, and the one in hand (Narayanan et al. 2021, section 2.2)."""
    expected = [2 * (pp - rank - 1) + (vpp - 1) * pp + 1 for rank in range(pp)]
    assert list(peak_in_flight(interleaved(pp, rounds * pp, vpp))) == expected


def test_zb2p_runs_with_too_few_microbatches_too() -> None:
    assert max(uniform_times(zb2p(4, 2), f=1, i=1, w=1).idle_in_span) > 0


def test_zbv_has_no_formula_for_unequal_parts() -> None:
    with pytest.raises(ScheduleError, match=r"f = i = w only: f 1, i 2, w 1"):
        closed_form_bubble("zbv", 4, 1, 2, 1)
