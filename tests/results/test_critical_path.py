"""The critical path of a step: without gaps, as long as the step, and right about what getting faster brings."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cost.cost import Cost
from simulator.engine.kernel_sequence import KernelSequence, Priced, sequence_of
from simulator.engine.longest_path import longest_path
from simulator.engine.tasks import LANES, Tasks, Timeline
from simulator.inputs import load_scenario
from simulator.ops import Fixed, Op
from simulator.results.critical_path import HOST, critical_path, critical_tasks
from simulator.results.simulate import Engine, prepare, simulate, timeline_of

HOST_BOUND = ("stack.host_kernel=2e-3", "stack.host_gemm=2e-3")
JOBS = [
    ("tiny-dualpipe", ()),
    ("tiny-zb1p", ("layout.zero=2",)),
    ("tiny-1f1b", ("routing.kind=skewed", "routing.max_over_mean=1.4")),
    ("tiny-dualpipe", HOST_BOUND),
    ("llama-3-8b", ()),
]


def stepped(job: str, overrides: tuple[str, ...], engine: Engine) -> Timeline:
    return timeline_of(*prepare(load_scenario(job, overrides)), engine)


@pytest.mark.parametrize("engine", ["longest-path", "events"])
@pytest.mark.parametrize(("job", "overrides"), JOBS)
def test_the_path_has_no_gaps_and_adds_up_to_the_step(job: str, overrides: tuple[str, ...], engine: Engine) -> None:
    timeline = stepped(job, overrides, engine)
    found = critical_path(timeline)
    assert found.step_time == timeline.makespan
    assert sum(one.seconds for one in found.classes) == pytest.approx(timeline.makespan, rel=1e-9)
    assert sum(found.by_stream().values()) == pytest.approx(timeline.makespan, rel=1e-9)
    assert all(timeline.end[one] == timeline.start[after] for one, after in pairwise(found.tasks))
    assert timeline.end[found.tasks[-1]] == timeline.makespan


def test_every_kind_of_work_that_holds_the_step_up_is_named() -> None:
    found = critical_path(stepped("tiny-1f1b", ("routing.kind=skewed", "routing.max_over_mean=1.4"), "events"))
    assert {"compute", "communication", "sends"} <= set(found.by_stream())
    assert {"comm.dispatch", "comm.p2p", "wait.slowest"} <= {one.cls for one in found.classes}


def test_the_host_stands_for_the_time_until_it_has_issued_the_path() -> None:
    timeline = stepped("tiny-dualpipe", HOST_BOUND, "longest-path")
    found = critical_path(timeline)
    host = next(one for one in found.classes if one.cls == HOST)
    assert host.seconds == timeline.start[found.tasks[0]] == timeline.tasks.release[found.tasks[0]]
    assert host.kernels == 0
    assert host.seconds > 0.5 * found.step_time
    assert HOST not in {one.cls for one in critical_path(stepped("tiny-dualpipe", (), "events")).classes}


def test_steps_that_overlap_are_as_long_as_the_longest_rank() -> None:
    """ZB-V leaves ranks at different times; without a check over all of them the next step begins at once."""
    job = ("layout.schedule=zbv", "layout.zero=0", "batch.global_batch_size=448")
    apart, overlapped = (
        simulate(load_scenario("tiny-zb1p", [*job, *more])) for more in ((), ("stack.post_validation=true",))
    )
    line, found = overlapped.timeline, critical_path(overlapped.timeline)
    spans = [end - start for start, end in map(line.span, range(4))]
    assert apart.metrics["step_time_s"] == apart.timeline.makespan > max(spans) == overlapped.metrics["step_time_s"]
    assert sum(one.seconds for one in found.classes) == pytest.approx(max(spans), rel=1e-9)
    for rank in overlapped.ranks:
        assert sum(rank.phases.values()) == pytest.approx(max(spans))
    assert overlapped.metrics["bubble_ratio"] < apart.metrics["bubble_ratio"]


def test_contention_shows_as_time_beyond_that_of_the_kernels_alone() -> None:
    alone = critical_path(stepped("tiny-dualpipe", (), "longest-path"))
    assert all(one.seconds == pytest.approx(one.alone) for one in alone.classes)
    shared = critical_path(stepped("tiny-dualpipe", (), "events"))
    assert sum(one.alone for one in shared.classes) < (1 - 1e-6) * shared.step_time


def scaled(tasks: Tasks, cls: str, factor: float) -> Tasks:
    """The tasks with all kernels of a class `factor` times as long."""
    known: dict[int, KernelSequence] = {}
    runs = []
    for sequence in tasks.sequence:
        if id(sequence) not in known:
            known[id(sequence)] = sequence_of(
                sequence.kind, sequence.name, [_scaled(p, factor if p.op.cls == cls else 1) for p in sequence.ops]
            )
        runs.append(known[id(sequence)])
    return replace(tasks, sequence=runs)


def _scaled(priced: Priced, factor: float) -> Priced:
    first, second, third, fourth = (value * factor for value in priced.durations)
    return replace(priced, durations=(first, second, third, fourth))


def check_classes(timeline: Timeline, factor: float) -> None:
    """A class that gets faster shortens the step by at most its part of the path; one not on it does not."""
    found = critical_path(timeline)
    on_path: dict[str, float] = {}
    for one in found.classes:
        on_path[one.cls] = on_path.get(one.cls, 0.0) + one.seconds
    for cls in {priced.op.cls for sequence in timeline.tasks.sequence for priced in sequence.ops}:
        shorter = found.step_time - longest_path(scaled(timeline.tasks, cls, factor)).makespan
        room = 1e-9 * found.step_time
        assert -room <= shorter <= (1 - factor) * on_path.get(cls, 0.0) + room, cls


@pytest.mark.parametrize("job", ["tiny-dualpipe", "tiny-1f1b"])
def test_a_class_shortens_a_real_step_by_at_most_its_part_of_the_path(job: str) -> None:
    timeline = stepped(job, (), "longest-path")
    check_classes(timeline, 0.7)
    gemm = next(one for one in critical_path(timeline).classes if one.cls.startswith("gemm"))
    slightly = longest_path(scaled(timeline.tasks, gemm.cls, 1 - 1e-6)).makespan
    assert timeline.makespan - slightly == pytest.approx(1e-6 * gemm.seconds, rel=0.02)  # no other path is as long


@st.composite
def steps(draw: st.DrawFn) -> Tasks:
    """Random tasks of three kernel classes on random streams, some of them issued late."""
    ranks = draw(st.integers(1, 3))
    out = Tasks(ranks=ranks)
    seconds = st.floats(0.0, 1e3, allow_nan=False, allow_subnormal=False)
    for index in range(draw(st.integers(1, 30))):
        preds = draw(st.lists(st.integers(0, index - 1), max_size=3, unique=True)) if index else []
        ops = []
        for cls, value in draw(st.lists(st.tuples(st.sampled_from("abc"), seconds), min_size=1, max_size=3)):
            op = Op(name="x", cls=cls, part="F", segment="test.F", work=Fixed())
            ops.append(Priced(op=op, cost=Cost(duration=value, bound_by="fixed"), durations=(value,) * 4))
        task = out.add(draw(st.integers(0, ranks * LANES - 1)), sequence_of("compute", "test", ops), tuple(preds))
        if draw(st.integers(0, 4)) == 0:
            out.release[task] = draw(seconds)
    return out


@given(steps(), st.floats(0.1, 0.95))
@settings(max_examples=100)
def test_what_getting_faster_brings_in_any_graph(work: Tasks, factor: float) -> None:
    timeline = longest_path(work)
    if timeline.makespan:
        assert sum(one.seconds for one in critical_path(timeline).classes) == pytest.approx(timeline.makespan)
        check_classes(timeline, factor)


def test_a_timeline_with_an_unexplained_gap_is_refused() -> None:
    timeline = stepped("tiny-1f1b", (), "longest-path")
    last = critical_tasks(timeline)[-1]
    timeline.start[last] += 1e-3
    timeline.end[last] += 1e-3
    with pytest.raises(RuntimeError, match="starts later than all that it waits for"):
        critical_tasks(timeline)


def test_the_path_of_simulate_is_that_of_its_step() -> None:
    result = simulate(load_scenario("tiny-dualpipe"))
    assert critical_path(result.timeline).as_dict()["step_time_s"] == result.metrics["step_time_s"]
