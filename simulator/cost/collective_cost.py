"""Collectives and point-to-point messages: a fixed time, a time per step, and bytes over an attainable
bandwidth.

Within a node a ring of n ranks moves (n - 1)/n of the buffer in n - 1 steps; across N nodes of g ranks each
the ring is hierarchical: NVLink carries (g - 1)/g of the buffer and each NIC (N - 1)/N of its g-th part, side
by side in a pipeline (Thakur et al. 2005; NCCL's rings). An all-reduce is a reduce-scatter and an all-gather,
or a double binary tree, or, where NVLink switches reduce, one pass. Of the library's protocols the cheapest
is taken for each message. Serving engines have kernels of their own for small all-reduces (`DirectAllReduce`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, log2

from simulator.cost.cost import Bound, Cost
from simulator.cost.topology import attained
from simulator.errors import InputError
from simulator.ops import Collective, PointToPoint
from simulator.spec.comm_params import Fabric, Protocol, Tier
from simulator.spec.hardware import Cluster

SHARP = "sharp"  # the protocol in which NVLink switches reduce; all_reduce only


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One way to do a collective on one tier.

    Parameters
    ----------
    algorithm : its name.
    steps : steps one after the other.
    wire : bytes over the rank's link [B].
    local : bytes copied locally [B].
    """

    algorithm: str
    steps: int
    wire: float
    local: float = 0.0


def collective_cost(work: Collective, cluster: Cluster) -> Cost:
    """Time of one collective, and what it puts on NVLink and the NIC of one rank."""
    _check(work)
    group = min(work.per_node, work.ranks)
    nodes = work.ranks // group
    if work.ranks == 1:
        return Cost(duration=0.0, bound_by="latency", formula="one rank: nothing to move", source="definition")
    direct = _direct(work, nodes, cluster)
    if direct is not None:
        return direct
    if work.kind == "all_to_all":
        return _all_to_all(work, cluster, group, nodes)
    held = held_sms(group, nodes, cluster.fabric) / cluster.fabric.nvlink.sms
    inside = (
        _best(_algorithms(work.kind, work.bytes, group), cluster, "nvlink", cluster.node.gpus) if group > 1 else None
    )
    part = work.bytes / (1 if work.kind == "broadcast" else group)
    across = _best(_algorithms(work.kind, part, nodes), cluster, "nic", work.ranks) if nodes > 1 else None
    return replace(_join(inside, across), held=held)


def _direct(work: Collective, nodes: int, cluster: Cluster) -> Cost | None:
    """A serving engine's own all-reduce, one-shot or two-shot by size; None where it leaves the buffer to NCCL."""
    if work.kernels == "nccl":
        return None
    fabric = cluster.fabric
    if work.kernels not in fabric.all_reduce:
        known = ", ".join(["nccl", *sorted(fabric.all_reduce)])
        raise InputError(f"no kernels '{work.kernels}' in fabric.all_reduce; the hardware profile has {known}")
    p, n = fabric.all_reduce[work.kernels], work.ranks
    limit = next((size for ranks, size in p.below if n <= ranks), None)
    if work.kind != "all_reduce" or nodes > 1 or limit is None or work.bytes > p.most:
        return None
    one = work.bytes < limit
    alpha, peer, rate = (p.one_alpha, p.one_peer, p.one_rate) if one else (p.two_alpha, p.two_peer, p.two_rate)
    wire, rate = (n - 1) * work.bytes * (1.0 if one else 2.0 / n), min(rate, cluster.node.nvlink.bandwidth)
    fixed, moving = alpha + (n - 2) * peer, wire / rate
    return Cost(
        duration=fixed + moving,
        bound_by=_bound("nvlink", fixed, moving),
        formula=f"alpha + peers x peer + bytes / rate, {'one' if one else 'two'}-shot",
        terms=(
            ("alpha_s", alpha),
            ("peers", float(n - 2)),
            ("peer_s", peer),
            ("nvlink_bytes", wire),
            ("rate", rate),
        ),
        source=p.source,
        calibrated=not p.assumed,
        nvlink_bytes=wire,
        held=p.sms / fabric.nvlink.sms,
    )


def held_sms(group: int, nodes: int, fabric: Fabric) -> int:
    """SMs that a collective over `nodes` of `group` ranks each holds: one a channel of its rings."""
    return fabric.nvlink.sms if nodes == 1 else min(fabric.nvlink.sms, fabric.nic.sms * group)


def p2p_cost(work: PointToPoint, cluster: Cluster) -> Cost:
    """Time of one message to a neighbour: launch, latency, bytes over the link's attainable bandwidth."""
    if work.bytes < 0:
        raise InputError(f"point-to-point bytes = {work.bytes:g} is negative")
    link = cluster.node.nvlink if work.tier == "nvlink" else cluster.node.nic
    params = cluster.fabric.p2p_nvlink if work.tier == "nvlink" else cluster.fabric.p2p_nic
    fixed, moving = params.alpha + link.latency, work.bytes / link.bandwidth
    return Cost(
        duration=fixed + moving,
        bound_by=_bound("nvlink" if work.tier == "nvlink" else "ib", fixed, moving),
        formula="alpha + latency + bytes / bandwidth",
        terms=(
            ("alpha_s", params.alpha),
            ("latency_s", link.latency),
            ("bytes", work.bytes),
            ("bandwidth", link.bandwidth),
        ),
        source=params.source,
        calibrated=not params.assumed,
        nic_bytes=work.bytes if work.tier == "nic" else 0.0,
        nvlink_bytes=work.bytes if work.tier == "nvlink" else 0.0,
    )


def _check(work: Collective) -> None:
    if work.ranks < 1 or work.per_node < 1:
        raise InputError(f"{work.kind}: ranks = {work.ranks} and per_node = {work.per_node} must be at least 1")
    if work.ranks > work.per_node and work.ranks % work.per_node:
        raise InputError(f"{work.kind}: {work.ranks} ranks do not fill nodes of {work.per_node}; take a multiple of it")
    if work.bytes < 0:
        raise InputError(f"{work.kind}: bytes = {work.bytes:g} is negative")


def _algorithms(kind: str, size: float, n: int) -> tuple[Algorithm, ...]:
    """Algorithms for a buffer of `size` [B] over `n` ranks of one tier."""
    share = size * (n - 1) / n
    levels = max(1, ceil(log2(n)))
    if kind in ("all_gather", "reduce_scatter"):
        return (Algorithm(algorithm="ring", steps=n - 1, wire=share, local=size / n),)
    if kind == "broadcast":
        return (
            Algorithm(algorithm="chain", steps=n - 1, wire=size),
            Algorithm(algorithm="tree", steps=levels, wire=2 * size),
        )
    return (
        Algorithm(algorithm="ring", steps=2 * (n - 1), wire=2 * share),
        Algorithm(algorithm="tree", steps=2 * levels, wire=2 * size),
        Algorithm(algorithm=SHARP, steps=2, wire=size),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leg:
    """One tier's part of a collective: `fixed` [s] and `moving` [s], with what made it."""

    tier: str
    name: str
    fixed: float
    moving: float
    wire: float
    bandwidth: float
    source: str
    assumed: bool


def _best(algorithms: tuple[Algorithm, ...], cluster: Cluster, tier: str, endpoints: int) -> _Leg:
    """The cheapest pair of algorithm and protocol."""
    node, fabric = cluster.node, cluster.fabric
    params = fabric.nvlink if tier == "nvlink" else fabric.nic
    link = node.nvlink if tier == "nvlink" else node.nic
    bandwidth = link.bandwidth if tier == "nvlink" else attained(fabric.network, link.bandwidth, endpoints)
    legs = [
        _leg(algorithm, name, protocol, params, tier, bandwidth, link.latency)
        for algorithm in algorithms
        for name, protocol in params.protocols.items()
        if (algorithm.algorithm == SHARP) == (name == SHARP)
        and (name != SHARP or (tier == "nvlink" and node.nvlink_sharp))
    ]
    if not legs:
        raise InputError(f"fabric.{tier}.protocols names no protocol; write at least one besides '{SHARP}'")
    return min(legs, key=lambda leg: leg.fixed + leg.moving)


def _leg(
    algorithm: Algorithm, name: str, protocol: Protocol, params: Tier, tier: str, bandwidth: float, latency: float
) -> _Leg:
    moving = algorithm.wire / (protocol.payload * bandwidth) + algorithm.local / params.local_copy
    return _Leg(
        tier=tier,
        name=f"{algorithm.algorithm}/{name}",
        fixed=protocol.alpha + algorithm.steps * protocol.step * latency,
        moving=moving,
        wire=algorithm.wire,
        bandwidth=bandwidth,
        source=params.source,
        assumed=params.assumed,
    )


def _join(inside: _Leg | None, across: _Leg | None) -> Cost:
    """Tiers form a pipeline: fixed times add (the smaller launch is hidden in neither), the slower link
    decides."""
    legs = [leg for leg in (inside, across) if leg is not None]
    fixed = sum(leg.fixed for leg in legs)
    slow = max(legs, key=lambda leg: leg.moving)
    terms: list[tuple[str, float]] = []
    for leg in legs:
        terms += [
            (f"{leg.tier}_fixed_s", leg.fixed),
            (f"{leg.tier}_bytes", leg.wire),
            (f"{leg.tier}_bandwidth", leg.bandwidth),
        ]
    return Cost(
        duration=fixed + slow.moving,
        bound_by=_bound("nvlink" if slow.tier == "nvlink" else "ib", fixed, slow.moving),
        formula="fixed + max over tiers of bytes / bandwidth; " + ", ".join(f"{x.tier}: {x.name}" for x in legs),
        terms=tuple(terms),
        source="; ".join(dict.fromkeys(leg.source for leg in legs)),
        calibrated=not any(leg.assumed for leg in legs),
        nic_bytes=across.wire if across else 0.0,
        nvlink_bytes=inside.wire if inside else 0.0,
    )


def _all_to_all(work: Collective, cluster: Cluster, group: int, nodes: int) -> Cost:
    """Every rank sends a `ranks`-th of its buffer to each; both links work side by side."""
    nvlink = work.bytes * (group - 1) / work.ranks
    nic = work.bytes * (work.ranks - group) / work.ranks
    legs = []
    if group > 1:
        algorithm = Algorithm(algorithm="direct", steps=1, wire=nvlink)
        legs.append(_with_peers(_best((algorithm,), cluster, "nvlink", 0), group - 1, cluster.fabric.nvlink))
    if nodes > 1:
        algorithm = Algorithm(algorithm="direct", steps=1, wire=nic)
        leg = _best((algorithm,), cluster, "nic", work.ranks)
        legs.append(_with_peers(leg, work.ranks - group, cluster.fabric.nic))
    inside = legs[0] if group > 1 else None
    return _join(inside, legs[-1] if nodes > 1 else None)


def _with_peers(leg: _Leg, peers: int, params: Tier) -> _Leg:
    return _Leg(
        tier=leg.tier,
        name=leg.name,
        fixed=leg.fixed + peers * params.all_to_all_alpha,
        moving=leg.moving,
        wire=leg.wire,
        bandwidth=leg.bandwidth,
        source=leg.source,
        assumed=leg.assumed,
    )


def _bound(link: Bound, fixed: float, moving: float) -> Bound:
    return link if moving >= fixed else "latency"
