"""The discrete-event engine: a coroutine per stream, SM shares per rank, links as shared capacities.

The speed of a compute sequence depends on its condition (alone, concurrent with a barrier, an all-to-all or a
collective), and its end is recomputed when that changes; with an all-to-all and a collective at once, only the
all-to-all counts. All-to-alls, sends and collectives are flows: each has its own rate, and full links are shared
max-min fairly.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from heapq import heappop, heappush
from typing import Any

from simulator.engine.contention import Flow, SharedLinks
from simulator.engine.kernel_sequence import (
    ALONE,
    BANDWIDTH_SHARED,
    SM_SHARED,
    Condition,
    KernelSequence,
    condition_with,
    position_at,
    time_at,
)
from simulator.engine.tasks import COMM, COMPUTE, LANES, SYNC, Tasks, Timeline

OVER = -1
"""Version of a task whose end is already on its way."""
OFTEN = 20_000
"""Events between two reports of progress."""

Progress = Callable[[float], None]
Wake = Callable[[None], object]
"""Goes on with a stream, up to where it waits next."""

CONCURRENT_WITH: dict[str, Condition] = {"notify": SM_SHARED, "all_to_all": BANDWIDTH_SHARED}
"""Conditions of compute by what its rank's all-to-all stream runs; alone with everything else."""


class _Running:
    """A task under way: how far it is, and the timer that will end it."""

    __slots__ = ("at", "condition", "left", "paced", "rate", "reached", "sequence", "since", "task", "version", "wake")

    def __init__(self, task: int, sequence: KernelSequence, wake: Wake, condition: Condition, now: float) -> None:
        self.task, self.sequence, self.wake = task, sequence, wake
        self.condition = condition
        self.at = at = sequence.under(condition)
        self.since = now
        self.reached = 0.0  # time that the part done takes under the condition
        self.paced = at[-1]  # duration at its own pace, for flows
        self.left = 1.0  # part of a flow still to go
        self.rate = 1.0  # of its own pace
        self.version = 0


class _Events:
    """What comes, in order of time; of what comes at one time, what was made first goes first.

    Parameters
    ----------
    now : time of the simulation [s].
    ready : what goes on now, in this order.
    coming : (time, number, stream to wake, 0), or (time, number, running task, version of its timer).
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.made = 0
        self.ready: list[Wake] = []
        self.coming: list[tuple[float, int, Any, int]] = []

    def after(self, delay: float, wake: Wake) -> None:
        """Wake a stream after some time [s]."""
        when = self.now + delay
        if when > self.now:
            self.made += 1
            heappush(self.coming, (when, self.made, wake, 0))
        else:
            self.ready.append(wake)

    def timer(self, running: _Running, delay: float) -> None:
        """End `running` after `delay`, unless it is re-timed before; what has just ended stays ended."""
        if running.version == OVER:
            return
        running.version = version = running.version + 1
        when = self.now + delay
        if when > self.now:
            self.made += 1
            heappush(self.coming, (when, self.made, running, version))
        else:
            self.ready.append(lambda _: self.expire(running, version))

    def expire(self, running: _Running, version: int) -> None:
        """A timer runs out; it ends its task if it is the last one that was set."""
        if running.version == version:
            running.version = OVER
            self.ready.append(running.wake)

    def work(self, ended: Sequence[int], progress: Progress | None) -> None:
        """Work through all events; `progress` is called now and then with the part of the tasks that have ended."""
        coming, ready, count, total = self.coming, self.ready, 0, max(1, len(ended))
        while True:
            for wake in ready:  # it grows meanwhile
                wake(None)
            count += len(ready)
            ready.clear()
            if progress is not None and count > OFTEN:
                count = 0
                progress(sum(ended) / total)
            if not coming:
                break
            self.now = now = coming[0][0]
            while coming and coming[0][0] == now:
                _, _, what, version = heappop(coming)
                if not version:
                    what(None)
                elif what.version == version:
                    what.version = OVER
                    ready.append(what.wake)
        if progress is not None:
            progress(sum(ended) / total)


class _Engine(_Events):
    """State of one simulation; gone when `simulate` returns."""

    def __init__(self, tasks: Tasks) -> None:
        super().__init__()
        self.tasks = tasks
        count = len(tasks.lane)
        self.start = [0.0] * count
        self.end = [0.0] * count
        self.ended = bytearray(count)
        self.waiting: dict[int, list[Wake]] = {}
        self.computing: list[_Running | None] = [None] * tasks.ranks
        self.condition: list[Condition] = [ALONE] * tasks.ranks
        self.neighbour: dict[int, list[Condition]] = {kind: [ALONE] * tasks.ranks for kind in (COMM, SYNC)}
        self.changes: dict[int, list[tuple[float, Condition, float]]] = {}
        self.flowing: dict[int, _Running] = {}
        self.all_to_all: list[_Running | None] = [None] * tasks.ranks
        self.links = SharedLinks(tasks.ranks, tasks.nic, tasks.nvlink)

    # ---- streams ------------------------------------------------------------------------------------------------

    def begin(self, lane: int, mine: list[int]) -> None:
        """Start the stream of a lane."""
        stream = self.stream(lane // LANES, lane % LANES, mine)
        next(stream)
        stream.send(stream.send)

    def stream(self, rank: int, kind: int, mine: list[int]) -> Generator[None, Any, None]:
        """Run the tasks of one lane in order; it is first sent what wakes it."""
        wake: Wake = yield
        ended, preds, release, sequences = self.ended, self.tasks.preds, self.tasks.release, self.tasks.sequence
        start, end, waiting, flowing = self.start, self.end, self.waiting, self.flowing
        begin = self.begin_compute if kind == COMPUTE else self.begin_transfer
        for task in mine:
            late = False
            for pred in preds[task]:
                if not ended[pred]:
                    if not late:
                        late = True
                        self.idle(rank, kind)
                    waiting.setdefault(pred, []).append(wake)
                    yield
            if release and release.get(task, 0.0) > self.now:
                self.idle(rank, kind)
                self.after(release[task] - self.now, wake)
                yield
            start[task] = self.now
            begin(rank, kind, task, sequences[task], wake)
            yield
            end[task] = self.now
            ended[task] = 1
            if task in waiting:
                self.ready += waiting.pop(task)
            if task in flowing:
                self.end_flow(task)
        self.idle(rank, kind)
        yield

    def idle(self, rank: int, kind: int) -> None:
        """A stream has nothing to run now: its neighbours notice. (Between back-to-back tasks they do not.)"""
        if kind == COMPUTE:
            self.computing[rank] = None
            self.repace(rank)
        elif kind in self.neighbour:
            self.set_neighbour(rank, kind, ALONE)

    # ---- compute ------------------------------------------------------------------------------------------------

    def begin_compute(self, rank: int, kind: int, task: int, sequence: KernelSequence, wake: Wake) -> None:
        """Start a task of a compute stream, which is woken at its end."""
        was_idle = self.computing[rank] is None
        running = self.computing[rank] = _Running(task, sequence, wake, self.condition[rank], self.now)
        if sequence.sensitive:
            self.changes[task] = [(self.now, running.condition, 0.0)]
            self.timer(running, running.paced)
        else:
            self.after(running.paced, wake)
        if was_idle:
            self.repace(rank)

    def set_neighbour(self, rank: int, kind: int, condition: Condition) -> None:
        """What is concurrent with a rank's compute has changed."""
        self.neighbour[kind][rank] = condition
        now = self.neighbour[COMM][rank] or self.neighbour[SYNC][rank]  # ALONE is 0; an all-to-all goes first
        if now != self.condition[rank]:
            self.condition[rank] = now
            running = self.computing[rank]
            if running is not None and running.sequence.sensitive and running.version != OVER:
                self.retime(running, now)

    def retime(self, running: _Running, condition: Condition) -> None:
        """Update the progress of a rank's compute, which goes on under another condition."""
        now = self.now
        position = position_at(running.at, now - running.since + running.reached)
        running.condition, running.since = condition, now
        running.at = at = running.sequence.under(condition)
        running.reached = reached = time_at(at, position)
        log = self.changes[running.task]
        if log[-1][0] == now:
            log.pop()
        log.append((now, condition, position))
        left = at[-1] - reached
        self.timer(running, left if left > 0.0 else 0.0)

    # ---- flows --------------------------------------------------------------------------------------------------

    def begin_transfer(self, rank: int, kind: int, task: int, sequence: KernelSequence, wake: Wake) -> None:
        """Start a task of another stream, which is woken at its end."""
        if kind == COMM:
            self.set_neighbour(rank, kind, CONCURRENT_WITH.get(sequence.kind, ALONE))
        elif kind == SYNC:
            self.set_neighbour(rank, kind, condition_with(sequence))
        seconds = sequence.cumulative[ALONE][-1]
        if seconds and (sequence.nic or sequence.nvlink):  # what is hidden altogether moves nothing here
            self.begin_flow(rank, task, sequence, wake)
        else:
            self.after(seconds, wake)

    def begin_flow(self, rank: int, task: int, sequence: KernelSequence, wake: Wake) -> None:
        """Start to move data."""
        neighbour = BANDWIDTH_SHARED if sequence.kind == "all_to_all" and self.computing[rank] is not None else ALONE
        running = _Running(task, sequence, wake, neighbour, self.now)
        if sequence.kind == "all_to_all":
            self.all_to_all[rank] = running
        self.flowing[task] = running
        undisturbed = self.links.enter(task, self.flow(rank, running))
        self.timer(running, running.paced)
        if not undisturbed:
            self.set_rates(self.links.sharing(task))

    def repace(self, rank: int) -> None:
        """Compute on a rank started or stopped: the concurrent all-to-all changes its rate."""
        running = self.all_to_all[rank]
        if running is None or running.task not in self.flowing:
            return
        neighbour = BANDWIDTH_SHARED if self.computing[rank] is not None else ALONE
        if neighbour == running.condition:
            return
        paced = running.sequence.under(neighbour)[-1]
        running.condition = neighbour
        if paced != running.paced:
            self.advance(running)
            running.paced = paced
            self.links.flows[running.task] = self.flow(rank, running)
            self.timer(running, running.left * paced / running.rate)
            self.set_rates(self.links.sharing(running.task))

    def flow(self, rank: int, running: _Running) -> Flow:
        """What a task asks for: its bytes over its own duration, on the links it crosses."""
        sequence, peer = running.sequence, self.tasks.peer.get(running.task, rank)
        return self.links.asked(rank, peer, sequence.nic, sequence.nvlink, running.paced)

    def end_flow(self, task: int) -> None:
        """A flow has ended: the links that it crossed are free for others."""
        others = self.links.leave(task)
        del self.flowing[task]
        if others:
            self.set_rates(others)

    def set_rates(self, keys: list[int]) -> None:
        """Re-time the flows of one component, given in the order of their numbers."""
        for key, pace in zip(keys, self.links.paces(keys), strict=True):
            running = self.flowing[key]
            if pace != running.rate:
                self.advance(running)
                running.rate = pace
                self.timer(running, running.left * running.paced / pace)

    def advance(self, running: _Running) -> None:
        """Book the progress of a flow until now."""
        now = self.now
        running.left = max(0.0, running.left - (now - running.since) * running.rate / running.paced)
        running.since = now


def simulate(tasks: Tasks, progress: Progress | None = None) -> Timeline:
    """Execute the tasks with everything that is shared; `progress` is called now and then with the done part."""
    engine = _Engine(tasks)
    lanes: dict[int, list[int]] = {}
    for task, lane in enumerate(tasks.lane):
        lanes.setdefault(lane, []).append(task)
    for lane in sorted(lanes):
        engine.begin(lane, lanes[lane])
    engine.work(engine.ended, progress)
    if not all(engine.ended):
        stuck = engine.ended.index(0)
        raise RuntimeError(f"task {stuck} ({tasks.sequence[stuck].name}) never ended: the tasks wait for each other")
    return Timeline(tasks=tasks, start=engine.start, end=engine.end, changes=engine.changes)
