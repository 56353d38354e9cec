"""Tasks: what both engines execute. Plain lists, one entry per task, in an order that respects every dependency."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from simulator.engine.kernel_sequence import Condition, KernelSequence, kernel_spans
from simulator.schedule import Step

COMPUTE, COMM, SEND_NEXT, SEND_PREVIOUS, SYNC, TO_HOST, FROM_HOST = range(7)
LANES = 7
"""Streams of a rank: compute, all-to-all, sends to the next and to the previous stage, gradient sync, copies to the
host and back."""

Phase = str
"""forward, backward, weight, overlapped, optimizer."""


@dataclass(frozen=True, slots=True)
class ActionOf:
    """The tasks of one action.

    Parameters
    ----------
    rank : pipeline rank.
    step : step of the rank's row; None for the optimizer step.
    phase : phase that its time counts in.
    first, last : its tasks are [first, last).
    """

    rank: int
    step: Step | None
    phase: Phase
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """What simulating all ranks apart found, of which the tasks are one rank's.

    Parameters
    ----------
    rank : whose tasks they are: the one in the middle by what it computes.
    busiest : the rank that computes longest.
    compute : time that ranks compute: mean, most [s].
    waited : time that ranks wait for others: least, mean, most [s].
    imbalance : tokens of the most loaded rank's experts over the mean, mean over layers.
    """

    rank: int
    busiest: int
    compute: tuple[float, float]
    waited: tuple[float, float, float]
    imbalance: float


@dataclass(frozen=True, slots=True)
class Tasks:
    """All tasks of one optimizer step of one pipeline.

    Parameters
    ----------
    ranks : pipeline ranks.
    lane : of each task, rank x LANES + stream; tasks of a lane run in the order of the list.
    sequence : kernel sequence of each task.
    preds : tasks that must have ended before each task.
    peer : receiving rank of a send, by task.
    release : earliest start because of the host [s], by task.
    actions : the actions, with their tasks.
    nic, nvlink : attainable link bandwidth per rank [B/s].
    apart : what was found of all ranks, where they were simulated apart.
    steps_overlap : whether a rank begins its next step as soon as its own update is over (`Stack.post_validation`).
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
    apart: Apart | None = None
    steps_overlap: bool = False

    def add(self, lane: int, sequence: KernelSequence, preds: tuple[int, ...]) -> int:
        """Append one task and return its number."""
        self.lane.append(lane)
        self.sequence.append(sequence)
        self.preds.append(preds)
        return len(self.lane) - 1


@dataclass(frozen=True)
class Timeline:
    """When each task ran.

    Parameters
    ----------
    tasks : the tasks.
    start, end : of each task [s].
    changes : of compute sequences that ran under several conditions: (time [s], condition, position reached).
    """

    tasks: Tasks
    start: list[float]
    end: list[float]
    changes: dict[int, list[tuple[float, Condition, float]]]

    @property
    def makespan(self) -> float:
        """End of the last task [s]."""
        return max(self.end, default=0.0)

    def span(self, rank: int) -> tuple[float, float]:
        """Start of the first and end of the last task of a rank [s]; 0 for one without any."""
        mine = [task for task, lane in enumerate(self.tasks.lane) if lane // LANES == rank]
        return min((self.start[task] for task in mine), default=0.0), max(
            (self.end[task] for task in mine), default=0.0
        )

    @cached_property
    def longest(self) -> int:
        """The rank that takes longest from its first task to its last."""
        spans = [self.span(rank) for rank in range(self.tasks.ranks)]
        return max(range(len(spans)), key=lambda rank: spans[rank][1] - spans[rank][0])

    @property
    def step_time(self) -> float:
        """Time from one step to the next [s]: until all ranks are through, or, where steps overlap, that of the rank
        that takes longest. A step may be moved by so much as a whole, and no rank then computes two at once."""
        if not self.tasks.steps_overlap or not self.end:
            return self.makespan
        first, last = self.span(self.longest)
        return last - first

    def op_spans(self, task: int) -> list[tuple[float, float]]:
        """Start and end of every op of a task [s]."""
        return kernel_spans(self.tasks.sequence[task], self.start[task], self.end[task], self.changes.get(task, ()))
