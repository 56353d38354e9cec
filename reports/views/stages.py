"""What a serving step does when: the stages of its layers, by microbatch, and who waits for whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reports.views import words
from reports.views.ops import OpSpan, ops_of_task
from reports.views.palette import STAGES
from simulator.engine.lower import Programs
from simulator.engine.tasks import COMPUTE, LANES, ActionOf, Timeline
from simulator.results.result import Result

NAMES = {
    "prepare": "projections",
    "attn": "attention, gate",
    "dispatch": "dispatch",
    "shared": "shared experts",
    "mlp": "experts",
    "combine": "combine",
    "out": "sum",
    "embed": "embedding",
    "head": "output head",
    "mtp": "draft's projection",
}
"""Stages in words, by segment."""
_SHORT = 1e-9
"""What is shorter is no wait [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpan:
    """One stage of one block of one microbatch.

    Parameters
    ----------
    task : its task.
    compute : whether it is on the compute stream.
    segment : segment, without its direction.
    block : number of its block; the embedding is 0.
    microbatch : 0 or 1.
    start, end : when it ran [s].
    """

    task: int
    compute: bool
    segment: str
    block: int
    microbatch: int
    start: float
    end: float

    @property
    def stage(self) -> str:
        """Its key in the palette."""
        return self.segment if self.segment in STAGES else "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitOf:
    """Time in which a stream did nothing because `who` waited for `whom`, over all layers.

    Parameters
    ----------
    compute : whether the compute stream was idle, else the communication stream.
    who, whom : in words.
    times : how often.
    seconds : how long in all [s].
    """

    compute: bool
    who: str
    whom: str
    times: int
    seconds: float


def step_action(timeline: Timeline) -> ActionOf:
    """The forward of the first rank."""
    return next(action for action in timeline.tasks.actions if action.step is not None)


def stage_spans(result: Result) -> list[StageSpan]:
    """All stages of the first rank's step, in program order."""
    timeline, action = result.timeline, step_action(result.timeline)
    assert action.step is not None
    steps = Programs(result.built).of(action.step).steps
    return [
        StageSpan(
            task=action.first + at,
            compute=timeline.tasks.lane[action.first + at] % LANES == COMPUTE,
            segment=one.sequence.name.rpartition(".")[0] or one.sequence.name,
            block=one.block,
            microbatch=one.microbatch,
            start=timeline.start[action.first + at],
            end=timeline.end[action.first + at],
        )
        for at, one in enumerate(steps)
    ]


def ops_by_lane(
    result: Result, spans: Sequence[StageSpan]
) -> Iterator[tuple[str, bool, list[tuple[OpSpan, StageSpan]]]]:
    """The two streams of every microbatch, as far as they run something."""
    two = any(span.microbatch for span in spans)
    for microbatch in (0, 1) if two else (0,):
        for compute in (True, False):
            mine = [span for span in spans if span.microbatch == microbatch and span.compute == compute]
            ops = [(op, span) for span in mine for op in ops_of_task(result.timeline, span.task)]
            if ops:
                yield ("comp" if compute else "comm") + (f" {microbatch}" if two else ""), compute, ops


def late_starts(result: Result, spans: Sequence[StageSpan]) -> Iterator[tuple[int, float, str]]:
    """Tasks before which their stream had nothing to run: (task, for how long [s], what it waited for)."""
    tasks, end, by_task = result.timeline.tasks, result.timeline.end, {span.task: span for span in spans}
    two = any(span.microbatch for span in spans)
    free: dict[bool, float] = {True: 0.0, False: 0.0}
    for span in spans:
        idle = span.start - free[span.compute]
        free[span.compute] = span.end
        if idle < _SHORT:
            continue
        last = max(tasks.preds[span.task], key=lambda pred: end[pred], default=-1)
        known = last in by_task and end[last] >= span.start - _SHORT
        yield span.task, idle, _named(by_task[last], two) if known else "the host"


def waits(result: Result, spans: Sequence[StageSpan]) -> list[WaitOf]:
    """Who waits for whom, longest first."""
    by_task, two = {span.task: span for span in spans}, any(span.microbatch for span in spans)
    total: dict[tuple[bool, str, str], list[float]] = defaultdict(list)
    for task, idle, whom in late_starts(result, spans):
        total[by_task[task].compute, _named(by_task[task], two), whom].append(idle)
    found = [
        WaitOf(compute=compute, who=who, whom=whom, times=len(each), seconds=sum(each))
        for (compute, who, whom), each in total.items()
    ]
    return sorted(found, key=lambda one: (not one.compute, -one.seconds, one.who))


def _named(span: StageSpan, two: bool) -> str:
    name = NAMES.get(span.segment, span.segment)
    return f"{name} of microbatch {span.microbatch}" if two else name


def middle_layer(result: Result, spans: Sequence[StageSpan]) -> tuple[int, float, float]:
    """Number of a layer in the middle of the step, of the kind that most layers are, and when it runs [s]."""
    kinds = result.built.stages[0]
    kind = max(dict.fromkeys(kinds), key=kinds.count)
    blocks = [at for at, one in enumerate(kinds) if one == kind]
    block = blocks[len(blocks) // 2]
    mine = [span for span in spans if span.block == block]
    return block, min(span.start for span in mine), max(span.end for span in mine)


def place_of(result: Result, span: StageSpan) -> str:
    """Where a stage stands: `layer 12 (MoE layer), microbatch 1`."""
    kind = words.BLOCKS.get(result.built.stages[0][span.block], "block")
    layer = f"layer {span.block}, {kind}" if "layer" in kind else kind
    return f"{layer}, microbatch {span.microbatch}"
