"""What a mean rank meets at the rendezvous of one kind of action, over and over: the quick form of uneven ranks.

The action runs some times behind itself on all ranks, each time with the loads of other layers and another microbatch
where these differ, and the waits of all but the first times are averaged. Slow GPUs are on one stage, and actions do
not know theirs: they are left to a whole step, which gives every action its own (`simulator.engine.ranks.whole_step`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from simulator.engine.priced_model import PricedModel, action_key
from simulator.engine.program import Program
from simulator.engine.ranks.columns import Columns
from simulator.engine.ranks.rendezvous import run
from simulator.engine.ranks.tables import Tables
from simulator.engine.ranks.uneven import PERSISTENT, columns_of, range_of
from simulator.engine.ranks.waits import Rendezvous
from simulator.engine.tasks import ActionOf, Tasks
from simulator.routing.loads import moe_layers
from simulator.schedule import Step
from simulator.spec.uneven import Stragglers

TIMES, TIMES_SAMPLED = 3, 9
"""How often an action runs behind itself, with loads that persist and with others."""


FEW = 5
"""Loads at which blocks are priced where there are many: times are nearly straight in the load. With 17 DeepSeek-V3's
step differs by 0.01 %."""


class Steady:
    """Rendezvous of actions, made when first asked for; local to one priced model."""

    def __init__(self) -> None:
        self.made: dict[Hashable, Rendezvous] = {}
        self.tables: dict[Hashable, tuple[PricedModel, Tables, Columns]] = {}

    def of(self, built: PricedModel, step: Step, program: Program) -> Rendezvous:
        """What a step's action meets."""
        key = id(built.price), action_key(built.stages, step)
        if key not in self.made:
            self.made[key] = self._made(built, step, program)
        return self.made[key]

    def _made(self, built: PricedModel, step: Step, program: Program) -> Rendezvous:
        tables, columns = self._tables(built)
        times = TIMES if built.scenario.job.routing.kind in PERSISTENT else TIMES_SAMPLED
        tasks, size = repeated(program, step, times), len(program.steps)
        layers = moe_layers(built.scenario.model) or [0]
        here = replace(built, rendezvous=None)
        ran = run(
            tasks,
            here,
            columns,
            tables,
            draw=lambda task, block: (layers[(7 * (task // size) + block) % len(layers)], task // size),
        )
        waits = [
            sum(float(ran.wait[at + k * size][-1]) for k in range(1, times)) / (times - 1) if at in ran.wait else 0.0
            for at in range(size)
        ]
        flows = [
            (
                sum(ran.flows[at + k * size][0] for k in range(1, times)) / (times - 1),
                sum(ran.flows[at + k * size][1] for k in range(1, times)) / (times - 1),
            )
            if at in ran.flows
            else None
            for at in range(size)
        ]
        return Rendezvous(waits=waits, flows=flows)

    def _tables(self, built: PricedModel) -> tuple[Tables, Columns]:
        key = id(built.price), built.stages
        if key not in self.tables:
            job = replace(built.scenario.job, stragglers=Stragglers())
            columns = columns_of(replace(built.scenario, job=job), 1)
            self.tables[key] = (
                built,
                Tables(replace(built, rendezvous=None), *range_of(built.scenario, columns), finest=FEW),
                columns,
            )
        return self.tables[key][1:]


def repeated(program: Program, step: Step, times: int) -> Tasks:
    """The tasks of an action that runs behind itself on one pipeline rank."""
    tasks = Tasks(ranks=1)
    entry: tuple[int, ...] = ()
    for _ in range(times):
        base, seen = len(tasks.lane), set()
        for part in program.steps:
            preds = tuple(base + at for at in part.waits)
            if part.stream not in seen:
                seen.add(part.stream)
                preds += entry
            tasks.add(part.stream, part.sequence, preds)
        tasks.actions.append(ActionOf(0, step, "overlapped", base, len(tasks.lane)))
        entry = tuple(base + at for at in program.tails)
    return tasks
