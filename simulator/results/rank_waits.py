"""Who waits for whom in a step on uneven ranks: by rank and layer, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.engine.lower import drawn_clocks
from simulator.engine.priced_model import PricedModel
from simulator.engine.ranks.whole_step import UnevenStep, uneven_step
from simulator.schedule import Schedule
from simulator.spec.job import Job, Routing

Array = NDArray[np.float64]

Cause = str
"""load, hardware or jitter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankWaits:
    """Of the simulated ranks of a stage; ranks that are alike are shown once.

    Parameters
    ----------
    ranks : their numbers in the stage.
    layers : numbers of the layers with rendezvous (-1: gradients and parameters).
    load : tokens over the mean, mean over microbatches (ranks x layers).
    waited : how long a rank waits for the last one at the rendezvous of a layer, in a step (ranks x layers) [s].
    caused : how long a mean rank waits where this one comes last (ranks x layers) [s].
    by_cause : how long a mean rank waits in all because of uneven loads, slow hardware and late hosts [s].
    """

    ranks: tuple[int, ...]
    layers: tuple[int, ...]
    load: Array
    waited: Array
    caused: Array
    by_cause: dict[Cause, float]

    @property
    def mean_load(self) -> Array:
        """Tokens of each rank over the mean, mean over layers (ranks)."""
        routed = [at for at, layer in enumerate(self.layers) if layer >= 0]
        return np.asarray(self.load[:, routed].mean(axis=1)) if routed else np.ones(len(self.ranks))

    def as_dict(self) -> dict[str, Any]:
        """What `--json` says of them."""
        return {
            "waits_by_cause_s": self.by_cause,
            "ranks": [
                {
                    "rank": rank,
                    "load": float(self.mean_load[at]),
                    "others_wait_s": float(self.caused[at].sum()),
                    "waits_s": float(self.waited[at].sum()),
                }
                for at, rank in enumerate(self.ranks)
            ],
        }

    def of(self, numbers: Iterable[int]) -> RankWaits:
        """The same of these ranks only; what a mean rank waits for stays that of all."""
        wanted = set(numbers)
        rows = [at for at, rank in enumerate(self.ranks) if rank in wanted]
        return replace(
            self,
            ranks=tuple(self.ranks[at] for at in rows),
            load=self.load[rows],
            waited=self.waited[rows],
            caused=self.caused[rows],
        )

    def slowest(self) -> list[int]:
        """Places of the ranks, the one for which others wait longest first."""
        return [int(at) for at in np.argsort(-self.caused.sum(axis=1), kind="stable")]


def rank_waits(built: PricedModel, schedule: Schedule, uneven: UnevenStep) -> RankWaits:
    """Sums over the rendezvous of a step, by rank and layer, and by cause."""
    ran, columns = uneven.timeline, uneven.columns
    layers = tuple(sorted({ran.layer.get(task, -1) for task in ran.wait}))
    place = {layer: at for at, layer in enumerate(layers)}
    waited, caused, load = (np.zeros((len(layers), len(columns.names))) for _ in range(3))
    for task, wait in ran.wait.items():
        at = place[ran.layer.get(task, -1)]
        mine = wait[:-1]
        waited[at] += mine
        caused[at, mine.argmin()] += max(0.0, float(wait[-1]))
    for layer, at in place.items():
        every = [columns.loads(layer, m)[:-1] for m in range(schedule.microbatches)] if layer >= 0 else [1.0]
        load[at] = np.mean(every, axis=0)
    causes = waits_by_cause(built, schedule, uneven)
    return RankWaits(ranks=columns.names, layers=layers, load=load.T, waited=waited.T, caused=caused.T, by_cause=causes)


def waits_by_cause(built: PricedModel, schedule: Schedule, uneven: UnevenStep) -> dict[Cause, float]:
    """How long a mean rank waits at rendezvous because of each cause, summed over the pipeline ranks [s].

    With several causes at once the step is run again without the last ones; what one adds to those before it is its.
    """
    job, present = built.scenario.job, []
    if job.routing.kind != "uniform" and built.scenario.model.is_moe:
        present.append("load")
    if replace(job.stragglers, jitter=0.0).any or drawn_clocks(built.scenario):
        present.append("hardware")
    if job.stragglers.jitter:
        present.append("jitter")
    out: dict[Cause, float] = {}
    for at, cause in enumerate(present):
        if at == len(present) - 1:
            total = waited_by_mean(uneven)
        else:
            total = waited_by_mean(uneven_step(_with(built, present[: at + 1]), schedule))
        out[cause] = max(0.0, total - sum(out.values()))
    return out


def waited_by_mean(uneven: UnevenStep) -> float:
    """How long a mean rank waits, summed over the pipeline ranks [s]."""
    return sum(float(wait[-1]) for wait in uneven.timeline.wait.values())


def _has_all(job: Job) -> bool:
    """Whether all groups are simulated."""
    return job.stragglers.groups == "all" or job.stragglers.clocks == "drawn"


_WITHOUT: dict[Cause, Callable[[Job], Job]] = {
    "load": lambda job: replace(job, routing=Routing()),
    "hardware": lambda job: replace(
        job, stragglers=replace(job.stragglers, gpus=0, clocks="slowest", groups="all" if _has_all(job) else "first")
    ),
    "jitter": lambda job: replace(job, stragglers=replace(job.stragglers, jitter=0.0)),
}


def _with(built: PricedModel, causes: list[Cause]) -> PricedModel:
    """The model with only these causes."""
    job = built.scenario.job
    for cause, without in _WITHOUT.items():
        if cause not in causes:
            job = without(job)
    return replace(built, scenario=replace(built.scenario, job=job))
