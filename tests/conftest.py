"""Shared fixtures: whole scenarios, and hypothesis without clocks or chance."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from simulator.inputs import load_scenario
from simulator.scenario import Scenario

settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def v3() -> Scenario:
    """DeepSeek-V3's pre-training step as published."""
    return load_scenario("deepseek-v3-pretrain")


@pytest.fixture(scope="session")
def tiny() -> Scenario:
    """The same structure in small."""
    return load_scenario("tiny-dualpipe")
