"""How many published steps fall into their forecasts' intervals: an interval of 8 in 10 should hold 70 to 90 %.

Only one figure of each published step counts: its time, or a rate that is a constant over it. Intervals come from
kernel and link measurements and stated ranges; no width is fitted to these steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

from simulator.errors import ForetrainError
from simulator.inputs import load_scenario
from simulator.studies.uncertainty import interval
from simulator.validation.computations import rule_for
from simulator.validation.figures import Figure
from simulator.validation.outcome import Outcome
from simulator.validation.training_figures import step_asked

DRAWS = 100
TIMES = ("step_time", "time_per_step", "gpu_hours_per_trillion_tokens")
"""Quantities that grow with the step time."""
RATES = (
    "samples_per_gpu_per_s",
    "tflops_per_gpu_incl_recompute",
    "model_tflops_per_gpu",
    "tflops_per_gpu",
    "tokens_per_s_per_gpu",
)
"""Quantities that are a constant over the step time."""
DERIVED = ("A.cost.",)
"""Beginnings of the names of figures that follow from another figure's step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One published step in its interval.

    Parameters
    ----------
    figure : the published figure.
    published, low, high : its time and the ends of the interval, as parts of the forecast's time, of any quantity.
    precision : recipe of the step.
    experts : whether the model is a mixture of experts.
    """

    figure: Figure
    published: float
    low: float
    high: float
    precision: str = "bf16"
    experts: bool = False

    @property
    def inside(self) -> bool:
        """Whether the interval holds it."""
        return self.low <= self.published <= self.high

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "id": self.figure.id,
            "published_over_forecast": self.published,
            "p10_over_forecast": self.low,
            "p90_over_forecast": self.high,
            "inside": self.inside,
            "precision": self.precision,
            "experts": self.experts,
        }

    @property
    def kind(self) -> str:
        """Precision, and whether there are experts: `FP8, experts`."""
        return f"{self.precision.partition('_')[0].upper()}, {'experts' if self.experts else 'dense'}"


def is_step(figure: Figure) -> bool:
    """Whether a figure is the time of a whole training step, or a rate made of it."""
    known = figure.quantity in (*TIMES, *RATES)
    return figure.end_to_end and known and not figure.id.startswith(DERIVED)


def intervals_of(
    outcomes: Sequence[Outcome],
    *,
    draws: int = DRAWS,
    processes: int = 2,
    progress: Callable[[float], None] | None = None,
) -> list[Placed]:
    """Every published step with a prediction, in its interval, in the order given."""
    steps = [one for one in outcomes if one.predicted and one.figure.number and is_step(one.figure)]
    found: list[Placed] = []
    for done, placed in enumerate(_all(steps, draws, min(processes, os.cpu_count() or 1)), 1):
        if placed is not None:
            found.append(placed)
        if progress is not None:
            progress(done / len(steps))
    return found


def _all(steps: Sequence[Outcome], draws: int, processes: int) -> Iterable[Placed | None]:
    each = [draws] * len(steps)
    if processes <= 1 or len(steps) <= 1:
        yield from map(_placed, steps, each)
        return
    with ProcessPoolExecutor(max_workers=processes) as pool:
        yield from pool.map(_placed, steps, each)


def _placed(outcome: Outcome, draws: int) -> Placed | None:
    """A step in its interval; None where its forecast is no simulated step."""
    figure, published = outcome.figure, outcome.figure.number
    if not published or not outcome.predicted:
        return None
    asked = step_asked(lambda: rule_for(figure).compute(figure))
    if asked is None:
        return None
    try:
        scenario = load_scenario(*asked)
        found = interval(scenario, draws=draws, shares=False)
    except ForetrainError:
        return None
    longer = published / outcome.predicted
    return Placed(
        figure=figure,
        published=longer if figure.quantity in TIMES else 1.0 / longer,
        low=found.p10_s / found.forecast_s,
        high=found.p90_s / found.forecast_s,
        precision=scenario.job.precision.recipe,
        experts=scenario.model.is_moe,
    )


def off(placed: Sequence[Placed]) -> float:
    """Median of published over forecast time, less one: time that no source of the intervals has."""
    return median(one.published for one in placed) - 1.0 if placed else 0.0


def coverage(placed: Sequence[Placed]) -> float:
    """The part of the steps that their intervals hold (0 to 1)."""
    return sum(one.inside for one in placed) / len(placed) if placed else 0.0
