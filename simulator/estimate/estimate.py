"""The fast path: one layout's step time and memory at the granularity of actions.

Equal to the longest path over all tasks where actions are timed by it (`timing="longest-path"`, the oracle of the
tests); with actions timed by the discrete-event engine it leaves out only what ranks do to each other on the network
and at which of its kernels an action waits for the host, and knows to first order what compute loses to collectives of
other actions, or of the whole step, beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.engine.host import issuing
from simulator.engine.lower import Plan, link_tier, message, overlaps, sends_block
from simulator.engine.power import slowdown
from simulator.engine.sync import Sharding
from simulator.estimate.compiled import Collectives, Compiled, compiled, compiled_of, times
from simulator.estimate.grad_sync import Tail
from simulator.estimate.shared_prices import Clock, Cost, Kit, Stages, Swing, signature
from simulator.memory.account import always
from simulator.memory.optimizer_states import Shards, shards_of
from simulator.results.simulate import schedule_of
from simulator.schedule import SCHEDULES, Step
from simulator.spec.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Estimate:
    """Step time [s] (None where it was not asked for) and peak memory of the fullest rank [B]."""

    step: float | None
    memory: float


def compiled_for(scenario: Scenario) -> Compiled:
    """The compiled schedule of a scenario."""
    layout = scenario.job.layout
    if layout.schedule in SCHEDULES:
        return compiled(layout.schedule, layout.pp, scenario.job.microbatches, layout.vpp)
    return compiled_of(schedule_of(scenario))


def estimate(scenario: Scenario, kit: Kit, *, within: float = float("inf")) -> Estimate:
    """Memory and, where that stays `within` [B], step time of a valid scenario."""
    c = compiled_for(scenario)
    stages = kit.stages(scenario, c.stages, 1.0)
    factor = _slowdown(c, scenario, kit, stages)
    if factor > 1.0:
        stages = kit.stages(scenario, c.stages, factor)
    clock = kit.clock(0)
    plan = clock.plan(scenario, stages)
    memory = _peak(c, plan, kit, [clock.swing(stages, step, scenario) for step in c.examples])
    if memory > within:
        return Estimate(None, memory)
    costs = [kit.cost(scenario, stages, step, factor) for step in c.examples]
    tail = _tail(c, plan, kit)
    slowed = [_sharing(step, plan, kit, tail) for step in c.examples]
    return Estimate(_step(c, plan, costs, slowed, tail), memory)


def alone(scenario: Scenario) -> float | None:
    """The step time of a valid scenario that the longest path gives [s], at the price of its distinct actions.

    None where kernels wait for the host: then it would not be the same to the last digits.
    """
    if issuing(scenario.stack) is not None:
        return None
    c, kit = compiled_for(scenario), Kit(scenario, "longest-path")
    factor = _slowdown(c, scenario, kit, kit.stages(scenario, c.stages, 1.0))
    stages = kit.stages(scenario, c.stages, factor)
    clock = Clock(scenario, factor, "longest-path") if factor > 1.0 else kit.clock(0)
    plan = clock.plan(scenario, stages)
    costs = [clock.cost(stages, step, scenario) for step in c.examples]
    return _step(c, plan, costs, [0.0] * len(costs), _tail(c, plan, kit))


def _slowdown(c: Compiled, scenario: Scenario, kit: Kit, stages: Stages) -> float:
    """How much longer tensor kernels last at the power limit, by a pass at full clock (as `run.powered_plan`)."""
    power = scenario.cluster.gpu.power
    if power is None:
        return 1.0
    clock: Clock = kit.clock(0, "longest-path")
    plan = clock.plan(scenario, stages)
    costs = [clock.cost(stages, step, scenario) for step in c.examples]
    tail = _tail(c, plan, kit)
    step = _step(c, plan, costs, [0.0] * len(costs), tail)
    energy = sum(costs[kind].energy for row in c.rows for kind in row)
    energy += sum(tail.update(held) for held in c.on) * (power.memory - power.idle)
    return slowdown(power.idle + energy / (step * len(c.rows)), scenario.cluster.gpu, scenario.job.gpus)


def _tail(c: Compiled, plan: Plan, kit: Kit) -> Tail:
    return Tail(plan, c.on, _copies(c), kit)


def _copies(c: Compiled) -> int:
    """Ranks of a pipeline that hold each stage."""
    return sum(map(len, c.on)) // c.stages


def _step(c: Compiled, plan: Plan, costs: Sequence[Cost], slowed: Sequence[float], tail: Tail) -> float:
    """Step time [s]. `slowed`: by how much collectives beside each action lengthen it [s]."""
    gates, gathered = tail.gates({place: costs[kind] for place, kind in c.first.items()}, c.gates)
    sends = [_send(plan, a, b, tail.kit) for a, b in c.links]
    blocks = sends_block(plan.scenario)
    beside = None
    if tail.zero >= 2:
        beside = Collectives(gathered, [tail.traffic(*each) for each in zip(c.examples, costs, slowed, strict=True)])
    hosts = [(cost.lead, cost.host) for cost in costs] if any(cost.host for cost in costs) else ()
    ran = times(c, [cost.duration for cost in costs], sends, gates, sends_block=blocks, beside=beside, hosts=hosts)
    if beside is not None:
        gathered = beside.free
    last = {place: (ran.ends[at], costs[kind]) for place, (at, kind) in c.last.items()}
    return tail.end(ran, last, gathered)


def _send(plan: Plan, a: int, b: int, kit: Kit) -> float:
    """Time of a message between two pipeline ranks [s]."""
    return kit.kept(("send", link_tier(plan.scenario, a, b)), lambda: message(plan, a, b).alone)


def _sharing(step: Step, plan: Plan, kit: Kit, tail: Tail) -> float:
    """By how much an action and its collectives slow each other where they share links [s], at full clock."""
    if kit.timing == "longest-path" or tail.zero < 2:
        return 0.0
    stages, clock = plan.stages, kit.clock(0)

    def made() -> float:
        program = clock.program(stages, step, plan.scenario)
        sharding = Sharding(plan.scenario, stages, plan.price, tail.copies)
        free = Collectives([0.0], [tail.traffic(step, clock.cost(stages, step, plan.scenario))]).step(0, 0, 0.0)
        return max(0.0, clock.beside(program, step, sharding) - free)

    return kit.kept(("sharing", signature(stages, step), tail.zero, tail.groups), made)


def _peak(c: Compiled, plan: Plan, kit: Kit, swings: Sequence[Swing]) -> float:
    """Peak memory of the fullest rank [B]."""
    scenario = plan.scenario
    shards, layout = shards_of(scenario, _copies(c)), scenario.job.layout
    net, peak = np.array([*swings, (0.0, -np.inf)]).T  # the last one fills rows up
    changes = net[c.table]
    before = np.cumsum(changes, axis=1) - changes  # what the steps before each step have left
    tops = (before + peak[c.table]).max(axis=1)
    worst = 0.0
    for top, on in zip(tops.tolist(), c.on, strict=True):
        held = tuple(plan.stages[stage] for stage in on)
        key = ("always", held, layout.zero, shards, layout.pp > 1, overlaps(scenario))
        fixed = kit.kept(key, lambda held=held: _fixed(held, plan, kit, shards))  # type: ignore[misc]
        worst = max(worst, fixed + (1 + kit.assumed.slack) * top)
    return worst


def _fixed(held: Stages, plan: Plan, kit: Kit, shards: Shards) -> float:
    """What a rank with these stages holds for the whole step [B]."""
    return sum(item.bytes for item in always(held, plan, shards, kit.assumed))
