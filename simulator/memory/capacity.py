"""How much of a GPU's memory a job may use."""

from __future__ import annotations

from simulator.spec.scenario import Scenario


def headroom(scenario: Scenario) -> float:
    """What the job leaves free of the memory that CUDA reports [B]."""
    asked = scenario.job.memory
    return asked.headroom * scenario.cluster.gpu.hbm_bytes + asked.headroom_bytes


def usable(scenario: Scenario) -> float:
    """What is left to the job [B]."""
    return scenario.cluster.gpu.hbm_bytes - headroom(scenario)
