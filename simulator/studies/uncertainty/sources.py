"""What is uncertain in the forecast of one job, each with how far it may be off and where that comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal

from simulator.engine.kernel_sequence import Priced
from simulator.inputs.idle import assumed_settings
from simulator.routing.published_loads import default_loads_of, is_published, measured_at
from simulator.spec.job import Routing
from simulator.spec.scenario import Scenario
from simulator.studies.known_errors import Spread, known_errors, measured_as, spread_of, transferred
from simulator.studies.sensitivity import NOTIFY, Knob, assumed_knobs
from simulator.studies.uncertainty.releases import CLASSES, release_spread
from simulator.studies.uncertainty.step_factors import StepFactor, step_factors

Group = Literal[
    "kernels",
    "releases",
    "links",
    "uncalibrated",
    "loads",
    "clocks",
    "assumed",
    "settings",
    "loop",
    "workers",
]
GROUPS: dict[Group, str] = {
    "kernels": "kernel times",
    "releases": "kernels of other software releases",
    "links": "communication times",
    "uncalibrated": "kernels that nobody calibrated on this GPU",
    "loads": "loads of the expert-parallel ranks",
    "clocks": "clocks: the slowest GPU's, temperature",
    "assumed": "assumed numbers",
    "settings": "assumed settings",
    "loop": "work of the training loop",
    "workers": "waiting for slow workers",
}
"""Groups of sources in words."""

UNCALIBRATED = 0.25
"""Standard deviation [log] of a class priced by another class's parameters, or by assumed ones. Assumed, range 0.1 to
0.5: beyond `known_errors.transferred`, which are classes with parameters of their own on another GPU."""

NOTIFIED = {"alpha": "comm.notify", "layout_alpha": "comm.layout"}
"""Classes whose numbers are varied each in its own range, where nobody measured them."""

SERVED_LOADS = (1.0, 1.1, 1.2, 1.3)
"""Most loaded expert-parallel rank over the mean of a serving step that says uniform. Assumed: experts are placed by
their loads there, which leaves 1.28 to 2.6 (arXiv 2606.04101, figures 11 and 12, 2026-06) where they shift, less where
they do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassError:
    """All times of the kernel class `cls`: `shared` and `each` as in `Spread`."""

    name: str
    cls: str
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
    """Loads lie anywhere along `points`, straight from one to the next.

    Parameters
    ----------
    points : loads, the first and the last the ends of the range.
    rest : place of the forecast's own loads among the points, from 0.
    least : where draws begin, from the forecast's (0) to the last point (1); -1: from the first.
    """

    points: tuple[Routing, ...]
    rest: int
    least: float
    text: str
    name: str = "routing"
    group: Group = "loads"

    def place(self, at: float) -> float:
        """Place among the points of a draw: 0 the forecast's, 1 the last, -1 the first."""
        return self.rest + at * ((len(self.points) - 1 - self.rest) if at > 0.0 else self.rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowestClock:
    """Which power demand the highest_demand of `gpus` GPUs happens to have."""

    gpus: int
    text: str
    name: str = "slowest GPU"
    group: Group = "clocks"


def one_sided(source: Source) -> bool:
    """Whether the forecast stands at the lower end of a source's range."""
    if isinstance(source, UnknownLoads):
        return source.rest == 0
    return isinstance(source, AssumedNumber) and source.low == source.value


Source = ClassError | AssumedNumber | UnknownLoads | SlowestClock | StepFactor


def sources_of(scenario: Scenario, priced: Iterable[Priced]) -> tuple[Source, ...]:
    """Everything uncertain about the step of a scenario that runs these kernels."""
    return (
        *class_errors(scenario, priced),
        *_numbers(scenario),
        *unknown_loads(scenario),
        *_clocks(scenario),
        *step_factors(scenario),
    )


def class_errors(scenario: Scenario, priced: Iterable[Priced]) -> Iterator[ClassError]:
    """One source for each kernel class, in the order of their names, and one more if releases change it."""
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
        yield ClassError(name=cls, cls=cls, group=group, shared=spread.shared, each=spread.each, text=text)
        if calibrated[cls] and cls.startswith(CLASSES):
            yield _release(cls)


def _release(cls: str) -> ClassError:
    spread = release_spread()
    return ClassError(
        name=f"{cls}, release",
        cls=cls,
        group="releases",
        shared=spread.shared,
        each=spread.each,
        text=f"another software release: {spread.shared:.1%} all GEMMs, {spread.each:.0%} each (two containers of"
        " aiconfigurator on five types of GPU)",
    )


def _numbers(scenario: Scenario) -> Iterator[AssumedNumber]:
    for knob in assumed_knobs(scenario):
        yield number_of(knob)


def number_of(knob: Knob) -> AssumedNumber:
    """An assumed number in the range that its source states."""
    return AssumedNumber(name=knob.path, value=knob.value, low=knob.low, high=knob.high, text=knob.source)


def unknown_loads(scenario: Scenario) -> Iterator[UnknownLoads]:
    """Loads that a job does not state: as published of gates balanced alike, of a serving step as assumed."""
    routing = scenario.job.routing
    if _hold_copies(scenario) or not scenario.model.is_moe or scenario.job.layout.ep == 1:
        return
    if scenario.workload.serves:
        if routing.kind == "uniform":
            yield _served_loads()
        return
    taken = default_loads_of(scenario.model)
    if taken is None or taken.even:
        return
    if is_published(routing, taken):
        points = tuple(replace(taken.at(at), seed=routing.seed) for at in (-1.0, 0.0, 1.0))
        text = f"measured by others where gates are balanced alike: {measured_at(taken)} (foretrain show loads)"
        yield UnknownLoads(points=points, rest=1, least=-1.0, text=text)


def _served_loads() -> UnknownLoads:
    points = tuple(Routing(kind="skewed", max_over_mean=load) for load in SERVED_LOADS)
    text = f"assumed: the most loaded rank has {SERVED_LOADS[0]:g} to {SERVED_LOADS[-1]:g} times the mean"
    return UnknownLoads(points=points, rest=0, least=0.0, text=text)


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
    """What is not varied: of a serving step assumed settings that are no numbers; loads of slots that hold copies."""
    stack, names = scenario.stack, assumed_settings(scenario) if scenario.workload.serves else ()
    settings = (f"stack.{name}" for name in names if not _is_number(attrgetter(name)(stack)))
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
