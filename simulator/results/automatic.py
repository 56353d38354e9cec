"""What an automatic schedule is made from: the forecast of a job's own actions, as software measures them.

The authors' software times the actions of every stage in some steps, and the memory that each leaves behind, and takes
the median stage for all (megatron/core/pipeline_parallel/zerobubble/runtime.py, 2025).
"""

from __future__ import annotations

from statistics import median
from typing import Final

from simulator.engine.longest_path import longest_path
from simulator.engine.lower import message, price_model
from simulator.memory.account import alone
from simulator.memory.deltas import Usage, Usages
from simulator.schedule import Action, Durations, Kind, stages_of
from simulator.spec.scenario import Scenario

DIGITS: Final = 3
"""Durations are rounded to a thousandth of a forward's, so that the last digits of a price decide no order."""


def durations_of(scenario: Scenario) -> Durations:
    """Times and memory of a training job's actions on its median stage, at full clock; times in forwards [1]."""
    layout = scenario.job.layout
    stages = stages_of(layout.schedule, layout.pp, layout.vpp)
    built = price_model(scenario, stages)
    usages = Usages(built)

    def middle(kind: Kind) -> tuple[float, float]:
        """Time of an action [s], and by how much it changes what is kept [B]."""
        each = [usages.of(Action(kind, stage, 0)) for stage in range(stages)]
        return median(map(_seconds, each)), median(sum(change.delta for change in one.changes) for one in each)

    (f, kept), (i, _), (w, freed) = middle("F"), middle("I"), middle("W")
    send = message(built, 0, 1).alone if layout.pp > 1 else 0.0
    return Durations(
        f=1.0,
        i=round(i / f, DIGITS),
        w=round(w / f, DIGITS),
        send=round(send / f, DIGITS),
        until_w=round(min(1.0, max(0.0, -freed / kept)), DIGITS) if kept else 1.0,
    )


def _seconds(usage: Usage) -> float:
    timeline = longest_path(alone(usage.program))
    return max((timeline.end[at] for at in usage.program.tails), default=0.0)
