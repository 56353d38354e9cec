"""Runs: stretches of one stream with no waiting inside, priced under every condition they can meet.

A compute kernel's time depends on what its neighbour does meanwhile: nothing; an all-to-all kernel that holds SMs at a
barrier, or holds SMs and moves memory; a collective that sums gradients or gathers parameters, which does so, too. A
run keeps the cumulative time of its ops under each of the four, so that an engine can move it forward as one thing and
still say when each kernel started (see `kernel_spans`).
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.cost.cost import Cost
from simulator.ops import Op

ALONE, SM_SHARED, BANDWIDTH_SHARED, COLLECTIVE = 0, 1, 2, 3
"""Conditions of a compute kernel: by itself, beside a barrier that holds SMs, beside an exchange that moves memory,
beside a collective of a whole node."""
CONDITIONS = (ALONE, SM_SHARED, BANDWIDTH_SHARED, COLLECTIVE)

Condition = float
"""One of the four, an int; between `BANDWIDTH_SHARED` and `COLLECTIVE`: overlapped with a collective that holds this
part of the SMs of one over a whole node."""
Durations = tuple[float, float, float, float]

Kind = Literal["compute", "work", "notify", "all_to_all", "send", "collective"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """An op with its cost alone, and its duration with the gap behind it under the four conditions [s].

    For an exchange the second and third say how long it takes with compute running beside it.
    """

    op: Op
    cost: Cost
    durations: Durations


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSequence:
    """Ops that run back to back.

    `cumulative[condition]` has one entry more than there are ops [s]. `nic`, `nvlink` are the bytes it puts on the
    links of its rank [B] (an exchange: out and in; a send: out here and in at the receiver). `held`: see `Cost.held`.
    `sensitive`: whether its duration depends on what runs beside it.
    """

    kind: Kind
    name: str
    ops: tuple[Priced, ...]
    cumulative: tuple[tuple[float, ...], ...]
    nic: float = 0.0
    nvlink: float = 0.0
    held: float = 0.0
    sensitive: bool = False

    @property
    def alone(self) -> float:
        """Duration with nothing beside it [s]."""
        return self.cumulative[ALONE][-1]

    def under(self, condition: Condition) -> Sequence[float]:
        """`cumulative` under a condition, also one in between [s]."""
        if isinstance(condition, int):
            return self.cumulative[condition]
        part = condition - BANDWIDTH_SHARED
        return [a + part * (b - a) for a, b in zip(self.cumulative[ALONE], self.cumulative[COLLECTIVE], strict=True)]


def sequence_of(kind: Kind, name: str, ops: Sequence[Priced]) -> KernelSequence:
    """Join priced ops into a run."""
    at = tuple(tuple(itertools.accumulate((p.durations[c] for p in ops), initial=0.0)) for c in CONDITIONS)
    return KernelSequence(
        kind=kind,
        name=name,
        ops=tuple(ops),
        cumulative=at,
        sensitive=any(other != at[ALONE] for other in at),
        nic=sum(priced.cost.nic_bytes for priced in ops),
        nvlink=sum(priced.cost.nvlink_bytes for priced in ops),
        held=max((priced.cost.held for priced in ops), default=0.0),
    )


def condition_with(sequence: KernelSequence) -> Condition:
    """The condition of compute beside a collective."""
    if 0.0 < sequence.held < 1.0:
        return BANDWIDTH_SHARED + sequence.held
    return COLLECTIVE if sequence.held else ALONE


def time_at(at: Sequence[float], position: float) -> float:
    """Time a run needs to come to `position` (op index plus the done part of that op), its ops ending `at` [s]."""
    index = int(position)
    if index >= len(at) - 1:
        return at[-1]
    return at[index] + (position - index) * (at[index + 1] - at[index])


def position_at(at: Sequence[float], elapsed: float) -> float:
    """Inverse of `time_at`."""
    index = bisect_right(at, elapsed) - 1
    if index >= len(at) - 1:
        return float(len(at) - 1)
    width = at[index + 1] - at[index]
    return index + (elapsed - at[index]) / width if width > 0 else float(index)


def kernel_spans(
    sequence: KernelSequence, start: float, end: float, changes: Sequence[tuple[float, Condition, float]]
) -> list[tuple[float, float]]:
    """Start and end of every op of a run that began at `start`, given its changes of condition.

    `changes` are (time, condition from then on, position reached); the first one is at `start`. Exchanges and sends
    have one op, which spans the run.
    """
    if len(sequence.ops) == 1:
        return [(start, end)]
    borders = [start]
    pieces: list[tuple[float, Condition, float]] = [(start, ALONE, 0.0)]
    if changes:
        pieces = [*changes, (end, ALONE, float(len(sequence.ops)))]
    for (begun, condition, position), (_, _, reached) in itertools.pairwise(pieces):
        at = sequence.under(condition)
        origin = begun - time_at(at, position)
        index = int(position) + 1
        while index <= reached and index < len(sequence.ops):
            borders.append(origin + at[index])
            index += 1
    if not changes:
        borders = [start + t for t in sequence.cumulative[ALONE][:-1]]
    borders.append(end)
    return list(itertools.pairwise(borders))
