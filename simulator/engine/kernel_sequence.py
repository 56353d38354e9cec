"""Kernel sequences: kernels of one stream with no wait between them, priced under every condition.

A compute kernel's time depends on what is concurrent: nothing; a barrier that holds SMs; an all-to-all or a collective
(gradients, parameters), which hold SMs and use memory bandwidth. A sequence keeps the cumulative time of its ops under
each of the four conditions, so that an engine advances it as a whole and the start of each kernel is still known
(`kernel_spans`).
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.cost.cost import Cost
from simulator.ops import Op, Wait

ALONE, SM_SHARED, BANDWIDTH_SHARED, COLLECTIVE = 0, 1, 2, 3
"""Conditions of a compute kernel: alone, or concurrent with a barrier that holds SMs, with an all-to-all, with a
collective over a node."""
CONDITIONS = (ALONE, SM_SHARED, BANDWIDTH_SHARED, COLLECTIVE)

Condition = float
"""One of the four, an int; between `BANDWIDTH_SHARED` and `COLLECTIVE`: overlapped with a collective that holds this
part of the SMs of one over a whole node."""
Durations = tuple[float, float, float, float]

Kind = Literal["compute", "work", "notify", "all_to_all", "send", "collective", "copy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """An op with its cost.

    Parameters
    ----------
    op : the op.
    cost : its cost alone.
    durations : under the four conditions, gaps included [s]; of an all-to-all the second and third are concurrent with
        compute.
    """

    op: Op
    cost: Cost
    durations: Durations


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSequence:
    """Kernels of one stream with no wait between them.

    Parameters
    ----------
    kind : compute, another kernel of the all-to-all stream (`work`), or a kind of communication.
    name : the segment that it is from.
    ops : its ops, priced.
    cumulative : by condition, time at which each op starts, and the end of the last [s].
    nic, nvlink : bytes that it puts on links of its rank [B] (all-to-all: both ways; send: out here, in at its peer).
    held : see `Cost.held`.
    sensitive : whether its duration depends on what is concurrent.
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
        """Duration with nothing concurrent [s]."""
        return self.cumulative[ALONE][-1]

    @property
    def first(self) -> Op:
        """The first op that is no wait of the engine's."""
        return next((one.op for one in self.ops if not isinstance(one.op.work, Wait)), self.ops[0].op)

    def under(self, condition: Condition) -> Sequence[float]:
        """`cumulative` under a condition, also one in between [s]."""
        if isinstance(condition, int):
            return self.cumulative[condition]
        part = condition - BANDWIDTH_SHARED
        return [a + part * (b - a) for a, b in zip(self.cumulative[ALONE], self.cumulative[COLLECTIVE], strict=True)]


def sequence_of(kind: Kind, name: str, ops: Sequence[Priced]) -> KernelSequence:
    """Join priced ops into a kernel sequence."""
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
    """The condition of compute concurrent with a collective."""
    if 0.0 < sequence.held < 1.0:
        return BANDWIDTH_SHARED + sequence.held
    return COLLECTIVE if sequence.held else ALONE


def time_at(at: Sequence[float], position: float) -> float:
    """Time that a sequence needs to reach `position` (op index plus the part done of that op); its ops end `at` [s]."""
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
    """Start and end of every op of a sequence that began at `start`, given its changes of condition.

    `changes` are (time, condition from then on, position reached); the first one is at `start`. All-to-alls and sends
    have one op, which spans the sequence.
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
