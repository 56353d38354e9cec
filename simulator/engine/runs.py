"""Runs: stretches of one stream with no waiting inside, priced under every condition they can meet.

A compute kernel's time depends on what its neighbour, the all-to-all kernel, does meanwhile: nothing, holding SMs at
a barrier, or holding SMs and moving memory. A run keeps the cumulative time of its ops under each of the three, so
that an engine can move it forward as one thing and still say when each kernel started (see `moments`).
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.cost.cost import Cost
from simulator.ops import Op

ALONE, HELD, TRAFFIC = 0, 1, 2
"""Conditions of a compute kernel: by itself, beside a barrier that holds SMs, beside an exchange that moves memory."""

Kind = Literal["compute", "work", "notify", "exchange", "send", "collective"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """An op with its cost alone, and its duration with the gap behind it under the three conditions [s].

    For an exchange the second and third say how long it takes with compute running beside it.
    """

    op: Op
    cost: Cost
    durations: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Ops that run back to back.

    `cumulative[condition]` has one entry more than there are ops [s]. `nic`, `nvlink` are the bytes it puts on the
    links of its rank [B] (an exchange: out and in; a send: out here and in at the receiver).
    """

    kind: Kind
    name: str
    ops: tuple[Priced, ...]
    cumulative: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    nic: float = 0.0
    nvlink: float = 0.0

    @property
    def alone(self) -> float:
        """Duration with nothing beside it [s]."""
        return self.cumulative[ALONE][-1]

    @property
    def sensitive(self) -> bool:
        """Whether its duration depends on what runs beside it."""
        first = self.cumulative[ALONE]
        return self.cumulative[HELD] != first or self.cumulative[TRAFFIC] != first


def run_of(kind: Kind, name: str, ops: Sequence[Priced]) -> Run:
    """Join priced ops into a run."""
    totals: list[tuple[float, ...]] = []
    for condition in (ALONE, HELD, TRAFFIC):
        at = [0.0]
        for priced in ops:
            at.append(at[-1] + priced.durations[condition])
        totals.append(tuple(at))
    return Run(
        kind=kind,
        name=name,
        ops=tuple(ops),
        cumulative=(totals[0], totals[1], totals[2]),
        nic=sum(priced.cost.nic_bytes for priced in ops),
        nvlink=sum(priced.cost.nvlink_bytes for priced in ops),
    )


def time_at(run: Run, condition: int, position: float) -> float:
    """Time the run needs under `condition` to come to `position` (op index plus the done part of that op) [s]."""
    at = run.cumulative[condition]
    index = int(position)
    if index >= len(at) - 1:
        return at[-1]
    return at[index] + (position - index) * (at[index + 1] - at[index])


def position_at(run: Run, condition: int, elapsed: float) -> float:
    """Inverse of `time_at`."""
    at = run.cumulative[condition]
    index = bisect_right(at, elapsed) - 1
    if index >= len(at) - 1:
        return float(len(at) - 1)
    width = at[index + 1] - at[index]
    return index + (elapsed - at[index]) / width if width > 0 else float(index)


def moments(
    run: Run, start: float, end: float, changes: Sequence[tuple[float, int, float]]
) -> list[tuple[float, float]]:
    """Start and end of every op of a run that began at `start`, given its changes of condition.

    `changes` are (time, condition from then on, position reached); the first one is at `start`. Exchanges and sends
    have one op, which spans the run.
    """
    if len(run.ops) == 1:
        return [(start, end)]
    borders = [start]
    pieces = [*changes, (end, ALONE, float(len(run.ops)))] if changes else [(start, ALONE, 0.0)]
    for (begun, condition, position), (_, _, reached) in itertools.pairwise(pieces):
        origin = begun - time_at(run, condition, position)
        index = int(position) + 1
        while index <= reached and index < len(run.ops):
            borders.append(origin + run.cumulative[condition][index])
            index += 1
    if not changes:
        borders = [start + t for t in run.cumulative[ALONE][:-1]]
    borders.append(end)
    return list(itertools.pairwise(borders))
