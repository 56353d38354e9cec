"""Memory over a step as an inline SVG: areas stacked by group, under the line of what the GPU has."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.html.charts import ticks
from reports.html.page import write
from reports.html.payload import embedded
from reports.views import words
from reports.views.palette import MEMORY
from simulator.memory import GROUPS, Curve, Measure, MemoryReport
from simulator.spec.scenario import Scenario
from simulator.units import GB

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 1000.0, 260.0, 42.0, 24.0, 14.0
_COLUMNS = 600


def memory_context(report: MemoryReport, curve: Curve) -> dict[str, Any]:
    """What the template shows of a memory forecast."""
    return {
        "report": report,
        "chart": chart(curve, report.capacity),
        "colours": MEMORY,
        "groups": GROUPS,
        "GB": GB,
        "drawn": curve.rank,
    }


def write_memory(
    scenario: Scenario, report: MemoryReport, curve: Curve, file: Path, measures: Sequence[Measure] = ()
) -> None:
    """Write the page of a memory forecast of a job."""
    context = {
        "title": f"foretrain: memory of {scenario.name}",
        "name": scenario.name,
        "setup": words.setup(scenario.model.name, scenario.job.gpus, scenario.cluster.gpu.name),
        "memory": memory_context(report, curve),
        "measures": measures,
        "data": embedded({"steps": [], "pair": None}),
    }
    write("memory.html", context, file)


def chart(curve: Curve, capacity: float) -> dict[str, Any]:
    """The geometry of the picture: areas, the capacity line and both axes."""
    end = curve.times[-1] or 1.0
    times, columns = thinned(curve, _COLUMNS)
    top = 1.08 * max(capacity, *(sum(column) for column in columns))

    def x(time: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 2) * time / end

    def y(size: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - size / top)

    areas = []
    for at, name in enumerate(GROUPS):
        low = [sum(column[:at]) for column in columns]
        high = [sum(column[: at + 1]) for column in columns]
        if any(b > a for a, b in zip(low, high, strict=True)):
            areas.append({"name": name, "colour": MEMORY[name], "path": _area(times, low, high, x, y)})
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "areas": areas,
        "capacity": y(capacity),
        "base": y(0.0),
        "x": [(x(t), label) for t, label in ticks(end, 9, "s" if end >= 1 else "ms")],
        "y": [(y(v * GB), f"{v:g}") for v, _ in ticks(top / GB, 5)],
    }


def thinned(curve: Curve, most: int) -> tuple[list[float], list[list[float]]]:
    """The curve at no more than `most` times; of each interval the time of highest use is kept."""
    end, groups = curve.times[-1], [curve.groups[name] for name in GROUPS]
    times: list[float] = []
    columns: list[list[float]] = []
    for at in range(most):
        first = max(0, bisect_right(curve.times, end * at / most) - 1)
        last = max(first + 1, bisect_right(curve.times, end * (at + 1) / most))
        highest = max(range(first, last), key=lambda i: sum(group[i] for group in groups))
        times.append(end * at / most)
        columns.append([group[highest] for group in groups])
    return [*times, end], [*columns, columns[-1]]


def _area(times: Sequence[float], low: Sequence[float], high: Sequence[float], x: Any, y: Any) -> str:
    """A stepped area between two levels."""
    forth: list[str] = []
    back: list[str] = []
    for at in range(len(times) - 1):
        for time in (times[at], times[at + 1]):
            forth.append(f"{x(time):.1f},{y(high[at]):.1f}")
            back.append(f"{x(time):.1f},{y(low[at]):.1f}")
    return "M" + "L".join([*forth, *reversed(back)]) + "Z"
