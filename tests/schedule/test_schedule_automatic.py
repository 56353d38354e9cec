"""Automatic zero-bubble schedules: as good as their own sums say, within their memory, and made for the times given."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import ScheduleError
from simulator.inputs import load_scenario
from simulator.results.automatic import durations_of
from simulator.results.simulate import prepare, schedule_of
from simulator.schedule import (
    Durations,
    ScheduleRecord,
    closed_form_bubble,
    peak_in_flight,
    uniform_times,
    validate,
    zb1p_auto,
    zb2p,
    zb2p_auto,
)
from simulator.schedule.generators.zero_bubble_automatic import Choices, _Plan

duration = st.integers(1, 30)
"""Whole numbers, so that sums are exact."""


@settings(max_examples=30)
@given(pp=st.integers(1, 6), microbatches=st.integers(1, 14), f=duration, i=duration, w=duration)
def test_within_the_memory_of_one_and_two_times_1f1b(pp: int, microbatches: int, f: int, i: int, w: int) -> None:
    for made, limit in ((zb1p_auto, pp), (zb2p_auto, 2 * pp)):
        schedule = made(pp, microbatches, Durations(f=f, i=i, w=w))
        validate(schedule)
        assert max(peak_in_flight(schedule)) <= limit


@settings(max_examples=30)
@given(
    pp=st.integers(1, 6), many=st.integers(1, 12), f=duration, i=duration, w=duration,
    overfill=st.booleans(), wait=st.booleans(), fill=st.booleans(),
)  # fmt: skip
def test_a_plan_knows_how_long_it_takes(
    pp: int, many: int, f: int, i: int, w: int, overfill: bool, wait: bool, fill: bool
) -> None:
    """The sums of the plan are those of the grid, and no plan of the eight is shorter than the schedule."""
    d = Durations(f=f, i=i, w=w)
    plan = _Plan(pp, many, 2 * pp, d, Choices(overfill=overfill, wait=wait, fill=fill)).made()
    chosen = max(uniform_times(zb2p_auto(pp, many, d), f=f, i=i, w=w).spans)
    assert chosen <= plan.longest
    assert plan.longest == max(
        ends[-1] - first[0] + f for ends, first in zip(plan.ends["W"], plan.ends["F"], strict=True)
    )
    idle = uniform_times(zb2p_auto(pp, many, d), f=f, i=i, w=w).idle_in_span
    assert max(idle) == chosen - many * (f + i + w)


def test_it_beats_the_handcrafted_one_where_weight_gradients_are_short() -> None:
    """Half as long as an input gradient, as with attention: 4 ranks, 12 microbatches, 60 units of work."""
    d = Durations(f=2.0, i=2.0, w=1.0)
    spans = [max(uniform_times(one, f=2.0, i=2.0, w=1.0).spans) for one in (zb2p(4, 12), zb2p_auto(4, 12, d))]
    assert spans == [66.0, 65.0]


def test_what_input_gradients_free_is_room_for_more_microbatches() -> None:
    tight, loose = (zb2p_auto(4, 12, Durations(f=2.0, i=2.0, w=1.0, until_w=share)) for share in (1.0, 0.5))
    assert [max(uniform_times(one, f=2.0, i=2.0, w=1.0).spans) for one in (tight, loose)] == [65.0, 61.0]
    assert max(peak_in_flight(tight)) <= 8 < max(peak_in_flight(loose))


def test_a_job_gets_the_schedule_of_its_own_times() -> None:
    """Sends as long as 0.3 forwards call for more forwards ahead than free ones."""
    job = ("tiny-zb1p", ["layout.schedule=zb2p-auto", "hardware.node.nic.bandwidth=2e9"])
    slow = load_scenario(*job)
    d = durations_of(slow)
    assert d.f == 1.0
    assert d.send > 0.1
    assert 0.0 < d.until_w <= 1.0
    assert schedule_of(slow) == zb2p_auto(slow.job.layout.pp, slow.job.microbatches, d)
    assert schedule_of(slow) != zb2p_auto(slow.job.layout.pp, slow.job.microbatches)
    assert prepare(slow)[1] == schedule_of(slow)


def test_refused() -> None:
    with pytest.raises(ScheduleError, match="zb2p-auto has a closed form for f = i = w only"):
        closed_form_bubble("zb2p-auto", 4, 1.0, 2.0, 1.0)
    with pytest.raises(ScheduleError, match="needs either generate or timed"):
        ScheduleRecord(name="none", description="", source="", year=2026)
