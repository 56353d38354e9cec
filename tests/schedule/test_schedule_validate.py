"""The validator: accepts what is generated, and of everything else what a slow oracle can run."""

from collections import defaultdict
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import ScheduleError
from simulator.schedule import (
    SCHEDULES,
    Action,
    Pair,
    Row,
    Schedule,
    Step,
    actions_of,
    build,
    iter_actions,
    one_f_one_b,
    parse_schedule,
    uniform_times,
    validate,
)


@st.composite
def generated(draw: st.DrawFn, largest: int = 6) -> Schedule:
    """Any schedule of the registry in any size it allows."""
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    pp = draw(st.integers(1, largest))
    pp += pp % 2 if name == "dualpipe" else 0
    extra = draw(st.integers(0, largest))
    vpp = draw(st.integers(2, 3)) if name == "interleaved" else 1
    microbatches = {
        "interleaved": (1 + extra % 3) * pp,
        "dualpipe": 2 * pp + 2 * extra,
        "dualpipev": 2 * pp + extra,
    }.get(name, 1 + extra)
    return build(name, pp=pp, microbatches=microbatches, vpp=vpp)


def is_complete(schedule: Schedule) -> bool:
    """Every stage and microbatch has F and B, or F, I and W, all on one rank, and there is nothing else."""
    found: dict[tuple[int, int], list[tuple[int, str]]] = defaultdict(list)
    for rank, _, action in iter_actions(schedule):
        found[action.stage, action.microbatch].append((rank, action.kind))
    return found.keys() == set(product(range(schedule.stages), range(schedule.microbatches))) and all(
        "".join(sorted(kind for _, kind in parts)) in ("BF", "FIW") and len({rank for rank, _ in parts}) == 1
        for parts in found.values()
    )


def runs_in_the_end(schedule: Schedule) -> bool:
    """What the validator has to find out, written down as plainly and slowly as possible."""
    if not is_complete(schedule):
        return False
    done: set[Action] = set()

    def backward_done(stage: int, microbatch: int) -> bool:
        return Action("B", stage, microbatch) in done or Action("I", stage, microbatch) in done

    def can_run(action: Action) -> bool:
        kind, stage, microbatch = action[:3]
        if kind == "F":
            return stage == 0 or Action("F", stage - 1, microbatch) in done
        if kind == "W":
            return Action("I", stage, microbatch) in done
        after = stage == schedule.stages - 1 or backward_done(stage + 1, microbatch)
        return after and Action("F", stage, microbatch) in done

    left = [list(row) for row in schedule.rows]
    moved = True
    while moved:
        moved = False
        for row in left:
            while row and all(can_run(action) for action in actions_of(row[0])):
                done.update(actions_of(row.pop(0)))
                moved = True
    return not any(left)


def accepts(schedule: Schedule) -> bool:
    try:
        validate(schedule)
    except ScheduleError:
        return False
    return True


@st.composite
def mutated(draw: st.DrawFn) -> Schedule:
    """A generated schedule after one or two small accidents, some of them harmless."""
    schedule = draw(generated(largest=3))
    rows = [list(row) for row in schedule.rows]
    for _ in range(draw(st.integers(1, 2))):
        row = draw(st.sampled_from([row for row in rows if row]))
        place = draw(st.integers(0, len(row) - 1))
        target = draw(st.sampled_from(rows)) if draw(st.booleans()) else row
        other = draw(st.integers(0, len(target) - 1)) if target else 0
        match draw(st.sampled_from(["swap", "drop", "double", "move", "split", "join", "change"])):
            case "swap" if target:
                row[place], target[other] = target[other], row[place]
            case "drop":
                del row[place]
            case "double":
                target.insert(other, row[place])
            case "move":
                target.insert(other, row.pop(place))
            case "split":
                row[place : place + 1] = _halves(row[place])
            case "join":
                row[place : place + 2] = _joined(row[place : place + 2])
            case "change":
                row[place] = draw(_changed(schedule, row[place]))
    return replace(schedule, rows=tuple(map(tuple, rows)))


@st.composite
def _changed(draw: st.DrawFn, schedule: Schedule, step: Step) -> Step:
    """The same with other numbers, if it stands alone."""
    if isinstance(step, Pair):
        return step
    stage, microbatch = draw(st.integers(0, schedule.stages)), draw(st.integers(0, schedule.microbatches))
    return Action(draw(st.sampled_from("FBIW")), stage, microbatch)


def _halves(step: Step) -> list[Step]:
    """A pair as its two actions, a whole backward as its two parts."""
    if isinstance(step, Pair):
        return [step.forward, step.backward]
    return [step._replace(kind="I"), step._replace(kind="W")] if step.kind == "B" else [step]


def _joined(steps: list[Step]) -> list[Step]:
    """A forward and a backward as a pair, where that can be written."""
    alone = {step.kind: step for step in steps if isinstance(step, Action)}
    backward = alone.get("B") or alone.get("I")
    return [Pair(alone["F"], backward)] if "F" in alone and backward else steps


@given(generated())
def test_accepts_everything_generated(schedule: Schedule) -> None:
    validate(schedule)


@given(generated(largest=3))
def test_oracle_agrees_on_everything_generated(schedule: Schedule) -> None:
    assert runs_in_the_end(schedule)


@settings(max_examples=400)
@given(mutated())
def test_accepts_of_mutations_exactly_those_that_run(schedule: Schedule) -> None:
    assert accepts(schedule) == runs_in_the_end(schedule)


@given(generated() | mutated())
def test_what_is_accepted_does_all_the_work(schedule: Schedule) -> None:
    if accepts(schedule):
        work = schedule.stages * schedule.microbatches * 7
        assert sum(uniform_times(schedule, f=4, i=2, w=1).busy) == work


def schedule_of(*rows: str, stages: int = 2, microbatches: int = 2) -> Schedule:
    lines = [f"{rank}: {row}" for rank, row in enumerate(rows)]
    header = f"# name=mine stages={stages} microbatches={microbatches}"
    return parse_schedule("\n".join([header, *lines]), source="test")


GOOD = ("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1")


def test_the_good_one_is_good() -> None:
    validate(schedule_of(*GOOD))


@pytest.mark.parametrize(
    ("rows", "message", "marked"),
    [
        (
            ("0F0 0F1 0B0", GOOD[1]),
            "0B1 is missing: every microbatch passes every stage backward once",
            "[0F1]",
        ),
        (("0F0 0F1 0B0 0I1", GOOD[1]), "0W1 is missing: it completes 0I1", "[0I1]"),
        (
            ("0F0 0B0 0B1", GOOD[1]),
            "0F1 is missing: every microbatch passes every stage forward once",
            "[0B1]",
        ),
        (
            ("0F0 0F1 0F0 0B0 0B1", GOOD[1]),
            "0F0 stands twice, at step 0 of rank 0 and 2 of rank 0",
            "[0F0] 0F1 [0F0]",
        ),
        (
            ("0F0 0F1 0B0 0W0 0B1", GOOD[1]),
            "there are both 0B0 and 0W0: a backward is either whole",
            "[0B0][0W0]",
        ),
        (("0F0 0F1 0B0", "1F0 1B0 1F1 1B1 0B1"), "0B1 is on rank 1, but its forward 0F1 on rank 0", "[0B1]"),
        (
            ("0F1 0B0 0F0 0B1", GOOD[1]),
            "rank 0 waits in 0B0 for 0F0, which comes later on the same rank",
            "[0B0]",
        ),
        (
            ("0F0 0F1 0B0 0W1 0I1", GOOD[1]),
            "waits in 0W1 for the backward of 0F1, which comes later",
            "[0W1][0I1]",
        ),
        (
            ("0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"),
            "rank 0 waits in 0B0 for the backward of 1F0, on rank 1",
            "[0B0]",
        ),
        (("0F0 (0F1;0B1) 0B0", GOOD[1]), "(0F1;0B1): a backward needs its own forward", "[(0F1;0B1)]"),
        (("", GOOD[1]), "0F0 is missing", "0F0 is missing"),
    ],
)
def test_errors_show_the_grid_with_the_place_marked(rows: tuple[str, ...], message: str, marked: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        validate(schedule_of(*rows))
    assert message in str(caught.value)
    assert marked in str(caught.value)


def test_a_circle_of_ranks_is_reported_in_full() -> None:
    with pytest.raises(ScheduleError) as caught:
        validate(schedule_of("0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"))
    assert str(caught.value) == (
        "schedule mine: it never ends: rank 0 waits in 0B0 for the backward of 1F0, on rank 1 behind 1F1;"
        " rank 1 waits in 1F1 for 0F1, on rank 0 behind 0B0\n"
        "rank 0, step 1:   0F0 [0B0][0F1] 0B1\n"
        "rank 1, step 1:   1F0 [1F1][1B0] 1B1"
    )


def test_a_pair_that_waits_for_its_own_half() -> None:
    with pytest.raises(ScheduleError, match=r"rank 0 waits in \(0F1;0B1\) for 0F1, which is in the same pair"):
        uniform_times(schedule_of("0F0 (0F1;0B1) 0B0", stages=1), f=1, i=1, w=1)


def test_a_long_grid_is_cut_around_the_error() -> None:
    good = one_f_one_b(32, 64)
    row = list(good.rows[7])
    row[60], row[64] = row[64], row[60]
    with pytest.raises(ScheduleError) as caught:
        validate(replace(good, rows=(*good.rows[:7], tuple(row), *good.rows[8:])))
    lines = str(caught.value).splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["rank 5", "rank 6", "rank 7", "rank 8"]
    assert all(line.count("...") == 2 and len(line) < 100 for line in lines[1:])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((Action("F", 3, 0),), "3F0: there is no such stage among 0 to 1"),
        ((Action("F", -1, 0),), "-1F0: there is no such stage among 0 to 1"),
        ((Action("F", 0, 9),), "0F9: there is no such microbatch among 0 to 1"),
        ((Action("X", 0, 0),), "0X0 is of no known kind: use F, B, I or W"),  # type: ignore[arg-type]
        ((Pair(Action("B", 0, 0), Action("F", 0, 1)),), "(0B0;0F1): a pair is a forward, then a backward"),
    ],
)
def test_actions_that_cannot_be(row: Row, message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        validate(Schedule(name="mine", stages=2, microbatches=2, rows=(row,)))
    assert message in str(caught.value)


def test_a_huge_header_over_little_work_is_refused_at_once() -> None:
    schedule = replace(schedule_of(*GOOD), stages=10**9, microbatches=10**9)
    with pytest.raises(ScheduleError, match="0F2 is missing"):
        validate(schedule)


@pytest.mark.parametrize("size", [{"stages": 0}, {"microbatches": 0}, {"rows": ()}])
def test_empty_schedules(size: dict[str, object]) -> None:
    with pytest.raises(ScheduleError, match="must be at least 1"):
        validate(replace(schedule_of(*GOOD), **size))  # type: ignore[arg-type]


def test_uniform_times_explains_a_deadlock_too() -> None:
    with pytest.raises(ScheduleError, match="it never ends: rank 0 waits in 0B0"):
        uniform_times(schedule_of("0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"), f=1, i=1, w=1)


def test_uniform_times_of_an_incomplete_schedule() -> None:
    with pytest.raises(ScheduleError, match="rank 1 waits for 0F1, which nobody computes"):
        uniform_times(schedule_of("0F0 0B0", GOOD[1]), f=1, i=1, w=1)
