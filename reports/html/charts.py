"""Small things that inline charts need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

from reports.views.replay_curves import Panel
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


def lines(panel: Panel) -> dict[str, Any]:
    """What the macro `lines` of parts.html draws: steps that hold up to the next point, from zero on the y axis."""
    values = [x for curve in panel.curves for x in curve.x]
    left, right = (min(values), max(values)) if values else (0.0, 1.0)
    top = 1.05 * max((y for curve in panel.curves for y in curve.y), default=0.0) or 1.0

    def x(value: float) -> float:
        one, begin, end = (log10(v) for v in (value, left, right)) if panel.log else (value, left, right)
        return _LEFT + (_WIDTH - _LEFT - 8) * (one - begin) / ((end - begin) or 1.0)

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - value / top)

    return {
        "title": panel.title,
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "top": _TOP,
        "base": y(0.0),
        "across": panel.across,
        "up": panel.up,
        "curves": [
            {
                "name": curve.name,
                "colour": curve.colour,
                "path": "".join(
                    f"{'H' if at else 'M'}{x(a):.1f}{f'V{y(b):.1f}' if at else f',{y(b):.1f}'}"
                    for at, (a, b) in enumerate(zip(curve.x, curve.y, strict=True))
                ),
            }
            for curve in panel.curves
        ],
        "limits": [(name, colour, x(at)) for name, colour, at in panel.limits if left <= at <= right],
        "x": [(x(v), name) for v, name in (decades(left, right) if panel.log else ticks(right, 8, start=left))],
        "y": [(y(v), name) for v, name in ticks(top, 5)],
    }


def decades(low: float, high: float) -> list[tuple[float, str]]:
    """1, 2 and 5 of every power of ten between two values above zero, with labels; powers alone where they are many."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 5 else (1,)
    found = [factor * 10.0**power for power in powers for factor in factors]
    return [(value, f"{value:,g}") for value in found if low <= value <= high]


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
