"""How long a step of an engine takes: forecasts of whole steps at the nodes of a grid, and what lies between them.

Every node is a forecast of `foretrain simulate` (same op graph, kernel costs and engine), computed when it is first
asked for. A step is given by its running sequences and their mean context, and by the new tokens of prompts with the
mean number of tokens that each attends to; both sums of attention, and so their times, follow from these four.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from simulator.engine.des import simulate as run_events
from simulator.engine.longest_path import longest_path
from simulator.engine.lower import price_model
from simulator.estimate.serving_step import limited, lines_of, step_of
from simulator.spec.scenario import Scenario
from simulator.spec.scheduler import Scheduler
from simulator.spec.stack import LIBRARY
from simulator.spec.workload import WorkloadName

PER_OCTAVE = 4
"""Nodes from one power of two to the next, of contexts, of prompt tokens, and of batches without a graph."""
FIRST_CONTEXT = 128
"""First node of contexts behind 0 [tokens]."""
DENSE_CONTEXT = 2048
"""Up to here contexts have `PER_OCTAVE` nodes an octave, since kernels cut them into few parts; then one [tokens]."""
LONGEST = 1 << 24
"""Longest context of the grid [tokens]."""


def _octaves(first: int, most: int, each: int = PER_OCTAVE) -> Iterator[int]:
    """Nodes from a power of two up to the first at or above `most`, `each` an octave."""
    power = first
    yield first
    while power < most:
        yield from (power + power * part // each for part in range(1, each + 1))
        power *= 2


_CONTEXTS = (0, *_octaves(FIRST_CONTEXT, DENSE_CONTEXT), *_octaves(2 * DENSE_CONTEXT, LONGEST, 1))
_CACHED = (0, *_octaves(FIRST_CONTEXT, LONGEST, 1))
"""Nodes of cached tokens of prompts, in which time is nearly a straight line [tokens]."""


def prompt_nodes(most: int) -> list[int]:
    """Numbers of prompt tokens at which steps are forecast: all up to 8, then `PER_OCTAVE` an octave, past `most`."""
    return [*range(8), *_octaves(8, most)]


class Pace(NamedTuple):
    """Time of a decode step at some context, and how it goes on.

    Attributes
    ----------
    seconds : time of the step [s].
    slope : what one token more of mean context adds [s].
    steps : consecutive steps for which the slope holds, each with one token more.
    """

    seconds: float
    slope: float
    steps: int


class StepTimes(Protocol):
    """What an engine must know of its steps."""

    def decode(self, batch: int, context: float) -> Pace:
        """A step in which `batch` sequences with a mean of `context` cached tokens get one token each."""

    def mixed(self, batch: int, context: float, tokens: int, attended: float) -> float:
        """A step that also computes `tokens` of prompts, each attending to `attended` tokens in the mean [s]."""


class StepForecasts:
    """Forecasts of steps of one deployment, one rank's view: exact at any shape, and slow."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        serving = scenario.job.serving
        assert serving is not None
        self.serving = serving
        self.unit = 2 if serving.two_batch_overlap else 1
        shared = scenario.model.is_moe and scenario.job.layout.ep > 1 and scenario.stack.dispatcher not in LIBRARY
        self.engine = run_events if shared else longest_path  # equal where nothing is shared, and quicker
        self.made = 0  # forecasts so far

    def decode(self, batch: int, context: int, *, graph: bool) -> float:
        """One token more of each of `batch` sequences [s]."""
        return self._seconds("decode", sequences=self._even(batch), tokens=1, context=context, cuda_graphs=graph)

    def prefill(self, prompts: int, tokens: int, context: int, *, graph: bool) -> float:
        """`tokens` new ones of each of `prompts` prompts of which `context` are cached [s]."""
        if prompts % self.unit:  # one prompt in both microbatches: the second half attends to the first
            prompts, tokens = 2 * prompts, max(1, round(tokens / 2))
            context += tokens // 2
        return self._seconds("prefill", sequences=prompts, tokens=tokens, context=context, cuda_graphs=graph)

    def mixed(self, batch: int, context: int, tokens: int, cached: int, *, graph: bool) -> float:
        """One token more of each sequence, and `tokens` of a prompt of which `cached` are cached; two microbatches do
        not overlap in such a step [s]."""
        return self._seconds(
            "decode",
            sequences=batch,
            tokens=1,
            context=context,
            cuda_graphs=graph,
            prefill_tokens=tokens,
            prefill_context=cached,
            two_batch_overlap=False,
        )

    def _even(self, batch: int) -> int:
        return -(-batch // self.unit) * self.unit

    def _seconds(self, workload: WorkloadName, **step: Any) -> float:
        self.made += 1
        serving = replace(self.serving, **{"prefill_tokens": 0, "prefill_context": 0, **step})
        asked = replace(self.scenario, job=replace(self.scenario.job, workload=workload, serving=serving))
        lines = lines_of(price_model(asked, 1))
        factor, _ = limited(lines)
        if factor > 1.0:
            lines = lines_of(price_model(asked, 1, pace=factor))
        return step_of(lines, self.engine)


class Row(NamedTuple):
    """Decode steps of one batch: contexts, and times where they are known already."""

    times: dict[int, float]
    of: Callable[[int], float]

    def at(self, node: int) -> float:
        """Time at the node of this number [s]."""
        found = self.times.get(node)
        if found is None:
            found = self.times[node] = self.of(_CONTEXTS[node])
        return found


class StepTable:
    """Times of steps by interpolation, as an engine with this scheduler pads and issues them."""

    def __init__(self, forecasts: StepForecasts, scheduler: Scheduler) -> None:
        self.forecasts, self.scheduler = forecasts, scheduler
        self.captured = scheduler.captured
        self.largest = max(self.captured, default=0)
        self._rows: dict[int, Row] = {}
        self._plain: dict[int, float] = {}
        self._beyond: dict[tuple[int, int], float] = {}
        self._nodes = prompt_nodes(max(2 * scheduler.step_tokens, LONGEST))  # a prompt may be uncut
        self._lines: dict[tuple[int, int], tuple[float, float]] = {}
        self._joined: dict[tuple[int, int], float] = {}

    # -- decode -------------------------------------------------------------------------------------------------

    def padded(self, batch: int) -> int:
        """The batch that runs: the next captured one, or itself where none is as large."""
        if batch > self.largest:
            return batch
        return self.captured[bisect_right(self.captured, batch - 1)]

    def decode(self, batch: int, context: float) -> Pace:
        """See `StepTimes`. Places that pad a batch have nothing cached, so that the mean context of all is shorter."""
        padded = self.padded(batch)
        share = batch / padded
        mean = context * share
        node = bisect_right(_CONTEXTS, mean) - 1
        found = self._lines.get((padded, node))
        if found is None:
            found = self._lines[padded, node] = self._line(padded, node)
        start, slope = found
        return Pace(
            start + slope * (mean - _CONTEXTS[node]), slope * share, int((_CONTEXTS[node + 1] - mean) / share) + 1
        )

    def _line(self, batch: int, node: int) -> tuple[float, float]:
        """Time at a node of contexts [s], and slope up to the next [s/token]."""
        low, high = self._at(batch, node), self._at(batch, node + 1)
        return low, (high - low) / (_CONTEXTS[node + 1] - _CONTEXTS[node])

    def _at(self, batch: int, node: int) -> float:
        if batch <= self.largest:
            return self._row(batch, graph=True).at(node)
        low = self._nodes[bisect_right(self._nodes, batch) - 1] if batch <= self._nodes[-1] else batch
        if low == batch:
            return self._row(batch, graph=False).at(node)
        high = self._nodes[bisect_right(self._nodes, batch)]
        below, above = self._row(low, graph=False).at(node), self._row(high, graph=False).at(node)
        return below + (above - below) * (batch - low) / (high - low)

    def _row(self, batch: int, *, graph: bool) -> Row:
        key = batch if graph else -batch
        found = self._rows.get(key)
        if found is None:

            def forecast(context: int) -> float:
                return self.forecasts.decode(batch, context, graph=graph)

            found = self._rows[key] = Row({}, forecast)
        return found

    # -- prompts ------------------------------------------------------------------------------------------------

    def mixed(self, batch: int, context: float, tokens: int, attended: float) -> float:
        """See `StepTimes`. A step of both with nothing cached, what the sequences' contexts add to a decode step, and
        what the prompts' add to a step of prompts."""
        prompts = self.prefill(tokens, attended)
        if not batch:
            return prompts
        alone = self.prefill(tokens, tokens / 2)
        together = self.prefill(tokens + batch, (tokens + batch) / 2)
        cached = self.decode(batch, context).seconds - self._at(self.padded(batch), 0)
        return prompts - alone + together + cached + self._joining(batch, tokens)

    def _joining(self, batch: int, tokens: int) -> float:
        """What a step of both takes longer than one whose tokens are all of one prompt, nothing cached [s].

        Bilinear between powers of two.
        """
        first, second = batch.bit_length() - 1, tokens.bit_length() - 1
        along, across = batch / (1 << first) - 1.0, tokens / (1 << second) - 1.0
        low = self._join(first, second) * (1 - along) + (self._join(first + 1, second) * along if along else 0.0)
        if not across:
            return low
        high = self._join(first, second + 1) * (1 - along) + (self._join(first + 1, second + 1) * along if along else 0)
        return low * (1 - across) + high * across

    def _join(self, first: int, second: int) -> float:
        found = self._joined.get((first, second))
        if found is None:
            batch, tokens = 1 << first, 1 << second
            graph = self._graph(batch + tokens)
            both = self.forecasts.mixed(batch, 0, tokens, 0, graph=graph)
            found = both - self.forecasts.prefill(1, batch + tokens, 0, graph=graph)
            self._joined[first, second] = found
        return found

    def prefill(self, tokens: int, attended: float) -> float:
        """A step over `tokens` of prompts [s]."""
        nodes, extra = self._nodes, attended - tokens / 2
        at = bisect_right(nodes, tokens) - 1
        low = nodes[at]
        below = self._column(low, extra)
        if low == tokens:
            return below
        high = nodes[at + 1]
        return below + (self._column(high, extra) - below) * (tokens - low) / (high - low)

    def _one(self, tokens: int) -> float:
        """One prompt of so many tokens, nothing cached [s]."""
        found = self._plain.get(tokens)
        if found is None:
            found = self._plain[tokens] = self.forecasts.prefill(1, tokens, 0, graph=self._graph(tokens))
        return found

    def _column(self, tokens: int, extra: float) -> float:
        """A step at a node of tokens, each of which attends to `extra` more than in one prompt with nothing cached [s].

        Less than 0: there are several prompts.
        """
        if not tokens:
            return 0.0
        seconds = self._one(tokens)
        if not extra:
            return seconds
        if extra < 0:
            return seconds + self._shorter(tokens, extra)
        node = bisect_right(_CACHED, extra) - 1
        below, above = self._cached(tokens, node), self._cached(tokens, node + 1)
        return seconds + below + (above - below) * (extra - _CACHED[node]) / (_CACHED[node + 1] - _CACHED[node])

    def _shorter(self, tokens: int, extra: float) -> float:
        """What several prompts save: nodes are 2 prompts of half the tokens, 4 of a quarter ... (at most 0) [s]."""
        near, halves = 0.0, 1
        while 2 << halves <= tokens and tokens / 2 * (0.5**halves - 1) > extra:
            near, halves = tokens / 2 * (0.5**halves - 1), halves + 1
        far = tokens / 2 * (0.5**halves - 1)
        before = self._several(tokens, halves - 1)
        return before + (self._several(tokens, halves) - before) * min(1.0, (extra - near) / (far - near))

    def _several(self, tokens: int, halves: int) -> float:
        """What 2**halves prompts of equal length save over one of as many tokens (at most 0) [s]."""
        key = (tokens, -halves)
        found = self._beyond.get(key)
        if found is None:
            found = 0.0
            if halves:
                several = self.forecasts.prefill(1 << halves, tokens >> halves, 0, graph=self._graph(tokens))
                found = several - self._one(tokens)
            self._beyond[key] = found
        return found

    def _cached(self, tokens: int, node: int) -> float:
        key = (tokens, node)
        found = self._beyond.get(key)
        if found is None:
            found = 0.0
            if node:
                longer = self.forecasts.prefill(1, tokens, _CACHED[node], graph=self._graph(tokens))
                found = longer - self._one(tokens)
            self._beyond[key] = found
        return found

    def _graph(self, tokens: int) -> bool:
        return tokens <= self.scheduler.captured_prefill
