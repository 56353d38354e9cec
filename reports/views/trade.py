"""Throughput on a GPU against the speed of a user: what a serving layout trades for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from simulator.spec.workload import WorkloadName


@dataclass(frozen=True, slots=True, kw_only=True)
class Traded:
    """A serving layout: `rate` [tokens/s on a GPU], `latency` [s] of an output token or of the first token, and whether
    none is better in both (`front`)."""

    name: str
    rate: float
    latency: float
    front: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """How layouts of one workload are drawn: what is on the horizontal axis, and whether more of it is better."""

    label: str
    more: bool
    rate_label: str = "tokens/s on each GPU"

    def x(self, latency: float) -> float:
        """The horizontal position of a latency [s]."""
        return 1.0 / latency if self.more else 1e3 * latency


TRADES: dict[WorkloadName, Trade] = {
    "decode": Trade(label="tokens/s of each user", more=True),
    "prefill": Trade(label="time to the first token [ms]", more=False),
}
"""Trades by workload; training has none."""

LATENCIES: Mapping[WorkloadName, str] = {"decode": "tpot_s", "prefill": "ttft_s"}
"""What results, JSON and CSV call the latency of a serving step, by workload."""


def with_front(points: Sequence[Traded]) -> list[Traded]:
    """The same layouts, with those marked that no other equals in both and betters in one."""

    def bettered(one: Traded) -> bool:
        return any(
            other.rate >= one.rate
            and other.latency <= one.latency
            and (other.rate > one.rate or other.latency < one.latency)
            for other in points
        )

    return [replace(one, front=not bettered(one)) for one in points]
