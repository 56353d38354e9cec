"""The event loop: requests arrive, a router sends them to engines, engines run steps."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from math import inf

from simulator.serving.engine.engine import Engine
from simulator.serving.load.sources import Load
from simulator.serving.recorder import Recorder
from simulator.serving.request import Sequence
from simulator.serving.routers import Router

EVERY = 1024
"""Requests between two reports of progress."""


def replay(
    load: Load,
    engines: Items[Engine],
    router: Router,
    recorder: Recorder,
    *,
    longest: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Run until every request is answered.

    Parameters
    ----------
    load : requests in order of arrival.
    engines : replicas.
    router : picks one for each request.
    recorder : what is to be known afterwards; the engines' listener.
    longest : most tokens of a prompt and its answer that the model can take; longer ones are refused.
    progress : called now and then with the number of requests that have arrived.
    """
    frontend = engines[0].scheduler.frontend
    capacity = min(engine.kv.blocks * engine.kv.size for engine in engines)
    most = capacity if longest is None else min(capacity, longest)
    done = 0
    while True:
        engine = min(engines, key=_until) if len(engines) > 1 else engines[0]
        arrival = load.next_time() + frontend
        if engine.until < arrival or (engine.until == arrival and (engine.works or arrival == inf)):
            if engine.until == inf:
                return
            now = engine.until
            engine.complete()
            while done < recorder.finished_count:
                done += 1
                load.finished(now)
            continue
        request = load.take()
        recorder.arrive(request, sum(len(one.prompts.waiting) for one in engines))
        if progress is not None and request.number % EVERY == 0:
            progress(request.number)
        if request.longest > most:
            recorder.refuse()
            load.finished(request.arrival)
            continue
        chosen = engines[router(request, engines)] if len(engines) > 1 else engine
        chosen.submit(Sequence(request), arrival)


def _until(engine: Engine) -> float:
    return engine.until
