"""A step on many ranks at once, in program order: arrays over ranks where the other engines have one time.

An all-to-all and its barrier are rendezvous: they begin when the last rank has come and end on all ranks together, as
late as the rank whose links have most to do. An all-to-all is issued behind the compute before it, and compute meets
only all-to-alls issued before it ends. So in program order all that a rank's next time depends on is known, and a
rendezvous is a maximum over ranks. Links that different transfers share, and what compute loses to collectives of
gradients, are left to the event engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.engine.kernel_sequence import ALONE, BANDWIDTH_SHARED, SM_SHARED
from simulator.engine.priced_model import PricedModel
from simulator.engine.ranks.columns import Columns
from simulator.engine.ranks.tables import (
    Between,
    FlowTable,
    Places,
    SequenceTable,
    Tables,
    between,
    distinct_of,
    places,
)
from simulator.engine.ranks.under_way import ComputeStream, UnderWay
from simulator.engine.tasks import COMM, COMPUTE, LANES, SYNC, ActionOf, Tasks
from simulator.schedule import halves

Array = NDArray[np.float64]


KEPT = 8192
"""Layers and microbatches whose loads are kept."""

Draw = Callable[[int, int], tuple[int, int]]
"""(task, block of its action) -> layer and microbatch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTimeline:
    """When each task ran on each column.

    Parameters
    ----------
    tasks : the tasks, of a mean rank.
    start, end : of each task (columns) [s].
    wait : of each rendezvous, how long each column waited for the last (columns) [s].
    flows : of each all-to-all, its durations alone and concurrent with compute on the slowest links [s].
    layer : of each rendezvous inside an action, the number of its layer.
    """

    tasks: Tasks
    start: list[Array]
    end: list[Array]
    wait: dict[int, Array]
    flows: dict[int, tuple[float, float]]
    layer: dict[int, int]

    @property
    def makespan(self) -> float:
        """End of the last task on the last rank [s]."""
        return max((float(each.max()) for each in self.end), default=0.0)


class _Flow:
    """A task of the all-to-all stream that has been issued."""

    __slots__ = ("floor", "preds", "task")

    def __init__(self, task: int, floor: Array, preds: list[UnderWay]) -> None:
        self.task, self.floor, self.preds = task, floor, preds


class _Action:
    """Runs the tasks of one action; local to `run`."""

    def __init__(self, engine: _Engine, action: ActionOf) -> None:
        self.engine, self.action = engine, action
        assert action.step is not None
        self.program, self.tables = engine.tables.of(action.step)
        self.ahead, self.back = halves(action.step)
        rank = action.rank
        self.compute = ComputeStream(engine.free[rank * LANES + COMPUTE])
        self.comm_free = engine.free[rank * LANES + COMM]
        self.queue: dict[int, _Flow] = {}
        self.started = False
        self.under_way: dict[int, UnderWay] = {}

    def run(self) -> None:
        """All tasks, to their ends."""
        tasks, first = self.engine.tasks, self.action.first
        for task in range(first, self.action.last):
            if tasks.lane[task] % LANES in (COMPUTE, COMM):
                self.issue(task, tasks.lane[task] % LANES == COMPUTE)
            else:
                self.copy(task)
        while self.queue:
            self.next_flow()
        self.settle(self.compute.drained())
        rank = self.action.rank
        self.engine.free[rank * LANES + COMPUTE] = self.compute.base
        self.engine.free[rank * LANES + COMM] = self.comm_free

    def issue(self, task: int, computes: bool) -> None:
        """Issue one task."""
        engine, tasks = self.engine, self.engine.tasks
        floor: Array = engine.zero + tasks.release[task] if task in tasks.release else engine.zero
        behind: list[UnderWay] = []
        for pred in tasks.preds[task]:
            while computes and pred in self.queue:
                self.next_flow()
            if pred in self.under_way:
                if not computes:
                    behind.append(self.under_way[pred])
            elif pred not in self.queue:
                floor = np.maximum(floor, engine.end[pred])
        if computes:
            floor = self.late(floor)
            times, sensitive = self.times_of(task)
            self.under_way[task] = self.compute.add(task, times, floor, sensitive)
        else:
            self.queue[task] = _Flow(task, floor, behind)

    def copy(self, task: int) -> None:
        """A copy to or from the host, behind what it waits for as far as that is known."""
        engine, tasks = self.engine, self.engine.tasks
        lane = tasks.lane[task]
        begins = np.maximum(engine.free[lane], tasks.release.get(task, 0.0))
        for pred in tasks.preds[task]:
            while pred in self.queue:
                self.next_flow()
            begins = np.maximum(
                begins, self.compute.end_of(self.under_way[pred]) if pred in self.under_way else engine.end[pred]
            )
        engine.start[task], engine.end[task] = begins, begins + tasks.sequence[task].alone
        engine.free[lane] = engine.end[task]

    def late(self, floor: Array) -> Array:
        """Hold back the first sequence where a host is late."""
        jitter = self.engine.columns.jitter
        if self.started or jitter is None:
            return floor
        self.started = True
        return np.asarray(np.maximum(floor, self.compute.free) + jitter(self.action.rank, self.action.first))

    def next_flow(self) -> None:
        """Run the first task of the all-to-all stream, whose concurrent compute is all issued."""
        flow = self.queue.pop(next(iter(self.queue)))
        engine, task = self.engine, flow.task
        came = np.maximum(self.comm_free, flow.floor)
        if engine.tasks.sequence[task].kind not in ("all_to_all", "notify") or flow.preds:
            self.compute.flush()
        for pred in flow.preds:
            came = np.maximum(came, self.compute.end_of(pred))
        kind, table = engine.tasks.sequence[task].kind, self.table(task)
        begins = came
        if kind == "all_to_all":
            assert isinstance(table, FlowTable)
            begins = engine.columns.together(came)
            self.compute.change(begins, BANDWIDTH_SHARED)
            paces = engine.paces(self.action.rank, table, *self.place(task))
            ends = self.compute.end_of_flow(begins, paces)
            ends = engine.columns.together(ends)
            engine.flows[task] = (
                float(np.maximum.reduce(paces[0][: engine.first])),
                float(np.maximum.reduce(paces[1][: engine.first])),
            )
        elif kind == "notify":
            begins = engine.columns.together(came)
            ends = begins + self.times_of(task)[0][ALONE, :, -2]
            self.compute.change(came, SM_SHARED)
        else:
            ends = begins + self.times_of(task)[0][ALONE, :, -2]
        if kind in ("all_to_all", "notify"):
            engine.wait[task], engine.layer[task] = begins - came, self.place(task)[0]
            self.compute.alone(ends)
        engine.start[task], engine.end[task], self.comm_free = came, ends, ends
        self.settle(self.compute.settle(ends))

    def settle(self, done: list[UnderWay]) -> None:
        """Note sequences that have ended."""
        for one in done:
            self.engine.start[one.task], self.engine.end[one.task] = one.start, one.end
            self.under_way.pop(one.task, None)

    def table(self, task: int) -> SequenceTable | FlowTable:
        """The table of a task's sequence."""
        return self.tables[task - self.action.first]

    def place(self, task: int) -> tuple[int, int]:
        """Layer and microbatch of a task."""
        part = self.program.steps[task - self.action.first]
        if self.engine.draw is not None:
            return self.engine.draw(task, part.block)
        action = self.ahead if part.forward else self.back
        return self.engine.layers.get((action.stage, part.block), -1), action.microbatch

    def times_of(self, task: int) -> tuple[Array, bool]:
        """Times of a task's sequence on each column (conditions x columns or 1 x ops + 2) [s], and whether they depend
        on what is concurrent."""
        table = self.table(task)
        assert isinstance(table, SequenceTable)
        times, pace = table.times, self.engine.pace[self.action.rank]
        if times.shape[1] > 1 or (pace is not None and table.tensor is not None):
            times = table.at(self.engine.places(*self.place(task))[0], pace)
        if self.engine.slow[self.action.rank]:
            times = times * self.engine.columns.slowdown[self.action.rank][:, None]
        return times, table.sensitive


class _Engine:
    """State of one run."""

    def __init__(self, tasks: Tasks, built: PricedModel, columns: Columns, tables: Tables, draw: Draw | None) -> None:
        self.tasks, self.columns, self.tables, self.draw = tasks, columns, tables, draw
        self.zero = np.zeros(columns.count)
        self.first = columns.starts[1] if len(columns.starts) > 1 else columns.count - 1
        self.free = [self.zero] * (tasks.ranks * LANES)
        self.start: list[Array] = [self.zero] * len(tasks.lane)
        self.end: list[Array] = [self.zero] * len(tasks.lane)
        self.wait: dict[int, Array] = {}
        self.flows: dict[int, tuple[float, float]] = {}
        self.layer: dict[int, int] = {}
        self.layers = layer_numbers(built)
        self.slow = [bool((row != 1.0).any()) for row in columns.slowdown]
        self.hit = tables.hit
        self.pace = [row if (row != 1.0).any() else None for row in columns.pace]
        self.narrow = [bool((row != 1.0).any()) for row in columns.nic]
        self.known: dict[tuple[int, int], tuple[Places, Between]] = {}
        self.reached_by: dict[tuple[int, int, int], Between] = {}

    def places(self, layer: int, microbatch: int) -> tuple[Places, Between]:
        """Where the columns are on the grids in a layer and microbatch: experts; tokens to the rank and to its node."""
        key = layer, microbatch
        if key not in self.known:
            if len(self.known) > KEPT:
                self.known.clear()
                self.reached_by.clear()
            loads = self.columns.loads(layer, microbatch)
            self.known[key] = places(self.tables.grid, loads), self._between(layer, microbatch)
        return self.known[key]

    def _between(self, layer: int, microbatch: int, wider: Array | float = 1.0) -> Between:
        """Tokens to each rank and to its node, whose NICs take `wider` times as long."""
        loads, nodes = self.columns.loads(layer, microbatch), self.columns.node_loads(layer, microbatch)
        own = places(self.tables.received, distinct_of(loads, self.hit[0]))
        node = places(self.tables.nodes, distinct_of(nodes, self.hit[1]) * wider)
        return between(own, node, len(self.tables.nodes))

    def paces(self, rank: int, table: FlowTable, layer: int, microbatch: int) -> tuple[Array, Array]:
        """Durations of an all-to-all around each column, alone and concurrent with compute [s]."""
        place = self.places(layer, microbatch)[1]
        if self.narrow[rank]:
            key = rank, layer, microbatch
            if key not in self.reached_by:
                self.reached_by[key] = self._between(layer, microbatch, self.columns.nic[rank])
            place = self.reached_by[key]
        return table.at(place)

    def alone(self, task: int) -> None:
        """A send, a collective of gradients or parameters, or the update."""
        tasks, columns = self.tasks, self.columns
        lane, sequence = tasks.lane[task], tasks.sequence[task]
        rank, stream = divmod(lane, LANES)
        came = np.maximum(self.free[lane], tasks.release.get(task, 0.0))
        for pred in tasks.preds[task]:
            came = np.maximum(came, self.end[pred])
        begins, seconds = came, self.zero + sequence.alone
        if stream == SYNC:
            begins = columns.all_together(came)
            self.wait[task] = begins - came
        elif stream == COMPUTE:
            seconds = seconds * columns.slowdown[rank]
        elif sequence.nic:
            seconds = seconds * columns.nic[rank]
        self.start[task], self.end[task] = came, begins + seconds
        self.free[lane] = self.end[task]


def layer_numbers(built: PricedModel) -> dict[tuple[int, int], int]:
    """(stage, block on it) -> number of the layer, counted from 0 over all layers of the model."""
    out: dict[tuple[int, int], int] = {}
    for stage, kinds in enumerate(built.stages):
        for block, kind in enumerate(kinds):
            if kind.is_layer:
                out[stage, block] = len(out)
    return out


def run(
    tasks: Tasks, built: PricedModel, columns: Columns, tables: Tables, *, draw: Draw | None = None
) -> RankTimeline:
    """Execute the tasks of a step (`engine.lower.lower` of a model without waits) on all columns.

    `draw` says which layer's and microbatch's loads a task has, if not those of the model.
    """
    engine = _Engine(tasks, built, columns, tables, draw)
    actions = {action.first: action for action in tasks.actions if action.step is not None}
    task = 0
    while task < len(tasks.lane):
        action = actions.get(task)
        if action is None or action.last == action.first:
            engine.alone(task)
            task += 1
        else:
            _Action(engine, action).run()
            task = action.last
    return RankTimeline(
        tasks=tasks, start=engine.start, end=engine.end, wait=engine.wait, flows=engine.flows, layer=engine.layer
    )
