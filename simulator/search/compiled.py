"""A schedule made ready for many passes: numbers in place of names, in an order that respects every dependency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simulator.schedule import Action, Pair, Schedule, Step, build, stages_on
from simulator.schedule.action import actions_of, iter_actions

Kind = tuple[str, int, int]
"""What a step is: kind (F, B, I, W or P for a pair), stage, and the backward's stage of a pair (else -1)."""

NOBODY = -1
"""In place of the rank of a microbatch that a stage never computes."""

Out = tuple[int, int, int]
"""An output that leaves the rank: its slot, and the lane and link of its send."""

Entry = tuple[int, int, tuple[int, ...], tuple[Out, ...]]
"""A step: its rank, its kind, the slots it waits for and its outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One schedule of a model cut into `stages`.

    `order` holds the steps, each after all it waits for. `gates` are slots that the
    first forward of each (rank, stage) waits for, `first` its kind. `last` is the place in `order` and the kind of the
    last backward of each (rank, stage). `rows` and `arrays` are kind numbers by rank, `on` the stages by rank, `links`
    (rank, peer) by link.
    """

    stages: int
    order: tuple[Entry, ...]
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
    """Numbers kinds, slots and links; local to `compiled_of`.

    Slots are those of all activations by stage and microbatch, then those of all gradients, then the gates.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.stages, self.microbatches = schedule.stages, schedule.microbatches
        self.place = [NOBODY] * (self.stages * self.microbatches)
        for rank, _, action in iter_actions(schedule):
            self.place[action.stage * self.microbatches + action.microbatch] = rank
        self.kinds: dict[Kind, int] = {}
        self.examples: list[Step] = []
        self.links: dict[tuple[int, int], int] = {}
        self.gates: dict[tuple[int, int], int] = {}
        self.first: dict[tuple[int, int], int] = {}

    def entry(self, rank: int, step: Step) -> Entry:
        """A step; of what it waits for and makes only what crosses ranks: the rest stands in order in its row."""
        kind = self.kind(step)
        needs: list[int] = []
        outs: list[Out] = []
        for action in actions_of(step):
            if action.kind != "W":
                self.ends(rank, kind, action, needs, outs)
        return rank, kind, tuple(needs), tuple(outs)

    def kind(self, step: Step) -> int:
        """The number of a step's kind."""
        kind = kind_of(step)
        if kind not in self.kinds:
            self.kinds[kind] = len(self.kinds)
            self.examples.append(step)
        return self.kinds[kind]

    def ends(self, rank: int, kind: int, action: Action, needs: list[int], outs: list[Out]) -> None:
        """Add what an action waits for and where its output goes."""
        name, stage, microbatch = action
        many, place = self.microbatches, self.place
        own = stage * many + microbatch
        if name == "F":
            before, behind, shift = own - many, own + many, 0
            first, last = stage == 0, stage == self.stages - 1
            if (rank, stage) not in self.gates:
                self.gates[rank, stage] = 2 * len(place) + len(self.gates)
                self.first[rank, stage] = kind
                needs.append(self.gates[rank, stage])
        else:
            before, behind, shift = own + many, own - many, len(place)
            first, last = stage == self.stages - 1, stage == 0
        if not first and place[before] != rank:
            needs.append(before + shift)
        if not last and place[behind] != rank:
            link = self.links.setdefault((rank, place[behind]), len(self.links))
            outs.append((own + shift, 2 * rank + (name == "F"), link))


def _in_order(rows: Sequence[Sequence[Entry]], gates: range) -> Iterator[Entry]:
    """All steps, each after what it waits for (as `schedule.order.progress`, by slot); the `gates` are open."""
    done = bytearray(gates.stop)
    done[gates.start :] = bytes([1]) * len(gates)
    sleepers: dict[int, int] = {}
    left = [iter(row) for row in rows]
    held = [next(row, None) for row in left]
    ready = list(range(len(rows)))
    while ready:
        rank = ready.pop()
        entry = held[rank]
        while entry is not None:
            missing = next((slot for slot in entry[2] if not done[slot]), None)
            if missing is not None:
                sleepers[missing] = rank
                break
            yield entry
            for slot, _, _ in entry[3]:
                done[slot] = 1
                if slot in sleepers:
                    ready.append(sleepers.pop(slot))
            entry = next(left[rank], None)
        held[rank] = entry


def compiled_of(schedule: Schedule) -> Compiled:
    """Compile a valid schedule."""
    c = _Compiler(schedule)
    entries = [[c.entry(rank, step) for step in row] for rank, row in enumerate(schedule.rows)]
    first_gate = 2 * len(c.place)
    slots = first_gate + len(c.gates)
    order = tuple(_in_order(entries, range(first_gate, slots)))
    rows = tuple(tuple(entry[1] for entry in row) for row in entries)
    graded = [back.stage if back.kind in ("B", "W") else None for back in map(_backward, c.examples)]
    return Compiled(
        stages=schedule.stages,
        order=order,
        kinds=tuple(c.kinds),
        examples=tuple(c.examples),
        rows=rows,
        arrays=tuple(np.array(row, dtype=np.intp) for row in rows),
        on=stages_on(schedule),
        links=tuple(c.links),
        slots=slots,
        gates=c.gates,
        first=c.first,
        last={
            (rank, stage): (at, kind)
            for at, (rank, kind, _, _) in enumerate(order)
            if (stage := graded[kind]) is not None
        },
    )


def _backward(step: Step) -> Action:
    """The backward of a pair, or the step itself."""
    return step.backward if isinstance(step, Pair) else step


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
            sent = lanes[lane]
            sent = (sent if sent > now else now) + sends[link]
            lanes[lane] = there[slot] = sent
            if sends_block and sent > free[rank]:
                free[rank] = sent
    return Times(ends, free, max(lanes))
