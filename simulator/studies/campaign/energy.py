"""Energy by an explicit model: GPU, the rest of its node and network, and the data centre around them."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.spec.scenario import Scenario
from simulator.studies.campaign.campaign import Supply


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of a run.

    Parameters
    ----------
    gpu_watts : power of a GPU while training [W].
    watts : power per GPU, with the rest of the data centre [W].
    kwh : energy of the run [kWh].
    how : how it was computed, in words.
    """

    gpu_watts: float
    watts: float
    kwh: float
    how: str


def energy_of(scenario: Scenario, demand: float | None, gpu_hours: float, supply: Supply) -> Energy:
    """Energy of `gpu_hours`. `demand` [W] of a GPU at full clock, from the power model of the hardware (None: none)."""
    gpu = scenario.cluster.gpu
    if gpu.power is not None and demand is not None:
        watts, how = (
            min(demand, gpu.power_cap),
            f"what the power model of {gpu.name} says of the step, at most {gpu.power_cap:.0f} W",
        )
    else:
        watts, how = supply.gpu_share * gpu.tdp, f"{supply.gpu_share:.0%} of {gpu.tdp:.0f} W (assumed: no power model)"
    around = (watts + supply.rest_watts) * supply.pue
    rest = f"{supply.rest_watts:.0f} W a GPU for the rest of its node and the network, PUE {supply.pue:g} (assumed)"
    how = f"Power of a GPU: {how}; {rest}."
    return Energy(gpu_watts=watts, watts=around, kwh=gpu_hours * around / 1e3, how=how)
