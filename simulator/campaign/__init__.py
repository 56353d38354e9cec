"""The whole run: phases of training with a batch ramp, failures, GPU-hours, dollars and energy."""

from simulator.campaign.energy import Energy, energy_of
from simulator.campaign.goodput import Goodput, expected, optimum_interval, sampled
from simulator.campaign.run import Forecast, PhaseForecast, forecast
from simulator.campaign.spec import Campaign, Failures, Phase, Supply, campaign_of_job, load_campaign

__all__ = [
    "Campaign",
    "Energy",
    "Failures",
    "Forecast",
    "Goodput",
    "Phase",
    "PhaseForecast",
    "Supply",
    "campaign_of_job",
    "energy_of",
    "expected",
    "forecast",
    "load_campaign",
    "optimum_interval",
    "sampled",
]
