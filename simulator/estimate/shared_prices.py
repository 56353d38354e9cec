"""What many layouts have in common: blocks, prices, and the time and memory of each distinct action.

Layouts that differ only in schedule, stages, ZeRO or number of GPUs share them. An action is simulated once, alone on
one rank, by the discrete-event engine: compute and all-to-all of one rank share SMs and memory there; only network
contention between ranks is left out. Where a power limit slows tensor kernels, by a factor that differs from layout to
layout, actions are simulated at a grid of factors and their times interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar, cast

from simulator.engine.des import simulate as run_events
from simulator.engine.host import issuing, releases
from simulator.engine.kernel_sequence import ALONE, COLLECTIVE
from simulator.engine.longest_path import longest_path
from simulator.engine.lower import (
    PricedModel,
    Programs,
    append,
    host_after_message,
    is_uneven,
    mirrored,
    overlaps,
    price_model,
    seconds_by_kind,
)
from simulator.engine.power import energy_above_idle, paused
from simulator.engine.program import Program
from simulator.engine.sync import Sharding
from simulator.engine.tasks import COMPUTE, Tasks
from simulator.graph.parameters import Held, held_by_blocks
from simulator.graph.stage import place
from simulator.memory import Assumptions
from simulator.memory.account import alone, swing
from simulator.memory.deltas import Usages
from simulator.memory.optimizer_states import made_in_backward, shards_of
from simulator.schedule import Pair, Step
from simulator.spec.job import Batch, Job, Layout, Run
from simulator.spec.model import BlockKind
from simulator.spec.scenario import Scenario

Timing = Literal["events", "longest-path"]
Stages = tuple[tuple[BlockKind, ...], ...]
T = TypeVar("T")

GRID = 0.02
"""Distance of the slowdowns at which actions are simulated; times are nearly linear in between."""


@dataclass(frozen=True, slots=True)
class ActionCost:
    """One action, simulated alone.

    Parameters
    ----------
    duration : time of the action [s].
    forward_start, backward_start : start of each block's forward and backward [s] (-1: it has none).
    wgrad_end : end of each block's weight gradients [s].
    energy : energy above that of an idle GPU [J].
    rested : `simulator.engine.power.paused` inside it [s].
    edges : time before it computes, and behind [s]; None where it does not.
    lead : earliest start after the host begins to issue it, without a wait for the host inside [s].
    host : host time to issue it [s].
    slowed : how much longer it takes while a collective of a whole node is concurrent, share of its duration.
    """

    duration: float
    forward_start: tuple[float, ...]
    backward_start: tuple[float, ...]
    wgrad_end: tuple[float, ...]
    energy: float = 0.0
    lead: float = 0.0
    host: float = 0.0
    slowed: float = 0.0
    rested: float = 0.0
    edges: tuple[float, float] | None = None


MemoryDelta = tuple[float, float]
"""By how many bytes an action changes what is kept, and how far memory rises meanwhile above its start."""


def between(one: ActionCost, other: ActionCost, part: float) -> ActionCost:
    """The cost `part` of the way from `one` to `other`."""
    if part == 0.0:
        return one

    def mix(a: float, b: float) -> float:
        return a + (b - a) * part

    return ActionCost(
        duration=mix(one.duration, other.duration),
        forward_start=tuple(map(mix, one.forward_start, other.forward_start)),
        backward_start=tuple(map(mix, one.backward_start, other.backward_start)),
        wgrad_end=tuple(map(mix, one.wgrad_end, other.wgrad_end)),
        energy=mix(one.energy, other.energy),
        lead=mix(one.lead, other.lead),
        host=one.host,
        slowed=mix(one.slowed, other.slowed),
        rested=mix(one.rested, other.rested),
        edges=one.edges,
    )


def signature(stages: Stages, step: Step) -> Hashable:
    """All that a step's program depends on."""
    if isinstance(step, Pair):
        return "P", stages[step.forward.stage], stages[step.backward.stage]
    return step.kind, step.filled, stages[step.stage]


def evenly(layout: Layout) -> Layout:
    """The layout without what it says of single stages."""
    return replace(layout, stages="even", decoder_first_pipeline_num_layers=None, decoder_last_pipeline_num_layers=None)


def one_stage(scenario: Scenario) -> Scenario:
    """The scenario with all blocks on one stage, whatever its layout says of several."""
    return replace(scenario, job=replace(scenario.job, layout=evenly(scenario.job.layout)))


class PricedAtClock:
    """Prices and actions at one slowdown of tensor kernels, or those of a `base` that is already priced."""

    def __init__(self, scenario: Scenario, slowdown: float, timing: Timing, base: PricedModel | None = None) -> None:
        self.scenario, self.timing = scenario, timing
        self.base = price_model(one_stage(scenario), 1, pace=slowdown) if base is None else base
        self.costs: dict[Hashable, ActionCost] = {}
        self.programs: dict[Hashable, Program] = {}
        self.memory_deltas: dict[Hashable, MemoryDelta] = {}
        self.weights: dict[bool, dict[BlockKind, float]] = {}

    @cached_property
    def usages(self) -> Usages:
        """What each action keeps in memory."""
        return Usages(self.base)

    def seconds(self, hidden: bool) -> dict[BlockKind, float]:
        """Time of each kind of block, by which stages are balanced, all-to-alls `hidden` or not [s]."""
        if hidden not in self.weights:
            self.weights[hidden] = seconds_by_kind(self.base.blocks, self.base.price, hidden)
        return self.weights[hidden]

    def priced(self, scenario: Scenario, stages: Stages) -> PricedModel:
        """The plan of one layout."""
        return replace(self.base, scenario=scenario, stages=stages)

    def cost(self, stages: Stages, step: Step, scenario: Scenario) -> ActionCost:
        """Cost of a step's action."""
        key = signature(stages, step), host_after_message(scenario, stages, step)
        if key not in self.costs:
            self.costs[key] = self._simulated(self.program(stages, step, scenario))
        return self.costs[key]

    def program(self, stages: Stages, step: Step, scenario: Scenario) -> Program:
        """The program of a step's action."""
        key = signature(stages, step), host_after_message(scenario, stages, step)
        if key not in self.programs:
            self.programs[key] = Programs(self.priced(scenario, stages)).of(step)
        return self.programs[key]

    def memory_delta(self, stages: Stages, step: Step, scenario: Scenario, copies: int) -> MemoryDelta:
        """What a step's action does to memory, with stages on `copies` ranks of a pipeline."""
        made = made_in_backward(self.base.blocks, scenario, shards_of(scenario, copies))
        key = signature(stages, step), tuple(made.items())
        if key not in self.memory_deltas:
            usage = self.usages.made_of(step, self.program(stages, step, scenario), stages, made)
            self.memory_deltas[key] = swing(usage, longest_path(alone(usage.program)))
        return self.memory_deltas[key]

    def concurrent(self, program: Program, step: Step, sharding: Sharding) -> float:
        """Duration of an action with the collectives of its sharded parameters, nothing else on the rank [s]."""
        node = self.scenario.cluster.node
        tasks = Tasks(ranks=1, nic=node.nic.bandwidth, nvlink=node.nvlink.bandwidth)
        base = append(tasks, 0, program, (), sharding.gather(tasks, 0, step, program, ()))
        sharding.reduce(tasks, 0, step, program, base)
        timeline = run_events(tasks)
        return max((timeline.end[base + at] for at in program.tails), default=0.0)

    def _simulated(self, program: Program) -> ActionCost:
        """Run an action alone on one rank."""
        node, power = self.scenario.cluster.node, self.scenario.cluster.gpu.power
        tasks = replace(alone(program), nic=node.nic.bandwidth, nvlink=node.nvlink.bandwidth)
        timeline = run_events(tasks) if self.timing == "events" else longest_path(tasks)
        duration = max((timeline.end[at] for at in program.tails), default=0.0)
        lead, host = self._hosted(program, tasks, duration)
        sequences = [part.sequence for part in program.steps if part.stream == COMPUTE]
        lone, shared = (
            sum(sequence.under(condition)[-1] for sequence in sequences) for condition in (ALONE, COLLECTIVE)
        )
        begun, ended = (
            [each[at] for at, part in enumerate(program.steps) if part.stream == COMPUTE]
            for each in (timeline.start, timeline.end)
        )
        work = [op for sequence in sequences for op in sequence.ops] if power else []
        return ActionCost(
            duration=duration,
            forward_start=tuple(timeline.start[at] for at in program.forward_start),
            backward_start=tuple(timeline.start[at] if at >= 0 else -1.0 for at in program.backward_start),
            wgrad_end=tuple(timeline.end[at] for at in program.wgrad_end),
            energy=energy_above_idle(work, power) if power else 0.0,
            lead=lead,
            host=host,
            slowed=shared / lone - 1.0 if lone and self.timing == "events" else 0.0,
            rested=paused(timeline, power, around=False) if power else 0.0,
            edges=(min(begun), duration - max(ended)) if sequences else None,
        )

    def _hosted(self, program: Program, tasks: Tasks, duration: float) -> tuple[float, float]:
        """(lead, host): see `ActionCost` [s]."""
        issue = issuing(self.scenario.stack, self.scenario.cluster.node.host_pace)
        if issue is None:
            return 0.0, 0.0
        release_times, total = releases(program, issue)
        timeline = longest_path(replace(tasks, release=dict(enumerate(release_times))))
        return max((timeline.end[at] for at in program.tails), default=0.0) - duration, total


def shared_job(job: Job) -> Job:
    """A job with everything taken out that neither blocks nor prices depend on."""
    layout = replace(evenly(job.layout), pp=1, vpp=1, zero=0, schedule="")
    size = job.batch.microbatch_size
    batch = Batch(sequence_length=job.batch.sequence_length, microbatch_size=size, global_batch_size=size)
    return replace(job, gpus=0, layout=layout, batch=batch, run=Run())


class SharedPrices:
    """Blocks and prices of one shape, and what was computed from them."""

    def __init__(self, scenario: Scenario, timing: Timing, common: dict[Hashable, object] | None = None) -> None:
        self.scenario, self.timing = scenario, timing
        self.common = {} if common is None else common
        self.assumed = Assumptions()
        self.clocks: dict[tuple[int, Timing], PricedAtClock] = {}
        self.memo: dict[Hashable, object] = {}

    def clock(self, at: int, timing: Timing | None = None) -> PricedAtClock:
        """Prices at a slowdown of 1 + `at` x GRID."""
        key = (at, timing or self.timing)
        if key not in self.clocks:
            self.clocks[key] = PricedAtClock(self.scenario, 1.0 + at * GRID, key[1])
        return self.clocks[key]

    def sound(self) -> PricedAtClock:
        """Prices at full clock, timed by the longest path, of a rank that waits for no other."""
        if not is_uneven(self.scenario):
            return self.clock(0, "longest-path")

        def made() -> PricedAtClock:
            base = replace(self.clock(0, "longest-path").base, rendezvous=None)
            return PricedAtClock(self.scenario, 1.0, "longest-path", base)

        return self.kept(("sound",), made)

    def stages(self, scenario: Scenario, count: int, slowdown: float) -> Stages:
        """Which blocks stand on which of `count` stages."""
        layout, hidden = scenario.job.layout, overlaps(scenario)
        how = layout.stages, layout.decoder_first_pipeline_num_layers, layout.decoder_last_pipeline_num_layers
        in_pairs = mirrored(scenario)
        at, part = grid(slowdown)

        def made() -> Stages:
            low, high = self.clock(at).seconds(hidden), self.clock(at + (part > 0)).seconds(hidden)
            weights = {kind: low[kind] + (high[kind] - low[kind]) * part for kind in low}
            return place(scenario.model, count, scenario.job, weights, mirrored=in_pairs)

        return self.kept(("stages", count, how, hidden, in_pairs, slowdown), made) if slowdown == 1.0 else made()

    def cost(self, scenario: Scenario, stages: Stages, step: Step, slowdown: float) -> ActionCost:
        """Cost of a step's action when tensor kernels last `slowdown` times as long."""
        at, part = grid(slowdown)
        low = self.clock(at).cost(stages, step, scenario)
        return between(low, self.clock(at + 1).cost(stages, step, scenario), part) if part else low

    def held(self, blocks: tuple[BlockKind, ...]) -> list[Held]:
        """Parameters of each block of a stage on one rank."""
        return self.shared(("held", blocks), lambda: held_by_blocks(blocks, self.scenario.model, self.scenario.job))

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made once for a key."""
        return _once(self.memo, key, make)

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made once for a key and all kits of the same parameters."""
        return _once(self.common, key, make)


def _once(memo: dict[Hashable, object], key: Hashable, make: Callable[[], T]) -> T:
    if key not in memo:
        memo[key] = make()
    return cast(T, memo[key])


def grid(slowdown: float) -> tuple[int, float]:
    """The point of the grid at or below a slowdown, and how far it is to the next (0 to 1)."""
    at = int((slowdown - 1.0) / GRID)
    return at, (slowdown - 1.0) / GRID - at


def parameters_of(job: Job) -> Hashable:
    """All of a job that its parameters, their collectives and their update depend on, but how they are sharded."""
    layout = job.layout
    return layout.tp, layout.cp, layout.ep, layout.etp, job.precision, job.optimizer, job.offload.optimizer


class SharedPricesMemo:
    """The last few shared prices, by their objects and the shared part of the job."""

    def __init__(self, timing: Timing = "events", keep: int = 4) -> None:
        self.timing: Timing = timing
        self.keep = keep
        self.made: dict[Hashable, SharedPrices] = {}
        self.common: dict[Hashable, dict[Hashable, object]] = {}

    def of(self, scenario: Scenario) -> SharedPrices:
        """The shared prices of a scenario."""
        things = (id(scenario.model), id(scenario.cluster), id(scenario.stack))
        key = (*things, shared_job(scenario.job))

        def alive() -> dict[Hashable, object]:
            return {"of": scenario}  # while its objects are kept, no others can have their ids

        def made() -> SharedPrices:
            common = _recent(self.common, (*things, parameters_of(scenario.job)), alive, self.keep)
            return SharedPrices(scenario, self.timing, common)

        return _recent(self.made, key, made, self.keep)


def _recent(memo: dict[Hashable, T], key: Hashable, make: Callable[[], T], keep: int) -> T:
    """The value of a key, now the latest; only the `keep` latest stay."""
    value = memo.pop(key) if key in memo else make()
    memo[key] = value
    while len(memo) > keep:
        del memo[next(iter(memo))]
    return value
