"""What commands do with training jobs only, refused in one line for the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.spec.scenario import Scenario


def refuse_serving(scenario: Scenario, **asked: object) -> None:
    """Raise for the first option that was given, in Python's spelling, if the scenario serves."""
    if not scenario.workload.serves:
        return
    for name, value in asked.items():
        if value:
            option = name.replace("_", "-")
            raise InputError(
                f'{scenario.name}: workload: "{scenario.job.workload}": {option} knows training jobs only;'
                " simulate, compare, check, memory and explain know serving jobs"
            )
