"""Quantiles of many numbers in little memory, with a bounded relative error.

Counts in buckets whose ends grow by a constant factor (Masson, Rim, Lee: DDSketch, VLDB 2019). The same numbers in any
order give the same quantiles. Means are exact.
"""

from __future__ import annotations

from math import ceil, log

ERROR = 5e-4
"""Largest relative error of a quantile."""
_FACTOR = (1 + ERROR) / (1 - ERROR)
_PER_LOG = 1.0 / log(_FACTOR)


class Sketch:
    """Numbers at or above 0, with how often each came."""

    __slots__ = ("_buckets", "_zeros", "count", "highest", "total")

    def __init__(self) -> None:
        self.count, self.total, self.highest = 0, 0.0, 0.0
        self._zeros = 0
        self._buckets: dict[int, int] = {}

    def add(self, value: float, count: int = 1) -> None:
        """`value` came `count` times more."""
        self.count += count
        self.total += value * count
        if value > self.highest:
            self.highest = value
        if value <= 1e-12:
            self._zeros += count
            return
        bucket = ceil(log(value) * _PER_LOG)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + count

    def with_zeros(self, count: int) -> Sketch:
        """The same numbers, and so many zeros."""
        if not count:
            return self
        found = Sketch()
        found.count, found.total, found.highest = self.count + count, self.total, self.highest
        found._zeros, found._buckets = self._zeros + count, self._buckets
        return found

    @property
    def mean(self) -> float | None:
        """Mean; None without numbers."""
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """The smallest number that `share` of all do not exceed, up to `ERROR`; None without numbers."""
        if not self.count:
            return None
        rank = max(1, ceil(share * self.count))
        seen = self._zeros
        if rank <= seen:
            return 0.0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if rank <= seen:
                break
        return min(self.highest, 2.0 * _FACTOR**bucket / (1 + _FACTOR))

    def steps(self) -> list[tuple[float, float]]:
        """Its cumulative distribution: values, and the share of numbers at or below each."""
        out, seen = [], self._zeros
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            out.append((min(self.highest, 2.0 * _FACTOR**bucket / (1 + _FACTOR)), seen / self.count))
        return out
