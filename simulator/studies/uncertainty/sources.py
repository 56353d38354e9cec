"""What is uncertain in the forecast of one job, each with how far it may be off and where that comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from simulator.engine.kernel_sequence import Priced
from simulator.inputs.idle import assumed_settings
from simulator.spec.scenario import Scenario
from simulator.studies.known_errors import Spread, known_errors, measured_as, spread_of, transferred
from simulator.studies.sensitivity import NOTIFY, Knob, assumed_knobs

Group = Literal["kernels", "links", "uncalibrated", "loads", "clocks", "assumed"]
GROUPS: dict[Group, str] = {
    "kernels": "kernel times",
    "links": "communication times",
    "uncalibrated": "kernels that nobody calibrated on this GPU",
    "loads": "loads of the expert-parallel ranks",
    "clocks": "the slowest GPU's clock",
    "assumed": "assumed numbers",
}
"""Groups of sources in words."""

UNCALIBRATED = 0.25
"""Standard deviation [log] of a class priced by another class's parameters, or by assumed ones. Assumed, range 0.1 to
0.5: beyond `known_errors.transferred`, which are classes with parameters of their own on another GPU."""

NOTIFIED = {"alpha": "comm.notify", "layout_alpha": "comm.layout"}
"""Classes whose numbers are varied each in its own range, where nobody measured them."""

LOADS = (1.0, 1.3)
"""Most loaded expert-parallel rank over the mean where a job says uniform. Assumed: nobody publishes loads of a
production pre-training by rank and microbatch. Between perfect balance and the least imbalance that UltraEP (arXiv
2606.04101, abstract, 2026-06) reports without a balancer, 1.30; with one that knows the loads it is 1.01 to 1.04."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassError:
    """All times of one kernel class: `shared` and `each` as in `Spread`."""

    name: str
    group: Group
    shared: float
    each: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AssumedNumber:
    """A number that may lie anywhere between `low` and `high`, both of which may be its `value`; `name` is what `--set`
    takes."""

    name: str
    value: float
    low: float
    high: float
    text: str
    group: Group = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownLoads:
    """The most loaded rank over the mean may be anything from `low` to `high`."""

    low: float
    high: float
    text: str
    name: str = "routing"
    group: Group = "loads"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowestClock:
    """Which power demand the highest_demand of `gpus` GPUs happens to have."""

    gpus: int
    text: str
    name: str = "slowest GPU"
    group: Group = "clocks"


def one_sided(source: Source) -> bool:
    """Whether the forecast stands at the lower end of a source's range."""
    return isinstance(source, UnknownLoads) or (isinstance(source, AssumedNumber) and source.low == source.value)


Source = ClassError | AssumedNumber | UnknownLoads | SlowestClock


def sources_of(scenario: Scenario, priced: Iterable[Priced]) -> tuple[Source, ...]:
    """Everything uncertain about the step of a scenario that runs these kernels."""
    return (*class_errors(scenario, priced), *_numbers(scenario), *_loads(scenario), *_clocks(scenario))


def class_errors(scenario: Scenario, priced: Iterable[Priced]) -> Iterator[ClassError]:
    """One source for each kernel class, in the order of their names."""
    calibrated: dict[str, bool] = {}
    texts: dict[str, str] = {}
    for one in priced:
        cls = one.op.cls
        calibrated[cls] = calibrated.get(cls, True) and one.cost.calibrated
        texts.setdefault(cls, one.cost.source)
    kernels = scenario.cluster.kernels
    known = known_errors(kernels.name)
    stated = {NOTIFIED.get(knob.path.partition(NOTIFY)[2]) for knob in assumed_knobs(scenario)}
    for cls in sorted(calibrated.keys() - stated):
        error = known.get(measured_as(cls, scenario.stack, kernels))
        group: Group = "links" if cls.startswith("comm.") else "kernels"
        if not calibrated[cls]:
            spread, group = Spread(shared=UNCALIBRATED, each=0.0), "uncalibrated"
            text = f"assumed {UNCALIBRATED:.0%}: not calibrated on {scenario.cluster.name}; {texts[cls]}"
        elif error is None:
            spread = Spread(shared=transferred(), each=0.0)
            text = f"no held-out measurement: {transferred():.0%}, as of classes judged where they were not fitted"
        else:
            spread = spread_of(error)
            text = f"mean |error| {error.mape:.1%} on {error.samples} {error.part} samples (calibration report)"
        yield ClassError(name=cls, group=group, shared=spread.shared, each=spread.each, text=text)


def _numbers(scenario: Scenario) -> Iterator[AssumedNumber]:
    for knob in assumed_knobs(scenario):
        yield number_of(knob)


def number_of(knob: Knob) -> AssumedNumber:
    """An assumed number in the range that its source states."""
    return AssumedNumber(name=knob.path, value=knob.value, low=knob.low, high=knob.high, text=knob.source)


def _loads(scenario: Scenario) -> Iterator[UnknownLoads]:
    if _hold_copies(scenario):
        return
    if scenario.model.is_moe and scenario.job.layout.ep > 1 and scenario.job.routing.kind == "uniform":
        low, high = LOADS
        yield UnknownLoads(
            low=low,
            high=high,
            text=f"assumed: the most loaded rank, always the same, has {low:g} to {high:g} times the mean"
            " (upper end: least imbalance without a balancer in arXiv 2606.04101)",
        )


def _hold_copies(scenario: Scenario) -> bool:
    """Whether slots of ranks hold copies of the most loaded experts: their placement decides which rank is loaded most,
    which no single factor says."""
    experts = scenario.model.n_routed_experts
    return bool(experts) and experts % scenario.job.layout.ep != 0


def _clocks(scenario: Scenario) -> Iterator[SlowestClock]:
    power = scenario.cluster.gpu.power
    if power is not None and power.spread:
        source = scenario.cluster.sources.get("gpu.power.spread", "the hardware profile")
        yield SlowestClock(gpus=scenario.job.gpus, text=source)


def left_out(scenario: Scenario) -> Sequence[str]:
    """What is not varied: assumed settings of the software that are no numbers, and loads of slots that hold copies."""
    stack = scenario.stack
    settings = (f"stack.{name}" for name in assumed_settings(scenario) if not _is_number(attrgetter(name)(stack)))
    return (*settings, *(("routing",) if _hold_copies(scenario) else ()))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def by_group(shares: Mapping[str, float], sources: Sequence[Source]) -> dict[Group, float]:
    """Shares of single sources summed by group, in the order of `GROUPS`."""
    out: dict[Group, float] = {}
    for group in GROUPS:
        mine = [shares[source.name] for source in sources if source.group == group and source.name in shares]
        if mine:
            out[group] = sum(mine)
    return out
