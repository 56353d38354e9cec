"""How many GPUs a service needs: for every layout and setting the highest rate at which one replica holds the service
level, then as many replicas as the rate asks for, replayed together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from simulator.errors import ForetrainError
from simulator.inputs import load_scenario
from simulator.results.metrics import price_of
from simulator.serving.deployment import Deployment, deploy
from simulator.serving.load.sources import LoadSpec
from simulator.serving.serve import saturation, serve
from simulator.serving.summary import metrics
from simulator.studies.sizing.candidates import Group, layouts, variants
from simulator.studies.sizing.kept import Kept
from simulator.studies.sizing.targets import margins

HALVINGS = 7
"""Halvings of the interval of rates: the highest rate is known to 1 % of the capacity."""
FLEET = 32
"""Replicas up to which all are replayed together; more are judged by one with its share of the rate."""
MORE = 3
"""Replicas added at most where those that the rate asks for do not hold the level together."""
SWEPT = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1)
"""Rates of the sweep of the best, over the capacity of its replicas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be served.

    Parameters
    ----------
    job, overrides : the job, and what is set of it.
    targets : limits by latency and statistic, as in `ttft.p99` [s].
    rate : requests/s, Poisson.
    input_tokens, output_tokens : lengths (`simulator.serving.load.lengths`).
    count : requests of a replay.
    seed : seed of the load.
    over : axes to try in place of the usual ones, as in `layout.tp=2,4`.
    """

    job: str
    overrides: tuple[str, ...]
    targets: Mapping[str, float]
    rate: float
    input_tokens: str
    output_tokens: str
    count: int = 1000
    seed: int = 0
    over: tuple[str, ...] = ()

    def load(self, rate: float) -> LoadSpec:
        """Requests at a rate [1/s]."""
        return LoadSpec(
            requests=f"poisson:{rate!r}",
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            count=self.count,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A deployment that was judged.

    Parameters
    ----------
    settings : overrides that make it.
    why : why it cannot do; empty where it can.
    replicas : replicas that hold the level at the rate.
    gpus : GPUs of all of them.
    usd_per_hour : their price [USD/h].
    highest_rate : highest rate at which one replica holds the level [1/s].
    capacity : rate that one replica answers without any level [1/s].
    margins : how far below each limit all of them stay, as a share of it.
    headroom : highest rate of all replicas over the rate asked for, less 1.
    metrics : metrics of the replay of all of them.
    """

    settings: Group
    why: str = ""
    replicas: int = 0
    gpus: int = 0
    usd_per_hour: float = 0.0
    highest_rate: float = 0.0
    capacity: float = 0.0
    margins: Mapping[str, float] | None = None
    headroom: float = 0.0
    metrics: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """Choices, the cheapest first, then those that cannot do; and how the best does at other rates.

    Parameters
    ----------
    wanted : what was asked.
    choices : what was judged.
    sweep : rate [1/s] and metrics of the best deployment; those in overload have no latencies.
    """

    wanted: Wanted
    choices: tuple[Choice, ...]
    sweep: tuple[tuple[float, Mapping[str, Any]], ...]

    @property
    def best(self) -> Choice | None:
        """The cheapest that holds the level."""
        return self.choices[0] if self.choices and not self.choices[0].why else None


def size(
    wanted: Wanted,
    *,
    jobs: int = 1,
    file: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Sizing:
    """Judge every candidate.

    Parameters
    ----------
    jobs : processes.
    file : what is judged is kept there, and not judged again.
    progress : called with the part that is done (0 to 1).
    """
    scenario = load_scenario(wanted.job, wanted.overrides, replayed=True)
    if scenario.stack.scheduler is None or not scenario.workload.serves:
        deploy(scenario)  # says what is wrong
    groups = layouts(scenario, wanted.over)
    kept = Kept(file, wanted) if file is not None else None
    found: dict[Group, list[Choice]] = {}
    for group in groups:
        if kept is not None and (known := kept.of(group)) is not None:
            found[group] = [Choice(**one) for one in known]
    left = [group for group in groups if group not in found]
    for done, (group, choices) in enumerate(_judged(wanted, left, jobs), start=1 + len(found)):
        found[group] = choices
        if kept is not None:
            kept.add(group, choices)
        if progress is not None:
            progress(done / len(groups))
    every = [choice for group in groups for choice in found[group]]
    order = sorted(every, key=lambda one: (bool(one.why), one.usd_per_hour, -one.headroom, one.settings))
    best = order[0] if order and not order[0].why else None
    return Sizing(wanted=wanted, choices=tuple(order), sweep=tuple(_sweep(wanted, best)) if best else ())


def _judged(wanted: Wanted, groups: Sequence[Group], jobs: int) -> Iterator[tuple[Group, list[Choice]]]:
    """Every group with its choices, as they come."""
    if jobs == 1 or len(groups) < 2:
        yield from ((group, judge(wanted, group)) for group in groups)
        return
    from simulator.studies.search.spawn import Spawning

    context = Spawning()
    with ProcessPoolExecutor(min(jobs, len(groups)), mp_context=context) as pool:
        futures = {pool.submit(judge, wanted, group): group for group in groups}
        for future in as_completed(futures):
            yield futures[future], future.result()
    context.end()


def judge(wanted: Wanted, group: Group) -> list[Choice]:
    """All variants of one layout, which share their step times."""
    try:
        scenario = load_scenario(wanted.job, (*wanted.overrides, *group), replayed=True)
        first = deploy(scenario)
        settings = variants(scenario, wanted.over)
    except ForetrainError as error:
        return [Choice(settings=group, why=str(error).splitlines()[0])]
    return [_of_variant(wanted, first, group, own) for own in settings]


def _of_variant(wanted: Wanted, first: Deployment, group: Group, own: Group) -> Choice:
    settings = group + own
    try:
        one = deploy(load_scenario(wanted.job, (*wanted.overrides, *settings), replayed=True))
    except ForetrainError as error:
        return Choice(settings=settings, why=str(error).splitlines()[0])
    if one.scheduler.step_tokens <= first.scheduler.step_tokens:
        one = replace(one, table=first.table)
    capacity = saturation(one, wanted.load(1.0))
    highest, why = highest_rate(wanted, one, capacity)
    if why:
        return Choice(settings=settings, why=why, capacity=capacity)
    return _fleet(wanted, one, settings, highest, capacity)


def highest_rate(wanted: Wanted, one: Deployment, capacity: float) -> tuple[float, str]:
    """Highest rate at which one replica holds the level [1/s], or why it holds it at none."""
    low, high = 0.0, capacity
    lowest = capacity / 2**HALVINGS
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _holds(wanted, one, middle):
            low = middle
        else:
            high = middle
    if low:
        return low, ""
    missed = min(margins(metrics(serve(one, wanted.load(lowest))), wanted.targets).items(), key=lambda each: each[1])
    return 0.0, f"{missed[0]} is {(1 - missed[1]) * wanted.targets[missed[0]]:.4g} s even at {lowest:.3g} requests/s"


def _holds(wanted: Wanted, one: Deployment, rate: float) -> bool:
    return min(margins(metrics(serve(one, wanted.load(rate))), wanted.targets).values()) >= 0


def _fleet(wanted: Wanted, one: Deployment, settings: Group, highest: float, capacity: float) -> Choice:
    """As many replicas as hold the level at the rate."""
    count = ceil(wanted.rate / highest)
    for replicas in range(count, count + MORE + 1):
        whole = replace(one, engines=one.engines * replicas, router="least-load")
        if replicas > FLEET:
            asked, whole = wanted.load(wanted.rate / replicas), one
        else:
            asked = replace(wanted.load(wanted.rate), count=wanted.count * min(replicas, 4))
        found = metrics(serve(whole, asked))
        left = margins(found, wanted.targets)
        if min(left.values()) >= 0:
            gpus = one.gpus * replicas
            return Choice(
                settings=settings,
                replicas=replicas,
                gpus=gpus,
                usd_per_hour=gpus * price_of(one.scenario)[0],
                highest_rate=highest,
                capacity=capacity,
                margins=left,
                headroom=highest * replicas / wanted.rate - 1.0,
                metrics=found,
            )
    return Choice(settings=settings, why=f"{count + MORE} replicas do not hold the level together", capacity=capacity)


def _sweep(wanted: Wanted, best: Choice) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """The best deployment at other rates."""
    scenario = load_scenario(wanted.job, (*wanted.overrides, *best.settings), replayed=True)
    one = deploy(scenario)
    for share in SWEPT:
        rate = share * best.capacity
        yield rate * best.replicas, metrics(serve(one, wanted.load(rate)))
