"""The interval of a whole run: what its phases' intervals make of time, GPU-hours and price.

Errors of the forecast are the same in every phase, so ends of intervals add up. Plateaus of a batch ramp share the
relative interval of one of them. Failures are sampled apart (`goodput`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulator.inputs import load_scenario
from simulator.spec.scenario import Scenario
from simulator.studies.campaign.campaign import Campaign
from simulator.studies.campaign.forecast import Forecast, plateaus, runnable
from simulator.studies.uncertainty import Interval, interval
from simulator.units import HOUR

Ends = tuple[float, float, float]
"""The tenth, fiftieth and ninetieth percentile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseInterval:
    """One phase, or one plateau of a ramp: its name, batch [sequences] and the interval of its step."""

    name: str
    batch: int
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInterval:
    """Ends of time [s], GPU-hours and price [USD] of a run without failures, and the intervals of its steps."""

    seconds: Ends
    gpu_hours: Ends
    dollars: Ends
    phases: tuple[PhaseInterval, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        names = ("p10", "p50", "p90")
        return {
            "run_s": dict(zip(names, self.seconds, strict=True)),
            "gpu_hours": dict(zip(names, self.gpu_hours, strict=True)),
            "cost_usd": dict(zip(names, self.dollars, strict=True)),
            "phases": [{"name": phase.name, "batch": phase.batch, **phase.interval.as_dict()} for phase in self.phases],
        }


def run_interval(
    campaign: Campaign,
    overrides: Sequence[str],
    found: Forecast,
    *,
    draws: int,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> RunInterval:
    """The interval of a campaign that was `found` to take so long with these overrides."""
    scenarios = [
        runnable(scenario, campaign.fallback_schedules)[0]
        for phase in campaign.phases
        for scenario, _ in plateaus(phase, load_scenario(campaign.job, (*overrides, *phase.set)))
    ]
    known: dict[Hashable, Interval] = {}
    phases = []
    for at, (phase, scenario) in enumerate(zip(found.phases, scenarios, strict=True)):
        key = _without_batch(scenario)
        if key not in known:
            known[key] = interval(scenario, draws=draws, seed=seed)
        around = known[key].scaled_to(phase.step)
        phases.append(PhaseInterval(name=phase.name, batch=phase.batch, interval=around))
        if progress is not None:
            progress((at + 1) / len(scenarios))
    ends = [(one.interval.p10_s, one.interval.p50_s, one.interval.p90_s) for one in phases]
    steps = [phase.steps for phase in found.phases]
    prices = [phase.dollars / phase.gpu_hours if phase.gpu_hours else 0.0 for phase in found.phases]
    hours = [[count * end * found.gpus / HOUR for end in line] for count, line in zip(steps, ends, strict=True)]
    return RunInterval(
        seconds=_summed([count * end for end in line] for count, line in zip(steps, ends, strict=True)),
        gpu_hours=_summed(hours),
        dollars=_summed([price * hour for hour in line] for price, line in zip(prices, hours, strict=True)),
        phases=tuple(phases),
    )


def _without_batch(scenario: Scenario) -> Hashable:
    """What plateaus of one phase have in common."""
    batch = replace(scenario.job.batch, global_batch_size=0)
    return replace(scenario.job, batch=batch), id(scenario.model), scenario.name


def _summed(lines: Iterable[Sequence[float]]) -> Ends:
    low, middle, high = (sum(ends) for ends in zip(*lines, strict=True))
    return low, middle, high
