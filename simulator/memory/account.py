"""Adds up the memory of every rank over a step, from a timeline or from the schedule's rows alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from simulator.engine.longest_path import longest_path
from simulator.engine.lower import PricedModel
from simulator.engine.program import Program
from simulator.engine.tasks import ActionOf, Tasks, Timeline
from simulator.memory.assumptions import Assumptions
from simulator.memory.buffers import buffer_items
from simulator.memory.capacity import headroom
from simulator.memory.deltas import FOR_WEIGHTS, Usage, Usages
from simulator.memory.memory_report import GROUPS, MADE, Curve, Item, MemoryReport, RankMemory
from simulator.memory.optimizer_states import (
    Shards,
    made_in_backward,
    shards_of,
    state_bytes_on_host,
    state_items,
    widened_bytes,
)
from simulator.schedule import Schedule, Step, stages_on
from simulator.spec.model import BlockKind


@dataclass(frozen=True, slots=True)
class _Event:
    """Kept bytes change by `delta` under `label` at `time`; `temporary` [B] is in use from then on."""

    time: float
    place: int
    label: str
    delta: float
    temporary: float


@dataclass(frozen=True, slots=True)
class _Peak:
    """The peak of a rank: kept bytes by label, temporary bytes [B], and when."""

    kept: dict[str, float]
    temporary: float
    time: float
    place: int


def _in_order(time: float, usage: Usage, starts: Sequence[float], ends: Sequence[float], place: int) -> list[_Event]:
    """Events of one action: bytes freed at a time come before bytes allocated then."""
    out = [_Event(time, place, "", 0.0, usage.temporary)]
    for change in usage.changes:
        when = starts[change.at] if change.starts else ends[change.at]
        out.append(_Event(when, place, change.label, change.delta, usage.temporary))
    return sorted(out, key=lambda event: (event.time, event.delta))


def _peak(events: Iterable[_Event]) -> _Peak:
    kept: dict[str, float] = defaultdict(float)
    best, level = _Peak({}, 0.0, 0.0, 0), 0.0
    top = -1.0
    for event in events:
        if event.label:
            kept[event.label] += event.delta
            level += event.delta
        if level + event.temporary > top * (1 + 1e-12):
            top = level + event.temporary
            best = _Peak(dict(kept), event.temporary, event.time, event.place)
    return best


def _events_of_rank(timeline: Timeline, actions: Sequence[ActionOf], usages: Usages) -> list[_Event]:
    """Events of the rank's actions in a timeline."""
    out: list[_Event] = []
    for place, action in enumerate(actions):
        if action.step is None:
            continue
        starts, ends = timeline.start[action.first : action.last], timeline.end[action.first : action.last]
        out += _in_order(min(starts), usages.of(action.step), starts, ends, place)
    return out


def alone(program: Program) -> Tasks:
    """A program as the only tasks of one rank."""
    tasks = Tasks(ranks=1)
    for step in program.steps:
        tasks.add(step.stream, step.sequence, step.waits)
    return tasks


class _Lone:
    """Events within one action when nothing else is concurrent, by the longest path through its program."""

    def __init__(self, usages: Usages) -> None:
        self.usages = usages
        self.made: dict[int, list[_Event]] = {}

    def events(self, step: Step, place: int) -> list[_Event]:
        """Events of a step, with times from its own start."""
        usage = self.usages.of(step)
        if id(usage) not in self.made:
            timeline = longest_path(alone(usage.program))
            self.made[id(usage)] = _in_order(0.0, usage, timeline.start, timeline.end, 0)
        return [_Event(e.time, place, e.label, e.delta, e.temporary) for e in self.made[id(usage)]]


def swing(usage: Usage, timeline: Timeline) -> tuple[float, float]:
    """Of an action that ran alone: change of the bytes kept, and how far they rise with temporaries above the start."""
    level = top = 0.0
    for event in _in_order(0.0, usage, timeline.start, timeline.end, 0):
        level += event.delta
        top = max(top, level + event.temporary)
    return level, top


def always(
    stages: Sequence[Sequence[BlockKind]], built: PricedModel, shards: Shards, assumed: Assumptions
) -> list[Item]:
    """What a rank with these stages holds for the whole step."""
    return [
        *state_items(stages, built.scenario, shards, assumed),
        *buffer_items(built.scenario, built.shapes, stages, assumed),
        Item(group="context", name="CUDA context and libraries", bytes=assumed.context),
    ]


class _Accounts:
    """What is common to all ranks of a plan."""

    def __init__(self, built: PricedModel, schedule: Schedule, assumed: Assumptions | None) -> None:
        self.built = built
        self.assumed = assumed or Assumptions()
        self.on, self.rows = stages_on(schedule), schedule.rows
        copies = sum(len(stages) for stages in self.on) // schedule.stages
        self.shards = shards_of(built.scenario, copies)
        self.usages = Usages(built, made_in_backward(built.blocks, built.scenario, self.shards))

    def always(self, rank: int) -> list[Item]:
        """What the rank holds for the whole step."""
        stages = [self.built.stages[stage] for stage in self.on[rank]]
        return always(stages, self.built, self.shards, self.assumed)

    def updated(self, rank: int) -> Item:
        """What is there only while the rank's update runs."""
        stages = [self.built.stages[stage] for stage in self.on[rank]]
        size = widened_bytes(stages, self.built.scenario, self.shards, self.assumed)
        return Item(group="temporary", name="gradients in FP32 for the update", bytes=size)

    def rank(self, rank: int, peak: _Peak, steps: Sequence[Step], timed: bool) -> RankMemory:
        """The peak of one rank with its items."""
        kept = [(label, size) for label, size in peak.kept.items() if size > 1.0]
        moving = [self._item(label, size) for label, size in sorted(kept)]
        moving.append(Item(group="temporary", name="largest op", bytes=peak.temporary))
        updated = self.updated(rank)
        late = updated.bytes > sum(item.bytes for item in moving)
        moving = [updated] if late else moving
        slack = self.assumed.slack * sum(item.bytes for item in moving)
        order = {name: place for place, name in enumerate(GROUPS)}
        items = [*self.always(rank), *moving, Item(group="slack", name="allocator", bytes=slack)]
        return RankMemory(
            rank=rank,
            stages=self.on[rank],
            at=peak.time if timed and not late else None,
            during="the update" if late else str(steps[peak.place]) if steps else "",
            items=tuple(sorted(items, key=lambda item: order[item.group])),
        )

    def report(self, ranks: Iterable[RankMemory]) -> MemoryReport:
        """The ranks with what each may fill."""
        scenario = self.built.scenario
        return MemoryReport(
            ranks=tuple(ranks),
            capacity=scenario.cluster.gpu.hbm_bytes,
            headroom=headroom(scenario),
            reserve=scenario.job.memory.reserve,
            assumptions=self.assumed,
            host=max(self.offloaded(rank) for rank in range(len(self.on))),
            host_capacity=host.memory_bytes if (host := scenario.cluster.node.host) else 0.0,
        )

    def offloaded(self, rank: int) -> float:
        """Most that a rank has in the memory of its host [B]."""
        stages = [self.built.stages[stage] for stage in self.on[rank]]
        most = kept = 0.0
        if self.built.scenario.job.offload.activations:
            for step in self.rows[rank]:
                kept -= sum(change.delta for change in self.usages.of(step).copies)
                most = max(most, kept)
        return most + state_bytes_on_host(stages, self.built.scenario, self.shards, self.assumed)

    def _item(self, label: str, size: float) -> Item:
        """What is kept under a label."""
        if label == MADE:
            return Item(group="gradients", name=MADE, bytes=size)
        return Item(group="activations", name=self._count(label, size), bytes=size)

    def _count(self, label: str, size: float) -> str:
        """`27.0 x moe`: how many blocks' worth a label holds."""
        kind = BlockKind(label.partition(",")[0])
        one = self.usages.prints[kind]
        unit = one.for_weights if label.endswith(FOR_WEIGHTS) else one.saved
        return f"{size / unit:.0f} x {label}" if unit else label


def memory_of(
    built: PricedModel, schedule: Schedule, timeline: Timeline, assumed: Assumptions | None = None
) -> MemoryReport:
    """Peak memory of every rank over a timeline of either engine, with what makes it up."""
    accounts = _Accounts(built, schedule, assumed)
    ranks = []
    for rank, actions in enumerate(_actions_by_rank(timeline)):
        peak = _peak(_events_of_rank(timeline, actions, accounts.usages))
        ranks.append(accounts.rank(rank, peak, schedule.rows[rank], True))
    return accounts.report(ranks)


def memory_of_rows(built: PricedModel, schedule: Schedule, assumed: Assumptions | None = None) -> MemoryReport:
    """The same from the rows alone: a rank's steps follow each other, so its peak does not depend on when they run."""
    accounts = _Accounts(built, schedule, assumed)
    lone = _Lone(accounts.usages)
    ranks = []
    for rank, row in enumerate(schedule.rows):
        peak = _peak(event for place, step in enumerate(row) for event in lone.events(step, place))
        ranks.append(accounts.rank(rank, peak, row, False))
    return accounts.report(ranks)


def curve_of(
    built: PricedModel, schedule: Schedule, timeline: Timeline, rank: int, assumed: Assumptions | None = None
) -> Curve:
    """Memory of one rank over time, by group."""
    accounts = _Accounts(built, schedule, assumed)
    always: dict[str, float] = dict.fromkeys(GROUPS, 0.0)
    for item in accounts.always(rank):
        always[item.group] += item.bytes
    times, groups = [0.0], {name: [value] for name, value in always.items()}
    level = made = 0.0
    actions = _actions_by_rank(timeline)[rank]
    for event in _events_of_rank(timeline, actions, accounts.usages):
        level += event.delta
        made += event.delta if event.label == MADE else 0.0
        now = always | {"activations": max(0.0, level - made), "temporary": event.temporary}
        now["slack"] = accounts.assumed.slack * (now["activations"] + now["temporary"] + made)
        now["gradients"] += made
        times.append(event.time)
        for name, value in now.items():
            groups[name].append(value)
    updated = accounts.updated(rank).bytes
    last = always | {"temporary": updated, "slack": accounts.assumed.slack * updated}
    for time in (max(timeline.end[actions[-1].first : actions[-1].last]), timeline.makespan):
        times.append(time)
        for name, value in last.items():
            groups[name].append(value)
    return Curve(rank=rank, times=times, groups=dict(groups))


def _actions_by_rank(timeline: Timeline) -> list[list[ActionOf]]:
    """Each rank's actions in the order of its row, the optimizer left out."""
    out: list[list[ActionOf]] = [[] for _ in range(timeline.tasks.ranks)]
    for action in timeline.tasks.actions:
        if action.step is not None:
            out[action.rank].append(action)
    return out


__all__ = ["alone", "always", "curve_of", "memory_of", "memory_of_rows", "swing"]
