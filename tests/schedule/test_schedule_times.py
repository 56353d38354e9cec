"""When things happen with free communication: eager, exact, and scaling as it must."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ScheduleError
from simulator.schedule import (
    SCHEDULES,
    Pair,
    Schedule,
    UniformResult,
    actions_of,
    build,
    dualpipe,
    one_f_one_b,
    uniform_times,
)

seconds = st.floats(1e-3, 1e3)


def small(name: str, microbatches: int = 8) -> Schedule:
    return build(name, pp=4, microbatches=microbatches, vpp=2 if name == "interleaved" else 1)


@given(f=seconds, i=seconds, w=seconds)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_starts_when_the_last_thing_it_waits_for_ends(name: str, f: float, i: float, w: float) -> None:
    """Earliest start times, found without the package's own notion of what needs what."""
    schedule = small(name)
    times = uniform_times(schedule, f=f, i=i, w=w)
    end = {
        action[:3]: times.ends[rank][place]
        for rank, row in enumerate(schedule.rows)
        for place, step in enumerate(row)
        for action in actions_of(step)
    }
    for rank, row in enumerate(schedule.rows):
        for place, step in enumerate(row):
            waits = [times.ends[rank][place - 1]] if place else [0.0]
            for kind, stage, microbatch, _ in actions_of(step):
                before = {
                    "F": ("F", stage - 1),
                    "B": ("BI", stage + 1),
                    "I": ("BI", stage + 1),
                    "W": ("I", stage),
                }
                kinds, neighbour = before[kind]
                waits += [end[key] for k in kinds if (key := (k, neighbour, microbatch)) in end]
            assert times.starts[rank][place] == max(waits)


@given(f=seconds, i=seconds, w=seconds)
@pytest.mark.parametrize("name", SCHEDULES)
def test_twice_the_durations_twice_the_time(name: str, f: float, i: float, w: float) -> None:
    once = uniform_times(small(name), f=f, i=i, w=w)
    twice = uniform_times(small(name), f=2 * f, i=2 * i, w=2 * w)
    assert twice.makespan == 2 * once.makespan
    assert twice.starts == tuple(tuple(2 * start for start in row) for row in once.starts)
    assert twice.bubble_ratio == pytest.approx(once.bubble_ratio)


@given(f=st.integers(1, 9), i=st.integers(1, 9), w=st.integers(1, 9))
@pytest.mark.parametrize("name", SCHEDULES)
def test_more_microbatches_less_bubble(name: str, f: int, i: int, w: int) -> None:
    ratios = [uniform_times(small(name, m), f=f, i=i, w=w).bubble_ratio for m in (8, 16, 32)]
    assert ratios[0] > ratios[1] > ratios[2] > 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_work_is_the_models_work(name: str) -> None:
    schedule = small(name)
    times = uniform_times(schedule, f=4, i=2, w=1)
    assert sum(times.busy) == 7 * schedule.stages * schedule.microbatches
    assert times.makespan == pytest.approx(max(b + i for b, i in zip(times.busy, times.idle, strict=True)))
    assert all(outer >= inner for outer, inner in zip(times.idle, times.idle_in_span, strict=True))
    assert times.bubble_ratio <= times.bubble_ratio_worst


@pytest.mark.parametrize("name", SCHEDULES)
def test_durations_by_stage(name: str) -> None:
    """Equal numbers a stage are the same as one number; a slower stage slows the step."""
    schedule = small(name)
    n = schedule.stages
    even = uniform_times(schedule, f=[1.0] * n, i=[2.0] * n, w=[1.5] * n)
    assert even == uniform_times(schedule, f=1.0, i=2.0, w=1.5)
    slow = uniform_times(schedule, f=[1.0] * (n - 1) + [1.7], i=[2.0] * n, w=[1.5] * n)
    assert slow.makespan > even.makespan


def test_pairs_by_stage_take_the_time_of_their_forward_stage() -> None:
    schedule = dualpipe(4, 8)
    times = uniform_times(schedule, f=1, i=1, w=1, pair=[2.0, 2.1, 2.2, 2.3])
    seen = set()
    for row, starts, ends in zip(schedule.rows, times.starts, times.ends, strict=True):
        for step, start, end in zip(row, starts, ends, strict=True):
            if isinstance(step, Pair):
                assert end - start == pytest.approx(2.0 + step.forward.stage / 10)
                seen.add(step.forward.stage)
    assert seen == {0, 1, 2, 3}


def test_pairs_take_the_sum_of_their_halves_if_not_said_otherwise() -> None:
    assert uniform_times(dualpipe(4, 8), f=1, i=2, w=3) == uniform_times(dualpipe(4, 8), f=1, i=2, w=3, pair=6)


def test_wrong_number_of_durations() -> None:
    with pytest.raises(ScheduleError, match="there are 3 durations for 4 stages: give one number, or 4"):
        uniform_times(one_f_one_b(4, 8), f=[1, 2, 3], i=1, w=1)


def test_bubble_rate_of_1f1b() -> None:
    """(p - 1) / (m + p - 1), Narayanan et al. 2021, section 2.2 (there relative to ideal time)."""
    assert uniform_times(one_f_one_b(4, 8), f=1, i=1, w=1).bubble_ratio == pytest.approx(3 / 11)


def test_ranks_without_work_idle_all_the_time() -> None:
    alone = one_f_one_b(1, 2)
    lazy = Schedule(name="lazy", stages=1, microbatches=2, rows=(*alone.rows, ()))
    times = uniform_times(lazy, f=1, i=1, w=1)
    assert (times.idle, times.idle_in_span, times.bubble_ratio_worst) == ((0.0, 6.0), (0.0, 0.0), 1.0)


def test_nothing_takes_no_time() -> None:
    nothing = UniformResult(starts=((),), ends=((),), makespan=0.0, busy=(0.0,))
    assert (nothing.bubble_ratio, nothing.bubble_ratio_worst) == (0.0, 0.0)
