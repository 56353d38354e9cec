"""Arithmetic of time intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

Interval = tuple[float, float]
"""Start and end [s]."""


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Union of intervals, sorted and disjoint."""
    out: list[Interval] = []
    begun = ended = -inf
    for start, end in sorted(intervals):
        if start <= ended:
            if end > ended:
                ended = end
        elif end > start:
            if ended > begun:
                out.append((begun, ended))
            begun, ended = start, end
    if ended > begun:
        out.append((begun, ended))
    return out


def minus(some: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """The parts of `some` outside `others`; both merged."""
    out: list[Interval] = []
    at = 0
    for start, end in some:
        while at < len(others) and others[at][1] <= start:
            at += 1
        here, k = start, at
        while k < len(others) and others[k][0] < end:
            if others[k][0] > here:
                out.append((here, others[k][0]))
            here = max(here, others[k][1])
            k += 1
        if here < end:
            out.append((here, end))
    return out


def length(intervals: Iterable[Interval]) -> float:
    """Total length of disjoint intervals."""
    return sum(end - start for start, end in intervals)
