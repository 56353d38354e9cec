"""The interval of a step time: Monte-Carlo over what is uncertain, and what contributes how much of it.

Errors of kernel classes are log-normal, one part shared by a class and one of each kernel's own; assumed numbers and
unknown loads lie anywhere in their range with equal chance; the slowest GPU is the highest of as many normal ones;
factors on the whole step have the distribution that their source states.
Sources are independent, and a source draws the same numbers whatever else is uncertain, so that jobs can be compared.

Contributions are by regression on the draws: how much one source alone changes the step time, measured by moving it,
times what the draws did to it. The shares are of the variance that these sums explain; the rest is interactions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any
from zlib import crc32

import numpy as np

from simulator.engine.kernel_sequence import ALONE
from simulator.engine.power import highest_demand
from simulator.errors import InputError
from simulator.inputs.check import check
from simulator.spec.scenario import Scenario
from simulator.studies.uncertainty.repricing import Array, Draw, Priceable, Repricer, priceable
from simulator.studies.uncertainty.sources import (
    ClassError,
    Group,
    SlowestClock,
    Source,
    UnknownLoads,
    by_group,
    left_out,
    one_sided,
    sources_of,
)
from simulator.studies.uncertainty.step_factors import StepFactor

DRAWS, SEED = 200, 0
LOW, HIGH = 10.0, 90.0
"""Percentiles of the interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """A source, its `share` of the variance (0 to 1), and in words how far it may be off and where that comes from."""

    source: str
    group: Group
    share: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Step time [s]: the forecast without any error, median and the ends of the 10-90 % interval of `draws` draws.

    `contributions`: largest first. `rest`: share of the variance in interactions, which no source has alone.
    `left_out`: assumed settings that are taken as they are.
    """

    forecast_s: float
    p10_s: float
    p50_s: float
    p90_s: float
    draws: int
    seed: int
    contributions: tuple[Contribution, ...]
    groups: dict[Group, float]
    rest: float
    left_out: tuple[str, ...]

    @property
    def half_width(self) -> float:
        """Half the width of the interval over its median."""
        return (self.p90_s - self.p10_s) / (2.0 * self.p50_s)

    @property
    def remark(self) -> str:
        """A sentence where the forecast lies below the interval or in its lowest tenth, else empty."""
        if self.forecast_s > self.p10_s + 0.1 * (self.p90_s - self.p10_s):
            return ""
        return "The forecast itself is at the low end: much of what is uncertain only lengthens a step."

    def scaled_to(self, seconds: float) -> Interval:
        """The interval around another forecast of the same step, as the full engine gives it [s]."""
        factor = seconds / self.forecast_s
        return replace(
            self,
            forecast_s=seconds,
            p10_s=factor * self.p10_s,
            p50_s=factor * self.p50_s,
            p90_s=factor * self.p90_s,
        )

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "p10_s": self.p10_s,
            "p50_s": self.p50_s,
            "p90_s": self.p90_s,
            "forecast_s": self.forecast_s,
            "draws": self.draws,
            "seed": self.seed,
            "groups": dict(self.groups),
            "contributions": [
                {"source": one.source, "group": one.group, "share": one.share, "text": one.text}
                for one in self.contributions
            ],
            "interactions": self.rest,
            "left_out": list(self.left_out),
        }


def interval(
    scenario: Scenario,
    *,
    draws: int = DRAWS,
    seed: int = SEED,
    sources: Sequence[Source] | None = None,
    shares: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Interval:
    """The interval of a scenario's step time.

    Parameters
    ----------
    draws, seed : how many, and of which random numbers; the same give the same bytes.
    sources : what is uncertain; None: all that is known to be (`sources_of`).
    shares : whether to find out what contributes how much, which takes two more steps for each source.

    Raises InputError with every broken rule of the scenario, or for fewer than two draws.
    """
    broken = [f"{scenario.name}: {problem}" for problem in check(scenario) if problem.severity == "error"]
    if broken:
        raise InputError("\n".join(broken))
    if draws < 2:
        raise InputError(f"--draws: {draws} is too few for an interval; take at least 2, better {DRAWS}")
    known = priceable(scenario)
    found = sources_of(scenario, known.priced) if sources is None else sources
    repricer = Repricer(known, found)
    drawn = _drawn(repricer, draws, seed)
    times = []
    for number, one in enumerate(drawn, 1):
        times.append(repricer.step_time(one))
        if progress is not None:
            progress(number / draws)
    return _summed(known, repricer, drawn, np.array(times), seed, shares)


def _summed(
    known: Priceable, repricer: Repricer, drawn: Sequence[Draw], times: Array, seed: int, explained: bool
) -> Interval:
    shares, rest = contributions(known, repricer, drawn, np.log(times)) if explained else ({}, 1.0)
    p10, p50, p90 = (float(value) for value in np.percentile(times, (LOW, 50.0, HIGH)))
    found = [
        Contribution(source=source.name, group=source.group, share=shares[source.name], text=source.text)
        for source in repricer.sources
        if shares.get(source.name)
    ]
    return Interval(
        forecast_s=repricer.step_time(repricer.nothing()),
        p10_s=p10,
        p50_s=p50,
        p90_s=p90,
        draws=len(drawn),
        seed=seed,
        contributions=tuple(sorted(found, key=lambda one: (-one.share, one.source))),
        groups=by_group(shares, repricer.sources),
        rest=rest,
        left_out=tuple(left_out(known.scenario)),
    )


def _drawn(repricer: Repricer, draws: int, seed: int) -> list[Draw]:
    """Draws of all sources; each source and each class's kernels have random numbers of their own."""
    at = np.zeros((draws, len(repricer.sources)))
    each = np.zeros((draws, len(repricer.sources), len(repricer.ops)))
    for number, source in enumerate(repricer.sources):
        random = np.random.default_rng([seed, crc32(source.name.encode())])
        if isinstance(source, ClassError):
            mine = repricer.members[number]
            at[:, number] = random.standard_normal(draws)
            each[:, number, mine] = random.standard_normal((int(mine.sum()), draws)).T
        elif isinstance(source, SlowestClock):
            at[:, number] = _highest_demand(random.random(draws), source.gpus) - highest_demand(source.gpus)
        elif isinstance(source, StepFactor):
            at[:, number] = source.drawn(random.random(draws))
        else:
            low = _least(source)
            at[:, number] = random.uniform(low, 1.0, draws)
    return [Draw(at=a, each=e) for a, e in zip(at, each, strict=True)]


def _least(source: Source) -> float:
    """Where draws of a source begin."""
    if isinstance(source, UnknownLoads):
        return source.least
    return 0.0 if one_sided(source) else -1.0


def _highest_demand(chance: Array, gpus: int) -> Array:
    """Of so many normal variates the largest, at these quantiles."""
    normal = NormalDist()
    inside = np.clip(chance, 1e-12, 1.0 - 1e-12) ** (1.0 / gpus)
    return np.array([normal.inv_cdf(min(float(u), 1.0 - 1e-12)) for u in inside])


def contributions(
    known: Priceable, repricer: Repricer, drawn: Sequence[Draw], logs: Array
) -> tuple[dict[str, float], float]:
    """Source -> its share of the variance of the logarithm of the step time, and the share of interactions."""
    total = float(np.var(logs))
    if total <= 1e-20:  # rounding
        return {}, 0.0
    at, each = np.array([one.at for one in drawn]), np.array([one.each for one in drawn])
    still = repricer.step_time(repricer.nothing())

    def effect(number: int, by: float) -> float:
        return float(np.log(repricer.step_time(_moved(repricer, number, by)) / still))

    lines = {
        source.name: _line(known, repricer, number, at[:, number], each[:, number], effect)
        for number, source in enumerate(repricer.sources)
    }
    alone = {name: float(np.var(line)) for name, line in lines.items()}
    linear = np.sum(list(lines.values()), axis=0)
    explained = min(1.0, float(np.cov(linear, logs, bias=True)[0, 1]) / total)
    every = sum(alone.values())
    if not every:
        return {}, 1.0
    return {name: explained * part / every for name, part in alone.items()}, 1.0 - explained


def _line(
    known: Priceable, repricer: Repricer, number: int, at: Array, each: Array, effect: Callable[[int, float], float]
) -> Array:
    """What a source alone does to the logarithm of the step time in each draw, as far as that is linear."""
    source = repricer.sources[number]
    if isinstance(source, StepFactor):
        return at
    if isinstance(source, ClassError):
        mine = repricer.members[number]
        sigma = (source.shared**2 + source.each**2) ** 0.5
        if not sigma or not mine.any():
            return np.zeros_like(at)
        weights = (known.uses * repricer.base[:, ALONE])[mine]
        weights = weights / weights.sum() if weights.sum() else weights
        moved = source.shared * at + source.each * (each[:, mine] @ weights)
        return np.asarray(moved * effect(number, sigma) / sigma)
    up, down = effect(number, 1.0), 0.0 if one_sided(source) else effect(number, -1.0)
    return np.where(at > 0.0, at * up, -at * down)


def _moved(repricer: Repricer, number: int, by: float) -> Draw:
    """One source moved: all kernels of a class by `by` [log], others to `by`."""
    nothing, source = repricer.nothing(), repricer.sources[number]
    at, each = nothing.at, nothing.each
    if not isinstance(source, ClassError):
        at[number] = by
    elif source.shared:
        at[number] = by / source.shared
    else:
        each[number, repricer.members[number]] = by / source.each
    return Draw(at=at, each=each)
