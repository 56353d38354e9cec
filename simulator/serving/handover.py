"""Prefill and decode on different engines: prompts are computed by some, their KV caches travel, others go on.

Where caches are pushed, the engine that will go on takes blocks for the whole prompt first, and only then is the prompt
computed: what it has no room for waits before its prefill (SGLang's decode pre-allocation queue, sgl-project/sglang,
disaggregation/decode.py, 2025; Mooncake's, arXiv 2407.00079, section 5, pushes layer by layer, SGLang chunk by chunk).
Where they are pulled, the prompt is computed first, and its blocks stay with the engine that computed it until the
other one has room and has read all of them (vLLM's NIXL connector, docs.vllm.ai, 2026; so does TensorRT-LLM).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from simulator.serving.engine.engine import Engine
from simulator.serving.recorder import Recorder
from simulator.serving.request import Request, Sequence, received
from simulator.spec.scheduler import KvHandover


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLink:
    """How a KV cache travels.

    Parameters
    ----------
    sending, receiving : time that the cache of a token keeps the link of a GPU busy that sends it, or receives it [s].
    latency : time until the first byte arrives [s].
    layers : layers of the model; with each a part of the cache is ready.
    handover : what travels while the rest is computed, and who takes blocks when.
    """

    sending: float
    receiving: float
    latency: float
    layers: int
    handover: KvHandover = "layers"

    def exposed(self, tokens: int, last: int, computing: float, last_step: float) -> float:
        """Time from the end of a prompt's computation until the cache of so many tokens is there, if nothing else
        travels: `last` of them were computed in the last step of `last_step`, all in `computing` [s]."""
        busy = tokens * max(self.sending, self.receiving)
        if self.handover == "layers":
            return self.latency + max(busy / self.layers, busy - computing * (1.0 - 1.0 / self.layers))
        return self.latency + max(busy * last / tokens, busy - (computing - last_step))


@dataclass(slots=True)
class _Way:
    """A request that is computed here and goes on there.

    Parameters
    ----------
    request : as the user sent it.
    sequence : what goes on.
    to : engine that goes on.
    source : engine that holds the computed prompt, and its sequence there, until it is read.
    """

    request: Request
    sequence: Sequence
    to: Engine | None = None
    source: tuple[Engine, Sequence] | None = None


class Handover:
    """Listens to the engines that compute prompts, and sends on what they made.

    Parameters
    ----------
    recorder : what users see.
    link : how KV caches travel; each GPU has one link, which takes one cache after the other.
    decoders : engines that go on.
    """

    def __init__(self, recorder: Recorder, link: KvLink, decoders: Items[Engine]) -> None:
        self._recorder, self._link, self._decoders = recorder, link, decoders
        self._ways: dict[int, _Way] = {}
        self._arriving: list[tuple[float, int]] = []
        self._free: dict[tuple[int, int], float] = {}  # engine, rank -> when their links are free [s]
        self._step: tuple[Engine, float] | None = None  # that is over now, and how long it took [s]
        self._computed: list[_Way] = []  # which wait to be pulled

    def arrive(self, request: Request, now: float) -> tuple[Sequence | None, Engine | None]:
        """A request comes: the prompt to compute now, or the engine that must take blocks for it first."""
        way = self._ways[request.number] = _Way(request, received(request, now))
        if self._link.handover == "pull" or request.output_tokens == 1:
            return prompt_of(request), None
        return None, self._ask(way, now)

    def _ask(self, way: _Way, now: float) -> Engine:
        way.to = min(self._decoders, key=_load)
        way.to.ask(way.sequence, now)
        return way.to

    def asked(self, now: float) -> list[Engine]:
        """Engines that are asked for blocks as prompts have been computed for them."""
        found, self._computed = [self._ask(way, now) for way in self._computed], []
        return found

    def granted(self, sequence: Sequence, now: float) -> Sequence | None:
        """An engine has taken blocks: the prompt to compute, or none where its cache begins to travel now."""
        way = self._ways[sequence.request.number]
        if way.source is None:
            return prompt_of(way.request)
        source, computed = way.source
        begins = max(now, self._idle(source, computed.rank), self._idle(way.to, sequence.rank))
        busy = way.request.input_tokens * max(self._link.sending, self._link.receiving)
        self._send(way, begins + busy + self._link.latency, source, computed.rank)
        return None

    def next_time(self) -> float:
        """When the next cache arrives; infinity where none is under way [s]."""
        return self._arriving[0][0] if self._arriving else inf

    def take(self, now: float) -> list[Engine]:
        """A cache has arrived: the engine that goes on, and the one that held it until then."""
        way = self._ways.pop(heappop(self._arriving)[1])
        assert way.to is not None
        way.to.arrive(way.sequence, now)
        if way.source is None:
            return [way.to]
        source, computed = way.source
        source.let_go(computed, now)
        return [way.to, source]

    def gap(self, seconds: float, count: int) -> None:
        """Prompts have one token each, or are computed anew: no gap that a user sees."""

    def along(self, count: int) -> None:
        """See `gap`."""

    def stepped(self, since: float, until: float, engine: Engine) -> None:
        """See `simulator.serving.engine.engine.Listener`."""
        self._step = engine, until - since
        self._recorder.stepped(since, until, engine)

    def finished(self, sequence: Sequence, now: float) -> None:
        """The first token is there: the cache leaves, unless it was all."""
        assert self._step is not None
        engine, took = self._step
        way = self._ways[sequence.request.number]
        whole, request = way.sequence, way.request
        whole.hits, whole.preemptions = sequence.hits, sequence.preemptions
        whole.host_hits, whole.disk_hits = sequence.host_hits, sequence.disk_hits
        whole.started, whole.first, whole.last, whole.sent_at = sequence.started, sequence.first, now, now
        if request.output_tokens == 1:
            del self._ways[request.number]
            if engine.keeps:
                engine.let_go(sequence, now)
            self._recorder.finished(whole, now)
        elif engine.keeps:
            way.source = engine, sequence
            self._computed.append(way)
        else:
            last = next(chunk.tokens for chunk in engine.chunks if chunk.sequence is sequence)
            tokens, link = request.input_tokens, self._link
            behind = link.exposed(tokens, last, now - sequence.started, took)
            sent = self._idle(engine, sequence.rank) + tokens * link.sending
            got = self._idle(way.to, whole.rank) + tokens * link.receiving
            self._send(way, max(now + behind, max(sent, got) + link.latency), engine, sequence.rank)

    def _idle(self, engine: Engine | None, rank: int) -> float:
        """When the links of a rank of an engine are free [s]."""
        return self._free.get((id(engine), rank), 0.0)

    def _send(self, way: _Way, arrives: float, source: Engine, rank: int) -> None:
        """A cache is under way until then, and both its ends with it."""
        for end in ((id(source), rank), (id(way.to), way.sequence.rank)):
            self._free[end] = max(self._free.get(end, 0.0), arrives - self._link.latency)
        way.sequence.received = arrives
        heappush(self._arriving, (arrives, way.request.number))


def prompt_of(request: Request) -> Sequence:
    """What an engine for prompts works on: all up to the first token."""
    return Sequence(request._replace(output_tokens=1))


def _load(engine: Engine) -> int:
    return engine.load
