"""Parameters and gradients around the pipeline: gathers before the first forwards, reductions and the update after.

The same collectives as `engine.sync` prices, on one stream a rank; here by arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from simulator.engine.kernel_sequence import ALONE, Priced
from simulator.engine.lower import PricedModel
from simulator.engine.power import energy_above_idle
from simulator.engine.sync import Sync
from simulator.engine.update import own_gradient_ops, update_ops
from simulator.estimate.compiled import Gates, Rests, Times, Traffic
from simulator.estimate.shared_prices import ActionCost, SharedPrices
from simulator.graph.parameters import Held
from simulator.ops import CollectiveKind
from simulator.schedule import Step, halves
from simulator.spec.hardware import Power

Place = tuple[int, int]
"""(rank, stage)."""


class CollectiveTime(NamedTuple):
    """Collectives: their time [s], and that time × the share of SMs and memory traffic that they hold [s] (see
    `Cost.held`)."""

    seconds: float
    held: float

    def share_lost(self, slowed: float) -> float:
        """Share of their time that concurrent compute loses; a collective over a whole node slows it by the share
        `slowed`."""
        part = slowed * self.held / self.seconds if self.seconds else 0.0
        return part / (1.0 + part)

    def lost(self, concurrent: float, slowed: float) -> float:
        """What compute loses that is `concurrent` with them for so long [s]."""
        return min(concurrent, self.seconds) * self.share_lost(slowed)


@dataclass(frozen=True, slots=True)
class Stage:
    """Collectives of one stage: `gather` and `reduce` block by block, `reduce_all` in one."""

    gather: tuple[CollectiveTime, ...]
    reduce: tuple[CollectiveTime, ...]
    reduce_all: CollectiveTime


def together(each: Iterable[CollectiveTime]) -> CollectiveTime:
    """One after the other."""
    return CollectiveTime(*map(sum, zip((0.0, 0.0), *each, strict=True)))


class GradSync:
    """Collectives of one layout."""

    def __init__(self, built: PricedModel, on: Sequence[tuple[int, ...]], copies: int, shared: SharedPrices) -> None:
        self.built, self.on, self.shared, self.copies = built, on, shared, copies
        sync = self.sync = Sync(built.scenario, built.price, copies)
        self.order = sync.order
        self.groups = (sync.dense, sync.experts)

    def collective(self, kind: CollectiveKind, held: Held) -> CollectiveTime:
        """The collectives over `held`."""
        sequences = self.sync.gather(held) if kind == "all_gather" else self.sync.reduce("", kind, held)
        return CollectiveTime(
            sum(sequence.alone for sequence in sequences), sum(sequence.alone * sequence.held for sequence in sequences)
        )

    def stage(self, number: int) -> Stage:
        """The collectives of a stage."""
        blocks = self.built.stages[number]

        def made() -> Stage:
            seconds = {held: self.collectives(held) for held in dict.fromkeys(self.shared.held(blocks))}
            each = [seconds[held] for held in self.shared.held(blocks)]
            return Stage(
                gather=tuple(gather for gather, _ in each),
                reduce=tuple(reduce for _, reduce in each),
                reduce_all=self.collective(self.order.reduction, self.total((number,))),
            )

        return self.shared.shared(("stage", blocks, self.order.reduction, self.groups), made)

    def collectives(self, held: Held) -> tuple[CollectiveTime, CollectiveTime]:
        """Gathering and reducing `held`."""

        def made() -> tuple[CollectiveTime, CollectiveTime]:
            return self.collective("all_gather", held), self.collective(self.order.reduction, held)

        return self.shared.shared(("collectives", held, self.order.reduction, self.groups), made)

    def total(self, stages: Sequence[int]) -> Held:
        """What a rank holds of these stages."""
        blocks = tuple(self.built.stages[stage] for stage in stages)

        def made() -> Held:
            return sum((one for each in blocks for one in self.shared.held(each)), Held())

        return self.shared.shared(("total", blocks), made)

    def gates(self, first: Mapping[Place, ActionCost], slots: Mapping[Place, int]) -> tuple[Gates, list[float]]:
        """When and how the first forwards start, and when each rank's gathers end [s].

        From that time a first forward does not wait for parameters; it is slowed by concurrent gathers.
        """
        gates: Gates = {}
        ends = [0.0] * len(self.on)
        if not self.order.gathers_before:
            return gates, ends
        for rank, stages in enumerate(self.on):
            now = 0.0
            for stage in stages:
                latest, cost = 0.0, first[rank, stage]
                gathered: list[tuple[float, float]] = []
                gathers = self.stage(stage).gather
                for gather, forward_start in zip(gathers, cost.forward_start, strict=False):
                    now += gather.seconds
                    if gather.seconds:
                        latest = max(latest, now - forward_start)
                        gathered.append((forward_start, now))
                behind = together(gathers[1:] if stage == stages[0] else gathers)
                gates[slots[rank, stage]] = latest, behind.lost(behind.seconds, cost.slowed), tuple(gathered)
            ends[rank] = now
        return gates, ends

    def end(
        self,
        times: Times,
        last: Mapping[Place, tuple[float, ActionCost]],
        gathered: Sequence[float],
        rests: Rests | None = None,
    ) -> float:
        """Time of the step [s]: gradients reduced, parameters updated, and gathered where nothing hides it; with steps
        that overlap that of the longest rank."""
        wgrad_end = {place: [end - cost.duration + t for t in cost.wgrad_end] for place, (end, cost) in last.items()}
        slowed = [0.0] * len(self.on)
        holders: dict[int, list[int]] = {}
        for rank, stage in last:
            holders.setdefault(stage, []).append(rank)
            slowed[rank] = max(slowed[rank], self.lost(stage, last[rank, stage][1]))
        step = 0.0
        overlap = self.built.scenario.stack.post_validation and not self.order.gathers_before
        ready = [free + self.own_gradients(on) for free, on in zip(times.free, self.on, strict=True)]
        for rank, stages in enumerate(self.on):
            synced = gathered[rank]  # by ZeRO-2 and -3, with what each microbatch has reduced
            if not self.order.reduces_in_actions:
                ordered = sorted((s for s in stages if (rank, s) in wgrad_end), key=lambda s: max(wgrad_end[rank, s]))
                synced = self.reduced(ordered, ready, wgrad_end, holders, gathered[rank])
            synced += sum(sequence.alone for sequence in self.sync.orthogonalised(self.total(stages)))
            done = max(ready[rank], synced) + slowed[rank]
            update = self.update(stages)
            if rests is not None and ready[rank] > times.free[rank]:
                rests.computes(rank, times.free[rank], ready[rank])
            if rests is not None and update:
                rests.computes(rank, done, done + update)
            done += update
            if self.order.gathers_behind:
                done = max(done, gathered[rank]) + self.collectives(self.total(stages))[0].seconds
            step = max(step, max(done, times.sent[rank]) - (times.begun[rank] if overlap else 0.0))
        return step

    def lost(self, stage: int, cost: ActionCost) -> float:
        """What the last backward of a stage loses to concurrent reductions [s]."""
        overlapped = self.order.by_block and not self.order.behind_stage
        if self.order.reduces_in_actions or not overlapped or not cost.wgrad_end:
            return 0.0
        return together(self.stage(stage).reduce).lost(cost.duration - min(cost.wgrad_end), cost.slowed)

    def reduced(
        self,
        stages: Sequence[int],
        ended: Sequence[float],
        wgrad_end: Mapping[Place, list[float]],
        holders: Mapping[int, list[int]],
        free: float,
    ) -> float:
        """When the last reduction of a rank ends; `ended`: when the ranks are done with their own gradients [s]."""
        now = free
        for stage, block in self.order.reductions({stage: len(self.stage(stage).reduce) for stage in stages}):
            mine, last = self.stage(stage), block == 0 and stage == stages[-1]
            seconds = (mine.reduce_all if block is None else mine.reduce[block]).seconds
            if seconds:
                ready = [
                    ended[rank] if block is None or last else self.order.complete(block, wgrad_end[rank, stage])
                    for rank in holders[stage]
                ]
                now = max(now, *ready) + seconds
        return now

    def traffic(self, step: Step, cost: ActionCost, sharing: float = 0.0) -> Traffic:
        """The collectives of one action under ZeRO-2 and -3, which lasts longer by `sharing` [s]."""
        _, back = halves(step)
        gathers = [
            (at, self.stage(stage).gather[block].seconds)
            for stage, block, at in self.order.gathers(step, cost.forward_start, cost.backward_start)
        ]
        reduces = [
            (at, self.stage(stage).reduce[block].seconds)
            for stage, block, at in self.order.reduces(step, cost.wgrad_end)
        ]
        later = 1.0 + sharing / cost.duration if cost.duration else 1.0  # stages without layers have empty actions
        return Traffic(
            duration=cost.duration + sharing,
            gathers=tuple((later * at, seconds) for at, seconds in gathers),
            reduces=tuple((later * at, seconds) for at, seconds in reduces),
            lost=together(self.stage(back.stage).reduce).share_lost(cost.slowed),
        )

    def own_gradients(self, stages: Sequence[int]) -> float:
        """The time of the kernels on a rank's own gradients before they are reduced once a step [s]."""
        if self.order.reduces_in_actions:
            return 0.0
        key = ("own gradients", self.total(stages), self.groups, self.copies)
        return self.shared.shared(key, lambda: sum(one.durations[ALONE] for one in self._own(stages)))

    def _own(self, stages: Sequence[int]) -> list[Priced]:
        return [self.built.price(op) for op in own_gradient_ops(self.total(stages), self.built.scenario)]

    def update(self, stages: Sequence[int]) -> float:
        """The time of the optimizer's kernels on one rank [s]."""
        key = ("update", self.total(stages), self.order.zero, self.groups)
        return self.shared.shared(key, lambda: sum(one.durations[ALONE] for one in self._update(stages)))

    def update_energy(self, stages: Sequence[int], power: Power) -> float:
        """Energy that these kernels take above that of an idle GPU [J]."""
        before = [] if self.order.reduces_in_actions else self._own(stages)
        return energy_above_idle([*before, *self._update(stages)], power)

    def _update(self, stages: Sequence[int]) -> list[Priced]:
        """The optimizer's kernels on one rank."""
        blocks = [kind for stage in stages for kind in self.built.stages[stage]]
        ranks = self.sync.dense.ranks, self.sync.experts.ranks
        return [self.built.price(op) for op in update_ops(self.total(stages), blocks, ranks, self.built.scenario)]
