"""Service levels over all requests: quantiles of latencies and their limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.errors import InputError, meant
from simulator.serving.slo import seconds

NAMES = ("ttft", "tpot", "itl", "e2e")
STATISTICS = ("mean", "p50", "p90", "p99")


def parse_targets(text: str) -> dict[str, float]:
    """`ttft.p99=2,tpot.p99=0.05` -> limits of these [s].

    Raises
    ------
    InputError : an unknown latency or statistic, or a value that is no time.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        latency, dot, statistic = name.partition(".")
        if not equals or not dot:
            raise InputError(f"--slo: {part[:60]!r}: must be LATENCY.STATISTIC=SECONDS, as in ttft.p99=2,tpot.p99=0.05")
        for word, known in ((latency, NAMES), (statistic, STATISTICS)):
            if word not in known:
                hint = meant(word, known, otherwise=f"use {', '.join(known)}")
                raise InputError(f"--slo: {name[:60]!r}: {word[:60]!r} is not known: {hint}")
        found[name] = seconds(value, name)
    return found


def value_of(metrics: Mapping[str, Any], target: str) -> float:
    """What a replay has for a target [s]; infinity where it has none, as in overload."""
    latency, _, statistic = target.partition(".")
    value = metrics[f"{latency}_s"][statistic]
    return float("inf") if value is None else float(value)


def margins(metrics: Mapping[str, Any], targets: Mapping[str, float]) -> dict[str, float]:
    """How far below each limit a replay stays, as a share of it; negative where it does not."""
    return {target: 1.0 - value_of(metrics, target) / limit for target, limit in targets.items()}
