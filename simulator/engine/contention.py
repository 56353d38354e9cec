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


class SharedLinks:
    """The NICs (out, in) and the NVLink of each rank, and the flows on them by number."""

    def __init__(self, ranks: int, nic: float, nvlink: float) -> None:
        self.capacity = {
            name: bandwidth
            for rank in range(ranks)
            for name, bandwidth in ((f"out{rank}", nic), (f"in{rank}", nic), (f"nvl{rank}", nvlink))
        }
        self.flows: dict[int, Flow] = {}
        self.users: dict[str, dict[int, None]] = {name: {} for name in self.capacity}
        self.known: dict[tuple[int, int, float, float, float], Flow] = {}
        self.shares: dict[tuple[int, ...], tuple[float, ...]] = {}  # by flows that are known
        self.unhindered: set[int] = set()  # known flows that no link slows when they have it to themselves

    def asked(self, rank: int, peer: int, nic: float, nvlink: float, seconds: float) -> Flow:
        """Bytes on the NICs of two ranks and on the NVLink of the first, in so much time alone; the same object for the
        same flow."""
        key = rank, peer, nic, nvlink, seconds
        if key not in self.known:
            unit = max(nic, nvlink)
            uses: list[tuple[str, float]] = []
            if nic:
                uses += [(f"out{rank}", nic / unit), (f"in{peer}", nic / unit)]
            if nvlink:
                uses.append((f"nvl{rank}", nvlink / unit))
            self.known[key] = flow = Flow(unit / seconds, tuple(uses))
            if self._paces([flow]) == (1.0,):
                self.unhindered.add(id(flow))
        return self.known[key]

    def enter(self, task: int, flow: Flow) -> bool:
        """Put a flow that was `asked` for on its links; whether nothing slows it, or is slowed by it."""
        self.flows[task] = flow
        undisturbed = id(flow) in self.unhindered
        for resource, _ in flow.uses:
            users = self.users[resource]
            if users:
                undisturbed = False
            users[task] = None
        return undisturbed

    def sharing(self, task: int) -> list[int]:
        """The flow and those that share links with it, also through others, in the order of their numbers."""
        users = self.users
        for resource, _ in self.flows[task].uses:
            if len(users[resource]) > 1:
                return sorted(component(task, self.flows, users))
        return [task]

    def leave(self, task: int) -> list[int]:
        """Take a flow off its links; the flows that shared some with it."""
        others = self.sharing(task)
        others.remove(task)
        for resource, _ in self.flows.pop(task).uses:
            del self.users[resource][task]
        return others

    def paces(self, keys: Sequence[int]) -> tuple[float, ...]:
        """Share of its own rate that each flow of a component gets."""
        flows = [self.flows[key] for key in keys]
        asked = tuple(map(id, flows))
        if asked not in self.shares:
            self.shares[asked] = self._paces(flows)
        return self.shares[asked]

    def _paces(self, flows: Sequence[Flow]) -> tuple[float, ...]:
        numbered = dict(enumerate(flows))
        if not oversubscribed(range(len(flows)), numbered, self.capacity):
            return (1.0,) * len(flows)
        rates = max_min(numbered, self.capacity)
        return tuple(rates[number] / flow.cap for number, flow in numbered.items())
