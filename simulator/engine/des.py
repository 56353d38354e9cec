"""The discrete-event engine: one SimPy process per stream, SM shares per rank, links as shared capacities.

The speed of a compute sequence depends on its condition (alone, concurrent with a barrier, an all-to-all or a
collective), and its end is recomputed when that changes; with an all-to-all and a collective at once, only the
all-to-all counts. All-to-alls, sends and collectives are flows: each has its own rate, and full links are shared
max-min fairly.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial

import simpy

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

Process = Generator[simpy.Event, None, None]
Progress = Callable[[float], None]


class _Running:
    """A task under way: how far it is, and the timer that will end it."""

    __slots__ = ("at", "condition", "done", "left", "paced", "position", "rate", "sequence", "since", "task", "version")

    def __init__(
        self, task: int, sequence: KernelSequence, done: simpy.Event, condition: Condition, now: float
    ) -> None:
        self.task, self.sequence, self.done = task, sequence, done
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


class _Engine:
    """State of one simulation; gone when `simulate` returns."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self.env = simpy.Environment()
        count = len(tasks.lane)
        self.start = [0.0] * count
        self.end = [0.0] * count
        self.ended = bytearray(count)
        self.waiting: dict[int, simpy.Event] = {}
        self.computing: list[_Running | None] = [None] * tasks.ranks
        self.condition: list[Condition] = [ALONE] * tasks.ranks
        self.neighbour: dict[int, list[Condition]] = {kind: [ALONE] * tasks.ranks for kind in (COMM, SYNC)}
        self.changes: dict[int, list[tuple[float, Condition, float]]] = {}
        self.flows: dict[int, Flow] = {}
        self.flowing: dict[int, _Running] = {}
        self.all_to_all: list[_Running | None] = [None] * tasks.ranks
        self.capacity = _links(tasks)
        self.users: dict[str, dict[int, None]] = {name: {} for name in self.capacity}

    # ---- streams ------------------------------------------------------------------------------------------------

    def stream(self, rank: int, kind: int, mine: list[int]) -> Process:
        """Run the tasks of one lane in order."""
        ended, preds, release = self.ended, self.tasks.preds, self.tasks.release
        for task in mine:
            missing = [pred for pred in preds[task] if not ended[pred]]
            if missing:
                self.idle(rank, kind)
                for pred in missing:
                    if not ended[pred]:
                        yield self.event_of(pred)
            if release.get(task, 0.0) > self.env.now:
                self.idle(rank, kind)
                yield self.env.timeout(release[task] - self.env.now)
            self.start[task] = self.env.now
            yield self.begin(rank, kind, task)
            self.finish(task)
        self.idle(rank, kind)

    def event_of(self, task: int) -> simpy.Event:
        """The event of a task's end, made when somebody first waits for it."""
        event = self.waiting.get(task)
        if event is None:
            event = self.waiting[task] = self.env.event()
        return event

    def begin(self, rank: int, kind: int, task: int) -> simpy.Event:
        """Start a task; the event returned fires at its end."""
        sequence = self.tasks.sequence[task]
        if kind == COMPUTE:
            return self.begin_compute(rank, task, sequence)
        if kind == COMM:
            self.set_neighbour(
                rank, kind, {"notify": SM_SHARED, "all_to_all": BANDWIDTH_SHARED}.get(sequence.kind, ALONE)
            )
        elif kind == SYNC:
            self.set_neighbour(rank, kind, condition_with(sequence))
        if sequence.nic or sequence.nvlink:
            return self.begin_flow(rank, task, sequence)
        return self.env.timeout(sequence.cumulative[ALONE][-1])

    def finish(self, task: int) -> None:
        """Record a task's end and wake who waits for it."""
        self.end[task] = self.env.now
        self.ended[task] = 1
        event = self.waiting.pop(task, None)
        if event is not None:
            event.succeed()
        if task in self.flowing:
            self.end_flow(task)

    def idle(self, rank: int, kind: int) -> None:
        """A stream has nothing to run now: its neighbours notice. (Between back-to-back tasks they do not.)"""
        if kind == COMPUTE:
            self.computing[rank] = None
            self.repace(rank)
        elif kind in self.neighbour:
            self.set_neighbour(rank, kind, ALONE)

    # ---- compute ------------------------------------------------------------------------------------------------

    def begin_compute(self, rank: int, task: int, sequence: KernelSequence) -> simpy.Event:
        was_idle = self.computing[rank] is None
        running = _Running(task, sequence, self.env.event(), self.condition[rank], self.env.now)
        if sequence.sensitive:
            self.computing[rank] = running
            self.changes[task] = [(self.env.now, running.condition, 0.0)]
            self.timer(running, running.paced)
            done: simpy.Event = running.done
        else:
            self.computing[rank] = running
            done = self.env.timeout(running.paced)
        if was_idle:
            self.repace(rank)
        return done

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
        now = self.env.now
        elapsed = time_at(running.at, running.position) + (now - running.since)
        running.position = position_at(running.at, elapsed)
        running.condition, running.at, running.since = condition, running.sequence.under(condition), now
        log = self.changes[running.task]
        if log[-1][0] == now:
            log.pop()
        log.append((now, condition, running.position))
        self.timer(running, max(0.0, running.at[-1] - time_at(running.at, running.position)))

    # ---- flows --------------------------------------------------------------------------------------------------

    def begin_flow(self, rank: int, task: int, sequence: KernelSequence) -> simpy.Event:
        neighbour = BANDWIDTH_SHARED if sequence.kind == "all_to_all" and self.computing[rank] is not None else ALONE
        running = _Running(task, sequence, self.env.event(), neighbour, self.env.now)
        if sequence.kind == "all_to_all":
            self.all_to_all[rank] = running
        self.flowing[task] = running
        self.flows[task] = flow = _flow(self.tasks, rank, task, running)
        for resource, _ in flow.uses:
            self.users[resource][task] = None
        self.timer(running, running.paced)
        self.share(task)
        return running.done

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
            self.flows[running.task] = _flow(self.tasks, rank, running.task, running)
            self.timer(running, running.left * paced / running.rate)
            self.share(running.task)

    def end_flow(self, task: int) -> None:
        flow = self.flows[task]
        others = [key for key in component(task, self.flows, self.users) if key != task]
        for resource, _ in flow.uses:
            del self.users[resource][task]
        del self.flows[task], self.flowing[task]
        if others:
            self.set_rates(others)

    def share(self, task: int) -> None:
        """Share out the links that `task` crosses."""
        self.set_rates(component(task, self.flows, self.users))

    def set_rates(self, keys: list[int]) -> None:
        """Re-time the flows of one component."""
        flows = {key: self.flows[key] for key in sorted(keys)}
        if oversubscribed(keys, self.flows, self.capacity):
            rates = max_min(flows, self.capacity)
        else:
            rates = {key: flow.cap for key, flow in flows.items()}
        for key, flow in flows.items():
            running = self.flowing[key]
            pace = rates[key] / flow.cap
            if pace != running.rate:
                self.advance(running)
                running.rate = pace
                self.timer(running, running.left * running.paced / pace)

    def advance(self, running: _Running) -> None:
        """Book the progress of a flow until now."""
        now = self.env.now
        running.left = max(0.0, running.left - (now - running.since) * running.rate / running.paced)
        running.since = now

    # ---- timers -------------------------------------------------------------------------------------------------

    def timer(self, running: _Running, delay: float) -> None:
        """End `running` after `delay`, unless it is re-timed before; what has just ended stays ended."""
        if running.version == OVER:
            return
        running.version += 1
        timeout = self.env.timeout(delay)
        assert timeout.callbacks is not None
        timeout.callbacks.append(partial(_expire, running, running.version))


def _flow(tasks: Tasks, rank: int, task: int, running: _Running) -> Flow:
    """What a flow asks for: its bytes over its own duration, on the links it crosses."""
    sequence = running.sequence
    unit = max(sequence.nic, sequence.nvlink)
    uses: list[tuple[str, float]] = []
    if sequence.nic:
        peer = tasks.peer.get(task, rank)
        uses += [(f"out{rank}", sequence.nic / unit), (f"in{peer}", sequence.nic / unit)]
    if sequence.nvlink:
        uses.append((f"nvl{rank}", sequence.nvlink / unit))
    return Flow(unit / running.paced, tuple(uses))


def _expire(running: _Running, version: int, _event: simpy.Event) -> None:
    if running.version == version:
        running.version = OVER
        running.done.succeed()


def simulate(tasks: Tasks, progress: Progress | None = None) -> Timeline:
    """Execute the tasks with everything that is shared; `progress` is called now and then with the done part."""
    engine = _Engine(tasks)
    lanes: dict[int, list[int]] = {}
    for task, lane in enumerate(tasks.lane):
        lanes.setdefault(lane, []).append(task)
    for lane in sorted(lanes):
        engine.env.process(engine.stream(lane // LANES, lane % LANES, lanes[lane]))
    if progress is None:
        engine.env.run()
    else:
        _run_reporting(engine, progress)
    if not all(engine.ended):
        stuck = engine.ended.index(0)
        raise RuntimeError(f"task {stuck} ({tasks.sequence[stuck].name}) never ended: the tasks wait for each other")
    return Timeline(tasks=tasks, start=engine.start, end=engine.end, changes=engine.changes)


def _run_reporting(engine: _Engine, progress: Progress) -> None:
    """Step through the events, reporting every few thousand."""
    total, step = max(1, len(engine.ended)), engine.env.step
    while engine.env.peek() != float("inf"):
        for _ in range(20_000):
            if engine.env.peek() == float("inf"):
                break
            step()
        progress(sum(engine.ended) / total)
