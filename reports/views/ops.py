"""The ops of one action, each with its own start and end: what an overlapped pair looks like inside."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from reports.views.actions import ActionSpan
from simulator.cost.memory_bytes import memory_bytes
from simulator.engine.kernel_sequence import KernelSequence, Priced, kernel_spans
from simulator.engine.tasks import COMPUTE, LANES, Timeline
from simulator.ops import Notify, Op, Wait


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpan:
    """One op of an action; times count from the action's start.

    Parameters
    ----------
    name : name of the op.
    cls : kernel class.
    segment : segment of its layer.
    stream : stream that it ran on.
    direction : F, B, W, or N for barriers.
    start, end : when it ran [s].
    kernels : number of kernels.
    bound_by : what limits it.
    calibrated : whether the class was measured on this GPU.
    alone : time with nothing concurrent [s].
    flops : tensor work [FLOP].
    bytes : bytes that its kernels move through memory, or put on links [B].
    """

    name: str
    cls: str
    segment: str
    stream: str
    direction: str
    start: float
    end: float
    kernels: int
    bound_by: str
    calibrated: bool
    alone: float
    flops: float
    bytes: float

    @property
    def seconds(self) -> float:
        """Duration [s]."""
        return self.end - self.start


def ops_of(timeline: Timeline, action: ActionSpan) -> list[OpSpan]:
    """All ops of an action in the order of their start."""
    found = [op for task in range(action.first, action.last) for op in ops_of_task(timeline, task, action.start)]
    return sorted(found, key=lambda op: (op.start, op.stream, op.end))


def ops_of_task(timeline: Timeline, task: int, origin: float = 0.0) -> list[OpSpan]:
    """The ops of one task in order; times count from `origin` [s]."""
    tasks = timeline.tasks
    sequence = tasks.sequence[task]
    stream = "compute" if tasks.lane[task] % LANES == COMPUTE else "communication"
    spans = kernel_spans(sequence, timeline.start[task], timeline.end[task], timeline.changes.get(task, ()))
    if len(spans) != len(sequence.ops):  # a run of one piece holds several ops: spread them as when alone
        spans = _spread(sequence, timeline.start[task], timeline.end[task])
    return [
        _op_span(priced, sequence, stream, start - origin, end - origin)
        for priced, (start, end) in zip(sequence.ops, spans, strict=True)
    ]


def _spread(sequence: KernelSequence, start: float, end: float) -> list[tuple[float, float]]:
    scale = (end - start) / sequence.alone if sequence.alone else 0.0
    at = [start + t * scale for t in sequence.cumulative[0]]
    return list(pairwise(at))


def _op_span(priced: Priced, sequence: KernelSequence, stream: str, start: float, end: float) -> OpSpan:
    op = priced.op
    return OpSpan(
        name=op.name,
        cls=op.cls,
        segment=sequence.name,
        stream=stream,
        direction=direction_of(op, sequence.name),
        start=start,
        end=end,
        kernels=op.count,
        bound_by=priced.cost.bound_by,
        calibrated=priced.cost.calibrated,
        alone=priced.durations[0],
        flops=op.flops,
        bytes=memory_bytes(op) or priced.cost.nic_bytes + priced.cost.nvlink_bytes,
    )


def direction_of(op: Op, segment: str) -> str:
    """F, B or W by the segment the op stands in; N for barriers and waits."""
    if isinstance(op.work, (Notify, Wait)):
        return "N"
    last = segment.rpartition(".")[2]
    return last if last in ("F", "B", "W") else "B"
