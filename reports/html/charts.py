"""Small things that inline charts need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

from reports.views.trade import Trade, Traded

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720.0, 300.0, 56.0, 40.0, 22.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point of a scatter chart, in the units of its axes; `front`: drawn dark."""

    x: float
    y: float
    name: str
    front: bool


def scatter(dots: Iterable[Dot], across: str, up: str, aims: str, unit: str = "") -> dict[str, Any] | None:
    """What the macro `scatter` of parts.html draws; None of fewer than two points. `across` and `up` are the axes, the
    dark points are not bettered in all `aims` at once."""
    shown = sorted(dots, key=lambda dot: dot.front)
    if len(shown) < 2:
        return None
    left, right = _around([dot.x for dot in shown])
    low, top = _around([dot.y for dot in shown])

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * (value - left) / (right - left)

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / (top - low))

    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "base": y(low),
        "across": across,
        "up": up,
        "aims": aims,
        "points": [{"x": x(dot.x), "y": y(dot.y), "front": dot.front, "name": dot.name} for dot in shown],
        "x": [(x(t), name) for t, name in ticks(right, 7, unit, left)],
        "y": [(y(v), name) for v, name in ticks(top, 5, start=low)],
    }


def _around(values: Sequence[float]) -> tuple[float, float]:
    """An axis that the values fill but for a margin; from zero where they lie near it."""
    least, most = min(values), max(values)
    margin = max(0.08 * (most - least), 0.02 * most)
    return (0.0 if least < 0.2 * most else least - margin), most + margin


def traded(points: Iterable[Traded], trade: Trade) -> dict[str, Any] | None:
    """The chart of throughput against speed."""
    dots = [
        Dot(
            x=trade.x(point.latency),
            y=point.rate,
            front=point.front,
            name=f"{point.name}: {point.rate:,.0f} {trade.rate_label}, {trade.x(point.latency):,.1f} {trade.label}",
        )
        for point in points
    ]
    return scatter(dots, trade.label, trade.rate_label, "both")


def ticks(end: float, about: int, unit: str = "", start: float = 0.0) -> list[tuple[float, str]]:
    """Round values from `start` to `end`, roughly `about` of them, with labels; in milliseconds if `unit` is ms."""
    if end <= start:
        return [(0.0, "0")]
    raw = (end - start) / about
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    factor = 1e3 if unit == "ms" else 1.0
    digits = max(0, ceil(-log10(step * factor)))
    suffix = f" {unit}" if unit else ""
    first, last = ceil(start / step * (1 - 1e-9)), floor(end / step * (1 + 1e-9))
    return [(k * step, f"{k * step * factor:.{digits}f}{suffix}") for k in range(first, last + 1)]
