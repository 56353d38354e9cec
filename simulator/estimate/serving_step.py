"""The fast path of a serving step: a few layers of each kind, and what every further one adds.

Layers of one kind are equal, so that after a few of them every further one makes the step longer by the same time. The
step is simulated with runs of equal layers cut to `MOST`, once more with each of them one layer shorter, and continued
in a straight line. Where the host issues every kernel, a line that the host and the GPU draw together may bend later:
the step is then simulated whole, unless its slope is already the steeper of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from simulator.engine.des import simulate as run_events
from simulator.engine.longest_path import longest_path
from simulator.engine.lower import PricedModel, lower, price_model
from simulator.engine.power import at_the_limit, demand
from simulator.engine.tasks import Tasks, Timeline
from simulator.memory import memory_of_serving
from simulator.memory.budget import beyond_budget
from simulator.results.simulate import schedule_of, timeline_of
from simulator.spec.hardware import Power
from simulator.spec.model import BlockKind
from simulator.spec.scenario import Scenario

MOST = 4
"""Longest run of equal layers that is simulated: the second microbatch is two stages behind, less than a layer."""
_SAME = 1e-9
"""Slopes that differ by less are equal."""

Kinds = tuple[BlockKind, ...]
Engine = Callable[[Tasks], Timeline]


@dataclass(frozen=True, slots=True)
class ServingEstimate:
    """Step time [s] (None where it does not fit), highest peak with the mean slack of the allocator [B]."""

    step: float | None
    memory: float


def estimate_serving(scenario: Scenario) -> ServingEstimate:
    """Memory and, where that fits, step time of a valid serving scenario, at the clock its power limit allows."""
    memory = memory_of_serving(scenario)
    if not memory.fits or beyond_budget(scenario, memory.worst):
        return ServingEstimate(None, memory.peak)
    return ServingEstimate(paced_step(scenario), memory.peak)


def paced_step(scenario: Scenario, engine: Engine = run_events) -> float:
    """Step time of a valid serving scenario at the clock that its power limit allows [s]."""
    lines = lines_of(price_model(scenario, 1))
    factor, _ = limited(lines)
    if factor > 1.0:
        lines = lines_of(price_model(scenario, 1, pace=factor))
    serving = scenario.job.serving
    if serving is not None and serving.ranks == "apart":  # every layer loads other ranks most: none stands for another
        return timeline_of(lines.built, schedule_of(scenario), "events").makespan
    return step_of(lines, engine)


@dataclass(frozen=True, slots=True)
class Lines:
    """Tasks of steps with fewer layers than `built` has, and their weights: the weighted sum of their times is that of
    the whole step."""

    built: PricedModel
    parts: tuple[tuple[float, Tasks], ...]


def lines_of(built: PricedModel) -> Lines:
    """The shorter steps of a priced serving scenario."""
    schedule = schedule_of(built.scenario)
    parts = shortened(built.stages[0])
    return Lines(built, tuple((weight, lower(replace(built, stages=(kinds,)), schedule)) for weight, kinds in parts))


def limited(lines: Lines) -> tuple[float, float | None]:
    """How much longer tensor kernels last at the power limit, and the mean power at full clock [W] (None: not
    modelled)."""
    scenario = lines.built.scenario

    def watts(power: Power) -> float:
        energy = step = 0.0
        for weight, tasks in lines.parts:
            timeline = longest_path(tasks)
            energy += weight * timeline.makespan * demand(timeline, power, waiting_gemms=True)
            step += weight * timeline.makespan
        return energy / step

    return at_the_limit(scenario.cluster.gpu, scenario.job.gpus, watts)


def step_of(lines: Lines, engine: Engine = run_events) -> float:
    """Step time [s]."""
    if not _straight(lines, engine):
        return engine(lower(lines.built, schedule_of(lines.built.scenario))).makespan
    return sum(weight * engine(tasks).makespan for weight, tasks in lines.parts)


def shortened(kinds: Kinds, most: int = MOST) -> list[tuple[float, Kinds]]:
    """Weights and shorter rows of blocks: a time that is linear in every run of equal blocks beyond `most` - 1 of them
    is the weighted sum of theirs."""
    runs = [(kind, len(list(same))) for kind, same in groupby(kinds)]
    cut = [min(count, most) for _, count in runs]
    out = [(1.0 + sum(count - kept for (_, count), kept in zip(runs, cut, strict=True)), _row(runs, cut))]
    for at, (_, count) in enumerate(runs):
        if count > most:
            shorter = [kept - (place == at) for place, kept in enumerate(cut)]
            out.append((-float(count - most), _row(runs, shorter)))
    return out


def _row(runs: Sequence[tuple[BlockKind, int]], counts: Sequence[int]) -> Kinds:
    return tuple(kind for (kind, _), count in zip(runs, counts, strict=True) for _ in range(count))


def _straight(lines: Lines, engine: Engine) -> bool:
    """Whether further layers add up in a straight line: without a host that issues kernels they do, with one if a layer
    already takes the longer of the host's and the GPU's time."""
    (_, longer), *others = lines.parts
    if not longer.release:
        return True
    for _, less in others:
        slope = engine(longer).makespan - engine(less).makespan
        gpu = engine(_ready(longer)).makespan - engine(_ready(less)).makespan
        host = max(longer.release.values()) - max(less.release.values())
        if slope < (1.0 - _SAME) * max(gpu, host):
            return False
    return True


def _ready(tasks: Tasks) -> Tasks:
    """The same tasks, issued before the step begins."""
    return replace(tasks, release={})
