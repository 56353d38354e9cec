"""Steps that somebody measured next to their forecasts. Compared with, never fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A measured step time and its forecast [s]."""

    group: str
    name: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.measured - 1.0


def summary(found: Sequence[Compared]) -> dict[str, tuple[int, float, float]]:
    """Group -> number of steps, bias, mean absolute error."""
    groups = dict.fromkeys(one.group for one in found)
    errors = {group: [one.error for one in found if one.group == group] for group in groups}
    return {group: (len(each), mean(each), mean(map(abs, each))) for group, each in errors.items()}


def show(found: Sequence[Compared]) -> None:
    """Print every step and the errors of each group."""
    for one in found:
        print(f"{one.name:55s} {one.measured * 1e3:9.3f} ms {one.predicted * 1e3:9.3f} ms {one.error:+7.1%}")
    print()
    for group, (count, bias, mape) in summary(found).items():
        print(f"{group:45s} {count:3d} steps  bias {bias:+6.1%}  MAPE {mape:5.1%}")
