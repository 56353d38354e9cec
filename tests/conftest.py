"""Shared fixtures: whole scenarios, and hypothesis without clocks or chance."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from simulator.inputs import load_scenario
from simulator.spec.scenario import Scenario

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


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compare a text with the recorded one below tests/golden; REWRITE_GOLDEN=1 records it anew."""

    def compare(name: str, text: str) -> None:
        file = Path(__file__).parent / "golden" / name
        if os.environ.get("REWRITE_GOLDEN"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        assert text == file.read_text(encoding="utf-8"), f"{name} differs: REWRITE_GOLDEN=1 records what is wanted"

    return compare
