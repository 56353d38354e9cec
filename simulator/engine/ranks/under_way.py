"""Kernel sequences of one compute stream on all ranks, as long as what they are concurrent with may still change.

A sequence keeps, for every rank, the cumulative times of its ops under each condition, its start, and how far it was at
the last change; its end follows. A change of condition at a time of its own on each rank moves all that lies behind it.
The arithmetic is that of the event engine (`simulator.engine.des`), so that equal ranks get its result.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.engine.kernel_sequence import ALONE

Array = NDArray[np.float64]

Times = NDArray[np.float64]
"""Cumulative times of a sequence's ops (ranks or 1 x conditions x ops + 1) [s]."""


def time_at(times: Array, position: Array) -> Array:
    """Time that each rank needs to reach `position` (op index plus the part done of that op); `times`: ranks x ops."""
    last = times.shape[1] - 2
    index = np.minimum(position.astype(np.intp), last)
    rank = np.arange(len(position)) if len(times) > 1 else 0
    low = times[rank, index]
    return np.asarray(low + (position - index) * (times[rank, index + 1] - low))


def position_at(times: Array, elapsed: Array) -> Array:
    """Inverse of `time_at`."""
    last = times.shape[1] - 2
    index = np.minimum((times[:, 1:] <= elapsed[:, None]).sum(axis=1), last)
    rank = np.arange(len(elapsed)) if len(times) > 1 else 0
    low = times[rank, index]
    width = times[rank, index + 1] - low
    part = np.divide(elapsed - low, width, out=np.zeros_like(elapsed), where=width > 0.0)
    return np.asarray(np.minimum(index + part, last + 1.0))


class UnderWay:
    """One sequence on all ranks."""

    __slots__ = ("begun", "end", "floor", "position", "since", "start", "task", "times")

    def __init__(self, task: int, times: Times, floor: Array) -> None:
        self.task, self.times, self.floor = task, times, floor
        self.start = self.since = self.end = floor
        self.begun = False
        self.position = np.zeros(len(floor))

    def begin(self, free: Array, condition: int) -> None:
        """Start where the stream is `free`, with nothing known of what comes."""
        self.start = self.since = np.maximum(free, self.floor)
        self.end = self.start + self.times[:, condition, -1]

    def change(self, at: Array, before: int, after: int, free: Array) -> None:
        """Another condition from the time `at` of each rank on; the stream is `free` for it at other times, maybe."""
        running = (self.start < at) & (self.end > at)
        waiting = self.start >= at
        if running.any():
            old, new = self.times[:, before], self.times[:, after]
            elapsed = time_at(old, self.position) + (at - self.since)
            position = np.where(running, position_at(old, elapsed), self.position)
            left = np.maximum(0.0, new[:, -1] - time_at(new, position))
            self.position = position
            self.since = np.where(running, at, self.since)
            self.end = np.where(running, at + left, self.end)
        if waiting.any():
            start = np.where(waiting, np.maximum(free, self.floor), self.start)
            self.start, self.since = start, np.where(waiting, start, self.since)
            self.end = np.where(waiting, start + self.times[:, after, -1], self.end)


class ComputeStream:
    """The compute stream of all ranks: what has ended for good, and what is `recent`, in order."""

    def __init__(self, free: Array) -> None:
        self.base = free
        self.recent: list[UnderWay] = []
        self.condition = ALONE
        self.pending: Array | None = None  # when it becomes ALONE again, unless something else begins just then

    @property
    def free(self) -> Array:
        """When each rank has done all that was issued [s]."""
        return self.recent[-1].end if self.recent else self.base

    def add(self, task: int, times: Times, floor: Array) -> UnderWay:
        """Issue a sequence that may start from `floor` on [s]."""
        self.flush()
        one = UnderWay(task, times, floor)
        one.begin(self.free, self.condition)
        self.recent.append(one)
        return one

    def change(self, at: Array, condition: int) -> None:
        """Another condition from `at` on [s]."""
        if self.pending is not None and self.pending is not at and (self.pending != at).any():
            self.flush()
        self.pending = None
        before, self.condition = self.condition, condition
        free = self.base
        for one in self.recent:
            one.change(at, before, condition, free)
            free = one.end

    def alone(self, at: Array) -> None:
        """Nothing is concurrent from `at` on [s]."""
        self.pending = at

    def flush(self) -> None:
        """Apply what is pending."""
        if self.pending is not None:
            at, self.pending = self.pending, None
            self.change(at, ALONE)

    def settle(self, until: Array) -> list[UnderWay]:
        """Sequences that have ended on every rank `until` a time before which nothing changes any more."""
        done = 0
        while done < len(self.recent) and (self.recent[done].end <= until).all():
            done += 1
        settled, self.recent = self.recent[:done], self.recent[done:]
        if settled:
            self.base = settled[-1].end
        return settled

    def drained(self) -> list[UnderWay]:
        """All that is left, when nothing will change any more."""
        self.flush()
        left, self.recent = self.recent, []
        if left:
            self.base = left[-1].end
        return left


def end_of_flow(start: Array, paces: tuple[Array, Array], recent: list[UnderWay]) -> Array:
    """End of an all-to-all on each rank that begins at `start`.

    `paces` are its durations alone, and concurrent with compute [s]; `recent` the sequences that may be concurrent.
    """
    alone, busy = paces
    left = np.ones_like(start)
    now, end = start, np.full_like(start, np.inf)
    for one in recent:
        for until, pace in ((one.start, alone), (one.end, busy)):
            span = np.maximum(until - now, 0.0)
            finish = now + left * pace
            end = np.where((end == np.inf) & (finish <= now + span), finish, end)
            left = np.where(pace > 0.0, np.maximum(0.0, left - span / np.where(pace > 0.0, pace, 1.0)), 0.0)
            now = np.maximum(now, until)
    return np.where(end == np.inf, now + left * alone, end)
