"""The fast path: one layout's step time and memory at the granularity of actions.

Equal to the longest path over all tasks where actions are timed by it (`timing="longest-path"`, the oracle of the
tests); with actions timed by the discrete-event engine it leaves out only network contention between ranks and the
kernel at which an action waits for the host. What compute loses to concurrent collectives of other actions, or of the
whole step, is included to first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.engine.host import issuing
from simulator.engine.longest_path import longest_path
from simulator.engine.lower import (
    PricedModel,
    fills_waits,
    is_uneven,
    link_tier,
    message,
    overlaps,
    pairs_forwards,
    price_model,
    sends_block,
)
from simulator.engine.power import at_the_limit, meeting_ranks
from simulator.engine.sync import Sharding
from simulator.estimate.compiled import Collectives, Compiled, Rests, compiled, compiled_of, times
from simulator.estimate.grad_sync import GradSync
from simulator.estimate.serving_step import limited, lines_of, paced_step, step_of
from simulator.estimate.shared_prices import ActionCost, MemoryDelta, PricedAtClock, SharedPrices, Stages, signature
from simulator.memory.account import always
from simulator.memory.optimizer_states import Shards, shards_of, widened_bytes
from simulator.results.simulate import schedule_of
from simulator.schedule import SCHEDULES, Step
from simulator.spec.hardware import Power
from simulator.spec.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Estimate:
    """The quick estimate of one layout.

    Parameters
    ----------
    step : step time [s]; None if not requested.
    memory : highest peak of a rank, with the mean slack of the allocator [B].
    least : the same with the least reserve of the allocator, which decides whether it fits [B].
    """

    step: float | None
    memory: float
    least: float


def compiled_for(scenario: Scenario) -> Compiled:
    """The compiled schedule of a scenario."""
    layout = scenario.job.layout
    if (
        layout.schedule in SCHEDULES
        and SCHEDULES[layout.schedule].timed is None
        and not scenario.workload.serves
        and not (pairs_forwards(scenario) or fills_waits(scenario))
    ):
        return compiled(layout.schedule, layout.pp, scenario.job.microbatches, layout.vpp)
    return compiled_of(schedule_of(scenario))


def estimate(scenario: Scenario, shared: SharedPrices, *, within: float = float("inf")) -> Estimate:
    """Memory and, where the least of it stays `within` [B], step time of a valid scenario."""
    c = compiled_for(scenario)
    stages = shared.stages(scenario, c.stages, 1.0)
    factor = _slowdown(c, scenario, shared, stages)
    if factor > 1.0:
        stages = shared.stages(scenario, c.stages, factor)
    clock = shared.clock(0)
    built = clock.priced(scenario, stages)
    memory, least = _peaks(
        c, built, shared, [clock.memory_delta(stages, step, scenario, _copies(c)) for step in c.examples]
    )
    if least > within:
        return Estimate(None, memory, least)
    costs = [shared.cost(scenario, stages, step, factor) for step in c.examples]
    grad_sync = _tail(c, built, shared)
    slowed = [_sharing(step, built, shared, grad_sync) for step in c.examples]
    return Estimate(_step(c, built, costs, slowed, grad_sync), memory, least)


def alone(scenario: Scenario) -> float | None:
    """The step time of a valid scenario that the longest path gives [s], at the price of its distinct actions.

    None where kernels wait for the host, or ranks for each other: then it would not be the same to the last digits.
    """
    if scenario.workload.serves:
        return paced_step(scenario, longest_path)
    if issuing(scenario.stack, scenario.cluster.node.host_pace) is not None or is_uneven(scenario):
        return None
    c, shared = compiled_for(scenario), SharedPrices(scenario, "longest-path")
    factor = _slowdown(c, scenario, shared, shared.stages(scenario, c.stages, 1.0))
    stages = shared.stages(scenario, c.stages, factor)
    clock = PricedAtClock(scenario, factor, "longest-path") if factor > 1.0 else shared.clock(0)
    built = clock.priced(scenario, stages)
    costs = [clock.cost(stages, step, scenario) for step in c.examples]
    return _step(c, built, costs, [0.0] * len(costs), _tail(c, built, shared))


@dataclass(frozen=True, slots=True)
class Placed:
    """Blocks on their `stages` as a step runs them, and the mean power it demands at full clock [W] (None without a
    power model)."""

    stages: Stages
    watts: float | None


def placed(scenario: Scenario, shared: SharedPrices) -> Placed:
    """Which blocks stand on which stage of a valid scenario, and what its step draws."""
    if scenario.workload.serves:
        lines = lines_of(price_model(scenario, 1))
        return Placed(lines.built.stages, limited(lines)[1])
    c = compiled_for(scenario)
    stages = shared.stages(scenario, c.stages, 1.0)
    factor, watts = _at_the_limit(c, scenario, shared, stages)
    return Placed(shared.stages(scenario, c.stages, factor), watts)


def repriced(scenario: Scenario, base: PricedModel, stages: Stages) -> float:
    """Step time of a valid scenario at the prices of `base`, whatever the power limit says [s]."""
    if scenario.workload.serves:
        return step_of(lines_of(replace(base, scenario=scenario, stages=stages)))
    c, shared = compiled_for(scenario), SharedPrices(scenario, "events")
    clock = shared.clocks[0, "events"] = PricedAtClock(scenario, 1.0, "events", base)
    built = clock.priced(scenario, stages)
    costs = [clock.cost(stages, step, scenario) for step in c.examples]
    grad_sync = _tail(c, built, shared)
    slowed = [_sharing(step, built, shared, grad_sync) for step in c.examples]
    return _step(c, built, costs, slowed, grad_sync)


def _slowdown(c: Compiled, scenario: Scenario, shared: SharedPrices, stages: Stages) -> float:
    """How much longer tensor kernels last at the power limit."""
    return _at_the_limit(c, scenario, shared, stages)[0]


def _at_the_limit(c: Compiled, scenario: Scenario, shared: SharedPrices, stages: Stages) -> tuple[float, float | None]:
    """The same and the power demanded [W] (None: not modelled), by a pass over the actions at full clock."""

    def watts(power: Power) -> float:
        clock = shared.sound()
        built = clock.priced(scenario, stages)
        costs = [clock.cost(stages, step, scenario) for step in c.examples]
        grad_sync = _tail(c, built, shared)
        rests = Rests(power.pause, [cost.edges for cost in costs]) if power.pause else None
        step = _step(c, built, costs, [0.0] * len(costs), grad_sync, rests)
        rested = 0.0 if rests is None else rests.around(step)
        rested += sum(costs[kind].rested for row in c.rows for kind in row)
        energy = sum(costs[kind].energy for row in c.rows for kind in row)
        energy += sum(grad_sync.update_energy(held, power) for held in c.on)
        return power.idle + energy / (step * len(c.rows) - rested)

    return at_the_limit(scenario.cluster.gpu, scenario.job.gpus, watts, meeting_ranks(scenario))


def _tail(c: Compiled, built: PricedModel, shared: SharedPrices) -> GradSync:
    return GradSync(built, c.on, _copies(c), shared)


def _copies(c: Compiled) -> int:
    """Ranks of a pipeline that hold each stage."""
    return sum(map(len, c.on)) // c.stages


def _step(
    c: Compiled,
    built: PricedModel,
    costs: Sequence[ActionCost],
    slowed: Sequence[float],
    grad_sync: GradSync,
    rests: Rests | None = None,
) -> float:
    """Step time [s]. `slowed`: time that each action loses to concurrent collectives [s]; `rests` takes pauses down."""
    gates, gathered = grad_sync.gates({place: costs[kind] for place, kind in c.first.items()}, c.gates)
    sends = [_send(built, a, b, grad_sync.shared) for a, b in c.links]
    blocks = sends_block(built.scenario)
    concurrent = None
    if grad_sync.order.reduces_in_actions:
        concurrent = Collectives(
            gathered, [grad_sync.traffic(*each) for each in zip(c.examples, costs, slowed, strict=True)]
        )
    hosts = [(cost.lead, cost.host) for cost in costs] if any(cost.host for cost in costs) else ()
    durations = [cost.duration for cost in costs]
    ran = times(c, durations, sends, gates, sends_block=blocks, concurrent=concurrent, hosts=hosts, rests=rests)
    if concurrent is not None:
        gathered = concurrent.free
    last = {place: (ran.ends[at], costs[kind]) for place, (at, kind) in c.last.items()}
    return grad_sync.end(ran, last, gathered, rests)


def _send(built: PricedModel, a: int, b: int, shared: SharedPrices) -> float:
    """Time of a message between two pipeline ranks [s]."""
    return shared.kept(("send", link_tier(built.scenario, a, b)), lambda: message(built, a, b).alone)


def _sharing(step: Step, built: PricedModel, shared: SharedPrices, grad_sync: GradSync) -> float:
    """By how much an action and its collectives slow each other where they share links [s], at full clock."""
    if shared.timing == "longest-path" or not grad_sync.order.reduces_in_actions:
        return 0.0
    stages, clock = built.stages, shared.clock(0)

    def made() -> float:
        program = clock.program(stages, step, built.scenario)
        sharding = Sharding(built.scenario, stages, built.price, grad_sync.copies)
        free = Collectives([0.0], [grad_sync.traffic(step, clock.cost(stages, step, built.scenario))]).step(0, 0, 0.0)
        return max(0.0, clock.concurrent(program, step, sharding) - free)

    return shared.kept(("sharing", signature(stages, step), grad_sync.order.zero, grad_sync.groups), made)


def _peaks(
    c: Compiled, built: PricedModel, shared: SharedPrices, memory_deltas: Sequence[MemoryDelta]
) -> tuple[float, float]:
    """The highest peak memory of a rank, with the mean slack, and with the least reserve [B]."""
    scenario = built.scenario
    shards, layout = shards_of(scenario, _copies(c)), scenario.job.layout
    net, peak = np.array([*memory_deltas, (0.0, -np.inf)]).T  # the last one fills rows up
    changes = net[c.table]
    before = np.cumsum(changes, axis=1) - changes  # what the steps before each step have left
    tops = (before + peak[c.table]).max(axis=1)
    worst = least = 0.0
    for top, on in zip(tops.tolist(), c.on, strict=True):
        held = tuple(built.stages[stage] for stage in on)
        key = ("always", held, layout.zero, shards, layout.pp > 1, overlaps(scenario), scenario.job.microbatches)
        fixed, updated = shared.kept(key, lambda held=held: _fixed(held, built, shared, shards))  # type: ignore[misc]
        moving = max(top, updated)
        worst = max(worst, fixed + (1 + shared.assumed.slack) * moving)
        least = max(least, fixed + (1 + scenario.job.memory.reserve[0]) * moving)
    return worst, least


def _fixed(held: Stages, built: PricedModel, shared: SharedPrices, shards: Shards) -> tuple[float, float]:
    """What a rank with these stages holds for the whole step, and what only its update needs [B]."""
    fixed = sum(item.bytes for item in always(held, built, shards, shared.assumed))
    return fixed, widened_bytes(held, built.scenario, shards, shared.assumed)
