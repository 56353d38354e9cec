"""Refuses serving jobs where only training jobs are known."""

from __future__ import annotations

from simulator.errors import InputError
from simulator.spec.scenario import Scenario

INSTEAD = {
    "plan": "it forecasts a training run; simulate says what a million tokens cost, search finds the cheapest layout",
    "--what-if": "what-ifs are of training; change the number itself, as in --set hardware.node.nvlink.bandwidth=450e9",
    "--action": "a serving step is one action; its page shows all of it",
    "--measures": "the measures are of training; --set serving.kv_dtype=fp8 or layout.ep=... save memory here",
    "--rank": "all ranks of a serving step hold the same",
}
"""What is of training only -> why, and what does it for jobs that serve."""


def refuse_serving(scenario: Scenario, what: str) -> None:
    """Raise InputError if the scenario serves; `what` is asked of it."""
    if scenario.workload.serves:
        why = INSTEAD.get(what, "of training jobs only")
        raise InputError(f'{scenario.name}: workload: "{scenario.job.workload}": {what}: {why}')
