"""Small things that inline charts need."""

from __future__ import annotations

from math import ceil, floor, log10


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
