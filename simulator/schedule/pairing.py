"""1F1B and interleaved with forwards and backwards that overlap: all-to-alls of one run under the compute of the other.

Megatron-Core (--overlap-moe-expert-parallel-comm; pipeline_parallel/schedules.py and combined_1f1b.py, 2025) runs one
forward more before the first backward, and from then on each forward together with the backward that follows it. On
several ranks it takes interleaved stages: with one stage a rank, a backward would wait for the forward that it is
paired with on the next rank.
"""

from __future__ import annotations

from itertools import zip_longest

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
