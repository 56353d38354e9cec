"""A prefill step on every rank at once, in program order: arrays over ranks in place of one time.

Kernels of a normal all-to-all hold SMs while tokens travel, so that what a rank computes next to them depends on when
they run: the rendezvous are those of training (`simulator.engine.ranks.rendezvous`), with a column for each rank. Ranks
differ by the tokens of their experts, and by the prompts that they bring: a rank with more tokens projects, attends and
sends longer. The tasks returned are those of a rank with the mean load, with what it waits for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.engine.kernel_sequence import KernelSequence
from simulator.engine.lockstep.durations import EXPERTS, RankLoads, at_load, loads_of_ranks
from simulator.engine.lower import PricedModel, lower
from simulator.engine.priced_model import program_of
from simulator.engine.program import Program
from simulator.engine.ranks.columns import Columns
from simulator.engine.ranks.rendezvous import RankTimeline, run
from simulator.engine.ranks.tables import (
    Between,
    FlowTable,
    Places,
    SequenceTable,
    Tables,
    interpolated,
    places,
    times_over,
)
from simulator.engine.ranks.under_way import padded
from simulator.engine.ranks.uneven import of_nodes
from simulator.engine.ranks.whole_step import met_tasks
from simulator.engine.tasks import COMPUTE, LANES, Apart, Tasks
from simulator.graph.serving.shapes import ServingShapes, serving_of, serving_shapes
from simulator.graph.stage import build_blocks
from simulator.schedule import Schedule, Step
from simulator.spec.scenario import Scenario
from simulator.spec.serving import sampled_shares

Array = NDArray[np.float64]

FINEST = 9
"""Most sizes of prompts at which blocks are priced; times in between are interpolated."""


def token_shares(scenario: Scenario) -> Array:
    """Tokens that each rank brings, over the mean; one without prompts runs dummies of one token."""
    serving, dp = serving_of(scenario), scenario.job.dp
    busy = sampled_shares(serving, dp - serving.idle_ranks)
    least = 1.0 / (serving.sequences * serving.tokens)
    return np.repeat(np.array([*busy, *[least] * serving.idle_ranks]), scenario.job.layout.tp)


@dataclass(frozen=True, slots=True)
class _SentTable(FlowTable):
    """An all-to-all that lasts as long as the rank that sends most needs, too."""

    share: Array

    def at(self, place: Between) -> tuple[Array, Array]:
        alone, busy = FlowTable(self.times).at(place)
        return np.maximum(alone, alone[-1] * self.share), np.maximum(busy, busy[-1] * self.share)


@dataclass(frozen=True, slots=True)
class _OwnTable(SequenceTable):
    """Times of a sequence that depend on the prompts of a rank, not on its experts."""

    def at(self, place: Places, pace: Array | None = None) -> Array:
        return self.times


class _PrefillTables(Tables):
    """Tables over the loads of experts and over the tokens of ranks."""

    def __init__(self, built: PricedModel, loads: Array, nodes: Array, share: Array) -> None:
        self.share = np.append(share, 1.0)
        few = np.unique(self.share)
        self.sizes = few if len(few) <= FINEST else np.linspace(few[0], few[-1], FINEST)
        super().__init__(built, loads, nodes)
        self.of_sizes = [self._of_size(float(size)) for size in self.sizes] if len(few) > 1 else []

    def _at(self, load: float) -> PricedModel:
        shapes = self.built.shapes
        assert isinstance(shapes, ServingShapes)
        return replace(self.built, blocks=build_blocks(at_load(shapes, load)))

    def _of_size(self, size: float) -> PricedModel:
        """The model as a rank runs it that brings so many times the mean tokens."""
        scenario = self.built.scenario
        serving = serving_of(scenario)
        own = replace(serving, tokens=max(1, round(serving.tokens * size)))
        shapes = serving_shapes(replace(scenario, job=replace(scenario.job, serving=own)), loads=False)
        return replace(self.built, blocks=build_blocks(shapes))

    def of(self, step: Step) -> tuple[Program, list[SequenceTable | FlowTable]]:
        """The program of the step on a mean rank, and a table for each of its steps."""
        mean, tables = super().of(step)
        if not self.of_sizes:
            return mean, tables
        others = [program_of(model, step) for model in self.of_sizes]
        kinds = self.built.stages[0]
        out: list[SequenceTable | FlowTable] = []
        for at, (one, table) in enumerate(zip(mean.steps, tables, strict=True)):
            routed = kinds[one.block] in EXPERTS and one.sequence.name == "mlp.F"
            if isinstance(table, FlowTable):
                out.append(_SentTable(table.times, self.share))
            else:
                out.append(table if routed else self._own([other.steps[at].sequence for other in others]))
        return mean, out

    def _own(self, sequences: Sequence[KernelSequence]) -> SequenceTable:
        times, sensitive = times_over(sequences), any(each.sensitive for each in sequences)
        if (times == times[:, :1]).all():
            return SequenceTable(padded(times[:, :1]), sensitive)
        return _OwnTable(padded(interpolated(times, places(self.sizes, self.share))), sensitive)


def _columns(built: PricedModel, loads: RankLoads) -> Columns:
    """One column for each rank, and the mean one."""
    ranks, ep = built.scenario.job.gpus, built.scenario.job.layout.ep
    even = np.ones((1, ranks + 1))
    return Columns(
        names=tuple(range(ranks)),
        starts=tuple(range(0, ranks, ep)),
        loads=lambda block, microbatch: np.append(loads.of(block, microbatch), 1.0),
        node_loads=lambda block, microbatch: np.append(of_nodes(loads.of(block, microbatch), ep, built.scenario), 1.0),
        slowdown=even,
        nic=even,
        pace=even,
    )


def lock_step_prefill(built: PricedModel, schedule: Schedule) -> Tasks:
    """The tasks of a rank with the mean load, with its waits for the others."""
    share = token_shares(built.scenario)
    loads = loads_of_ranks(built, built.stages[0])
    mean = replace(built, imbalance=1.0)
    tasks = lower(mean, schedule)
    columns = _columns(mean, loads)
    spread = np.array([loads.least, 1.0, loads.most])
    tables = _PrefillTables(mean, spread, spread, share)
    (action,) = [one for one in tasks.actions if one.step is not None]
    program = program_of(mean, action.step)  # type: ignore[arg-type]  # chosen so
    steps = {action.first + at: one.microbatch for at, one in enumerate(program.steps)}
    ran = run(tasks, mean, columns, tables, draw=lambda task, block: (block, steps[task]))
    return replace(met_tasks(tasks, ran), apart=_found(tasks, ran, loads, built))


def _found(tasks: Tasks, ran: RankTimeline, loads: RankLoads, built: PricedModel) -> Apart:
    """What was found of all ranks."""
    compute = sum(ran.end[at] - ran.start[at] for at, lane in enumerate(tasks.lane) if lane % LANES == COMPUTE)
    own, waited = np.asarray(compute)[:-1], np.asarray(sum(ran.wait.values()))[:-1]
    tops = [
        loads.of(block, microbatch).max()
        for block, kind in enumerate(built.stages[0])
        for microbatch in range(2 if serving_of(built.scenario).two_batch_overlap else 1)
        if kind in EXPERTS
    ]
    return Apart(
        rank=int(np.argsort(own, kind="stable")[len(own) // 2]),
        busiest=int(own.argmax()),
        compute=(float(own.mean()), float(own.max())),
        waited=(float(waited.min()), float(waited.mean()), float(waited.max())),
        imbalance=float(np.mean(tops)) if tops else 1.0,
    )
