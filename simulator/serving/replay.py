"""The event loop: requests arrive, a router sends them to engines, engines run steps."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from simulator.serving.engine.engine import Engine
from simulator.serving.handover import Handover
from simulator.serving.load.sources import Load
from simulator.serving.recorder import Recorder
from simulator.serving.request import Sequence, received
from simulator.serving.routers import Router

EVERY = 1024
"""Requests between two reports of progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Engines and what joins them.

    Parameters
    ----------
    engines : those that requests are sent to.
    router : picks one of them for each request.
    decoders : those that go on behind the first token; none: `engines` do it all.
    handover : what carries KV caches from `engines` to `decoders`; their listener.
    received : requests come with their prompts computed and their first token.
    loss : an engine, by its number among `engines`, and when it is lost [s].
    """

    engines: Items[Engine]
    router: Router
    decoders: Items[Engine] = ()
    handover: Handover | None = None
    loss: tuple[int, float] | None = None
    received: bool = False

    @property
    def alive(self) -> list[Engine]:
        """Engines that take requests."""
        return [one for one in self.engines if not one.lost] if self.loss else list(self.engines)


class Clock:
    """Which engine is over first with what runs in it, the first of equals.

    Parameters
    ----------
    engines : all of them.
    """

    def __init__(self, engines: Items[Engine]) -> None:
        self._engines = engines
        self._numbers = {id(engine): number for number, engine in enumerate(engines)}
        self._ends: list[tuple[float, int]] = []
        for engine in engines:
            self.changed(engine)

    def changed(self, engine: Engine) -> None:
        """What runs in an engine ends at another time than before."""
        heappush(self._ends, (engine.until, self._numbers[id(engine)]))

    def first(self) -> Engine:
        """The engine."""
        ends, engines = self._ends, self._engines
        while ends[0][0] != engines[ends[0][1]].until:
            heappop(ends)  # of before a change
        return engines[ends[0][1]]


def replay(
    load: Load,
    fleet: Fleet,
    recorder: Recorder,
    *,
    longest: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Run until every request is answered.

    Parameters
    ----------
    load : requests in order of arrival.
    fleet : what answers them.
    recorder : what is to be known afterwards.
    longest : most tokens of a prompt and its answer that the model can take; longer ones are refused.
    progress : called now and then with the number of requests that have arrived.
    """
    every = [*fleet.engines, *fleet.decoders]
    frontend = every[0].scheduler.frontend
    capacity = min(engine.kv.blocks * engine.kv.size for engine in every)
    most = capacity if longest is None else min(capacity, longest)
    clock, handover, loss = Clock(every), fleet.handover, fleet.loss
    done, failing = 0, inf if loss is None else loss[1]
    while True:
        engine = clock.first()
        arrival = load.next_time() + frontend
        other = arrival if handover is None else min(arrival, handover.next_time())
        if failing <= min(engine.until, other) and min(engine.until, other) < inf:
            assert loss is not None
            fleet.engines[loss[0]].fail(failing)
            clock.changed(fleet.engines[loss[0]])
            failing = inf
            continue
        if engine.until < other or (engine.until == other and (engine.works or other == inf)):
            if engine.until == inf:
                return
            now = engine.until
            engine.complete()
            clock.changed(engine)
            if handover is not None:
                _hand_over(fleet, handover, engine, now, clock)
            if engine.orphans:
                _retry(fleet, engine, now, clock)
            done = _report(load, recorder, done, now)
            continue
        if other < arrival and handover is not None:
            for changed in handover.take(other):
                clock.changed(changed)
            continue
        _arrive(load, fleet, recorder, most, arrival, clock, progress)
        done = _report(load, recorder, done, arrival)


def _arrive(
    load: Load,
    fleet: Fleet,
    recorder: Recorder,
    most: int,
    arrival: float,
    clock: Clock,
    progress: Callable[[int], None] | None,
) -> None:
    """The next request reaches an engine, unless it is too long."""
    request = load.take()
    alive = fleet.alive
    recorder.arrive(request)
    if load.next_time() == inf:  # the last one, as far as is known
        recorder.backlog = sum(len(one.prompts.waiting) + len(one.prompts.asking) for one in (*alive, *fleet.decoders))
    if progress is not None and request.number % EVERY == 0:
        progress(request.number)
    if request.longest > most:
        recorder.refuse()
        load.finished(request.arrival)
        return
    if fleet.handover is not None:
        prompt, asked = fleet.handover.arrive(request, arrival)
        if asked is not None:
            clock.changed(asked)
        if prompt is not None:
            _submit(fleet, prompt, arrival, clock)
        return
    if not fleet.received:
        _submit(fleet, Sequence(request), arrival, clock)
        return
    sequence = received(request, arrival)
    if sequence.left:
        _submit(fleet, sequence, arrival, clock)
    else:
        recorder.finished(sequence, arrival)


def _submit(fleet: Fleet, sequence: Sequence, now: float, clock: Clock) -> None:
    """Send a sequence to the engine that the router picks."""
    alive = fleet.alive
    chosen = alive[fleet.router(sequence.request, alive)] if len(alive) > 1 else alive[0]
    chosen.submit(sequence, now)
    clock.changed(chosen)


def _hand_over(fleet: Fleet, handover: Handover, engine: Engine, now: float, clock: Clock) -> None:
    """What a step let go on elsewhere: prompts that blocks were taken for, and those that are computed."""
    for sequence in engine.granted:
        prompt = handover.granted(sequence, now)
        if prompt is not None:
            _submit(fleet, prompt, now, clock)
    engine.granted.clear()
    for asked in handover.asked(now):
        clock.changed(asked)


def _report(load: Load, recorder: Recorder, done: int, now: float) -> int:
    """Let the load know of answers beyond the first `done`; how many there are now."""
    count = recorder.finished_count
    for _ in range(count - done):
        load.finished(now)
    return count


def _retry(fleet: Fleet, lost: Engine, now: float, clock: Clock) -> None:
    """What a lost engine held is sent to the others, in the order that it would have had there."""
    orphans, lost.orphans = lost.orphans, []
    for sequence in orphans:
        _submit(fleet, sequence, now, clock)
