"""A window of a replay as a Chrome trace, for ui.perfetto.dev: steps of engines, and what each request waited for.

Everything is taken from the steps as they ran: a request is in prefill or decode while a step works on it, so that
one that was put back waits again. A lane holds one request after the other.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain
from pathlib import Path
from typing import Any

from reports.export.files import replacing
from reports.export.trace_counters import nanoseconds
from simulator.errors import InputError
from simulator.serving.engine.engine import Engine
from simulator.serving.request import Sequence

MOST = 500_000
"""Events of engines beyond which a window is refused: viewers become slow [1]."""
REQUESTS, ENGINES, LANES = 1, 2, 1001
"""Process of the requests, of the first engine, and thread of the first lane of requests."""
Event = dict[str, Any]
Phase = tuple[str, float, float]
"""Name, beginning and end [s]."""


@dataclass(slots=True)
class _Life:
    """Phases in which steps of the window worked on a request."""

    phases: list[Phase] = field(default_factory=list)

    def add(self, name: str, since: float, until: float) -> None:
        """The request was in a phase; it goes on where the last one of the same name ended."""
        if self.phases and self.phases[-1][0] == name and since <= self.phases[-1][2]:
            name, since, _ = self.phases.pop()
        self.phases.append((name, since, until))


class RequestTrace:
    """Gathers what runs in a window of time.

    Parameters
    ----------
    start, end : the window [s].
    """

    def __init__(self, start: float, end: float) -> None:
        self.start, self.end = start, end
        self.events: list[bytes] = []
        self._processes: dict[str, int] = {}
        self._lives: dict[int, _Life] = {}
        self._done: list[tuple[float, int, float, Sequence, list[Phase]]] = []

    def stepped(self, since: float, until: float, engine: Engine) -> None:
        """Steps ran on an engine; each one in the window is an event."""
        if until < self.start or since > self.end:
            return
        process = self._processes.setdefault(engine.name, ENGINES + len(self._processes))
        batch = len(engine.decoding.members) if engine.ahead else 0
        prompts = sum(chunk.tokens for chunk in engine.chunks)
        name = " + ".join([*([f"prefill {prompts}"] if prompts else []), *([f"decode {batch}"] if batch else [])])
        steps = [since + engine.span(at) for at in range(max(1, engine.ahead))] + [until]
        inside = [at for at in range(len(steps) - 1) if steps[at + 1] >= self.start and steps[at] <= self.end]
        for at in inside:
            cached = engine.decoding.context + at * batch
            about = {"sequences": batch, "prompt_tokens": prompts, "cached_tokens": cached}
            self._put(_slice(process, process, name, steps[at], steps[at + 1], about))
        since, until = steps[inside[0]], steps[inside[-1] + 1]
        counts = {"waiting": len(engine.prompts.waiting), "running": engine.running}
        self._put(_counter(process, "requests", since, counts))
        self._put(_counter(process, "KV cache in use", since, {"blocks": engine.kv.used}))
        for sequence, _ in engine.chunks:
            self._life(sequence).add("prefill", since, until)
        for sequence in engine.decoding.members if batch else ():
            self._life(sequence).add("decode", since, until)

    def finished(self, sequence: Sequence, now: float) -> None:
        """A request has its last token."""
        request = sequence.request
        life = self._lives.pop(request.number, None)
        if now < self.start or request.arrival > self.end:
            return
        seen = life.phases if life else []
        since = min([max(request.arrival, self.start), *(one[1] for one in seen[:1])])
        until = max([min(now, self.end), *(one[2] for one in seen[-1:])])
        phases = list(_filled(sequence, since, until, seen))
        self._done.append((since, request.number, until, sequence, phases))

    def write(self, path: Path) -> int:
        """Write the file, compressed unless the name ends in `.json`; returns the number of events."""
        with replacing(path) as raw:
            if path.name.endswith(".json"):
                return self._write(raw.write)
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=5, mtime=0) as packed:
                return self._write(packed.write)

    def _write(self, put: Callable[[bytes], int]) -> int:
        put(b'{"displayTimeUnit":"ms","otherData":{"program":"foretrain"},"traceEvents":[\n')
        count = 0
        for event in chain(map(_text, self._names()), self.events, map(_text, self._requests())):
            put(b",\n" + event if count else event)
            count += 1
        put(b"\n]}\n")
        return count

    def _put(self, event: Event) -> None:
        if len(self.events) >= MOST:
            raise InputError(f"--window: holds more than {MOST:,} events; take a shorter one")
        self.events.append(_text(event))

    def _life(self, sequence: Sequence) -> _Life:
        return self._lives.setdefault(sequence.request.number, _Life())

    def _names(self) -> Iterator[Event]:
        """Names of processes and threads."""
        for order, (name, process) in enumerate([*self._processes.items(), ("requests", REQUESTS)]):
            yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}}
            yield {"ph": "M", "pid": process, "name": "process_sort_index", "args": {"sort_index": order}}
        for process in self._processes.values():
            yield {"ph": "M", "pid": process, "tid": process, "name": "thread_name", "args": {"name": "steps"}}

    def _requests(self) -> Iterator[Event]:
        """Every request of the window in a lane: itself, and below it what it was in."""
        free: list[int] = []
        ending: list[tuple[float, int]] = []
        for since, number, until, sequence, phases in sorted(self._done, key=lambda one: one[:2]):
            while ending and ending[0][0] <= since:
                heappush(free, heappop(ending)[1])
            lane = heappop(free) if free else LANES + len(ending)
            heappush(ending, (until, lane))
            request = sequence.request
            about = {
                "input_tokens": request.input_tokens,
                "output_tokens": request.output_tokens,
                "cached_tokens": sequence.hits,
                "arrival_s": request.arrival,
                "ttft_s": sequence.first - request.arrival,
                "preemptions": sequence.preemptions,
            }
            yield _slice(REQUESTS, lane, f"request {number}", since, until, about)
            for name, begin, end in phases:
                if nanoseconds(end) > nanoseconds(begin):  # else Perfetto puts it next to the request, not into it
                    yield _slice(REQUESTS, lane, name, begin, end, {})


def _text(event: Event) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


def _between(sequence: Sequence, since: float, until: float) -> Iterator[Phase]:
    """What a request does while no step works on it: its KV cache travels, or it waits."""
    if sequence.first <= since < sequence.received:
        yield "KV transfer", since, min(until, sequence.received)
        since = min(until, sequence.received)
    if since < until:
        yield "waiting", since, until


def _filled(sequence: Sequence, since: float, until: float, seen: list[Phase]) -> Iterator[Phase]:
    """All phases between two times, given those in which steps worked on the request."""
    for name, begin, end in seen:
        yield from _between(sequence, since, begin)
        yield name, begin, end
        since = end
    yield from _between(sequence, since, until)


def _slice(process: int, thread: int, name: str, since: float, until: float, args: Mapping[str, Any]) -> Event:
    """A complete event; times are whole nanoseconds in microseconds, so that slices touch and nest."""
    begin, end = nanoseconds(since), nanoseconds(until)
    where = {"ph": "X", "pid": process, "tid": thread, "name": name}
    return where | {"ts": begin / 1e3, "dur": (end - begin) / 1e3, "args": dict(args)}


def _counter(process: int, name: str, at: float, values: Mapping[str, int]) -> Event:
    return {"ph": "C", "pid": process, "name": name, "ts": nanoseconds(at) / 1e3, "args": dict(values)}
