"""Zero-bubble schedules that are made for the times of a job: the heuristic of Qi et al. 2023, section 3.1.

ZB-1p and ZB-2p are its schedules for the memory of one and of two times as many microbatches as ranks. What its text
leaves open is done as in the authors' software (github.com/sail-sg/zero-bubble-pipeline-parallelism,
megatron/core/pipeline_parallel/zerobubble/scheduler/zb.py and runtime.py): the median times of all stages stand for
each, the three choices below are tried in all combinations, and the schedule whose longest rank is shortest is taken.
Its integer program, which may begin with that schedule, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from simulator.errors import ScheduleError
from simulator.schedule.action import Row, Schedule
from simulator.schedule.durations import UNIFORM, Durations
from simulator.schedule.numbering import number
from simulator.schedule.record import ScheduleRecord

ROUNDING = 1e-9
"""By how much memory or time may seem to be exceeded because numbers are rounded, in the unit of a duration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the heuristic leaves open.

    Parameters
    ----------
    overfill : in the beginning, forwards may go on beyond the time at which the first input gradient could start.
    wait : a forward may be left out to wait for an input gradient, where that adds nothing to the longest idle time.
    fill : every gap gets a weight gradient, also one that adds nothing to the longest idle time.
    """

    overfill: bool
    wait: bool
    fill: bool


def zb1p_auto(ranks: int, microbatches: int, durations: Durations = UNIFORM) -> Schedule:
    """The automatic schedule in 1F1B's memory."""
    return ZB1P_AUTO(ranks, microbatches, durations=durations)


def zb2p_auto(ranks: int, microbatches: int, durations: Durations = UNIFORM) -> Schedule:
    """The automatic schedule in twice 1F1B's memory."""
    return ZB2P_AUTO(ranks, microbatches, durations=durations)


class _Plan:
    """One schedule in the making, rank by rank; local to `_rows`. Kinds are F, I and W."""

    def __init__(self, ranks: int, microbatches: int, limit: float, d: Durations, choices: Choices) -> None:
        self.ranks, self.many, self.limit, self.d, self.choices = ranks, microbatches, limit, d, choices
        self.words: list[list[str]] = [[] for _ in range(ranks)]
        self.ends: dict[str, list[list[float]]] = {kind: [[] for _ in range(ranks)] for kind in "FIW"}
        self.now = [0.0] * ranks
        self.idle = [0.0] * ranks
        self.most_idle = 0.0
        self.held = [0.0] * ranks

    def made(self) -> _Plan:
        """The same, complete."""
        self.warm_up()
        for _ in range(1, self.many):
            for rank, taken in enumerate(self.next_forwards()):
                if taken:
                    self.put_filled(rank, "F")
            for rank in reversed(range(self.ranks)):
                self.put_filled(rank, "I")
        for rank in range(self.ranks):
            while self.waiting(rank):
                self.put(rank, "W")
        return self

    @property
    def longest(self) -> float:
        """Time of the rank with the longest one, from its first start to its last end."""
        return max(ends[-1] - first[0] for ends, first in zip(self.ends["W"], self.ends["F"], strict=True)) + self.d.f

    def done(self, rank: int, kind: str) -> int:
        """Number of actions of a kind that a rank has."""
        return len(self.ends[kind][rank])

    def waiting(self, rank: int) -> int:
        """Weight gradients that a rank could compute."""
        return self.done(rank, "I") - self.done(rank, "W")

    def seconds(self, kind: str) -> float:
        """Duration of an action."""
        return self.d.f if kind == "F" else self.d.i if kind == "I" else self.d.w

    def arrival(self, rank: int, kind: str) -> float:
        """When a rank has the input of its next action of a kind."""
        source = rank - 1 if kind == "F" else rank + 1 if kind == "I" else -1
        if not 0 <= source < self.ranks:
            return 0.0
        return self.ends[kind][source][self.done(rank, kind)] + self.d.send

    def put(self, rank: int, kind: str) -> None:
        """Append an action to a rank's row."""
        start = max(self.now[rank], self.arrival(rank, kind))
        if self.done(rank, "F"):
            self.idle[rank] += start - self.now[rank]
            self.most_idle = max(self.most_idle, self.idle[rank])
        self.now[rank] = start + self.seconds(kind)
        self.ends[kind][rank].append(self.now[rank])
        self.held[rank] += 1.0 if kind == "F" else self.d.until_w - 1.0 if kind == "I" else -self.d.until_w
        self.words[rank].append(f"{kind}0")

    def fits(self, rank: int, more: float) -> bool:
        """Whether a rank may hold so many microbatches more."""
        return self.held[rank] + more <= self.limit + ROUNDING

    def warm_up(self) -> None:
        """Forwards up to the first input gradient of each rank: as many as fit before it, fewer on every next rank."""
        for rank in range(self.ranks):
            self.put(rank, "F")
        back = self.now[-1] + self.d.i
        more = [0] * self.ranks
        for rank in reversed(range(self.ranks - 1)):
            end, first = self.now[rank], back + self.d.send
            while 1 + more[rank] < self.many and self.fits(rank, more[rank] + 1):
                if end >= first if self.choices.overfill else end + self.d.f > first:
                    break
                end += self.d.f
                more[rank] += 1
            back = max(end, first) + self.d.i
        for rank in range(1, self.ranks):
            if 1 + more[rank] < self.many:
                more[rank] = max(0, min(more[rank], more[rank - 1] - 1))
        for rank in range(self.ranks):
            for _ in range(more[rank]):
                self.put(rank, "F")
        for rank in reversed(range(self.ranks)):
            self.put(rank, "I")

    def next_forwards(self) -> list[bool]:
        """Which ranks compute a forward in this round: none whose next rank does not."""
        taken = [self.done(rank, "F") < self.many and not self.waits(rank) for rank in range(self.ranks)]
        for rank in reversed(range(self.ranks - 1)):
            taken[rank] = taken[rank] and taken[rank + 1]
        return taken

    def waits(self, rank: int) -> bool:
        """Whether a rank rather waits for the input gradient that comes next."""
        if not self.choices.wait or rank + 1 == self.ranks or self.done(rank, "F") < self.done(rank + 1, "F") + 2:
            return False
        back = self.now[rank + 1] + self.d.f + self.d.i + self.d.send
        if self.now[rank] >= back:
            return True
        freeing = 0
        while freeing < self.waiting(rank) and not self.fits(rank, 1.0 - freeing * self.d.until_w):
            freeing += 1
        if self.now[rank] + self.d.f + freeing * self.d.w <= back:
            return False
        return back - self.now[rank] <= self.most_idle - self.idle[rank]

    def put_filled(self, rank: int, kind: str) -> None:
        """Append a forward or an input gradient behind the weight gradients that memory asks for and time allows."""
        if kind == "F":
            while not self.fits(rank, 1.0):
                self.put(rank, "W")
        there = self.arrival(rank, kind)
        while self.waiting(rank) and self.now[rank] + self.d.w <= there:
            self.put(rank, "W")
        gap = there - self.now[rank]
        if self.waiting(rank) and gap > 0.0 and (self.choices.fill or gap > self.most_idle - self.idle[rank]):
            self.put(rank, "W")
        if kind == "I" and rank == 0 and self.done(rank, "F") == self.many:
            while self.waiting(rank):
                self.put(rank, "W")
        self.put(rank, kind)


def _rows(ranks: int, microbatches: int, limit: int, durations: Durations) -> tuple[Row, ...]:
    """The best of the heuristic's schedules for the memory of `limit` microbatches a rank."""
    plans = (
        _Plan(ranks, microbatches, limit, durations, Choices(overfill=overfill, wait=wait, fill=fill)).made()
        for overfill, wait, fill in product((True, False), repeat=3)
    )
    best = min(plans, key=lambda plan: plan.longest)
    return tuple(number(words, stages=[rank]) for rank, words in enumerate(best.words))


def _zb1p_rows(pp: int, microbatches: int, durations: Durations) -> tuple[Row, ...]:
    return _rows(pp, microbatches, pp, durations)


def _zb2p_rows(pp: int, microbatches: int, durations: Durations) -> tuple[Row, ...]:
    return _rows(pp, microbatches, 2 * pp, durations)


def _zb1p_bubble(pp: int, f: float, i: float, w: float, pair: float) -> float:
    return (pp - 1) * _equal("zb1p-auto", f, i, w)


def _zb2p_bubble(pp: int, f: float, i: float, w: float, pair: float) -> float:
    return 0.0 * _equal("zb2p-auto", f, i, w)


def _equal(name: str, f: float, i: float, w: float) -> float:
    if not f == i == w:
        raise ScheduleError(f"{name} has a closed form for f = i = w only: f {f}, i {i}, w {w}")
    return f


SOURCE = "Qi et al. 2023, arXiv 2401.10241, section 3.1; github.com/sail-sg/zero-bubble-pipeline-parallelism"
ZB1P_AUTO = ScheduleRecord(
    name="zb1p-auto",
    timed=_zb1p_rows,
    description="split backwards in the order that is best for the times of the job, in 1F1B's memory (ZB-1p)",
    source=SOURCE,
    year=2023,
    bubble=_zb1p_bubble,
)
ZB2P_AUTO = ScheduleRecord(
    name="zb2p-auto",
    timed=_zb2p_rows,
    description="split backwards in the order that is best for the times of the job, in twice 1F1B's memory (ZB-2p)",
    source=SOURCE,
    year=2023,
    bubble=_zb2p_bubble,
)
RECORDS = (ZB1P_AUTO, ZB2P_AUTO)
