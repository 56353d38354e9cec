"""Small things that inline charts need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

from reports.views.trade import Trade, Traded

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720.0, 300.0, 56.0, 40.0, 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point of a scatter chart, in the units of its axes; `front`: drawn dark."""

    x: float
    y: float
    name: str
    front: bool


def scatter(dots: Iterable[Dot], label: str, caption: str, unit: str = "") -> dict[str, Any] | None:
    """What the macro `scatter` of parts.html draws, from zero on both axes; None of fewer than two points."""
    shown = sorted(dots, key=lambda dot: dot.front)
    if len(shown) < 2:
        return None
    right, top = 1.05 * max(dot.x for dot in shown), 1.05 * max(dot.y for dot in shown)

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * value / right

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - value / top)

    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "base": y(0.0),
        "label": label,
        "caption": caption,
        "points": [{"x": x(dot.x), "y": y(dot.y), "front": dot.front, "name": dot.name} for dot in shown],
        "x": [(x(t), name) for t, name in ticks(right, 7, unit)],
        "y": [(y(v), f"{v:,g}") for v, _ in ticks(top, 5)],
    }


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
    label = f"{trade.label}; {trade.rate_label} upwards"
    return scatter(dots, label, "Dark: not bettered in both at once. Hover for the values.")


def ticks(end: float, about: int, unit: str = "") -> list[tuple[float, str]]:
    """Round values from 0 to `end`, roughly `about` of them, with labels; in milliseconds if `unit` is ms."""
    if end <= 0:
        return [(0.0, "0")]
    raw = end / about
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    factor = 1e3 if unit == "ms" else 1.0
    digits = max(0, ceil(-log10(step * factor)))
    suffix = f" {unit}" if unit else ""
    return [(k * step, f"{k * step * factor:.{digits}f}{suffix}") for k in range(floor(end / step * (1 + 1e-9)) + 1)]
