"""The critical path of a step: the chain of tasks that decides when it ends, by kernel class.

It is followed back from the task that ends last: each task of the chain started when the one before it ended, which was
the last one that it waited for. So the chain has no gaps, and its times add up to the step time. It begins at the start
of the step, or at a kernel that waited for the host; the time until then is the host's, which never waits.

If a class with time t on this path gets faster by the share x, and all other durations stay the same, the step gets
shorter by at most x t; a class that is not on the path does not shorten it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from simulator.engine.kernel_sequence import ALONE
from simulator.engine.tasks import COMM, COMPUTE, FROM_HOST, LANES, SYNC, TO_HOST, Timeline

HOST = "host"
"""Takes the place of a kernel class for host time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassOnPath:
    """Time of one kernel class on the critical path.

    Parameters
    ----------
    cls : kernel class, or `HOST`.
    stream : compute, communication, sends, gradient sync or host.
    seconds : time as simulated [s].
    alone : time of the same kernels with nothing concurrent [s].
    kernels : launches.
    bound_by : what limits most of it.
    """

    cls: str
    stream: str
    seconds: float
    alone: float
    kernels: int
    bound_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalPath:
    """The chain of tasks that decides the step time.

    Parameters
    ----------
    tasks : its tasks in order of time.
    classes : its kernel classes, longest first.
    step_time : the step time [s].
    """

    tasks: tuple[int, ...]
    classes: tuple[ClassOnPath, ...]
    step_time: float

    def by_stream(self) -> dict[str, float]:
        """Seconds on the path by stream, longest first [s]."""
        total: dict[str, float] = defaultdict(float)
        for one in self.classes:
            total[one.stream] += one.seconds
        return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "step_time_s": self.step_time,
            "streams_s": self.by_stream(),
            "classes": [
                {
                    "class": one.cls,
                    "stream": one.stream,
                    "seconds": one.seconds,
                    "share": one.seconds / self.step_time,
                    "alone_s": one.alone,
                    "kernels": one.kernels,
                    "bound_by": one.bound_by,
                }
                for one in self.classes
            ],
        }


def critical_tasks(timeline: Timeline) -> list[int]:
    """The tasks of the chain in order of time. Of two that end together, the one on the same stream counts.

    Where steps overlap it ends with the rank that takes longest; before that rank's first task is the step before.
    """
    tasks, start, end = timeline.tasks, timeline.start, timeline.end
    if not end:
        return []
    before = [-1] * len(end)
    last_on: dict[int, int] = {}
    for task, lane in enumerate(tasks.lane):
        before[task] = last_on.get(lane, -1)
        last_on[lane] = task
    ends = (n for n, lane in enumerate(tasks.lane) if not tasks.steps_overlap or lane // LANES == timeline.longest)
    at = max(ends, key=end.__getitem__)
    chain = [at]
    while True:
        waits = ((before[at],) if before[at] >= 0 else ()) + tasks.preds[at]
        last = max(waits, key=end.__getitem__, default=-1)
        reached = end[last] if waits else 0.0
        if start[at] > reached and at not in tasks.release:
            raise RuntimeError(f"task {at} ({tasks.sequence[at].name}) starts later than all that it waits for")
        if not waits or start[at] > reached:
            return chain[::-1]
        at = last
        chain.append(at)


def critical_path(timeline: Timeline) -> CriticalPath:
    """The critical path of a simulated step."""
    since = timeline.span(timeline.longest)[0] if timeline.tasks.steps_overlap and timeline.end else 0.0
    chain = [task for task in critical_tasks(timeline) if timeline.end[task] > since]
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    alone: dict[tuple[str, str], float] = defaultdict(float)
    kernels: dict[tuple[str, str], int] = defaultdict(int)
    bounds: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for task in chain:
        stream = stream_of(timeline.tasks.lane[task])
        if stream == "gradient sync" and timeline.tasks.sequence[task].ops[0].op.stream == "compute":
            stream = "communication"  # a collective of a layer, apart from all-to-alls
        for priced, (begun, ended) in zip(timeline.tasks.sequence[task].ops, timeline.op_spans(task), strict=True):
            key = (priced.op.cls, stream)
            seconds[key] += max(ended, since) - max(begun, since)
            alone[key] += priced.durations[ALONE]
            kernels[key] += priced.op.count
            bounds[key][priced.cost.bound_by] += max(ended, since) - max(begun, since)
    if chain and timeline.start[chain[0]] > since:
        seconds[HOST, HOST] = alone[HOST, HOST] = timeline.start[chain[0]] - since
        bounds[HOST, HOST][HOST] = seconds[HOST, HOST]
    classes = [
        ClassOnPath(
            cls=cls,
            stream=stream,
            seconds=value,
            alone=alone[cls, stream],
            kernels=kernels[cls, stream],
            bound_by=max(bounds[cls, stream], key=bounds[cls, stream].__getitem__),
        )
        for (cls, stream), value in seconds.items()
    ]
    classes.sort(key=lambda one: (-one.seconds, one.cls, one.stream))
    return CriticalPath(tasks=tuple(chain), classes=tuple(classes), step_time=timeline.step_time)


def stream_of(lane: int) -> str:
    """The stream of a lane in words."""
    names = {COMPUTE: "compute", COMM: "communication", SYNC: "gradient sync", TO_HOST: "offload", FROM_HOST: "offload"}
    return names.get(lane % LANES, "sends")
