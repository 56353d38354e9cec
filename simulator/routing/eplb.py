"""Where experts stand so that ranks are evenly loaded: copies for the most loaded experts, and packing onto ranks.

The expert-parallel load balancer that DeepSeek published (github.com/deepseek-ai/EPLB, README, 2025-02) has two
policies. Global: experts get copies wherever they stand, then all slots are packed onto all ranks. Hierarchical: whole
groups of experts are first packed onto nodes, so that node-limited routing keeps a token's groups on few nodes; copies
and packing onto ranks then stay within each node. Both go by the expected load of each expert.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING

from simulator.errors import InputError
from simulator.routing.placement import Placement

if TYPE_CHECKING:
    from collections.abc import Sequence


def copies_of(loads: Sequence[float], slots: int) -> list[int]:
    """How many of `slots` each expert gets: one, and every further slot to the expert with the most load per copy.

    No other numbers of copies have a lower highest load per copy.
    """
    if slots < len(loads):
        raise InputError(f"{slots} slots for {len(loads)} experts: every expert needs one")
    copies = [1] * len(loads)
    heap = [(-load, expert) for expert, load in enumerate(loads)]
    heapify(heap)
    for _ in range(slots - len(loads)):
        expert = heap[0][1]
        copies[expert] += 1
        heapreplace(heap, (-loads[expert] / copies[expert], expert))
    return copies


def packed(weights: Sequence[float], bins: int) -> list[list[int]]:
    """Items spread over bins that hold as many each: the heaviest first, into the lightest bin that has room.

    Returns the items of each bin, in that order. Raises InputError where the items do not divide by the bins.
    """
    if bins < 1 or len(weights) % bins:
        raise InputError(f"{len(weights)} items do not spread evenly over {bins} bins")
    room = len(weights) // bins
    out: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0.0, at) for at in range(bins)]
    for item in sorted(range(len(weights)), key=lambda at: (-weights[at], at)):
        weight, at = heappop(heap)
        out[at].append(item)
        if len(out[at]) < room:
            heappush(heap, (weight + weights[item], at))
    return out


def balanced(
    loads: Sequence[float], *, slots: int, ranks: int, nodes: int = 1, groups: int = 1, fixed: Sequence[int] = ()
) -> Placement:
    """Placement of experts with these expected loads on `slots` slots of `ranks` ranks.

    Parameters
    ----------
    loads : expected load of each expert.
    slots : slots over all ranks.
    ranks : ranks; all hold as many slots.
    nodes, groups : nodes of the ranks and groups of the experts. With groups that divide evenly over several nodes the
        policy is hierarchical; with one of each it is global.
    fixed : numbers of copies of the last experts of `loads`, which get no more (a shared expert); they must divide by
        the nodes.
    """
    if ranks < 1 or slots % ranks:
        raise InputError(f"{slots} slots do not spread evenly over {ranks} ranks; take a divisor of {slots}")
    if nodes < 1 or ranks % nodes or groups < 1 or groups % nodes or (len(loads) - len(fixed)) % groups:
        raise InputError(f"{groups} groups of {len(loads)} experts do not spread evenly over {nodes} nodes")
    routed = len(loads) - len(fixed)
    size = routed // groups
    of_groups = [sum(loads[group * size : (group + 1) * size]) for group in range(groups)]
    held: list[tuple[int, ...]] = []
    for mine in packed(of_groups, nodes):
        experts = [group * size + at for group in mine for at in range(size)]
        here = [loads[expert] for expert in experts]
        copies = copies_of(here, slots // nodes - sum(fixed) // nodes)
        items = [expert for expert, count in zip(experts, copies, strict=True) for _ in range(count)]
        weights = [load / count for load, count in zip(here, copies, strict=True) for _ in range(count)]
        for at, count in enumerate(fixed):
            items += [routed + at] * (count // nodes)
            weights += [loads[routed + at] / count] * (count // nodes)
        held += [tuple(items[item] for item in each) for each in packed(weights, ranks // nodes)]
    return Placement(experts=len(loads), slots=tuple(held))


def with_copies_in_order(experts: int, *, slots: int, ranks: int, fixed: Sequence[int] = ()) -> Placement:
    """Experts in order, then copies of the first ones, then `fixed` numbers of further experts: nothing is balanced."""
    spare = slots - experts - sum(fixed)
    if spare < 0 or slots % ranks:
        raise InputError(f"{slots} slots do not hold {experts} experts evenly on {ranks} ranks")
    order = [*range(experts), *(at % experts for at in range(spare))]
    order += [experts + at for at, count in enumerate(fixed) for _ in range(count)]
    each = slots // ranks
    return Placement(
        experts=experts + len(fixed),
        slots=tuple(tuple(order[rank * each : (rank + 1) * each]) for rank in range(ranks)),
    )
