"""Options and commands that know training jobs only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.spec.scenario import Scenario


def refuse_serving(scenario: Scenario, **asked: object) -> None:
    """Raise InputError for the first of these that was asked of a serving job, named in Python's spelling."""
    from simulator.inputs import only_training

    for name, value in asked.items():
        if value:
            words = name.replace("_", "-") if name.startswith("__") else name.replace("_", " ")
            only_training.refuse_serving(scenario, words)
