"""Times of a step's kernel sequences on ranks of any load, from tables over a grid of loads."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.engine.kernel_sequence import ALONE, BANDWIDTH_SHARED, SM_SHARED, KernelSequence
from simulator.engine.priced_model import PricedModel, action_key, program_of
from simulator.engine.program import Pricer, Program
from simulator.engine.ranks.under_way import Times, padded
from simulator.graph.shapes import at_load, hit_of
from simulator.graph.stage import build_blocks
from simulator.ops import AllToAll, Work
from simulator.schedule import Step

Array = NDArray[np.float64]

CONDITIONS = (ALONE, SM_SHARED, BANDWIDTH_SHARED)
"""Conditions of compute that differ here; collectives of gradients are left to the event engine."""
FINEST = 17
"""Most loads at which blocks are priced; times in between are interpolated."""


def grid_of(loads: Array, finest: int = FINEST) -> Array:
    """Loads at which to price: all there are if they are few, else `finest` evenly spaced ones, and always 1."""
    found = np.unique(np.append(loads.ravel(), 1.0))
    if len(found) == 1:  # two points, so that there is something to interpolate between
        return np.array([1.0, 1.0 + 1e-9])
    return found if len(found) <= FINEST else np.linspace(found[0], found[-1], finest)


def distinct_of(loads: Array, hit: float) -> Array:
    """`simulator.routing.traffic.distinct` of arrays; where `hit` is 0 no token travels for several choices.

    The mean load has the mean's tokens to the last bit.
    """
    return loads if hit <= 0.0 else np.where(loads == 1.0, 1.0, (1.0 - (1.0 - hit) ** loads) / hit)


def times_over(sequences: Sequence[KernelSequence]) -> Array:
    """Times of one sequence at several loads (conditions x loads x ops + 1) [s]."""
    return np.array([[each.cumulative[condition] for each in sequences] for condition in CONDITIONS])


def _alike(times: Array) -> Array:
    """Times over loads, one load where they do not depend on it."""
    return times[:, :1] if (times == times[:, :1]).all() else times


Places = tuple[NDArray[np.intp], Array]
"""Point of a grid below each value, and how far the value is to the next (0 to 1)."""


@dataclass(frozen=True, slots=True)
class SequenceTable:
    """Times of one sequence over a grid of loads (`under_way.Times`, loads in place of ranks) [s].

    Parameters
    ----------
    times : at the clock of the step.
    sensitive : whether they depend on what is concurrent.
    tensor : what is added for each time that its tensor kernels take longer; None: it has none, or clocks are equal.
    """

    times: Times
    sensitive: bool
    tensor: Times | None = None

    def at(self, place: Places, pace: Array | None = None) -> Array:
        """Times on ranks at these places of the grid (conditions x ranks or 1 x ops + 2) [s], where tensor kernels last
        `pace` times as long."""
        times = interpolated(self.times, place)
        if pace is None or self.tensor is None:
            return times
        return np.asarray(times + (pace - 1.0)[:, None] * interpolated(self.tensor, place))


def interpolated(times: Times, place: Places) -> Array:
    """Times over a grid at these places of it."""
    if times.shape[1] == 1:
        return times
    below, part = place
    low, out = times.take(below, axis=1), times.take(below + 1, axis=1)
    out -= low
    out *= part[:, None]
    out += low
    return out


@dataclass(frozen=True, slots=True)
class Between:
    """Places of ranks between the points of two grids: tokens of a rank, and of its node.

    Parameters
    ----------
    corners : the four points around each rank, in a table of both grids (lower and upper of the first, and of the
        second, x ranks).
    rank, node : weights of the lower and the upper point of each grid (2 x ranks).
    """

    corners: NDArray[np.intp]
    rank: Array
    node: Array


def between(rank: Places, node: Places, nodes: int) -> Between:
    """The same for ranks at these places; there are `nodes` points in the grid of nodes."""
    (at, x), (to, y) = rank, node
    low = at * nodes + to
    corners = np.array([[low, low + 1], [low + nodes, low + nodes + 1]])
    return Between(corners, np.array([1.0 - x, x]), np.array([1.0 - y, y]))


@dataclass(frozen=True, slots=True)
class FlowTable:
    """Durations of an all-to-all, alone and concurrent with compute, over tokens of its rank and of its node
    (both grids' points x 2) [s]."""

    times: Array

    def at(self, place: Between) -> tuple[Array, Array]:
        """Durations around ranks at these places (alone, concurrent with compute) [s]."""
        around = self.times.T.take(place.corners, axis=1)
        around *= place.node
        ranks = around[:, :, 0] + around[:, :, 1]
        ranks *= place.rank
        return ranks[0, 0] + ranks[0, 1], ranks[1, 0] + ranks[1, 1]


def places(grid: Array, values: Array) -> Places:
    """Place of each value on a grid of two points or more: the point below, and how far it is to the next."""
    below = grid[1:-1].searchsorted(values, "right")  # the last point below, of all but the last
    low = grid[below]
    return below, np.minimum(np.maximum((values - low) / (grid[below + 1] - low), 0.0), 1.0)


class Tables:
    """Tables of every program of a priced model, made when first asked for.

    `slower`: prices at another clock, and how much longer tensor kernels last there. `finest`: most loads at which
    blocks are priced where there are many.
    """

    def __init__(
        self,
        built: PricedModel,
        loads: Array,
        nodes: Array,
        *,
        slower: tuple[Pricer, float] | None = None,
        finest: int = FINEST,
    ) -> None:
        self.built, self.hit = built, hit_of(built.scenario)
        self.grid = grid_of(loads, finest)
        self.received = grid_of(distinct_of(loads, self.hit[0]), finest)
        self.nodes = grid_of(distinct_of(nodes, self.hit[1]), finest)
        self.models = [self._at(float(load)) for load in self.grid]
        self.slower = slower
        self.made: dict[Hashable, tuple[Program, list[SequenceTable | FlowTable]]] = {}
        self.flows: dict[Work, FlowTable] = {}

    def _at(self, load: float) -> PricedModel:
        """The model as a rank of this load runs it; waits come from the ranks themselves."""
        built = self.built
        blocks = build_blocks(at_load(built.shapes, built.scenario, load))
        return replace(built, blocks=blocks, rendezvous=None)

    def of(self, step: Step) -> tuple[Program, list[SequenceTable | FlowTable]]:
        """The program of a schedule's step on a mean rank, and a table for each of its steps."""
        key = action_key(self.built.stages, step)
        if key not in self.made:
            programs = [program_of(model, step) for model in self.models]
            mean = program_of(replace(self.built, rendezvous=None), step)
            parts = [[other.steps[at].sequence for other in programs] for at in range(len(mean.steps))]
            slow: Sequence[Sequence[KernelSequence] | None] = [None] * len(parts)
            if self.slower is not None:
                again = [program_of(replace(model, price=self.slower[0]), step) for model in self.models]
                slow = [[other.steps[at].sequence for other in again] for at in range(len(parts))]
            self.made[key] = mean, [self._table(part, other) for part, other in zip(parts, slow, strict=True)]
        return self.made[key]

    def _table(
        self, sequences: Sequence[KernelSequence], slower: Sequence[KernelSequence] | None
    ) -> SequenceTable | FlowTable:
        first = sequences[0]
        if first.kind == "all_to_all":
            return self._flow(first)
        times, tensor = times_over(sequences), None
        if slower is not None and self.slower is not None:
            tensor = (times_over(slower) - times) / (self.slower[1] - 1.0)
            tensor = padded(_alike(tensor)) if tensor.any() else None
        return SequenceTable(padded(_alike(times)), any(each.sensitive for each in sequences), tensor)

    def _flow(self, sequence: KernelSequence) -> FlowTable:
        op = sequence.ops[0].op
        if op.work not in self.flows:
            times = np.empty((len(self.received) * len(self.nodes), 2))
            if not isinstance(op.work, AllToAll):  # a collective, of the same bytes on all ranks
                durations = self.built.price(op).durations
                times[:] = durations[ALONE], durations[BANDWIDTH_SHARED]
                self.flows[op.work] = FlowTable(times)
                return self.flows[op.work]
            for at, load in enumerate(self.received):
                for to, node in enumerate(self.nodes):
                    work = replace(op.work, imbalance=float(load), node_imbalance=float(node))
                    priced = self.built.price(replace(op, work=work))
                    times[at * len(self.nodes) + to] = priced.durations[ALONE], priced.durations[BANDWIDTH_SHARED]
            self.flows[op.work] = FlowTable(times)
        return self.flows[op.work]
