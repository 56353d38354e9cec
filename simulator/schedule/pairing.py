"""What software overlaps beyond the schedule: forwards with backwards, and waiting weight gradients with all-to-alls.

1F1B and interleaved with forwards and backwards that overlap: all-to-alls of one run under the compute of the other.

Megatron-Core (--overlap-moe-expert-parallel-comm; pipeline_parallel/schedules.py and combined_1f1b.py, 2025) runs one
forward more before the first backward, and from then on each forward together with the backward that follows it. On
several ranks it takes interleaved stages: with one stage a rank, a backward would wait for the forward that it is
paired with on the next rank.

Zero-bubble schedules split the backward. Software that queues weight gradients can run those of an earlier microbatch
while the all-to-alls of a lone input gradient (I) are on their way: the I takes what fills its waits, the W behind it
the rest.
"""

from __future__ import annotations

from itertools import pairwise, zip_longest

from simulator.schedule.action import Action, Pair, Row, Schedule, Step

PAIRED = ("1f1b", "interleaved")
"""Schedules whose forwards and backwards can be paired so."""


def paired(schedule: Schedule) -> Schedule:
    """The schedule with its forwards and backwards in pairs."""
    rows = tuple(_row(row) for row in schedule.rows)
    return Schedule(name=schedule.name, stages=schedule.stages, microbatches=schedule.microbatches, rows=rows)


def _row(row: Row) -> Row:
    """One rank: the forwards before its first backward as they are, then pairs, then the backwards that are left."""
    actions = [step for step in row if isinstance(step, Action)]
    forwards = [action for action in actions if action.kind == "F"]
    backwards = [action for action in actions if action.kind == "B"]
    first = next(at for at, action in enumerate(actions) if action.kind == "B")
    steps: list[Step] = list(forwards[:first])
    for ahead, back in zip_longest(forwards[first:], backwards):
        steps.append(Pair(ahead, back) if ahead is not None else back)
    return tuple(steps)


def filled(schedule: Schedule) -> Schedule:
    """The schedule whose lone input gradients hide their all-to-alls behind the weight gradients that follow them.

    The last W of a stage stays whole: with it the stage's gradients are complete, and leave block by block.
    """
    rows = tuple(_filled(row) for row in schedule.rows)
    return Schedule(name=schedule.name, stages=schedule.stages, microbatches=schedule.microbatches, rows=rows)


def _filled(row: Row) -> Row:
    last = {step.stage: at for at, step in enumerate(row) if isinstance(step, Action) and step.kind == "W"}
    steps = list(row)
    for at, (one, other) in enumerate(pairwise(row)):
        if isinstance(one, Pair) or isinstance(other, Pair) or (one.kind, other.kind) != ("I", "W"):
            continue
        if one.stage == other.stage and last[other.stage] != at + 1:
            steps[at], steps[at + 1] = one._replace(filled=True), other._replace(filled=True)
    return tuple(steps)
