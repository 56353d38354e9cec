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

from simulator.engine.contention import Flow, component, max_min, oversubscribed
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
Wake = Callable[[None], None]
"""Goes on with a stream, up to where it waits next."""

CONCURRENT_WITH: dict[str, Condition] = {"notify": SM_SHARED, "all_to_all": BANDWIDTH_SHARED}
"""Conditions of compute by what its rank's all-to-all stream runs; alone with everything else."""


class _Running:
    """A task under way: how far it is, and the timer that will end it."""

    __slots__ = ("at", "condition", "left", "paced", "position", "rate", "sequence", "since", "task", "version", "wake")

    def __init__(self, task: int, sequence: KernelSequence, wake: Wake, condition: Condition, now: float) -> None:
        self.task, self.sequence, self.wake = task, sequence, wake
        self.condition = condition
        self.at = sequence.under(condition)
        self.since = now
        self.position = 0.0
        self.paced = self.at[-1]  # duration at its own pace, for flows
        self.left = 1.0  # part of a flow still to go
        self.rate = 1.0  # of its own pace
        self.version = 0


def _links(tasks: Tasks) -> dict[str, float]:
    """The shared links of all ranks by name, with their bandwidth [B/s]."""
    return {
        name: bandwidth
        for rank in range(tasks.ranks)
        for name, bandwidth in ((f"out{rank}", tasks.nic), (f"in{rank}", tasks.nic), (f"nvl{rank}", tasks.nvlink))
    }


class _Events:
    """What comes: (time, number, function, its argument); of events at one time, the one that was made first.

    Parameters
    ----------
    now : time of the simulation [s].
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.made = 0
        self.coming: list[tuple[float, int, Callable[[Any], object], Any]] = []

    def after(self, delay: float, what: Callable[[Any], object], argument: Any = None) -> None:
        """Call a function after some time [s]."""
        self.made += 1
        heappush(self.coming, (self.now + delay, self.made, what, argument))

    def work(self, ended: Sequence[int], progress: Progress | None) -> None:
        """Work through all events; `progress` is called now and then with the part of the tasks that have ended."""
        coming, count, total = self.coming, 0, max(1, len(ended))
        while coming:
            self.now, _, what, argument = heappop(coming)
            what(argument)
            count += 1
            if progress is not None and not count % OFTEN:
                progress(sum(ended) / total)
        if progress is not None:
            progress(sum(ended) / total)

    def timer(self, running: _Running, delay: float) -> None:
        """End `running` after `delay`, unless it is re-timed before; what has just ended stays ended."""
        if running.version == OVER:
            return
        running.version += 1
        self.after(delay, self.expire, (running, running.version))

    def expire(self, timer: tuple[_Running, int]) -> None:
        """A timer runs out; it ends its task if it is the last one that was set."""
        running, version = timer
        if running.version == version:
            running.version = OVER
            self.after(0.0, running.wake)


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
        self.flows: dict[int, Flow] = {}
        self.flowing: dict[int, _Running] = {}
        self.all_to_all: list[_Running | None] = [None] * tasks.ranks
        self.capacity = _links(tasks)
        self.users: dict[str, dict[int, None]] = {name: {} for name in self.capacity}
        self.asked: dict[tuple[int, int, float, float, float], Flow] = {}

    # ---- streams ------------------------------------------------------------------------------------------------

    def begin(self, lane: int, mine: list[int]) -> None:
        """Start the stream of a lane."""
        stream = self.stream(lane // LANES, lane % LANES, mine)
        next(stream)
        stream.send(stream.send)

    def stream(self, rank: int, kind: int, mine: list[int]) -> Generator[None, Any, None]:
        """Run the tasks of one lane in order; it is first sent what wakes it."""
        wake: Wake = yield
        ended, preds, release = self.ended, self.tasks.preds, self.tasks.release
        start, end, waiting, flowing = self.start, self.end, self.waiting, self.flowing
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
            self.begin_task(rank, kind, task, wake)
            yield
            end[task] = self.now
            ended[task] = 1
            waiters = waiting.pop(task, None)
            if waiters is not None:
                self.after(0.0, _wake_all, waiters)
            if task in flowing:
                self.end_flow(task)
        self.idle(rank, kind)
        yield

    def begin_task(self, rank: int, kind: int, task: int, wake: Wake) -> None:
        """Start a task; its stream is woken at its end."""
        sequence = self.tasks.sequence[task]
        if kind == COMPUTE:
            self.begin_compute(rank, task, sequence, wake)
            return
        if kind == COMM:
            self.set_neighbour(rank, kind, CONCURRENT_WITH.get(sequence.kind, ALONE))
        elif kind == SYNC:
            self.set_neighbour(rank, kind, condition_with(sequence))
        if sequence.nic or sequence.nvlink:
            self.begin_flow(rank, task, sequence, wake)
        else:
            self.after(sequence.cumulative[ALONE][-1], wake)

    def idle(self, rank: int, kind: int) -> None:
        """A stream has nothing to run now: its neighbours notice. (Between back-to-back tasks they do not.)"""
        if kind == COMPUTE:
            self.computing[rank] = None
            self.repace(rank)
        elif kind in self.neighbour:
            self.set_neighbour(rank, kind, ALONE)

    # ---- compute ------------------------------------------------------------------------------------------------

    def begin_compute(self, rank: int, task: int, sequence: KernelSequence, wake: Wake) -> None:
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
            self.retime(rank, now)

    def retime(self, rank: int, condition: Condition) -> None:
        """Update the progress of a rank's compute, which goes on under another condition."""
        running = self.computing[rank]
        if running is None or not running.sequence.sensitive or running.version == OVER:
            return
        now, at, position = self.now, running.at, running.position
        elapsed = now - running.since
        if position:
            elapsed += time_at(at, position)
        running.position = position = position_at(at, elapsed)
        running.condition, running.since = condition, now
        running.at = at = running.sequence.under(condition)
        log = self.changes[running.task]
        if log[-1][0] == now:
            log.pop()
        log.append((now, condition, position))
        self.timer(running, max(0.0, at[-1] - time_at(at, position)))

    # ---- flows --------------------------------------------------------------------------------------------------

    def begin_flow(self, rank: int, task: int, sequence: KernelSequence, wake: Wake) -> None:
        neighbour = BANDWIDTH_SHARED if sequence.kind == "all_to_all" and self.computing[rank] is not None else ALONE
        running = _Running(task, sequence, wake, neighbour, self.now)
        if sequence.kind == "all_to_all":
            self.all_to_all[rank] = running
        self.flowing[task] = running
        self.flows[task] = flow = self.flow(rank, running)
        for resource, _ in flow.uses:
            self.users[resource][task] = None
        self.timer(running, running.paced)
        self.share(task)

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
            self.flows[running.task] = self.flow(rank, running)
            self.timer(running, running.left * paced / running.rate)
            self.share(running.task)

    def flow(self, rank: int, running: _Running) -> Flow:
        """What a task asks for: its bytes over its own duration, on the links it crosses."""
        sequence, paced = running.sequence, running.paced
        key = rank, self.tasks.peer.get(running.task, rank), sequence.nic, sequence.nvlink, paced
        if key not in self.asked:
            self.asked[key] = _flow(*key)
        return self.asked[key]

    def lonely(self, flow: Flow) -> bool:
        """Whether a flow has the links that it crosses to itself."""
        return all(len(self.users[resource]) == 1 for resource, _ in flow.uses)

    def end_flow(self, task: int) -> None:
        flow = self.flows[task]
        alone = self.lonely(flow)
        others = [] if alone else [key for key in component(task, self.flows, self.users) if key != task]
        for resource, _ in flow.uses:
            del self.users[resource][task]
        del self.flows[task], self.flowing[task]
        if others:
            self.set_rates(others)

    def share(self, task: int) -> None:
        """Share out the links that `task` crosses."""
        self.set_rates([task] if self.lonely(self.flows[task]) else component(task, self.flows, self.users))

    def set_rates(self, keys: list[int]) -> None:
        """Re-time the flows of one component."""
        rates: dict[int, float] = {}
        if oversubscribed(keys, self.flows, self.capacity):
            rates = max_min({key: self.flows[key] for key in sorted(keys)}, self.capacity)
        for key in sorted(keys):
            running = self.flowing[key]
            pace = rates[key] / self.flows[key].cap if rates else 1.0
            if pace != running.rate:
                self.advance(running)
                running.rate = pace
                self.timer(running, running.left * running.paced / pace)

    def advance(self, running: _Running) -> None:
        """Book the progress of a flow until now."""
        now = self.now
        running.left = max(0.0, running.left - (now - running.since) * running.rate / running.paced)
        running.since = now


def _wake_all(waiters: list[Wake]) -> None:
    for wake in waiters:
        wake(None)


def _flow(rank: int, peer: int, nic: float, nvlink: float, seconds: float) -> Flow:
    """Bytes on the NICs of two ranks and on the NVLink of the first, in so much time alone."""
    unit = max(nic, nvlink)
    uses: list[tuple[str, float]] = []
    if nic:
        uses += [(f"out{rank}", nic / unit), (f"in{peer}", nic / unit)]
    if nvlink:
        uses.append((f"nvl{rank}", nvlink / unit))
    return Flow(unit / seconds, tuple(uses))


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
