"""How evenly gates load experts and ranks, as others measured it (`workloads/facts/expert_loads.toml`).

Loads of a job's own gate are not known before it runs. What others measured depends most on how a gate is balanced: by
a bias for each expert (DeepSeek-V3's way), by an auxiliary loss, or by dropping tokens.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from simulator.errors import InputError
from simulator.spec.job import Job, Routing
from simulator.spec.model import ModelSpec
from simulator.spec.scenario import Scenario

Balancing = Literal["bias", "loss", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedLoad:
    """One measurement.

    Parameters
    ----------
    id : its name.
    what : model and training.
    gate : how the gate is balanced.
    experts, top_k : routed experts of a layer, and of a token.
    per : whether loads of experts or of `ranks` ranks are meant.
    over : the tokens that were counted.
    max_over_mean : highest load over the mean, mean over layers.
    source : where it is published.
    ranks : ranks that hold the experts (0: `per` expert).
    phase : training or prefill.
    throughput : of a step, over that with forced balance (0: not published).
    note : remarks.
    """

    id: str
    what: str
    gate: Balancing
    experts: int
    top_k: int
    per: Literal["expert", "rank"]
    over: str
    max_over_mean: float
    source: str
    ranks: int = 0
    phase: Literal["training", "prefill"] = "training"
    throughput: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultLoads:
    """What jobs take from the measurements: coefficients of variation of an expert's popularity, as (low, taken, high).

    Parameters
    ----------
    gate : how the gate is balanced.
    topk_methods : values of `topk_method` that mean it.
    cv : lasting for the whole step.
    microbatch_cv : of each microbatch's own.
    loads : names of the measurements.
    why : why these.
    """

    gate: Balancing
    topk_methods: tuple[str, ...]
    cv: tuple[float, float, float]
    microbatch_cv: tuple[float, float, float]
    loads: tuple[str, ...]
    why: str

    def at(self, place: float) -> Routing:
        """Sampled loads at a place of the range: -1 its low end, 0 as taken, 1 its high end, straight in between."""
        side, part = (2, place) if place > 0.0 else (0, -place)

        def between(values: Sequence[float]) -> float:
            return (1.0 - part) * values[1] + part * values[side]

        return Routing(kind="sampled", cv=between(self.cv), microbatch_cv=between(self.microbatch_cv))

    @property
    def even(self) -> bool:
        """Whether no rank has more than the mean, anywhere in the range."""
        return not any((*self.cv, *self.microbatch_cv))


@cache
def _tables() -> dict[str, list[dict[str, Any]]]:
    text = files("workloads").joinpath("facts", "expert_loads.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def published_loads() -> tuple[PublishedLoad, ...]:
    """All measurements, in the order of the file."""
    return tuple(PublishedLoad(**row) for row in _tables()["load"])


@cache
def default_loads() -> tuple[DefaultLoads, ...]:
    """What jobs take, one for each way of balancing."""
    lists = ("topk_methods", "cv", "microbatch_cv", "loads")
    rows = [{**row, **{key: tuple(row[key]) for key in lists}} for row in _tables()["taken"]]
    return tuple(DefaultLoads(**row) for row in rows)


def default_loads_of(model: ModelSpec) -> DefaultLoads | None:
    """What a training job of this model takes; None: it has no experts."""
    if not model.is_moe:
        return None
    return next(one for one in default_loads() if model.topk_method in one.topk_methods)


def measured_at(taken: DefaultLoads) -> str:
    """The measurements in words: `1.04 to 1.30 times the mean`."""
    found = sorted(load.max_over_mean for load in published_loads() if load.id in taken.loads)
    low, high = f"{found[0]:.2f}", f"{found[-1]:.2f}"
    return f"{low} times the mean" if low == high else f"{low} to {high} times the mean"


def with_published_loads(job: Job, model: ModelSpec) -> Job:
    """The job with `routing.kind` "published" or "auto" replaced by the loads that this stands for.

    Raises InputError for published loads of a model without experts, of a serving job, or next to spreads of its own.
    """
    routing, taken = job.routing, default_loads_of(model)
    if routing.kind == "auto":
        states = Routing(ranks=routing.ranks, seed=routing.seed, kind="auto") != routing
        unknown = taken is None or taken.even or states or job.serving is not None
        routing = replace(routing, kind="uniform" if unknown else "published")
    if routing.kind != "published":
        return replace(job, routing=routing)
    if routing.cv or routing.microbatch_cv:
        raise InputError("routing.cv: published loads have spreads of their own; set routing.kind=sampled for others")
    if job.serving is not None:
        raise InputError("routing.kind: published loads are of training; set routing.kind=sampled and routing.cv")
    if taken is None:
        raise InputError(f"routing.kind: {model.name} has no experts; set routing.kind=uniform")
    ranks = "mean" if routing.ranks == "auto" else routing.ranks
    loads = Routing() if taken.even else replace(taken.at(0.0), seed=routing.seed, ranks=ranks)
    return replace(job, routing=loads)


def with_equal_loads(scenario: Scenario) -> Scenario:
    """The scenario with equal ranks where a mean rank stands for uneven ones: for studies of many steps."""
    job = scenario.job
    return replace(scenario, job=replace(job, routing=Routing())) if job.routing.ranks == "mean" else scenario


def with_ranks_apart(scenario: Scenario) -> Scenario:
    """The scenario with ranks apart where a mean rank stands for uneven ones."""
    job = scenario.job
    if job.routing.ranks != "mean":
        return scenario
    return replace(scenario, job=replace(job, routing=replace(job.routing, ranks="apart")))


def is_published(routing: Routing, taken: DefaultLoads) -> bool:
    """Whether loads are those that jobs take, of any seed."""
    return replace(routing, seed=0, ranks="auto") == taken.at(0.0)
