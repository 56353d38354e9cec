"""What users see of a replay, gathered as it runs, in memory that does not grow with the number of requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING, NamedTuple

from simulator.serving.request import Request, Sequence
from simulator.serving.sketch import Sketch

if TYPE_CHECKING:
    from simulator.serving.engine.engine import Engine

BUCKETS = 512
"""Most intervals of a time series; beyond, two become one."""
SERIES = ("waiting", "running", "kv_blocks", "output_tokens", "input_tokens", "busy", "cached_tokens")


class Ran(NamedTuple):
    """A step that ran, as one data-parallel rank sees it: `batch` sequences decoded with a mean of `context` cached
    tokens, next to `prompts` prompts with `tokens` new and `cached` earlier ones each (rounded means)."""

    batch: int
    context: float
    prompts: int
    tokens: int
    cached: int


KEPT = 16
"""Steps that are remembered; beyond twice as many, every second one is dropped."""


class Series:
    """Sums over intervals of equal width, which doubles as time goes on."""

    __slots__ = ("sums", "width")

    def __init__(self, width: float = 1.0 / 64) -> None:
        self.width = width
        self.sums: list[list[float]] = []

    def add(self, since: float, until: float, values: tuple[float, ...]) -> None:
        """Spread `values` evenly over the time between `since` and `until` [s]."""
        while until >= self.width * BUCKETS:
            self._halve()
        sums, width = self.sums, self.width
        first, last = int(since / width), int(until / width)
        while len(sums) <= last:
            sums.append([0.0] * len(SERIES))
        if first == last:
            sums[first] = [a + b for a, b in zip(sums[first], values, strict=True)]
            return
        span = until - since
        for number in range(first, last + 1):
            share = (min(until, (number + 1) * width) - max(since, number * width)) / span
            row = sums[number]
            for at, value in enumerate(values):
                row[at] += value * share

    def _halve(self) -> None:
        self.width *= 2
        sums = self.sums
        if len(sums) % 2:
            sums.append([0.0] * len(SERIES))
        self.sums = [[a + b for a, b in zip(sums[n], sums[n + 1], strict=True)] for n in range(0, len(sums), 2)]


class Recorder:
    """Listens to engines.

    Parameters
    ----------
    limits : service level of a request: bounds on some of ttft, tpot and e2e [s].
    answered : each called with every finished request's sequence and time, before it is forgotten.
    watched : called with beginning, end and engine of steps that ran (several where only decodes follow each other).
    """

    def __init__(
        self,
        limits: Mapping[str, float] | None = None,
        answered: Items[Callable[[Sequence, float], None]] = (),
        watched: Callable[[float, float, Engine], None] | None = None,
    ) -> None:
        self.limits, self._answered, self._watched = dict(limits or {}), answered, watched
        self.ttft, self.tpot, self.e2e, self.queue = Sketch(), Sketch(), Sketch(), Sketch()
        self.gaps = Sketch()  # between messages with tokens
        self.together = 0  # tokens that came along with the one before them
        self.series = Series()
        self.arrived = self.finished_count = self.refused = self.good = 0
        self.inputs = self.outputs = self.hits = 0  # tokens of finished requests, and found in the prefix cache
        self.host_hits = self.disk_hits = 0  # of these, below HBM
        self.preempted = 0  # finished requests that were put back at least once
        self.begin, self.end, self.last_arrival = 0.0, 0.0, 0.0
        self.backlog = 0  # requests that waited when the last one arrived
        self.peak_waiting = self.peak_running = 0
        self.peak_use = 0.0  # share of an engine's blocks
        self.steps = 0
        self.ran: list[Ran] = []
        self._stride = self._until_kept = 1

    @property
    def itl(self) -> Sketch:
        """Gaps between tokens: tokens of one message come together [s]."""
        return self.gaps.with_zeros(self.together)

    @property
    def areas(self) -> list[float]:
        """Sums over all time of what the series have."""
        return [sum(row[at] for row in self.series.sums) for at in range(len(SERIES))]

    def arrive(self, request: Request) -> None:
        """A request was sent."""
        if not self.arrived:
            self.begin = self.end = request.arrival
        self.arrived += 1
        self.last_arrival = request.arrival

    def refuse(self) -> None:
        """A request is too long for the KV cache or the model."""
        self.refused += 1

    def gap(self, seconds: float, count: int) -> None:
        """See `simulator.serving.engine.engine.Listener`."""
        self.gaps.add(seconds, count)

    def along(self, count: int) -> None:
        """See `simulator.serving.engine.engine.Listener`."""
        self.together += count

    def finished(self, sequence: Sequence, now: float) -> None:
        """See `simulator.serving.engine.engine.Listener`."""
        request = sequence.request
        outputs = request.output_tokens
        ttft, e2e = sequence.first - request.arrival, now - request.arrival
        tpot = (now - sequence.first) / (outputs - 1) if outputs > 1 else 0.0
        self.ttft.add(ttft)
        self.e2e.add(e2e)
        if outputs > 1:
            self.tpot.add(tpot)
        self.queue.add(sequence.started - request.arrival)
        self.finished_count += 1
        self.inputs += request.input_tokens
        self.outputs += outputs
        self.hits += sequence.hits
        self.host_hits += sequence.host_hits
        self.disk_hits += sequence.disk_hits
        self.preempted += 1 if sequence.preemptions else 0
        self.end = max(self.end, now)
        limits = self.limits
        if not limits or (
            ttft <= limits.get("ttft", ttft) and tpot <= limits.get("tpot", tpot) and e2e <= limits.get("e2e", e2e)
        ):
            self.good += 1
        for each in self._answered:
            each(sequence, now)

    def stepped(self, since: float, until: float, engine: Engine) -> None:
        """See `simulator.serving.engine.engine.Listener`."""
        span = until - since
        waiting = len(engine.prompts.waiting) + len(engine.prompts.asking)
        running, used = engine.running, engine.kv.used
        self.steps += max(1, engine.ahead)
        if waiting > self.peak_waiting:
            self.peak_waiting = waiting
        if running > self.peak_running:
            self.peak_running = running
        if used > self.peak_use * engine.kv.blocks:
            self.peak_use = used / engine.kv.blocks
        prompts = cached = 0
        for sequence, tokens in engine.chunks:
            prompts += tokens
            if sequence.computed == sequence.hits:  # its first part
                cached += sequence.hits
        made = engine.ahead * len(engine.decoding.members) + engine.decoding.extra
        values = (waiting * span, running * span, used * span, float(made), float(prompts), span, float(cached))
        self.series.add(since, until, values)
        self._until_kept -= 1
        if not self._until_kept:
            self._keep(engine)
        if self._watched is not None:
            self._watched(since, until, engine)

    def _keep(self, engine: Engine) -> None:
        """Remember the shape of a step; fewer and fewer as time goes on, evenly spread."""
        decoding, chunks = engine.decoding, engine.chunks
        batch = decoding.most if engine.ahead else 0
        context = decoding.context / len(decoding.members) if batch else 0.0
        if chunks:
            mine = (
                chunks if engine.ranks == 1 else [one for one in chunks if one.sequence.rank == chunks[0].sequence.rank]
            )
            tokens = round(sum(chunk.tokens for chunk in mine) / len(mine))
            cached = round(sum(chunk.sequence.computed for chunk in mine) / len(mine))
            self.ran.append(Ran(batch, context, len(mine), tokens, cached))
        else:
            self.ran.append(Ran(batch, context, 0, 0, 0))
        if len(self.ran) >= 2 * KEPT:
            self.ran = self.ran[1::2]
            self._stride *= 2
        self._until_kept = self._stride
