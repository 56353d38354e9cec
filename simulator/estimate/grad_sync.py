"""Parameters and gradients around the pipeline: gathers before the first forwards, reductions and the update after.

The same collectives as `engine.sync` prices, on one stream a rank; here by arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from simulator.engine.kernel_sequence import ALONE
from simulator.engine.lower import Plan
from simulator.engine.sync import Sync, update_ops
from simulator.estimate.compiled import Gates, Times, Traffic
from simulator.estimate.shared_prices import Cost, Kit
from simulator.graph.parameters import Held
from simulator.ops import CollectiveKind
from simulator.schedule import Step, halves

Place = tuple[int, int]
"""(rank, stage)."""


class Taken(NamedTuple):
    """Collectives: how long they take [s], and that time times the part of a whole node's that they hold [s]."""

    seconds: float
    held: float

    def share_lost(self, slowed: float) -> float:
        """The part of their time that compute beside them loses, which a whole node's slow by the share `slowed`."""
        part = slowed * self.held / self.seconds if self.seconds else 0.0
        return part / (1.0 + part)

    def lost(self, beside: float, slowed: float) -> float:
        """What compute loses that runs `beside` them for so long [s]."""
        return min(beside, self.seconds) * self.share_lost(slowed)


@dataclass(frozen=True, slots=True)
class Stage:
    """Collectives of one stage: `gather` and `reduce` block by block, `reduce_all` in one."""

    gather: tuple[Taken, ...]
    reduce: tuple[Taken, ...]
    reduce_all: Taken


def together(each: Iterable[Taken]) -> Taken:
    """One after the other."""
    return Taken(*map(sum, zip((0.0, 0.0), *each, strict=True)))


def _timed(at: Sequence[float], each: Sequence[Taken]) -> list[tuple[float, float]]:
    """Moments, and how long what belongs to them takes [s]."""
    return [(moment, one.seconds) for moment, one in zip(at, each, strict=False)]


class Tail:
    """Collectives of one layout."""

    def __init__(self, plan: Plan, on: Sequence[tuple[int, ...]], copies: int, kit: Kit) -> None:
        self.plan, self.on, self.kit, self.copies = plan, on, kit, copies
        self.zero = plan.scenario.job.layout.zero
        self.sync = Sync(plan.scenario, plan.price, copies)
        sync = self.sync
        self.groups = (sync.dense, sync.dense_node, sync.experts, sync.experts_node)

    @property
    def gathers_once(self) -> bool:
        """Whether parameters are gathered once a step; without ZeRO they need not be, with ZeRO-3 each action does."""
        return self.zero in (1, 2)

    def collective(self, kind: CollectiveKind, held: Held) -> Taken:
        """The collectives over `held`."""
        runs = self.sync.gather(held) if kind == "all_gather" else self.sync.reduce("", kind, held)
        return Taken(sum(run.alone for run in runs), sum(run.alone * run.held for run in runs))

    @property
    def reduction(self) -> CollectiveKind:
        """How gradients are summed."""
        return "reduce_scatter" if self.zero else "all_reduce"

    def stage(self, number: int) -> Stage:
        """The collectives of a stage."""
        blocks = self.plan.stages[number]

        def made() -> Stage:
            seconds = {held: self.collectives(held) for held in dict.fromkeys(self.kit.held(blocks))}
            each = [seconds[held] for held in self.kit.held(blocks)]
            return Stage(
                gather=tuple(gather for gather, _ in each),
                reduce=tuple(reduce for _, reduce in each),
                reduce_all=self.collective(self.reduction, self.total((number,))),
            )

        return self.kit.shared(("stage", blocks, self.reduction, self.groups), made)

    def collectives(self, held: Held) -> tuple[Taken, Taken]:
        """Gathering and reducing `held`."""

        def made() -> tuple[Taken, Taken]:
            return self.collective("all_gather", held), self.collective(self.reduction, held)

        return self.kit.shared(("collectives", held, self.reduction, self.groups), made)

    def total(self, stages: Sequence[int]) -> Held:
        """What a rank holds of these stages."""
        blocks = tuple(self.plan.stages[stage] for stage in stages)

        def made() -> Held:
            return sum((one for each in blocks for one in self.kit.held(each)), Held())

        return self.kit.shared(("total", blocks), made)

    def gates(self, first: Mapping[Place, Cost], slots: Mapping[Place, int]) -> tuple[Gates, list[float]]:
        """When and how the first forwards start, and when each rank's gathers end [s].

        A first forward could run through without waiting for parameters from a moment on, and is slowed by what is
        gathered beside it.
        """
        gates: Gates = {}
        ends = [0.0] * len(self.on)
        if not (self.gathers_once and self.plan.scenario.stack.param_gather_overlap):
            return gates, ends
        for rank, stages in enumerate(self.on):
            now = 0.0
            for stage in stages:
                latest, cost = 0.0, first[rank, stage]
                gathers = self.stage(stage).gather
                for gather, begins in zip(gathers, cost.begins, strict=False):
                    now += gather.seconds
                    if gather.seconds:
                        latest = max(latest, now - begins)
                behind = together(gathers[1:] if stage == stages[0] else gathers)
                gates[slots[rank, stage]] = latest, behind.lost(behind.seconds, cost.slowed)
            ends[rank] = now
        return gates, ends

    def end(self, times: Times, last: Mapping[Place, tuple[float, Cost]], gathered: Sequence[float]) -> float:
        """End of the step [s]: gradients reduced, parameters updated, and gathered where nothing hides it."""
        graded = {place: [end - cost.duration + t for t in cost.graded] for place, (end, cost) in last.items()}
        slowed = [0.0] * len(self.on)
        holders: dict[int, list[int]] = {}
        for rank, stage in last:
            holders.setdefault(stage, []).append(rank)
            slowed[rank] = max(slowed[rank], self.lost(stage, last[rank, stage][1]))
        step = times.sent
        for rank, stages in enumerate(self.on):
            synced = gathered[rank]  # by ZeRO-2 and -3, with what each microbatch has reduced
            if self.zero < 2:
                synced = self.reduced(stages, times, graded, holders, gathered[rank])
            done = max(times.free[rank], synced) + slowed[rank]
            done += self.update(stages)
            if self.gathers_once and not self.plan.scenario.stack.param_gather_overlap:
                done = max(done, gathered[rank]) + self.collectives(self.total(stages))[0].seconds
            step = max(step, done)
        return step

    def lost(self, stage: int, cost: Cost) -> float:
        """What the last backward of a stage loses to the reductions beside it [s]."""
        if self.zero >= 2 or not self.plan.scenario.stack.grad_sync_overlap or not cost.graded:
            return 0.0
        return together(self.stage(stage).reduce).lost(cost.duration - min(cost.graded), cost.slowed)

    def reduced(
        self,
        stages: Sequence[int],
        times: Times,
        graded: Mapping[Place, list[float]],
        holders: Mapping[int, list[int]],
        free: float,
    ) -> float:
        """When the last reduction of a rank ends [s]."""
        now = free
        for stage in sorted(stages):
            mine = self.stage(stage)
            if not self.plan.scenario.stack.grad_sync_overlap:
                if mine.reduce_all.seconds:
                    now = max(now, *(times.free[rank] for rank in holders[stage])) + mine.reduce_all.seconds
                continue
            for block in reversed(range(len(mine.reduce))):
                seconds = mine.reduce[block].seconds
                if seconds:
                    now = max(now, *(graded[rank, stage][block] for rank in holders[stage])) + seconds
        return now

    def traffic(self, step: Step, cost: Cost, sharing: float = 0.0) -> Traffic:
        """The collectives of one action under ZeRO-2 and -3, which lasts longer by `sharing` [s]."""
        ahead, back = halves(step)
        gathers: list[tuple[float, float]] = []
        reduces: list[tuple[float, float]] = []
        if self.zero >= 3 and ahead.kind == "F":
            gathers += _timed(cost.begins, self.stage(ahead.stage).gather)
        if self.zero >= 3 and back.kind in ("B", "I"):
            turns = reversed(_timed(cost.turns, self.stage(back.stage).gather))
            gathers += [(turn, seconds) for turn, seconds in turns if turn >= 0.0]
        if back.kind in ("B", "W"):
            reduces += reversed(_timed(cost.graded, self.stage(back.stage).reduce))
        later = 1.0 + sharing / cost.duration
        return Traffic(
            duration=cost.duration + sharing,
            gathers=tuple((later * moment, seconds) for moment, seconds in gathers),
            reduces=tuple((later * moment, seconds) for moment, seconds in reduces),
            lost=together(self.stage(back.stage).reduce).share_lost(cost.slowed),
        )

    def update(self, stages: Sequence[int]) -> float:
        """The optimizer's kernels on one rank [s]."""
        held = self.total(stages)

        def made() -> float:
            ops = update_ops(held, (self.sync.dense, self.sync.experts), self.plan.scenario)
            return sum(self.plan.price(op).durations[ALONE] for op in ops)

        return self.kit.shared(("update", held, self.zero, self.groups), made)
