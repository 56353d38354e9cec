"""The two engines: equal to the last bit where nothing is shared, and the discrete-event one right where it is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cost.cost import Cost
from simulator.engine.des import simulate
from simulator.engine.kernel_sequence import (
    ALONE,
    BANDWIDTH_SHARED,
    COLLECTIVE,
    SM_SHARED,
    KernelSequence,
    Kind,
    Priced,
    kernel_spans,
    sequence_of,
)
from simulator.engine.longest_path import longest_path
from simulator.engine.tasks import COMM, COMPUTE, LANES, SEND_NEXT, SYNC, Tasks
from simulator.ops import Fixed, Op


def sequence(
    *durations: tuple[float, float, float],
    kind: Kind = "compute",
    nic: float = 0.0,
    nvlink: float = 0.0,
    concurrent_with: float = 1.0,
    held: float = 0.0,
) -> KernelSequence:
    """A kernel sequence with these durations alone and concurrent with all-to-alls; with a node's collective,
    `concurrent_with` times the first."""
    ops = []
    for index, each in enumerate(durations):
        op = Op(name=f"op{index}", cls="test", part="F", segment="test.F", work=Fixed())
        cost = Cost(duration=each[0], bound_by="fixed", nic_bytes=nic, nvlink_bytes=nvlink, held=held)
        ops.append(Priced(op=op, cost=cost, durations=(*each, concurrent_with * each[0])))
    return sequence_of(kind, "test", ops)


def steady(seconds: float, kind: Kind = "compute", nic: float = 0.0) -> KernelSequence:
    return sequence((seconds, seconds, seconds), kind=kind, nic=nic)


def tasks(ranks: int = 1, *, nic: float = 50.0, nvlink: float = 100.0) -> Tasks:
    return Tasks(ranks=ranks, nic=nic, nvlink=nvlink)


@st.composite
def unshared(draw: st.DrawFn) -> Tasks:
    """Random tasks on random streams, with random dependencies on earlier tasks, and nothing shared."""
    ranks = draw(st.integers(1, 4))
    out = tasks(ranks)
    seconds = st.floats(0.0, 1e3, allow_nan=False, allow_subnormal=False)
    for index in range(draw(st.integers(1, 40))):
        lane = draw(st.integers(0, ranks * LANES - 1))
        preds = draw(st.lists(st.integers(0, index - 1), max_size=3, unique=True)) if index else []
        pieces = [(value,) * 4 for value in draw(st.lists(seconds, min_size=1, max_size=4))]
        out.add(lane, sequence(*pieces), tuple(preds))
    return out


@given(unshared())
@settings(max_examples=150, deadline=None)
def test_the_engines_agree_to_the_last_bit_where_nothing_is_shared(work: Tasks) -> None:
    quick, events = longest_path(work), simulate(work)
    assert events.start == quick.start
    assert events.end == quick.end


@given(unshared(), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
@settings(max_examples=50, deadline=None)
def test_durations_times_a_power_of_two_give_the_step_times_it(work: Tasks, factor: float) -> None:
    """To the last bit: no time but those of the tasks enters a step."""
    scaled = tasks(work.ranks)
    for lane, each, preds in zip(work.lane, work.sequence, work.preds, strict=True):
        pieces = [tuple(value * factor for value in priced.durations) for priced in each.ops]
        scaled.add(lane, sequence(*pieces), preds)  # type: ignore[arg-type]
    assert simulate(scaled).makespan == factor * simulate(work).makespan


def test_compute_slows_down_while_an_all_to_all_is_concurrent() -> None:
    """10 s of compute; from 2 s to 6 s an all-to-all takes half its pace: 4 s do the work of 2."""
    work = tasks()
    work.add(COMPUTE, sequence((10.0, 10.0, 20.0)), ())
    start = work.add(COMM, steady(2.0, "work"), ())
    work.add(COMM, steady(4.0, "all_to_all"), (start,))
    line = simulate(work)
    assert line.end[0] == pytest.approx(12.0)
    assert [condition for _, condition, _ in line.changes[0]] == [ALONE, BANDWIDTH_SHARED, ALONE]


def test_a_barrier_holds_sms_without_memory_traffic() -> None:
    work = tasks()
    work.add(COMPUTE, sequence((10.0, 12.5, 20.0)), ())
    work.add(COMM, steady(5.0, "notify"), ())
    line = simulate(work)
    assert line.end[0] == pytest.approx(5.0 + (1 - 5.0 / 12.5) * 10.0)
    assert line.changes[0][0][1] == SM_SHARED


@pytest.mark.parametrize(("held", "end"), [(1.0, 3.0 + 11 / 14 * 10.0), (0.5, 3.0 + 9 / 12 * 10.0), (0.0, 10.0)])
def test_a_collective_on_its_own_stream_takes_sms_by_the_part_it_holds(held: float, end: float) -> None:
    """Concurrent with one of a whole node the sequence would take 14 s, with one that holds half as much 12 s."""
    work = tasks()
    work.add(COMPUTE, sequence((10.0, 12.5, 20.0), concurrent_with=1.4), ())
    work.add(SYNC, sequence((3.0, 3.0, 3.0), kind="collective", held=held), ())
    assert simulate(work).end[0] == pytest.approx(end)


def test_with_an_all_to_all_and_a_collective_the_all_to_all_decides() -> None:
    work = tasks()
    work.add(COMPUTE, sequence((10.0, 12.5, 20.0), concurrent_with=1.4), ())
    work.add(COMM, steady(4.0, "all_to_all"), ())
    work.add(SYNC, sequence((6.0, 6.0, 6.0), kind="collective", held=1.0), ())
    line = simulate(work)
    assert [condition for _, condition, _ in line.changes[0]] == [BANDWIDTH_SHARED, COLLECTIVE, ALONE]
    assert line.end[0] == pytest.approx(6.0 + (1.0 - 4.0 / 20.0 - 2.0 / 14.0) * 10.0)
    spans = kernel_spans(work.sequence[0], line.start[0], line.end[0], line.changes[0])
    assert spans == [(0.0, line.end[0])]


def test_each_kernel_of_a_run_has_its_own_pace() -> None:
    """The all-to-all slows the second kernel only; it begins while the first one runs."""
    work = tasks()
    work.add(COMPUTE, sequence((4.0, 4.0, 4.0), (2.0, 2.0, 8.0)), ())
    work.add(COMM, steady(1.0, "work"), ())
    work.add(COMM, steady(7.0, "all_to_all"), ())
    line = simulate(work)
    spans = kernel_spans(work.sequence[0], line.start[0], line.end[0], line.changes[0])
    assert spans[0] == pytest.approx((0.0, 4.0))
    assert spans[1] == pytest.approx((4.0, 9.0))  # 4 s do half of it, 1 s the rest


def test_an_all_to_all_is_slower_concurrent_with_compute() -> None:
    """Alone 4 s, concurrent with compute 8 s; compute runs 2 s."""
    work = tasks(nic=1e9)
    work.add(COMPUTE, steady(2.0), ())
    work.add(COMM, sequence((4.0, 8.0, 8.0), kind="all_to_all", nic=4.0), ())
    assert simulate(work).end[1] == pytest.approx(2.0 + (1 - 2 / 8) * 4.0)


def test_two_flows_share_a_full_link_fairly() -> None:
    """Each wants 50 B/s of a 50 B/s NIC: both take twice as long, the rest goes at full speed."""
    work = tasks(ranks=2, nic=50.0)
    work.add(COMM, steady(2.0, "all_to_all", nic=100.0), ())
    sent = work.add(SEND_NEXT, steady(1.0, "send", nic=50.0), ())
    work.peer[sent] = 1
    line = simulate(work)
    assert line.end[sent] == pytest.approx(2.0)
    assert line.end[0] == pytest.approx(3.0)


def test_flows_that_fit_do_not_touch_each_other() -> None:
    work = tasks(ranks=2, nic=100.0)
    work.add(COMM, steady(2.0, "all_to_all", nic=100.0), ())
    sent = work.add(SEND_NEXT, steady(1.0, "send", nic=50.0), ())
    work.peer[sent] = 1
    assert simulate(work).end == longest_path(work).end


def test_a_receiver_shares_its_incoming_link() -> None:
    """Ranks 0 and 2 send to rank 1 at once."""
    work = tasks(ranks=3, nic=50.0)
    for rank in (0, 2):
        sent = work.add(rank * LANES + SEND_NEXT, steady(1.0, "send", nic=50.0), ())
        work.peer[sent] = 1
    assert simulate(work).end == pytest.approx([2.0, 2.0])


def test_work_is_conserved_across_changes_of_condition() -> None:
    """However often the condition changes, the parts done under each add up to the whole run."""
    work = tasks()
    work.add(COMPUTE, sequence((3.0, 4.0, 5.0), (1.0, 1.0, 3.0), (6.0, 7.0, 7.0)), ())
    for _ in range(6):
        work.add(COMM, steady(0.7, "notify"), ())
        work.add(COMM, steady(0.9, "all_to_all"), ())
    line = simulate(work)
    done = 0.0
    log = [*line.changes[0], (line.end[0], ALONE, 3.0)]
    for (_, _, position), (_, _, reached) in itertools.pairwise(log):
        assert reached >= position
        done += reached - position
    assert done == pytest.approx(3.0)


def test_a_deadlock_is_an_error_not_silence() -> None:
    work = tasks()
    work.add(COMPUTE, steady(1.0), (1,))
    work.add(COMPUTE, steady(1.0), ())
    with pytest.raises(RuntimeError, match="never ended"):
        simulate(work)
