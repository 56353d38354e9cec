"""A schedule made ready for many passes: numbers in place of names, in an order that respects every dependency."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simulator.engine.power import Pauses
from simulator.schedule import Pair, Schedule, Step, actions_of, build, halves, stages_on
from simulator.schedule.action import iter_actions

Kind = tuple[str, int, int]
"""What a step is: kind (F, B, I, W or P for a pair), stage, and the backward's stage of a pair (else -1)."""

NONE = -1
"""No rank, no gate, no note."""

Out = tuple[int, int, int]
"""An output that leaves the rank: its queue, and the lane and link of its send."""

Move = tuple[int, int, int, tuple[int, ...], tuple[Out, ...], int]
"""What steps of one rank and kind do: rank, kind, gate, the queues they take from, their outputs, and the place that
the end is noted under."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One schedule of a model cut into `stages`.

    `order` holds the steps, each after all it waits for; equal steps are one object, so that thousands of them stay in
    a processor's cache. What goes from rank to rank does so in `queues`, first in, first out. `gates` are numbered by
    the (rank, stage) whose first forward waits for them, `first` is the kind of that forward. `last` is the place of
    the note and the kind of the last backward of each (rank, stage). `rows` are kinds by rank, `table` the same as an
    array, filled up with one kind more; `on` are the stages by rank, `links` (rank, peer) by link.
    """

    stages: int
    order: tuple[Move, ...]
    kinds: tuple[Kind, ...]
    examples: tuple[Step, ...]
    rows: tuple[tuple[int, ...], ...]
    table: NDArray[np.intp]
    on: tuple[tuple[int, ...], ...]
    links: tuple[tuple[int, int], ...]
    queues: int
    gates: dict[tuple[int, int], int]
    first: dict[tuple[int, int], int]
    last: dict[tuple[int, int], tuple[int, int]]


def kind_of(step: Step) -> Kind:
    """The kind of a step: all that its duration depends on."""
    if isinstance(step, Pair):
        return "P", step.forward.stage, step.backward.stage
    return step.kind, step.stage, 0 if step.filled else -1


class _Compiler:
    """Numbers kinds, links and moves; local to `compiled_of`.

    A queue is a number made of a stage's activations or gradients, the rank that sends and the one that takes them. Of
    a queue whose first is not taken first, `mixed`, each microbatch gets one of its own.
    """

    def __init__(self, schedule: Schedule, mixed: Collection[int]) -> None:
        self.stages, self.ranks, self.many = schedule.stages, schedule.ranks, schedule.microbatches
        self.mixed = mixed
        self.place = [NONE] * (self.stages * self.many)
        for rank, _, action in iter_actions(schedule):
            self.place[action.stage * self.many + action.microbatch] = rank
        self.kinds: dict[Kind, int] = {}
        self.examples: list[Step] = []
        self.links: dict[tuple[int, int], int] = {}
        self.gates: dict[tuple[int, int], int] = {}
        self.first: dict[tuple[int, int], int] = {}
        self.moves: dict[Move, int] = {}
        self.sent: dict[int, list[int]] = defaultdict(list)
        self.taken: dict[int, list[int]] = defaultdict(list)
        self.rows = [[self.move(rank, step) for step in row] for rank, row in enumerate(schedule.rows)]

    def move(self, rank: int, step: Step) -> int:
        """The number of a step's move: only what crosses ranks; the rest stands in order in its row."""
        kind = self.kind(step)
        gate = NONE
        takes: list[int] = []
        outs: list[Out] = []
        for action in actions_of(step):
            name, stage, microbatch = action[:3]
            if name == "W":
                continue
            ahead = name == "F"
            if ahead and (rank, stage) not in self.gates:
                gate = self.gates[rank, stage] = len(self.gates)
                self.first[rank, stage] = kind
            before, behind = (stage - 1, stage + 1) if ahead else (stage + 1, stage - 1)
            peer = self.rank_of(before, microbatch, rank)
            if peer != rank:
                queue = self.queue(2 * before + ahead, peer, rank, microbatch)
                self.taken[queue].append(microbatch)
                takes.append(queue)
            peer = self.rank_of(behind, microbatch, rank)
            if peer != rank:
                queue = self.queue(2 * stage + ahead, rank, peer, microbatch)
                self.sent[queue].append(microbatch)
                outs.append((queue, 2 * rank + ahead, self.links.setdefault((rank, peer), len(self.links))))
        return self.moves.setdefault((rank, kind, gate, tuple(takes), tuple(outs), NONE), len(self.moves))

    def rank_of(self, stage: int, microbatch: int, own: int) -> int:
        """Where a microbatch is on a stage; on its `own` rank where there is no such stage."""
        return self.place[stage * self.many + microbatch] if 0 <= stage < self.stages else own

    def queue(self, what: int, sender: int, taker: int, microbatch: int) -> int:
        """The queue of `what` a stage makes of a microbatch."""
        queue = (what * self.ranks + sender) * self.ranks + taker
        return queue if queue not in self.mixed else queue + (microbatch + 1) * 2 * self.stages * self.ranks**2

    def kind(self, step: Step) -> int:
        """The number of a step's kind."""
        kind = kind_of(step)
        if kind not in self.kinds:
            self.kinds[kind] = len(self.kinds)
            self.examples.append(step)
        return self.kinds[kind]

    def in_order(self) -> Iterator[int]:
        """All moves, each after what it takes was sent (as `schedule.order.progress`, by queue)."""
        moves = list(self.moves)
        there = dict.fromkeys(self.taken, 0)
        sleepers: dict[int, int] = {}
        left = [iter(row) for row in self.rows]
        held = [next(row, None) for row in left]
        ready = list(range(self.ranks))
        while ready:
            rank = ready.pop()
            number = held[rank]
            while number is not None:
                _, _, _, takes, outs, _ = moves[number]
                missing = next((queue for queue in takes if not there[queue]), None)
                if missing is not None:
                    sleepers[missing] = rank
                    break
                yield number
                for queue in takes:
                    there[queue] -= 1
                for queue, _, _ in outs:
                    there[queue] += 1
                    if queue in sleepers:
                        ready.append(sleepers.pop(queue))
                number = next(left[rank], None)
            held[rank] = number


def _dense(moves: Iterable[Move]) -> tuple[list[Move], int]:
    """Moves with queues numbered from 0, and how many there are."""
    numbers: dict[int, int] = {}

    def number(queue: int) -> int:
        return numbers.setdefault(queue, len(numbers))

    out = [
        (rank, kind, gate, tuple(map(number, takes)), tuple((number(q), lane, link) for q, lane, link in outs), note)
        for rank, kind, gate, takes, outs, note in moves
    ]
    return out, len(numbers)


def compiled_of(schedule: Schedule) -> Compiled:
    """Compile a valid schedule."""
    c = _Compiler(schedule, ())
    mixed = {queue for queue in c.taken if c.taken[queue] != c.sent[queue]}
    if mixed:
        c = _Compiler(schedule, mixed)
    moves, queues = _dense(c.moves)
    kinds = [move[1] for move in moves]
    order = [moves[number] for number in c.in_order()]
    last = _last(order, c.examples)
    for note, (at, _) in enumerate(last.values()):
        order[at] = (*order[at][:-1], note)
    rows = tuple(tuple([kinds[number] for number in row]) for row in c.rows)
    longest = max(map(len, rows))
    return Compiled(
        stages=schedule.stages,
        order=tuple(order),
        kinds=tuple(c.kinds),
        examples=tuple(c.examples),
        rows=rows,
        table=np.array([[*row, *[len(c.kinds)] * (longest - len(row))] for row in rows], dtype=np.intp),
        on=stages_on(schedule),
        links=tuple(c.links),
        queues=queues,
        gates=c.gates,
        first=c.first,
        last={place: (note, kind) for note, (place, (_, kind)) in enumerate(last.items())},
    )


def _last(order: Sequence[Move], examples: Sequence[Step]) -> dict[tuple[int, int], tuple[int, int]]:
    """Place in the order, and kind, of the last backward of each (rank, stage)."""
    wgrad_end = [back.stage if back.kind in ("B", "W") else None for _, back in map(halves, examples)]
    return {
        (rank, stage): (at, kind)
        for at, (rank, kind, _, _, _, _) in enumerate(order)
        if (stage := wgrad_end[kind]) is not None
    }


@lru_cache(maxsize=48)
def compiled(name: str, pp: int, microbatches: int, vpp: int) -> Compiled:
    """A named schedule, compiled; the last few are kept."""
    return compiled_of(build(name, pp=pp, microbatches=microbatches, vpp=vpp))


Gates = dict[int, tuple[float, float, tuple[tuple[float, float], ...]]]
"""Of first forwards, by gate: see `times`."""
Wait = tuple[float, float]
"""Of an action: (time in it, how late it is from there on) [s]."""


@dataclass(frozen=True, slots=True)
class Times:
    """Ends of the last backwards by note, when each rank begins, when it is free, and the end of its last send [s]."""

    ends: list[float]
    begun: list[float]
    free: list[float]
    sent: list[float]


class Rests(Pauses):
    """The same of ranks that compute one action after another; `edges` : of each kind of step, `ActionCost.edges`."""

    def __init__(self, pause: float, edges: Sequence[tuple[float, float] | None]) -> None:
        super().__init__(pause)
        self.edges = edges

    def step(self, rank: int, kind: int, start: float, end: float, waits: Iterable[Wait]) -> None:
        """One action of a rank from `start` to `end`, with what it waits for inside [s]."""
        edges = self.edges[kind]
        if edges is None:
            return
        opens, closes = edges
        late = 0.0
        for needed, by in waits:
            if by > late:
                if needed <= opens:
                    start += by - late
                else:
                    self.waits(by - late)
                late = by
        self.computes(rank, start + opens, end - closes)


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of step whose parameters are sharded.

    Parameters
    ----------
    duration : time of the step [s].
    gathers : (time from the step's start at which the block needs its parameters, duration) of each gather in order
        [s].
    reduces : (time from the step's start at which the block's gradients are complete, duration) of each reduction [s].
    lost : share of the time of concurrent collectives of the step before that this step loses.
    """

    duration: float
    gathers: tuple[tuple[float, float], ...]
    reduces: tuple[tuple[float, float], ...]
    lost: float = 0.0


class Collectives:
    """The collectives of ZeRO-2 and -3, one after the other on a stream of each rank that is `free` at a time [s].

    A block that waits for its parameters holds up all that follows it in the step.
    """

    def __init__(self, free: Sequence[float], traffic: Sequence[Traffic]) -> None:
        self.free = list(free)
        self.traffic = traffic
        self.waits: list[Wait] = []  # of the latest step

    def step(self, rank: int, kind: int, start: float) -> float:
        """The end of a step that may start at `start`."""
        one = self.traffic[kind]
        stream = self.free[rank]
        left = min(one.duration, max(0.0, stream - start)) * one.lost
        if one.gathers:
            stream = max(stream, start)
        self.waits = waits = []
        latest = 0.0
        for needed, seconds in one.gathers:
            stream += seconds
            by = stream - start - needed
            if seconds and by > 0.0:
                waits.append((needed, by))
                latest = max(latest, by)
        for wgrad_end, seconds in one.reduces:
            if seconds:
                late = max([by for at, by in waits if at <= wgrad_end], default=0.0) if waits else 0.0
                ready = start + wgrad_end + late
                stream = (ready if ready > stream else stream) + seconds
        self.free[rank] = stream
        return start + one.duration + left + latest


NO_GATE: tuple[float, float, tuple[Wait, ...]] = (0.0, 0.0, ())


def _waits(start: float, gate: tuple[float, float, tuple[Wait, ...]], concurrent: Collectives | None) -> Iterator[Wait]:
    """What an action waits for inside that could start at `start`: parameters gathered once a step, or for it."""
    yield from ((needed, gathered - start - needed) for needed, gathered in gate[2])
    if concurrent is not None:
        yield from concurrent.waits


def times(
    c: Compiled,
    durations: Sequence[float],
    sends: Sequence[float],
    gates: Gates,
    *,
    sends_block: bool,
    concurrent: Collectives | None = None,
    hosts: Sequence[tuple[float, float]] = (),
    rests: Rests | None = None,
) -> Times:
    """One pass of the longest path over a schedule's steps.

    Parameters
    ----------
    durations : of each kind of step [s].
    sends : of each link [s].
    gates : by gate, the time from which a first forward does not wait for parameters, the time that it loses to
        concurrent gathers, and (time in it at which a block needs its parameters, when they are gathered) of each [s].
    sends_block : a rank computes on only when its send is done.
    concurrent : collectives of every step, which may delay it.
    hosts : of each kind of step, `ActionCost.lead` and `ActionCost.host` [s]; none where issuing takes no time.
    rests : what is known of pauses; None where nobody asks for them.
    """
    free = [0.0] * len(c.rows)
    lanes = [0.0] * (2 * len(c.rows))
    opens = [gates.get(gate, NO_GATE) for gate in range(len(c.gates))] + [NO_GATE]  # the last one for gate -1
    waiting: list[deque[float]] = [deque() for _ in range(c.queues)]
    ends = [0.0] * len(c.last)
    issued = [0.0] * len(c.rows)
    begun = [float("inf")] * len(c.rows)
    for rank, kind, gate, queues, outs, note in c.order:
        now = free[rank]
        for queue in queues:
            came = waiting[queue].popleft()
            if came > now:
                now = came
        start = now
        now = max(now, opens[gate][0])
        if gate >= 0:
            begun[rank] = min(begun[rank], now)
            now += opens[gate][1]
        if hosts:
            lead, host = hosts[kind]
            now = max(now, issued[rank] + lead)
            issued[rank] += host
        now = now + durations[kind] if concurrent is None else concurrent.step(rank, kind, now)
        free[rank] = now
        if rests is not None:
            rests.step(rank, kind, start, now, _waits(start, opens[gate], concurrent))
        if note >= 0:
            ends[note] = now
        for queue, lane, link in outs:
            sent = lanes[lane]
            sent = (sent if sent > now else now) + sends[link]
            lanes[lane] = sent
            waiting[queue].append(sent)
            if sends_block and sent > free[rank]:
                free[rank] = sent
    return Times(
        ends=ends,
        begun=begun,
        free=free,
        sent=[max(lanes[2 * rank], lanes[2 * rank + 1]) for rank in range(len(c.rows))],
    )
