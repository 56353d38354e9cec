"""Which phase a program was in when it launched a kernel: from what PyTorch's profiler records of the CPU.

PyTorch runs each node of a backward graph in `autograd::engine::evaluate_function`, on threads of its own, and
announces each optimizer step and each `profiler.step()` as a range. Programs add ranges with `record_function`.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from simulator.results.intervals import Interval, merged

FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
COMMUNICATION = "communication"
PHASES = (FORWARD, BACKWARD, OPTIMIZER, COMMUNICATION)

_NODE = re.compile(r"autograd::engine::evaluate_function|^\w+Backward\d*$|^<backward op>$")
"""Names of a backward node's range; older profilers have that of the node alone."""
_STEP = re.compile(r"^ProfilerStep#\d+$")
_OPTIMIZER = re.compile(r"^Optimizer\.step#|^\W*optimi[sz]er([_ .-]?step)?\W*$", re.IGNORECASE)
_MARKED = re.compile(r"^\W*(forward|backward)([_ .-]?(pass|step))?\W*$", re.IGNORECASE)


@dataclass(slots=True)
class CollectedScopes:
    """Ranges of the CPU that say something, while the events pass by: starts and ends in µs as in the file."""

    nodes: dict[str, array[float]] = field(default_factory=lambda: defaultdict(lambda: array("d")))
    marks: dict[str, array[float]] = field(default_factory=lambda: defaultdict(lambda: array("d")))
    steps: array[float] = field(default_factory=lambda: array("d"))

    def add(self, name: str, thread: str, start: float, end: float) -> None:
        """Keep a range if its name says which phase it is."""
        if _NODE.search(name):
            self.nodes[thread].extend((start, end))
        elif _STEP.match(name):
            self.steps.extend((start, end))
        elif _OPTIMIZER.match(name):
            self.marks[OPTIMIZER].extend((start, end))
        elif found := _MARKED.match(name):
            self.marks[found[1].lower()].extend((start, end))

    def freeze(self, zero: float, unit: float) -> Scopes:
        """The ranges from `zero` on, `unit` seconds each."""

        def spans(flat: array[float]) -> list[Interval]:
            return [((a - zero) * unit, (b - zero) * unit) for a, b in zip(flat[::2], flat[1::2], strict=True)]

        return Scopes(
            nodes={thread: merged(spans(flat)) for thread, flat in self.nodes.items()},
            marks={phase: merged(spans(flat)) for phase, flat in self.marks.items()},
            steps=sorted(spans(self.steps)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scopes:
    """What the program did on the CPU.

    Parameters
    ----------
    nodes : by thread, times in which it ran backward nodes [s].
    marks : by phase, times that were announced; they count for every thread, as `backward` around `loss.backward()`,
        whose nodes run on others [s].
    steps : steps that `profiler.step()` announced [s].
    """

    nodes: dict[str, list[Interval]] = field(default_factory=dict)
    marks: dict[str, list[Interval]] = field(default_factory=dict)
    steps: list[Interval] = field(default_factory=list)

    @property
    def known(self) -> bool:
        """Whether it says where a backward is."""
        return bool(self.nodes) or BACKWARD in self.marks

    def phase(self, thread: str, time: float) -> str:
        """The phase of what `thread` launched at `time` [s]."""
        if covers(self.nodes.get(thread, ()), time):
            return BACKWARD
        return next((p for p in (OPTIMIZER, BACKWARD) if covers(self.marks.get(p, ()), time)), FORWARD)


def covers(spans: Sequence[Interval], time: float) -> bool:
    """Whether one of the disjoint, sorted spans holds the time [s]."""
    at = bisect_right(spans, (time, float("inf"))) - 1
    return at >= 0 and spans[at][1] >= time
