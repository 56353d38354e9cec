"""What a mean rank waits at rendezvous under loads that are not known, at the prices of the forecast.

Ranks are simulated under a few loads; waits in between are interpolated. Errors of kernels scale waits, too, but by
less than loads do: that is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simulator.engine.lower import is_uneven
from simulator.engine.priced_model import PricedModel, action_key
from simulator.engine.program import Program
from simulator.engine.ranks.steady import Steady
from simulator.engine.ranks.waits import Rendezvous
from simulator.schedule import Step
from simulator.spec.job import Routing
from simulator.spec.scenario import Scenario

Array = NDArray[np.float64]
Meets = Callable[[PricedModel, Step, Program], Rendezvous]


class LoadWaits:
    """Waits of each kind of action along `points` of loads; of one point, under these."""

    def __init__(self, base: PricedModel, points: Sequence[Routing]) -> None:
        self.base = base
        self.scenarios = [_loaded(base.scenario, routing) for routing in points]
        self.steady = [Steady() for _ in points]
        self.made: dict[Hashable, list[Array]] = {}

    def at(self, place: float) -> Meets | None:
        """What actions meet at a place along the points; None where nobody waits."""
        if place == 0.0 and not is_uneven(self.scenarios[0]):
            return None

        def meets(built: PricedModel, step: Step, program: Program) -> Rendezvous:
            waits = between(self._waits(built, step, program), place)
            return Rendezvous(waits=waits.tolist(), flows=(None,) * len(waits))

        return meets

    def _waits(self, built: PricedModel, step: Step, program: Program) -> list[Array]:
        """Waits of every step of an action's program, under each of the loads [s]."""
        key = action_key(built.stages, step)
        if key not in self.made:
            self.made[key] = [
                self._under(scenario, steady, built, step, program)
                for scenario, steady in zip(self.scenarios, self.steady, strict=True)
            ]
        return self.made[key]

    def _under(self, scenario: Scenario, steady: Steady, built: PricedModel, step: Step, program: Program) -> Array:
        if not is_uneven(scenario):
            return np.zeros(len(program.steps))
        model = replace(built, price=self.base.price, scenario=scenario, rendezvous=None)
        return np.array(steady.of(model, step, program).waits)


def _loaded(scenario: Scenario, routing: Routing) -> Scenario:
    return replace(scenario, job=replace(scenario.job, routing=routing))


def between(points: Sequence[Array], place: float) -> Array:
    """Arrays along a line of points: at a whole place that point, straight in between."""
    below = min(int(place), max(0, len(points) - 2))
    return points[below] + (place - below) * (points[min(below + 1, len(points) - 1)] - points[below])
