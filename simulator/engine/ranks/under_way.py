"""Compute sequences under way on all ranks at once, while what is concurrent with them changes.

A sequence that has been issued ends when its kernels have run, under whatever is concurrent from moment to moment;
a change of condition at a time of its own on each rank moves all that lies behind it. Sequences are followed only when
somebody asks for their ends: until then nothing but the changes is noted.
The arithmetic is that of the event engine (`simulator.engine.des`), so that equal ranks get its result.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy import count_nonzero as count
from numpy.typing import NDArray

from simulator.engine.kernel_sequence import ALONE

Array = NDArray[np.float64]

INSTANT = 1e-18
"""A duration that stands for none [s]."""
NONE = np.zeros(())

Times = NDArray[np.float64]
"""Cumulative times of a sequence's ops (conditions x ranks or 1 x ops + 2) [s]: starts, the end, and a time behind it,
so that what has just ended is looked up like the rest."""


def padded(times: Array) -> Times:
    """Cumulative times (conditions x ranks or 1 x ops + 1) with a time behind the end [s]."""
    return np.concatenate([times, times[:, :, -1:] + 1.0], axis=2)


@lru_cache(maxsize=256)
def _rows(ranks: int, width: int) -> NDArray[np.intp]:
    """Place of each rank's first time in an array of all of them."""
    return np.arange(0, ranks * width, width) if ranks > 1 else np.zeros(1, dtype=np.intp)


def reached(old: Array, new: Array, position: Array | None, passed: Array) -> tuple[Array, Array]:
    """(position, time left) of a sequence on each rank: it goes on for `passed` [s] from `position` under `old` times
    and then under `new` ones (ranks or 1 x ops + 2).

    A position is the index of an op plus the part of it that is done; None: the start.
    """
    row = _rows(*old.shape)
    before, after = old.ravel(), new.ravel()
    next_before, next_after = before[1:], after[1:]
    if position is None:
        elapsed = passed
    else:
        index = position.astype(np.intp)
        at = index + row
        low = before[at]
        elapsed = low + (position - index) * (next_before[at] - low) + passed
    if old.shape[1] > 3:
        if len(old) == 1:
            index = at = before[1:-1].searchsorted(elapsed, "right")
        else:
            index = (old[:, 1:] <= elapsed[:, None]).argmin(axis=1)  # the first that is later; the last one always is
            at = index + row
    else:
        index, at = row * 0, row
    low = before[at]
    now = index + (elapsed - low) / (next_before[at] - low)
    index = now.astype(np.intp)
    at = index + row
    low = after[at]
    left = new[:, -2] - (low + (now - index) * (next_after[at] - low))
    return now, np.maximum(left, NONE)


class UnderWay:
    """One sequence on all ranks.

    `first`: changes of the stream that lie before it on every rank; `met`: those that it has met or that lay before it
    (-1: it has not been followed yet).
    """

    __slots__ = ("end", "first", "floor", "met", "position", "sensitive", "since", "start", "task", "times")

    def __init__(self, task: int, times: Times, floor: Array, sensitive: bool) -> None:
        self.task, self.times, self.floor, self.sensitive = task, times, floor, sensitive
        self.start = self.since = self.end = floor
        self.first, self.met = 0, -1
        self.position: Array | None = None

    def change(self, at: Array, before: int, after: int) -> bool:
        """Another condition from the time `at` of each rank on; whether it ran or waited then on any of them."""
        running = self.end > at
        ranks = len(at)
        left = int(count(running))
        if not left or not self.sensitive:
            return left > 0
        waiting = self.start >= at
        wait = count(waiting)
        if wait:
            running &= ~waiting
            left = int(count(running))
        if left == ranks:
            passed = at - self.since
            self.position, rest = reached(self.times[before], self.times[after], self.position, passed)
            self.since, self.end = at, at + rest
            return True
        if left:
            passed = np.where(running, at - self.since, NONE)
            position, rest = reached(self.times[before], self.times[after], self.position, passed)
            self.position = np.where(running, position, NONE if self.position is None else self.position)
            self.since = np.where(running, at, self.since)
            self.end = np.where(running, at + rest, self.end)
        if wait:
            self.end = np.where(waiting, self.start + self.times[after, :, -2], self.end)
        return True


class ComputeStream:
    """The compute stream of all ranks: what has ended for good, and what is `recent`, in order."""

    def __init__(self, free: Array) -> None:
        self.base = free
        self.recent: list[UnderWay] = []
        self.changes: list[tuple[Array, int, int]] = []  # (time on each rank, condition before, condition after)
        self.latest: list[float] = []  # of each change, on the last rank
        self.passed = 0  # changes that lie before all that is recent
        self.known = 0  # sequences of `recent` that have met every change
        self.condition = ALONE
        self.pending: Array | None = None  # when it becomes ALONE again, unless something else begins just then

    @property
    def free(self) -> Array:
        """When each rank has done all that was issued [s]."""
        return self.follow(len(self.recent))

    def add(self, task: int, times: Times, floor: Array, sensitive: bool) -> UnderWay:
        """Issue a sequence that may start from `floor` on [s]."""
        self.flush()
        one = UnderWay(task, times, floor, sensitive)
        self.recent.append(one)
        return one

    def change(self, at: Array, condition: int) -> None:
        """Another condition from `at` on [s]."""
        if self.pending is not None and self.pending is not at and count(self.pending != at):
            self.flush()
        self.pending = None
        if self.recent:
            self.changes.append((at, self.condition, condition))
            self.latest.append(float(np.maximum.reduce(at)))
            self.known = 0
        else:  # nothing before it, nothing under way
            self.changes, self.latest, self.passed = (
                [(at, self.condition, condition)],
                [float(np.maximum.reduce(at))],
                0,
            )
        self.condition = condition

    def alone(self, at: Array) -> None:
        """Nothing is concurrent from `at` on [s]."""
        self.pending = at

    def flush(self) -> None:
        """Apply what is pending."""
        if self.pending is not None:
            at, self.pending = self.pending, None
            self.change(at, ALONE)

    def end_of(self, one: UnderWay) -> Array:
        """When a sequence ends on each rank, as far as changes are known [s]."""
        if one in self.recent:
            self.follow(self.recent.index(one) + 1)
        return one.end

    def follow(self, many: int) -> Array:
        """Bring the first `many` sequences up to the last change; the end of their last [s]."""
        free = self.recent[self.known - 1].end if self.known else self.base
        for at in range(self.known, many):
            one = self.recent[at]
            start = np.maximum(free, one.floor)
            if one.met < 0 or count(start != one.start):
                self._begin(one, start, self.recent[at - 1].first if at else self.passed)
            while one.met < len(self.changes):
                went_on = one.change(*self.changes[one.met])
                one.met = one.met + 1 if went_on else len(self.changes)
            free = one.end
        self.known = max(self.known, many)
        return self.recent[many - 1].end if many else self.base

    def _begin(self, one: UnderWay, start: Array, first: int) -> None:
        """Start behind the changes that are over by then; the `first` ones are."""
        earliest, latest = np.minimum.reduce(start), self.latest
        while first < len(latest) and latest[first] <= earliest:
            first += 1
        condition = self.changes[first - 1][2] if first else ALONE
        one.start = one.since = start
        one.end = start + one.times[condition, :, -2]
        one.position, one.first, one.met = None, first, first

    def settle(self, until: Array) -> list[UnderWay]:
        """Sequences that have ended on every rank `until` a time before which nothing changes any more."""
        done = 0
        while done < len(self.recent) and not count(self.follow(done + 1) > until):
            done += 1
        return self._settled(done)

    def drained(self) -> list[UnderWay]:
        """All that is left, when nothing will change any more."""
        self.flush()
        self.follow(len(self.recent))
        return self._settled(len(self.recent))

    def _settled(self, many: int) -> list[UnderWay]:
        settled, self.recent = self.recent[:many], self.recent[many:]
        self.known = max(0, self.known - many)
        if settled:
            self.base, self.passed = settled[-1].end, settled[-1].first
        return settled

    def end_of_flow(self, start: Array, paces: tuple[Array, Array]) -> Array:
        """End of an all-to-all on each rank that begins at `start`.

        `paces` are its durations alone, and concurrent with compute [s].
        """
        alone, busy = paces
        if alone is busy or not count(alone != busy):
            return start + alone
        if count(alone) + count(busy) < 2 * len(alone):
            alone, busy = np.maximum(alone, INSTANT), np.maximum(busy, INSTANT)
        left: Array = np.ones(len(start))
        now = start
        end: Array | None = None
        for at in range(len(self.recent)):
            self.follow(at + 1)
            for until, pace in ((self.recent[at].start, alone), (self.recent[at].end, busy)):
                span = until - now
                if not count(span > NONE):
                    continue
                span = np.maximum(span, NONE)
                finish = now + left * pace
                over = finish <= now + span
                many = count(over)
                if many == len(over) and end is None:
                    return finish
                if many:
                    end = np.where(over & (left > NONE), finish, start if end is None else end)
                    left = np.where(over, NONE, left - span / pace)
                else:
                    left = left - span / pace
                now = np.maximum(now, until)
            if end is not None and not count(left):
                return end
        rest = now + left * alone
        return rest if end is None else np.where(left > NONE, rest, end)
