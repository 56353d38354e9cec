"""What a mean rank waits at rendezvous under loads that are not known, at the prices of the forecast.

Ranks are simulated at a few loads of the most loaded one; waits in between are interpolated. Errors of kernels scale
waits, too, but by less than loads do: that is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
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

Meets = Callable[[PricedModel, Step, Program], Rendezvous]
POINTS = 4
"""Loads at which ranks are simulated, from the lowest to the highest."""


class LoadWaits:
    """Waits of each kind of action at loads between `low` and `high`, or, if these are equal, at those of the job."""

    def __init__(self, base: PricedModel, low: float, high: float) -> None:
        self.base, self.grid = base, np.linspace(low, high, POINTS if high > low else 1)
        self.steady = [Steady() for _ in self.grid]
        self.made: dict[Hashable, NDArray[np.float64]] = {}

    def at(self, load: float) -> Meets | None:
        """What actions meet at this load; None where nobody waits."""
        if len(self.grid) == 1:
            return self._of(0.0) if is_uneven(self.base.scenario) else None
        return self._of(load) if load > 1.0 else None

    def _of(self, load: float) -> Meets:
        def meets(built: PricedModel, step: Step, program: Program) -> Rendezvous:
            waits = self._waits(built, step, program)
            place = np.interp(load, self.grid, np.arange(len(self.grid))) if len(self.grid) > 1 else 0.0
            below = min(int(place), max(0, len(self.grid) - 2))
            mixed = waits[below] + (place - below) * (waits[min(below + 1, len(waits) - 1)] - waits[below])
            return Rendezvous(waits=mixed.tolist(), flows=(None,) * len(mixed))

        return meets

    def _waits(self, built: PricedModel, step: Step, program: Program) -> NDArray[np.float64]:
        """Waits of every step of an action's program at the loads of the grid (loads x steps) [s]."""
        key = action_key(built.stages, step)
        if key not in self.made:
            rows = []
            for load, steady in zip(self.grid.tolist(), self.steady, strict=True):
                model = replace(built, price=self.base.price, scenario=self.base.scenario, rendezvous=None)
                if len(self.grid) > 1:
                    routing = Routing(kind="skewed", max_over_mean=load)
                    job = replace(self.base.scenario.job, routing=routing)
                    model = replace(model, scenario=replace(self.base.scenario, job=job))
                rows.append(list(steady.of(model, step, program).waits))
            self.made[key] = np.array(rows)
        return self.made[key]
