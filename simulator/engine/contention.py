"""Shared capacities: links carry several flows at once and share them max-min fairly.

Max-min fairness (Bertsekas & Gallager, Data Networks, section 6.5.2): raise the rates of all flows together; a flow
stops rising when it reaches its own cap or when a link it crosses is full.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow that may run at up to `cap` [B/s] and loads each resource in `uses` with weight x rate."""

    cap: float
    uses: tuple[tuple[str, float], ...]


def max_min(flows: Mapping[K, Flow], capacity: Mapping[str, float]) -> dict[K, float]:
    """The max-min fair rates [B/s]. Deterministic in the order of `flows`."""
    rates = dict.fromkeys(flows, 0.0)
    left = dict(capacity)
    rising = dict(flows)
    while rising:
        weight = _demand(rising)
        step = min(flow.cap - rates[key] for key, flow in rising.items())
        room = {resource: max(0.0, left[resource]) / w for resource, w in weight.items()}
        step = min(step, *room.values()) if room else step
        full = {resource for resource, r in room.items() if r == step}
        for resource, w in weight.items():
            left[resource] -= step * w
        for key in rising:
            rates[key] += step
        keep = {key: flow for key, flow in rising.items() if not _stopped(flow, rates[key], full)}
        if len(keep) == len(rising):  # rounding left no flow at a limit: stop instead of looping
            break
        rising = keep
    return {key: flows[key].cap if _capped(flows[key], rate) else rate for key, rate in rates.items()}


def _demand(flows: Mapping[K, Flow]) -> dict[str, float]:
    """Summed weights of the flows on each resource."""
    weight: dict[str, float] = {}
    for flow in flows.values():
        for resource, w in flow.uses:
            weight[resource] = weight.get(resource, 0.0) + w
    return weight


def _capped(flow: Flow, rate: float) -> bool:
    """Whether a flow runs as fast as it can; rounding must not slow it."""
    return flow.cap - rate <= 1e-12 * flow.cap


def _stopped(flow: Flow, rate: float, full: set[str]) -> bool:
    """Whether a flow can rise no further."""
    return _capped(flow, rate) or any(resource in full for resource, _ in flow.uses)


def component(start: K, flows: Mapping[K, Flow], users: Mapping[str, Iterable[K]]) -> list[K]:
    """The flows that `start` can influence through shared resources, itself included."""
    found: dict[K, None] = {start: None}
    queue: list[K] = [start]
    for key in queue:
        for resource, _ in flows[key].uses:
            for other in users[resource]:
                if other not in found:
                    found[other] = None
                    queue.append(other)
    return queue


def oversubscribed(keys: Sequence[K], flows: Mapping[K, Flow], capacity: Mapping[str, float]) -> bool:
    """Whether the caps of these flows together exceed any link."""
    load: dict[str, float] = {}
    for key in keys:
        flow = flows[key]
        for resource, weight in flow.uses:
            load[resource] = load.get(resource, 0.0) + weight * flow.cap
    return any(value > capacity[resource] * (1 + 1e-12) for resource, value in load.items())
