"""Tasks: what both engines execute. Plain lists, one entry a task, in an order that respects every dependency."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.engine.kernel_sequence import Condition, KernelSequence, kernel_spans
from simulator.schedule import Step

COMPUTE, COMM, SEND_NEXT, SEND_PREVIOUS, SYNC = range(5)
LANES = 5
"""Streams of a rank: compute, expert exchanges, sends to the next and to the previous stage, gradient sync."""

Phase = str
"""forward, backward, weight, overlapped, optimizer."""


@dataclass(frozen=True, slots=True)
class ActionOf:
    """One step of a rank's row (None for the optimizer step), and the tasks [first, last) it consists of."""

    rank: int
    step: Step | None
    phase: Phase
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Tasks:
    """All tasks of one optimizer step of one pipeline.

    `lane` = rank x LANES + stream; tasks of a lane run in the order they are listed. `preds` are tasks that must have
    ended. `peer` is the receiving rank of a send, `release` the moment before which a task cannot start because the
    host has not issued it [s]. `nic`, `nvlink` are the attainable link bandwidths per rank [B/s].
    """

    ranks: int
    lane: list[int] = field(default_factory=list)
    sequence: list[KernelSequence] = field(default_factory=list)
    preds: list[tuple[int, ...]] = field(default_factory=list)
    peer: dict[int, int] = field(default_factory=dict)
    release: dict[int, float] = field(default_factory=dict)
    actions: list[ActionOf] = field(default_factory=list)
    nic: float = 0.0
    nvlink: float = 0.0

    def add(self, lane: int, sequence: KernelSequence, preds: tuple[int, ...]) -> int:
        """Append one task and return its number."""
        self.lane.append(lane)
        self.sequence.append(sequence)
        self.preds.append(preds)
        return len(self.lane) - 1


@dataclass(frozen=True, slots=True)
class Timeline:
    """When each task ran [s], and for compute runs that met several conditions, the changes (time, condition,
    position reached)."""

    tasks: Tasks
    start: list[float]
    end: list[float]
    changes: dict[int, list[tuple[float, Condition, float]]]

    @property
    def makespan(self) -> float:
        """End of the last task [s]."""
        return max(self.end, default=0.0)

    def op_spans(self, task: int) -> list[tuple[float, float]]:
        """Start and end of every op of a task [s]."""
        return kernel_spans(self.tasks.sequence[task], self.start[task], self.end[task], self.changes.get(task, ()))
