"""One layout of a replica: for every setting the highest rate at which it holds the service level, then as many
replicas as the rate asks for, replayed together; and the rates at which it holds one part of the level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

from simulator.errors import ForetrainError
from simulator.inputs import load_scenario
from simulator.results.metrics import price_of
from simulator.serving.deployment import Deployment, deploy
from simulator.serving.load.sources import LoadSpec
from simulator.serving.serve import saturation, serve
from simulator.serving.summary import metrics
from simulator.studies.sizing.candidates import Group, variants
from simulator.studies.sizing.targets import margins

HALVINGS = 7
"""Halvings of the interval of rates: the highest rate is known to 1 % of the capacity."""
FLEET = 32
"""Replicas up to which all are replayed together; more are judged by one with its share of the rate."""
MORE = 3
"""Replicas added at most where those that the rate asks for do not hold the level together."""
Kind = Literal["both", "aggregated", "disaggregated"]


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
    kind : which deployments: those whose engines do it all, those with prompts on engines of their own, or both.
    prefill : what is set of engines for prompts only.
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
    kind: Kind = "both"
    prefill: tuple[str, ...] = ()

    def deployed(self, settings: Group, *, prompts: bool = False) -> Deployment:
        """A replica with these settings; `prompts`: one that only computes prompts."""
        own = self.prefill if prompts else ()
        return deploy(load_scenario(self.job, (*self.overrides, *settings, *own), replayed=True))

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
    prefill_settings : overrides that make the engines for prompts, where those are others.
    prefill_replicas : replicas of these.
    why : why it cannot do; empty where it can.
    replicas : replicas that hold the level at the rate.
    gpus : GPUs of all of them.
    usd_per_hour : their price [USD/h].
    gpus_each : GPUs of a replica.
    usd_each : price of its GPUs [USD/h].
    highest_rate : highest rate at which one replica holds the level [1/s]; with engines for prompts, all together.
    as_prefill, as_decode : highest rate at which one replica holds its part of the level where it only computes
        prompts, or only goes on from them [1/s]; 0: at none, or not asked.
    capacity : rate that one replica answers without any level [1/s].
    margins : how far below each limit all of them stay, as a share of it.
    headroom : highest rate of all replicas over the rate asked for, less 1.
    metrics : metrics of the replay of all of them.
    """

    settings: Group
    prefill_settings: Group = ()
    prefill_replicas: int = 0
    why: str = ""
    replicas: int = 0
    gpus: int = 0
    usd_per_hour: float = 0.0
    gpus_each: int = 0
    usd_each: float = 0.0
    highest_rate: float = 0.0
    as_prefill: float = 0.0
    as_decode: float = 0.0
    capacity: float = 0.0
    margins: Mapping[str, float] | None = None
    headroom: float = 0.0
    metrics: Mapping[str, Any] | None = None


def judge(wanted: Wanted, group: Group) -> list[Choice]:
    """All variants of one layout, which share their step times."""
    try:
        first = wanted.deployed(group)
        settings = variants(first.scenario, wanted.over)
    except ForetrainError as error:
        return [Choice(settings=group, why=str(error).splitlines()[0])]
    out: list[Choice] = []
    chunks, caps = set[int](), set[int]()  # tried already: of one size prompts do alike, with one cap what follows
    for own in settings:
        try:
            one = wanted.deployed(group + own)
        except ForetrainError as error:
            out.append(Choice(settings=group + own, why=str(error).splitlines()[0]))
            continue
        if one.scheduler.step_tokens <= first.scheduler.step_tokens:
            one = replace(one, table=first.table)
        new = (one.scheduler.step_tokens not in chunks, one.scheduler.sequences not in caps)
        chunks.add(one.scheduler.step_tokens)
        caps.add(one.scheduler.sequences)
        out.append(_of_variant(wanted, one, group + own, new))
    return out


def _of_variant(wanted: Wanted, one: Deployment, settings: Group, new: tuple[bool, bool]) -> Choice:
    """One layout with one setting; `new`: whether it is to be judged for prompts alone, and for what follows alone."""
    found = Choice(settings=settings, gpus_each=one.gpus, usd_each=one.gpus * price_of(one.scenario)[0])
    if wanted.kind != "aggregated":
        try:
            found = sides(wanted, one, found, *new)
        except ForetrainError as error:
            return replace(found, why=str(error).splitlines()[0])
    if wanted.kind == "disaggregated":
        return found
    load = wanted.load(1.0)
    capacity = saturation(one, load)
    highest, why = highest_rate(one, load, capacity, wanted.targets)
    found = replace(found, capacity=capacity, highest_rate=highest, why=why)
    return found if why else _fleet(wanted, one, found)


def sides(wanted: Wanted, one: Deployment, found: Choice, prompts: bool, rest: bool) -> Choice:
    """A choice with the rates at which it holds the limits of the first token, computing prompts only, and all others,
    going on from them only."""
    first = {name: limit for name, limit in wanted.targets.items() if name.startswith("ttft.")}
    after = {name: limit for name, limit in wanted.targets.items() if name not in first}
    if prompts:
        engine = wanted.deployed(found.settings, prompts=True) if wanted.prefill else one
        load = replace(wanted.load(1.0), output_tokens="1")
        found = replace(found, as_prefill=highest_rate(engine, load, saturation(engine, load), first)[0])
    if rest:
        engine, load = replace(one, received=True), wanted.load(1.0)
        found = replace(found, as_decode=highest_rate(engine, load, saturation(engine, load), after)[0])
    return found


def highest_rate(one: Deployment, load: LoadSpec, capacity: float, targets: Mapping[str, float]) -> tuple[float, str]:
    """Highest rate below its capacity at which one replica holds a level [1/s], or why it holds it at none."""
    low, high = 0.0, capacity
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if min(_margins(one, load, middle, targets).values(), default=0.0) >= 0:
            low = middle
        else:
            high = middle
    if low:
        return low, ""
    lowest = capacity / 2**HALVINGS
    name, missed = min(_margins(one, load, lowest, targets).items(), key=lambda each: each[1])
    return 0.0, f"{name} is {(1 - missed) * targets[name]:.4g} s even at {lowest:.3g} requests/s"


def _margins(one: Deployment, load: LoadSpec, rate: float, targets: Mapping[str, float]) -> dict[str, float]:
    """Margins of a replica at a rate below its capacity [1/s]."""
    asked = replace(load, requests=f"poisson:{rate!r}")
    return margins(metrics(serve(one, asked, judged=False)), targets)


def _fleet(wanted: Wanted, one: Deployment, choice: Choice) -> Choice:
    """As many replicas as hold the level at the rate."""
    highest = choice.highest_rate
    count = ceil(wanted.rate / highest)
    for replicas in range(count, count + MORE + 1):
        found = fleet_metrics(wanted, one, replicas)
        left = margins(found, wanted.targets)
        if min(left.values()) >= 0:
            return replace(
                choice,
                replicas=replicas,
                gpus=choice.gpus_each * replicas,
                usd_per_hour=choice.usd_each * replicas,
                margins=left,
                headroom=highest * replicas / wanted.rate - 1.0,
                metrics=found,
            )
    return replace(choice, why=f"{count + MORE} replicas do not hold the level together")


def fleet_metrics(wanted: Wanted, one: Deployment, replicas: int) -> dict[str, Any]:
    """Metrics of so many replicas at the rate; where they are many, of one with its share of it."""
    whole = replace(one, engines=one.engines * replicas, router="least-load")
    if replicas > FLEET:
        asked, whole = wanted.load(wanted.rate / replicas), one
    else:
        asked = replace(wanted.load(wanted.rate), count=wanted.count * min(replicas, 4))
    return metrics(serve(whole, asked))
