"""What makes a whole step longer or shorter by a factor that no kernel's time holds: work of the training loop, slow
workers, the weather, and assumed settings of the software that are no numbers.

Widths are those of the sources named here. None of them is of a step that `foretrain validate` compares with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import log
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ForetrainError
from simulator.estimate.estimate import estimate
from simulator.estimate.shared_prices import SharedPrices
from simulator.inputs.check import check
from simulator.inputs.idle import assumed_settings
from simulator.routing.published_loads import with_equal_loads
from simulator.spec.scenario import Scenario
from simulator.spec.stack import Stack

Array = NDArray[np.float64]

LOOP = 0.018
"""Share of a step by which better data loading and removing slow code of the loop (garbage collection among it)
shortened it: MFU 61.2 to 62.3 % (MegaScale, arXiv 2402.15627, table 3, 2024-02; 175B on 256 GPUs). A run has taken it
out or not; what a loop costs beyond it is not published."""

WARM = 0.02
"""Throughput over the day, highest over lowest: temperatures move clocks (Llama 3, arXiv 2407.21783, section 3.3.4,
2024-07: 1 to 2 %)."""

WASTED = ((0.0, 0.0), (0.575, 0.0909), (0.9, 0.213), (0.99, 0.45), (1.0, 0.45))
"""(share of jobs, share of their GPU time that slow workers waste at most): 42.5 % of 3,079 pre-training jobs are 10 %
slower and more, a tenth waste 21.3 % and more, a hundredth 45 % and more (arXiv 2505.05713, section 4.1, 2025-05)."""
WASTED_OTHERWISE = 1.0 - 0.393 - 0.214
"""Part of it that is left for causes which a forecast does not hold, or which its job does not have: the last stage
explains most of the loss in 39.3 % of the jobs, and sequences of unequal length slow 21.4 % (the same, sections 5.2 and
5.3). That every job loses the same part of its waste so is assumed."""
FROM_GPUS = 128
"""GPUs of the smallest of these jobs; of smaller ones nothing is published."""

ASSUMED_CHANCE = 0.5
"""Chance that an assumed setting is as assumed; the others of its values share the rest. Assumed."""

Group = Literal["loop", "workers", "clocks", "settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFactor:
    """A factor on the step time: `logs` are its logarithms, met with the cumulative `chances` (from 0 to 1), straight
    in between."""

    name: str
    group: Group
    chances: tuple[float, ...]
    logs: tuple[float, ...]
    text: str

    def drawn(self, chance: Array) -> Array:
        """The logarithms at these chances."""
        return np.interp(chance, self.chances, self.logs)


def step_factors(scenario: Scenario) -> Iterator[StepFactor]:
    """All factors of a training step; of a serving step none is published."""
    if scenario.workload.serves:
        return
    yield StepFactor(
        name="training loop",
        group="loop",
        chances=(0.0, 1.0),
        logs=(0.0, LOOP),
        text=f"data loading and code of the loop: 0 to {LOOP:.1%} of the step (arXiv 2402.15627, table 3)",
    )
    yield StepFactor(
        name="temperature",
        group="clocks",
        chances=(0.0, 1.0),
        logs=(-WARM / 2.0, WARM / 2.0),
        text=f"throughput over a day, {WARM:.0%} between highest and lowest (arXiv 2407.21783, section 3.3.4)",
    )
    if scenario.job.gpus >= FROM_GPUS:
        yield StepFactor(
            name="slow workers",
            group="workers",
            chances=tuple(chance for chance, _ in WASTED),
            logs=tuple(-log(1.0 - WASTED_OTHERWISE * wasted) for _, wasted in WASTED),
            text=f"{WASTED_OTHERWISE:.0%} of the GPU time that 3,079 jobs of {FROM_GPUS} GPUs and more wasted: median"
            " 8 %, a tenth of them 21 % (arXiv 2505.05713)",
        )
    yield from settings(scenario)


def settings(scenario: Scenario) -> Iterator[StepFactor]:
    """Assumed settings of the software that are no numbers, each with what its other values make of a step of equal
    ranks."""
    even = with_equal_loads(scenario)
    base = _quick(even)
    for name in assumed_settings(scenario):
        found = {} if base is None else _others(even, name)
        times = {value: _quick(one) for value, one in found.items()}
        logs = sorted(log(time / base) for time in times.values() if base and time)
        if any(abs(one) > 1e-9 for one in logs):
            yield _any_of(name, logs, [value for value, time in times.items() if time], getattr(scenario.stack, name))


def _any_of(name: str, logs: list[float], values: list[Any], assumed: object) -> StepFactor:
    """A setting that is as assumed with an even chance, else any of its other values."""
    every = sorted([(0.0, ASSUMED_CHANCE), *((one, (1.0 - ASSUMED_CHANCE) / len(logs)) for one in logs)])
    ends = np.cumsum([chance for _, chance in every]).tolist()
    starts = [0.0, *ends[:-1]]
    shown = ", ".join(_text(value) for value in values)
    return StepFactor(
        name=f"stack.{name}",
        group="settings",
        chances=tuple(at for pair in zip(starts, [*ends[:-1], 1.0], strict=True) for at in pair),
        logs=tuple(one for one, _ in every for _ in (0, 1)),
        text=f"{_text(assumed)} is assumed; as likely one of {shown}",
    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _others(scenario: Scenario, name: str) -> dict[Any, Scenario]:
    """The scenario with each other value that a setting can have here."""
    out = {}
    for value in _values(name):
        if value == getattr(scenario.stack, name):
            continue
        other = replace(scenario, stack=replace(scenario.stack, **{name: value}))
        if not any(problem.severity == "error" for problem in check(other)):
            out[value] = other
    return out


def _values(name: str) -> tuple[Any, ...]:
    """All values of a setting that is a choice; none of a number or a table."""
    if name not in {field.name for field in fields(Stack)}:
        return ()
    hint = get_type_hints(Stack)[name]
    if hint is bool:
        return (False, True)
    return get_args(hint) if get_origin(hint) is Literal and not isinstance(hint, UnionType) else ()


def _quick(scenario: Scenario) -> float | None:
    """The step time by the quick engine [s]; None where it has none."""
    try:
        return estimate(scenario, SharedPrices(scenario, "events")).step
    except ForetrainError:
        return None
