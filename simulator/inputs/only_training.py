"""Refuses serving jobs where only training jobs are known."""

from __future__ import annotations

from simulator.errors import InputError
from simulator.spec.scenario import Scenario


def refuse_serving(scenario: Scenario, what: str) -> None:
    """Raise InputError if the scenario serves; `what` is asked of it."""
    if scenario.workload.serves:
        raise InputError(
            f'{scenario.name}: workload: "{scenario.job.workload}": {what} knows training jobs only;'
            " simulate, compare, check, memory and explain know serving jobs"
        )
