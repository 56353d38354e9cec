"""A schedule made ready for many passes: numbers in place of names, in an order that respects every dependency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simulator.schedule import Action, Pair, Schedule, Step, build, rank_of, stages_on
from simulator.schedule.order import Output, progress, step_needs

Kind = tuple[str, int, int]
"""What a step is: kind (F, B, I, W or P for a pair), stage, and the backward's stage of a pair (else -1)."""

NO_LINK = -1


Out = tuple[int, int, int]
"""An output: its slot, and the lane and link of the send behind it (`NO_LINK`: it stays on the rank)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One schedule of a model cut into `stages`.

    `order` holds per step its rank, kind number, the slots it waits for and its outputs. `gates` are slots that the
    first forward of each (rank, stage) waits for, `first` its kind. `last` is the place in `order` and the kind of the
    last backward of each (rank, stage). `rows` and `arrays` are kind numbers by rank, `on` the stages by rank, `links`
    (rank, peer) by link.
    """

    stages: int
    order: tuple[tuple[int, int, tuple[int, ...], tuple[Out, ...]], ...]
    kinds: tuple[Kind, ...]
    examples: tuple[Step, ...]
    rows: tuple[tuple[int, ...], ...]
    arrays: tuple[NDArray[np.intp], ...]
    on: tuple[tuple[int, ...], ...]
    links: tuple[tuple[int, int], ...]
    slots: int
    gates: dict[tuple[int, int], int]
    first: dict[tuple[int, int], int]
    last: dict[tuple[int, int], tuple[int, int]]


def kind_of(step: Step) -> Kind:
    """The kind of a step: all that its duration depends on."""
    if isinstance(step, Pair):
        return "P", step.forward.stage, step.backward.stage
    return step.kind, step.stage, -1


class _Compiler:
    """Numbers kinds, slots and links; local to `compiled`."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.place = rank_of(schedule)
        self.kinds: dict[Kind, int] = {}
        self.examples: list[Step] = []
        self.slots: dict[Output, int] = {}
        self.links: dict[tuple[int, int], int] = {}
        self.gates: dict[tuple[int, int], int] = {}
        self.first: dict[tuple[int, int], int] = {}
        self.last: dict[tuple[int, int], tuple[int, int]] = {}

    def kind(self, step: Step) -> int:
        """The number of a step's kind."""
        kind = kind_of(step)
        if kind not in self.kinds:
            self.kinds[kind] = len(self.kinds)
            self.examples.append(step)
        return self.kinds[kind]

    def slot(self, output: Output) -> int:
        """The slot of an output."""
        return self.slots.setdefault(output, len(self.slots))

    def step(self, at: int, rank: int, step: Step) -> tuple[int, int, tuple[int, ...], tuple[Out, ...]]:
        """One entry of the order."""
        kind = self.kind(step)
        ahead, back = (step.forward, step.backward) if isinstance(step, Pair) else (step, step)
        # what the rank made itself need not be sent first
        needs = [self.slot(n) for n in step_needs(step, self.schedule.stages) if self.place[n[1], n[2]] != rank]
        if ahead.kind == "F" and (rank, ahead.stage) not in self.gates:
            self.gates[rank, ahead.stage] = self.slot(("gate", rank, ahead.stage))
            self.first[rank, ahead.stage] = kind
            needs.append(self.gates[rank, ahead.stage])
        outs = [self.out(rank, ahead)] if ahead.kind == "F" else []
        if back.kind in ("B", "I"):
            outs.append(self.out(rank, back))
        if back.kind in ("B", "W"):
            self.last[rank, back.stage] = (at, kind)
        return rank, kind, tuple(needs), tuple(outs)

    def out(self, rank: int, action: Action) -> Out:
        """Where an action's output goes."""
        forward = action.kind == "F"
        slot = self.slot(("F" if forward else "I", action.stage, action.microbatch))
        target = action.stage + (1 if forward else -1)
        peer = self.place[target, action.microbatch] if 0 <= target < self.schedule.stages else rank
        if peer == rank:
            return slot, 0, NO_LINK
        return slot, 2 * rank + forward, self.links.setdefault((rank, peer), len(self.links))


def compiled_of(schedule: Schedule) -> Compiled:
    """Compile a schedule."""
    c = _Compiler(schedule)
    rows = tuple(tuple(c.kind(step) for step in row) for row in schedule.rows)
    order = tuple(
        c.step(at, rank, schedule.rows[rank][place]) for at, (rank, place) in enumerate(progress(schedule).order)
    )
    return Compiled(
        stages=schedule.stages,
        order=order,
        kinds=tuple(c.kinds),
        examples=tuple(c.examples),
        rows=rows,
        arrays=tuple(np.array(row, dtype=np.intp) for row in rows),
        on=stages_on(schedule),
        links=tuple(c.links),
        slots=len(c.slots),
        gates=c.gates,
        first=c.first,
        last=c.last,
    )


@lru_cache(maxsize=48)
def compiled(name: str, pp: int, microbatches: int, vpp: int) -> Compiled:
    """A named schedule, compiled; the last few are kept."""
    return compiled_of(build(name, pp=pp, microbatches=microbatches, vpp=vpp))


@dataclass(frozen=True, slots=True)
class Times:
    """Ends of the steps in the compiled order, when each rank is free, and the end of the last send [s]."""

    ends: list[float]
    free: list[float]
    sent: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of step whose parameters are sharded: its `duration`, and the collectives beside it in their order, each
    with the time from the step's start at which its block needs what it `gathers`, or has what it `reduces` [s]."""

    duration: float
    gathers: tuple[tuple[float, float], ...]
    reduces: tuple[tuple[float, float], ...]


class Collectives:
    """The collectives of ZeRO-2 and -3, one after the other on a stream of each rank that is `free` at a time [s].

    A block that waits for its parameters holds up all that follows it in the step.
    """

    def __init__(self, free: Sequence[float], traffic: Sequence[Traffic]) -> None:
        self.free = list(free)
        self.traffic = traffic

    def step(self, rank: int, kind: int, start: float) -> float:
        """The end of a step that may start at `start`."""
        one = self.traffic[kind]
        stream = self.free[rank]
        if one.gathers:
            stream = max(stream, start)
        waits: list[tuple[float, float]] = []  # (time in the step, how late it is from there on)
        for needed, seconds in one.gathers:
            stream += seconds
            waits.append((needed, stream - start - needed if seconds else 0.0))
        for graded, seconds in one.reduces:
            if seconds:
                late = max((by for at, by in waits if at <= graded and by > 0.0), default=0.0)
                stream = max(stream, start + graded + late) + seconds
        self.free[rank] = stream
        return start + one.duration + max((by for _, by in waits if by > 0.0), default=0.0)


def times(
    c: Compiled,
    durations: Sequence[float],
    sends: Sequence[float],
    gates: dict[int, float],
    *,
    sends_block: bool,
    beside: Collectives | None = None,
) -> Times:
    """One pass of the longest path over a schedule's steps.

    Parameters
    ----------
    durations : of each kind of step [s].
    sends : of each link [s].
    gates : moment from which a first forward could run through without waiting for parameters [s], by slot.
    sends_block : a rank computes on only when its send is done.
    beside : collectives of every step, which may hold it up.
    """
    free = [0.0] * len(c.rows)
    lanes = [0.0] * (2 * len(c.rows))
    there = [0.0] * c.slots
    for slot, time in gates.items():
        there[slot] = time
    ends: list[float] = []
    for rank, kind, needs, outs in c.order:
        now = free[rank]
        for need in needs:
            if there[need] > now:
                now = there[need]
        now = now + durations[kind] if beside is None else beside.step(rank, kind, now)
        ends.append(now)
        free[rank] = now
        for slot, lane, link in outs:
            if link == NO_LINK:
                continue
            sent = lanes[lane]
            sent = (sent if sent > now else now) + sends[link]
            lanes[lane] = there[slot] = sent
            if sends_block and sent > free[rank]:
                free[rank] = sent
    return Times(ends, free, max(lanes))
