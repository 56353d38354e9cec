"""Why the compute streams idle: causes that add up to all the time in which they do nothing.

Bubbles are divided by what would happen otherwise. The schedule is run again action by action with free messages:
once with all stages equally fast (what is left is the *ramp* of the schedule itself), once with the durations that
the simulation saw (what comes on top is *imbalance* of the stages). What the simulated step has beyond that comes
from *messages* between stages. Inside actions, time without compute is divided by what the other streams do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from reports.views.actions import ActionSpan
from reports.views.ops import ops_of
from simulator.engine.tasks import COMPUTE, LANES, Timeline
from simulator.ops import Wait
from simulator.results.intervals import Interval, length, merged, minus
from simulator.results.result import Result
from simulator.schedule import Pair, Schedule, Step
from simulator.schedule.order import Output, progress, step_needs, step_outputs

CAUSES = {
    "ramp": ("ramp of the pipeline", "the schedule's own bubble: what is left with equal stages and free messages"),
    "imbalance": ("unequal stages", "what unequal stages add to the bubble"),
    "messages": ("messages between stages", "what sends between stages, and the end of the step, add to the bubble"),
    "slowest": ("waiting for the slowest", "at barriers, for the expert-parallel rank with the most loaded experts"),
    "slow_hardware": ("waiting for slow hardware", "at rendezvous, for slow GPUs and links"),
    "late_hosts": ("waiting for late hosts", "at rendezvous, for ranks whose host issued late"),
    "all_to_all": (
        "all-to-alls inside actions",
        "the part of the exposed communication that lies inside actions: all-to-alls and collectives",
    ),
    "sync": ("gradient sync", "gradient and parameter collectives outside actions that no compute hides"),
    "other": ("other", "neither compute nor communication runs inside an action"),
}
"""Cause -> its name, and what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Compute-idle time of a mean rank by cause [s], and that of each rank inside its actions and in bubbles."""

    causes: dict[str, float]

    @property
    def total(self) -> float:
        """All idle time of a mean rank [s]."""
        return sum(self.causes.values())


def idle_by_cause(result: Result, actions: Sequence[ActionSpan]) -> Idle:
    """Compute-idle time of a mean rank, by cause; adds up to step time minus compute time."""
    timeline, ranks = result.timeline, result.timeline.tasks.ranks
    bubble = result.breakdown_s["bubble"]
    ramp, unequal = _bubbles(result.schedule, actions)
    ramp = min(ramp, bubble)
    unequal = min(max(unequal, ramp), bubble)
    inside = _inside(timeline, actions)
    busy = sum(rank.compute_busy for rank in result.ranks) / ranks
    causes = {
        "ramp": ramp,
        "imbalance": unequal - ramp,
        "messages": bubble - unequal,
        "slowest": inside["slowest"] / ranks,
        "all_to_all": inside["all_to_all"] / ranks,
        "sync": inside["sync"] / ranks,
    }
    causes |= _split(causes.pop("slowest"), result)
    causes["other"] = max(0.0, result.metrics["step_time_s"] - busy - sum(causes.values()))
    return Idle(causes=causes)


def _split(slowest: float, result: Result) -> dict[str, float]:
    """Waiting for the slowest by what makes it slow, in proportion to the waits at rendezvous."""
    if result.waits is None or not sum(result.waits.by_cause.values()):
        return {"slowest": slowest}
    total = sum(result.waits.by_cause.values())
    return {_BY[cause]: slowest * seconds / total for cause, seconds in result.waits.by_cause.items()}


_BY = {"load": "slowest", "hardware": "slow_hardware", "jitter": "late_hosts"}


# ---- bubbles ----------------------------------------------------------------------------------------------------


def _bubbles(schedule: Schedule, actions: Sequence[ActionSpan]) -> tuple[float, float]:
    """Mean bubble with equal stages, and with the stages as they are; messages free in both [s]."""
    rows: list[list[float]] = [[] for _ in schedule.rows]
    for action in sorted(actions, key=lambda a: a.start):
        if action.phase != "optimizer":
            rows[action.rank].append(action.seconds)
    if [len(row) for row in rows] != [len(row) for row in schedule.rows]:
        return 0.0, 0.0
    return _bubble(schedule, _equalised(schedule, rows)), _bubble(schedule, rows)


def _equalised(schedule: Schedule, rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Every action takes the mean of its kind."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for steps, seconds in zip(schedule.rows, rows, strict=True):
        for step, took in zip(steps, seconds, strict=True):
            by_kind[_kind(step)].append(took)
    mean = {kind: sum(times) / len(times) for kind, times in by_kind.items()}
    return [[mean[_kind(step)] for step in steps] for steps in schedule.rows]


def _kind(step: Step) -> str:
    return "pair" if isinstance(step, Pair) else step.kind


def _bubble(schedule: Schedule, rows: Sequence[Sequence[float]]) -> float:
    """Mean over ranks of makespan minus time in actions, every step starting as soon as its inputs are there."""
    there: dict[Output, float] = {}
    free = [0.0] * schedule.ranks
    for rank, place in progress(schedule).order:
        step = schedule.rows[rank][place]
        start = max([free[rank], *(there[need] for need in step_needs(step, schedule.stages))])
        free[rank] = start + rows[rank][place]
        there.update(dict.fromkeys(step_outputs(step), free[rank]))
    return max(free) - sum(map(sum, rows)) / schedule.ranks


# ---- inside actions ---------------------------------------------------------------------------------------------


def _inside(timeline: Timeline, actions: Sequence[ActionSpan]) -> dict[str, float]:
    """Time without compute while an action runs, summed over ranks, by what the other streams do [s]."""
    tasks = timeline.tasks
    total = dict.fromkeys(("slowest", "all_to_all", "sync"), 0.0)
    lanes: dict[int, list[Interval]] = defaultdict(list)
    for lane, start, end in zip(tasks.lane, timeline.start, timeline.end, strict=True):
        lanes[lane].append((start, end))
    waits = _waits(timeline, actions)
    for rank in range(tasks.ranks):
        compute = merged(lanes[rank * LANES + COMPUTE])
        mine = [a for a in actions if a.rank == rank]
        acted = merged((a.start, a.end) for a in mine if a.phase != "optimizer")
        ending = minus(_sync(timeline, mine), acted)
        moving = merged(lanes[rank * LANES + COMPUTE + 1])
        idle = minus(_common(moving, acted), compute)
        waiting = _common(idle, merged(waits[rank]))
        total["slowest"] += length(waiting)
        total["all_to_all"] += length(idle) - length(waiting)
        total["sync"] += length(minus(ending, compute))
    return total


def _common(some: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """The parts of `some` inside `others`; both merged."""
    return minus(some, minus(some, others))


def _sync(timeline: Timeline, actions: Sequence[ActionSpan]) -> list[Interval]:
    """Times at which gradient sync or the update runs."""
    spans = []
    for action in actions:
        if action.phase == "optimizer":
            spans += [(timeline.start[task], timeline.end[task]) for task in range(action.first, action.last)]
    return merged(spans)


def _waits(timeline: Timeline, actions: Sequence[ActionSpan]) -> dict[int, list[Interval]]:
    """By rank, when it waits at a barrier for the most loaded rank."""
    found: dict[int, list[Interval]] = defaultdict(list)
    sequences = timeline.tasks.sequence
    ops = (priced.op for sequence in {id(r): r for r in sequences}.values() for priced in sequence.ops)
    waits = {op.name for op in ops if isinstance(op.work, Wait)}
    if not waits:
        return found
    for action in actions:
        for op in ops_of(timeline, action):
            if op.name in waits:
                found[action.rank].append((action.start + op.start, action.start + op.end))
    return found
