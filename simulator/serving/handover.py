"""Prefill and decode on different engines: prompts are computed by some, their KV cache travels, others go on."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from simulator.serving.engine.engine import Engine
from simulator.serving.recorder import Recorder
from simulator.serving.request import Request, Sequence, received


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLink:
    """How a KV cache travels.

    Parameters
    ----------
    seconds_per_token : time that the cache of a token takes on the narrower side [s].
    latency : time until the first byte arrives [s].
    layers : layers of the model; with each a part of the cache is ready, which travels while the next is computed.
    """

    seconds_per_token: float
    latency: float
    layers: int

    def exposed(self, tokens: int, computing: float) -> tuple[float, float]:
        """Time that the cache of so many tokens keeps the link busy, and what of it comes behind their computation,
        which took `computing` [s]."""
        busy = tokens * self.seconds_per_token
        return busy, self.latency + max(busy / self.layers, busy - computing * (1.0 - 1.0 / self.layers))


class Handover:
    """Listens to the engines that compute prompts, and sends on what they made.

    Parameters
    ----------
    recorder : what users see.
    link : how the KV cache travels; each engine has one, which takes one cache after the other.
    """

    def __init__(self, recorder: Recorder, link: KvLink) -> None:
        self._recorder, self._link = recorder, link
        self._asked: dict[int, Request] = {}  # as the user sent them
        self._under_way: list[tuple[float, int, Sequence]] = []
        self._free: dict[int, float] = {}  # engine -> when its link is free [s]
        self._last: Engine | None = None

    def prompt_of(self, request: Request) -> Sequence:
        """What an engine for prompts works on: all up to the first token."""
        self._asked[request.number] = request
        return Sequence(request._replace(output_tokens=1))

    def next_time(self) -> float:
        """When the next cache arrives; infinity where none is under way [s]."""
        return self._under_way[0][0] if self._under_way else inf

    def take(self) -> Sequence:
        """The sequence whose cache has arrived."""
        return heappop(self._under_way)[2]

    def gap(self, seconds: float, count: int) -> None:
        """Prompts have one token each, or are computed anew: no gap that a user sees."""

    def along(self, count: int) -> None:
        """See `gap`."""

    def stepped(self, since: float, until: float, engine: Engine) -> None:
        """See `simulator.serving.engine.engine.Listener`."""
        self._last = engine
        self._recorder.stepped(since, until, engine)

    def finished(self, sequence: Sequence, now: float) -> None:
        """The first token is there: the cache leaves, unless it was all."""
        request = self._asked.pop(sequence.request.number)
        whole = received(request, now)
        whole.hits = sequence.hits
        whole.host_hits, whole.disk_hits = sequence.host_hits, sequence.disk_hits
        whole.started, whole.first = sequence.started, sequence.first
        whole.preemptions = sequence.preemptions
        if request.output_tokens == 1:
            self._recorder.finished(whole, now)
            return
        busy, behind = self._link.exposed(request.input_tokens, now - sequence.started)
        key = id(self._last)
        arrives = max(now + behind, self._free.get(key, 0.0) + busy + self._link.latency)
        self._free[key] = arrives - self._link.latency
        whole.received = arrives
        heappush(self._under_way, (arrives, request.number, whole))
