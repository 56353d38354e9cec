"""Steps that somebody measured next to their forecasts. Compared with, never fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from simulator.memory import MemoryReport
from simulator.units import GB


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A measured step time and its forecast [s], and the peaks of the ranks that are known of both [B]."""

    group: str
    name: str
    measured: float
    predicted: float
    measured_peaks: tuple[float, ...] = ()
    predicted_peaks: tuple[float, ...] = ()

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.measured - 1.0


NOT_ALLOCATED = ("context", "slack")
"""Groups of memory that PyTorch's allocator does not count as allocated."""


def allocated(memory: MemoryReport) -> tuple[float, ...]:
    """What PyTorch's allocator would count as allocated at the peak of each rank [B]."""
    return tuple(rank.peak - sum(rank.group(name) for name in NOT_ALLOCATED) for rank in memory.ranks)


def measured_peaks(text: str) -> tuple[float, ...]:
    """Peaks of the ranks as tables have them, in GB separated by spaces [B]."""
    return tuple(float(one) * GB for one in text.split())


def summary(found: Sequence[Compared]) -> dict[str, tuple[int, float, float]]:
    """Group -> number of steps, bias, mean absolute error."""
    groups = dict.fromkeys(one.group for one in found)
    errors = {group: [one.error for one in found if one.group == group] for group in groups}
    return {group: (len(each), mean(each), mean(map(abs, each))) for group, each in errors.items()}


def show(found: Sequence[Compared]) -> None:
    """Print every step and the errors of each group."""
    for one in found:
        print(f"{one.name:55s} {one.measured * 1e3:9.3f} ms {one.predicted * 1e3:9.3f} ms {one.error:+7.1%}", end="")
        if one.measured_peaks and one.predicted_peaks:
            print(f"{max(one.measured_peaks) / GB:9.1f} GB {max(one.predicted_peaks) / GB:6.1f} GB", end="")
        print()
    print()
    for group, (count, bias, mape) in summary(found).items():
        print(f"{group:45s} {count:3d} steps  bias {bias:+6.1%}  MAPE {mape:5.1%}")
