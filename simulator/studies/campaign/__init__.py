"""The whole run: phases of training with a batch ramp, failures, GPU-hours, dollars and energy."""

from simulator.studies.campaign.campaign import (
    FAILURES,
    Campaign,
    Failures,
    Phase,
    Supply,
    campaign_of_job,
    is_job_file,
    load_campaign,
)
from simulator.studies.campaign.energy import Energy, energy_of
from simulator.studies.campaign.forecast import Forecast, PhaseForecast, forecast
from simulator.studies.campaign.goodput import Goodput, expected, optimum_interval, sampled
from simulator.studies.campaign.run_interval import PhaseInterval, RunInterval, run_interval

__all__ = [
    "FAILURES",
    "Campaign",
    "Energy",
    "Failures",
    "Forecast",
    "Goodput",
    "Phase",
    "PhaseForecast",
    "PhaseInterval",
    "RunInterval",
    "Supply",
    "campaign_of_job",
    "energy_of",
    "expected",
    "forecast",
    "is_job_file",
    "load_campaign",
    "optimum_interval",
    "run_interval",
    "sampled",
]
