"""SI units. Everything inside is a float in s, B, FLOP, B/s or FLOP/s; GB means 1e9 bytes."""

from __future__ import annotations

US = 1e-6
GB = 1e9
GIB = 2.0**30
HOUR = 3600.0
DAY = 86400.0


def si(value: float, unit: str, digits: int = 4) -> str:
    """`value` in `unit` with an SI prefix, for people: `si(5.87e7, "B") == "58.7 MB"`."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.{digits}g} {prefix}{unit}"
    if value == 0 or abs(value) >= 1:
        return f"{value:.{digits}g} {unit}"
    for factor, prefix in ((1e-3, "m"), (1e-6, "µ"), (1e-9, "n")):
        if abs(value) >= factor:
            return f"{value / factor:.{digits}g} {prefix}{unit}"
    return f"{value:.{digits}g} {unit}"
