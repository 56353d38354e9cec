"""How far a number may be from its value: what its source states, in words that the profiles and stacks use.

- `range 2 to 6` : of the number that the source belongs to;
- `range alpha 1e-5 to 3e-4, hop 4e-6 to 3e-5` : of named numbers of a group that shares one source;
- `each number 0.6 to 1.7 times` : of every number of such a group.
"""

from __future__ import annotations

import re
from math import exp

from simulator.studies.known_errors import transferred

NUMBER = r"([-+]?\d[\d.]*(?:[eE][-+]?\d+)?)"
_OWN = re.compile(rf"range (?:from )?{NUMBER} to {NUMBER}")
_EACH = re.compile(rf"each number {NUMBER} to {NUMBER} times")
SHARES = ("payload", "collisions")
"""Numbers that cannot exceed 1."""
TENTH = 1.282
"""Standard deviations of a normal variate within which 80 % lie."""


def stated(source: str, value: float, name: str = "") -> tuple[float, float] | None:
    """The ends of a number's range as its source states them; None if it states none.

    `name` is the number's own in a group that shares the source; it may be a path, whose last part is looked for.
    """
    leaf = name.rpartition(".")[2]
    if leaf:
        own = re.search(rf"(?:range|[,;]) {re.escape(leaf)} {NUMBER} to {NUMBER}", source)
        times = None if own else _EACH.search(source)
    else:
        own, times = _OWN.search(source), None
    if own:
        return ordered(float(own[1]), float(own[2]))
    if times:
        return ordered(value * float(times[1]), capped(leaf, value * float(times[2])))
    return None


def carried(value: float) -> tuple[float, float]:
    """The ends of a kernel parameter that was carried over from another GPU or class: as far as classes are off on
    GPUs that they were not fitted on (`known_errors.transferred`), 80 % of them."""
    factor = exp(TENTH * transferred())
    return value / factor, value * factor


def ordered(one: float, other: float) -> tuple[float, float]:
    """Both, the lower first."""
    return min(one, other), max(one, other)


def capped(name: str, value: float) -> float:
    """The value, of a share at most 1."""
    return min(1.0, value) if name.endswith(SHARES) else value
