"""A step priced once and timed many times: durations of its distinct ops as an array that each draw scales.

Times of kernel classes are scaled as a whole. What an assumed number or an uneven load does to each op is computed once
at the ends of its range, and taken to be linear in the logarithm in between. Programs, streams, collectives and the
schedule are timed anew in every draw (`estimate.repriced`), so that what hides behind what follows the times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.engine.kernel_sequence import ALONE, Priced
from simulator.engine.lower import PricedModel, Programs, price_model
from simulator.engine.power import (
    among_others,
    draw,
    highest_demand,
    lagging_pace,
    lags,
    meeting_ranks,
    slowdown_above,
)
from simulator.engine.program import Pricer
from simulator.estimate.estimate import Placed, compiled_for, placed, repriced
from simulator.estimate.shared_prices import SharedPrices, one_stage
from simulator.graph.shapes import group_tokens
from simulator.ops import AllToAll, Op
from simulator.routing.loads import imbalance
from simulator.spec.hardware import Gpu, Power
from simulator.spec.job import Routing
from simulator.spec.scenario import Scenario
from simulator.studies.uncertainty.load_waits import LoadWaits, between
from simulator.studies.uncertainty.sources import AssumedNumber, ClassError, SlowestClock, Source, UnknownLoads
from simulator.studies.uncertainty.step_factors import StepFactor

Array = NDArray[np.float64]
POWER = "hardware.gpu.power."
HOST = "stack.host_"
"""Beginnings of the names of numbers that no op's duration depends on, but clocks or releases."""


def key_of(op: Op) -> Hashable:
    """All that the price of an op depends on."""
    return op.work, op.cls, op.count, op.stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One state of everything uncertain. `at`: of each source by number, 0: as the forecast has it; an assumed number
    or load is at the end of its range at -1 and 1, an error that many standard deviations off, the slowest GPU so many
    above the expected one, a factor at its logarithm. `each`: of each source and op, its own error in standard
    deviations (sources x ops)."""

    at: Array
    each: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Priceable:
    """A scenario with its blocks on stages: `priced` are its distinct ops at full clock, `uses` how often a pipeline
    runs each in a step, 1 for those outside its actions."""

    scenario: Scenario
    base: PricedModel
    placed: Placed
    priced: tuple[Priced, ...]
    uses: Array


def priceable(scenario: Scenario) -> Priceable:
    """Price a valid scenario at full clock and find its distinct ops by running it once."""
    where = placed(scenario, SharedPrices(scenario, "events"))
    base = price_model(one_stage(scenario), 1)
    found: dict[Hashable, Priced] = {}

    def recording(op: Op) -> Priced:
        one = base.price(op)
        found.setdefault(key_of(op), one)
        return one

    repriced(scenario, replace(base, price=recording), where.stages)
    uses = _uses(scenario, base, where)
    return Priceable(
        scenario=scenario,
        base=base,
        placed=where,
        priced=tuple(found.values()),
        uses=np.array([uses.get(key, 1) for key in found], dtype=np.float64),
    )


def _uses(scenario: Scenario, base: PricedModel, where: Placed) -> Counter[Hashable]:
    """How often the actions of a step run each op."""
    c, programs = compiled_for(scenario), Programs(replace(base, scenario=scenario, stages=where.stages))
    times = Counter(kind for row in c.rows for kind in row)
    uses: Counter[Hashable] = Counter()
    for kind, step in enumerate(c.examples):
        for part in programs.of(step).steps:
            for one in part.sequence.ops:
                uses[key_of(one.op)] += times[kind]
    return uses


class Repricer:
    """Times the step of one scenario under draws of its `sources`."""

    def __init__(self, known: Priceable, sources: Sequence[Source]) -> None:
        self.known, self.sources = known, tuple(sources)
        self.ops = [one.op for one in known.priced]
        self.index = {key_of(op): at for at, op in enumerate(self.ops)}
        self.base = self._durations(known.base.price)
        paced = price_model(one_stage(known.scenario), 1, pace=2.0)
        self.pace_share = self._durations(paced.price) / np.where(self.base > 0.0, self.base, 1.0) - 1.0
        self.pace_share[self.base <= 0.0] = 0.0
        self.lagging = np.array([lags(one.op, one.cost) for one in known.priced])
        self.classes = np.array([op.cls for op in self.ops])
        self.ends = {at: self._ends(source) for at, source in enumerate(self.sources)}
        self.members = {
            at: self.classes == source.cls for at, source in enumerate(self.sources) if isinstance(source, ClassError)
        }
        self.clock = _Clock(known, self.ops, self.base)
        unknown = next((source for source in self.sources if isinstance(source, UnknownLoads)), None)
        self.waits = LoadWaits(known.base, unknown.points if unknown else (known.scenario.job.routing,))
        self.all_to_alls = [self._loaded(routing) for routing in unknown.points] if unknown else []

    def nothing(self) -> Draw:
        """Everything as the forecast has it."""
        return Draw(at=np.zeros(len(self.sources)), each=np.zeros((len(self.sources), len(self.ops))))

    def step_time(self, draw: Draw) -> float:
        """Step time under a draw [s]."""
        durations = self.base * np.exp(self._off(draw))
        factor = self.clock.slowdown(durations[:, ALONE], self._numbers(draw, POWER), self._above(draw))
        durations[~self.lagging] *= 1.0 + (factor - 1.0) * self.pace_share[~self.lagging]
        durations[self.lagging] *= lagging_pace(factor, self.known.scenario.cluster.gpu.power)
        rows = durations.tolist()

        def price(op: Op) -> Priced:
            at = self.index.get(key_of(op))
            if at is None:
                return self.known.base.price(op)
            return Priced(op=op, cost=self.known.priced[at].cost, durations=tuple(rows[at]))

        scenario = without_power(self._scenario(draw))
        meets = self.waits.at(self._place(draw))
        base = replace(self.known.base, scenario=one_stage(scenario), price=price, rendezvous=meets)
        return repriced(scenario, base, self.known.placed.stages) * float(np.exp(self._factor(draw)))

    def _factor(self, draw: Draw) -> float:
        """Logarithm of what the whole step is scaled by."""
        return sum(float(draw.at[at]) for at, source in enumerate(self.sources) if isinstance(source, StepFactor))

    def _durations(self, price: Pricer) -> Array:
        """Of each op under the four conditions [s]."""
        return np.array([price(op).durations for op in self.ops], dtype=np.float64)

    def _off(self, draw: Draw) -> Array:
        """Logarithm of what each duration is scaled by."""
        off = np.zeros_like(self.base)
        for at, source in enumerate(self.sources):
            if isinstance(source, ClassError):
                mine = self.members[at]
                off[mine] += (source.shared * draw.at[at] + source.each * draw.each[at, mine])[:, None]
            elif isinstance(source, UnknownLoads):
                off += between(self.all_to_alls, source.place(float(draw.at[at]))) - self.all_to_alls[source.rest]
            elif self.ends[at] is not None and draw.at[at]:
                low, high = self.ends[at] or (off, off)
                off += draw.at[at] * high if draw.at[at] > 0.0 else -draw.at[at] * low
        return off

    def _ends(self, source: Source) -> tuple[Array, Array] | None:
        """Logarithm of what each duration becomes at both ends of a source's range, if that changes any."""
        if not isinstance(source, AssumedNumber) or source.name.startswith((POWER, HOST)):
            return None
        low, high = (
            self._ratio(price_model(one_stage(with_number(self.known.scenario, source.name, end)), 1).price)
            for end in (source.low, source.high)
        )
        return (low, high) if low.any() or high.any() else None

    def _ratio(self, price: Pricer) -> Array:
        durations = self._durations(price)
        there = (self.base > 0.0) & (durations > 0.0)
        out = np.zeros_like(self.base)
        out[there] = np.log(durations[there] / self.base[there])
        return out

    def _numbers(self, draw: Draw, prefix: str) -> dict[str, float]:
        """Drawn values of the assumed numbers whose names begin so."""
        return {
            source.name: value_at(source, draw.at[at])
            for at, source in enumerate(self.sources)
            if isinstance(source, AssumedNumber) and source.name.startswith(prefix)
        }

    def _above(self, draw: Draw) -> float:
        """Standard deviations by which the highest_demand GPU exceeds the mean."""
        drawn = sum(draw.at[at] for at, source in enumerate(self.sources) if isinstance(source, SlowestClock))
        return highest_demand(self.known.scenario.job.gpus) + float(drawn)

    def _place(self, draw: Draw) -> float:
        """Place of the drawn loads among those that may be; 0 where they are known."""
        for at, source in enumerate(self.sources):
            if isinstance(source, UnknownLoads):
                return source.place(float(draw.at[at]))
        return 0.0

    def _loaded(self, routing: Routing) -> Array:
        """Logarithm of what durations of all-to-alls become around the most loaded rank."""
        scenario = self.known.scenario
        job = replace(scenario.job, routing=routing)
        load = imbalance(replace(scenario, job=job), group_tokens(scenario)) if routing.kind != "uniform" else 1.0
        return self._ratio(_around(self.known.base.price, load))

    def _scenario(self, draw: Draw) -> Scenario:
        """The scenario with what releases depend on as drawn."""
        scenario = self.known.scenario
        for name, value in self._numbers(draw, HOST).items():
            scenario = with_number(scenario, name, value)
        return scenario


WATTS = {
    "idle": "idle",
    "memory": "memory",
    "tensor": "tensor",
    "attention": "attention",
    "split": "tensor",
    "attention_mixed": "attention",
    "unvectorized": "memory",
    "update": "memory",
    "scatter": "memory",
}
"""Field of `Power` that a kind of work draws -> the field that stands for it where that one is 0."""


def watts_of(name: str, power: Power) -> float:
    """Power of a kind of work [W]."""
    own: float = getattr(power, name)
    return own or getattr(power, WATTS[name])


class _Clock:
    """What power does to tensor kernels as times and power move; utilisation stays that of the forecast."""

    def __init__(self, known: Priceable, ops: Sequence[Op], base: Array) -> None:
        self.gpu, self.uses, self.meeting = known.scenario.cluster.gpu, known.uses, meeting_ranks(known.scenario)
        self.watts = known.placed.watts
        if self.gpu.power is None or self.watts is None:
            return
        compute = np.array([op.stream == "compute" for op in ops])
        self.uses = known.uses * compute
        names = Power.__dataclass_fields__
        marks = {name: index for index, name in enumerate(names)}
        each = Power(**{name: float(index) for name, index in marks.items()})
        waiting = known.scenario.workload.serves  # GEMMs that wait for memory are most of a decode step's
        self.kind = np.array(
            [
                among_others(op, one.cost, each) if waiting else draw(op, each)
                for op, one in zip(ops, known.priced, strict=True)
            ]
        )
        self.kinds = [(name, float(marks[name])) for name in WATTS]
        above = self._above_idle(base[:, ALONE], self.gpu.power)
        self.busy = (self.watts - self.gpu.power.idle) / above if above else 0.0

    def _above_idle(self, durations: Array, power: Power) -> float:
        """Mean power above idle while kernels run [W]."""
        energy = self.uses * durations
        total = float(energy.sum())
        parts = (
            float(energy[self.kind == mark].sum()) * (watts_of(name, power) - power.idle) for name, mark in self.kinds
        )
        return sum(parts) / total if total else 0.0

    def slowdown(self, durations: Array, numbers: Mapping[str, float], above: float) -> float:
        """How much longer tensor kernels last."""
        if self.gpu.power is None or self.watts is None:
            return 1.0
        moved = {name.removeprefix(POWER): value for name, value in numbers.items()}
        power = replace(self.gpu.power, **moved)
        gpu: Gpu = replace(self.gpu, power=power)
        return slowdown_above(power.idle + self.busy * self._above_idle(durations, power), gpu, above, self.meeting)


def _around(price: Pricer, imbalance: float) -> Callable[[Op], Priced]:
    """Prices with the most loaded rank at so many times the mean."""

    def priced(op: Op) -> Priced:
        if not isinstance(op.work, AllToAll):
            return price(op)
        return price(replace(op, work=replace(op.work, imbalance=imbalance)))

    return priced


def without_power(scenario: Scenario) -> Scenario:
    """The scenario with nobody asking for energies: durations are at the clock of the step already."""
    gpu = replace(scenario.cluster.gpu, power=None)
    return replace(scenario, cluster=replace(scenario.cluster, gpu=gpu))


def value_at(source: AssumedNumber, at: float) -> float:
    """An assumed number between the ends of its range."""
    return float(source.value + abs(at) * ((source.high if at > 0.0 else source.low) - source.value))


def with_number(scenario: Scenario, path: str, value: float) -> Scenario:
    """A scenario with a number of its hardware or software replaced; `path` as `--set` takes it."""
    root, _, rest = path.partition(".")
    field = {"hardware": "cluster"}.get(root, root)
    return replace(scenario, **{field: _with(getattr(scenario, field), rest.split("."), value)})


def _with(owner: Any, path: Sequence[str], value: float) -> Any:
    name, *rest = path
    new = _with(getattr(owner, name), rest, value) if rest else value
    assert is_dataclass(owner)
    return replace(owner, **{name: new})  # type: ignore[type-var]
