"""Collectives: a fixed time, a time per step, and bytes over an attainable bandwidth.

Within a node a ring of n ranks moves (n - 1)/n of the buffer in n - 1 steps; across N nodes of g ranks each
NVLink carries (g - 1)/g of the buffer and each NIC (N - 1)/N of its g-th part, side by side in a pipeline (Thakur et
al. 2005; NCCL's rings). The steps of such a ring go round all ranks, in one protocol: those over NVLink in each node,
one node after the other, and one over the NICs for each (NVIDIA/nccl, src/graph/tuning.cc, 2.18 to 2.30; measured on 2
to 32 nodes: small gathers take longer in proportion to the ranks, `calibration/tables/fabric_collective.csv`). An
all-reduce is a reduce-scatter and an all-gather, or a double binary tree, or, where NVLink switches reduce, one pass;
between nodes, sums of switches go up and down trees, never round a ring (NCCL's NVLSTree). Within a node of Hopper GPUs
the protocol (and with it, whether switches reduce) is the one that NCCL takes (`nccl_tuner`); else the cheapest.
Serving engines have kernels of their own for small all-reduces (`DirectAllReduce`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, log2

from simulator.cost import nccl_tuner
from simulator.cost.cost import Cost
from simulator.cost.message_cost import bound, over_channels
from simulator.cost.topology import attained
from simulator.errors import InputError
from simulator.ops import Collective
from simulator.spec.comm_params import Fabric, Protocol, Tier
from simulator.spec.hardware import Cluster

RING, TREE = "ring", "tree"
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
    circular : every rank sends and receives all the time, so that channels drift apart.
    """

    algorithm: str
    steps: int
    wire: float
    local: float = 0.0
    circular: bool = False


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
    if nodes == 1:
        return replace(_join(_alone(work, cluster, group), None), held=held)
    part = work.bytes / (1 if work.kind == "broadcast" else group)
    across = _legs(_between(work.kind, part, nodes), cluster, "nic", work.ranks)
    if group == 1:
        return replace(_join(None, _least(across)), held=held)
    inside = _legs(_algorithms(work.kind, work.bytes, group), cluster, "nvlink", cluster.node.gpus)
    around = _legs(_round_all(work.kind, work.bytes, group, nodes), cluster, "nvlink", cluster.node.gpus)
    pairs = [
        (around[a] if a[0] == b[0] == RING else near, far)
        for a, near in inside.items()
        for b, far in across.items()
        if b[0] != RING or a == b
    ]
    if not pairs:
        raise InputError("fabric.nvlink.protocols and fabric.nic.protocols have none in common for a ring; write one")
    return replace(_join(*min(pairs, key=_together)), held=held)


def _together(legs: tuple[_Leg, _Leg]) -> float:
    """Time of both tiers in a pipeline [s]."""
    return sum(leg.fixed for leg in legs) + max(leg.moving for leg in legs)


def _alone(work: Collective, cluster: Cluster, group: int) -> _Leg:
    """Within one node; of Hopper GPUs, by the protocol that NCCL takes. (Ring or tree is left to the price: NCCL's
    estimates of the two lie close where either is small.)"""
    legs = _legs(_algorithms(work.kind, work.bytes, group), cluster, "nvlink", cluster.node.gpus)
    known = [pair for pair in legs if pair in nccl_tuner.PAIRS]
    if known and cluster.gpu.architecture == "hopper":
        taken = nccl_tuner.protocols(work.kind, work.bytes, work.ranks, cluster.node.nvlink.bandwidth, known)
        legs = {pair: leg for pair, leg in legs.items() if pair[1] in taken}
    return _least(legs)


def _between(kind: str, size: float, nodes: int) -> tuple[Algorithm, ...]:
    """Between nodes. Two of them reduce in a double tree by sending each other a half, and back: an inner node of
    more sends what its NIC can twice, up in one tree and down in the other."""
    halves = 2.0 if nodes == 2 else 1.0
    return tuple(
        replace(one, wire=one.wire / halves) if one.algorithm == TREE and kind == "all_reduce" else one
        for one in _algorithms(kind, size, nodes)
    )


def _round_all(kind: str, size: float, group: int, nodes: int) -> tuple[Algorithm, ...]:
    """The part in nodes of a ring round `group` ranks in each of `nodes`."""
    rings = (one for one in _algorithms(kind, size, group) if one.algorithm == RING)
    return tuple(replace(one, steps=one.steps * nodes) for one in rings)


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
        bound_by=bound("nvlink", fixed, moving),
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
        return (Algorithm(algorithm=RING, steps=n - 1, wire=share, local=size / n, circular=True),)
    if kind == "broadcast":
        return (
            Algorithm(algorithm=RING, steps=n - 1, wire=size),
            Algorithm(algorithm=TREE, steps=levels, wire=2 * size),
        )
    return (
        Algorithm(algorithm=RING, steps=2 * (n - 1), wire=2 * share, circular=True),
        Algorithm(algorithm=TREE, steps=2 * levels, wire=2 * size),
        Algorithm(algorithm=SHARP, steps=2, wire=size, circular=True),
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


def _legs(
    algorithms: tuple[Algorithm, ...], cluster: Cluster, tier: str, endpoints: int
) -> dict[nccl_tuner.Choice, _Leg]:
    """Every pair of algorithm and protocol of one tier."""
    node, fabric = cluster.node, cluster.fabric
    params = fabric.nvlink if tier == "nvlink" else fabric.nic
    link = node.nvlink if tier == "nvlink" else node.nic
    bandwidth = link.bandwidth if tier == "nvlink" else attained(fabric.network, link.bandwidth, endpoints)
    legs = {
        (algorithm.algorithm, name): _leg(algorithm, name, protocol, params, tier, bandwidth, link.latency)
        for algorithm in algorithms
        for name, protocol in params.protocols.items()
        if (algorithm.algorithm == SHARP) == (name == SHARP)
        and (name != SHARP or (tier == "nvlink" and node.nvlink_sharp))
    }
    if not legs:
        raise InputError(f"fabric.{tier}.protocols names no protocol; write at least one besides '{SHARP}'")
    return legs


def _least(legs: dict[nccl_tuner.Choice, _Leg]) -> _Leg:
    """The cheapest."""
    return min(legs.values(), key=lambda leg: leg.fixed + leg.moving)


def _leg(
    algorithm: Algorithm, name: str, protocol: Protocol, params: Tier, tier: str, bandwidth: float, latency: float
) -> _Leg:
    moving = algorithm.wire / (protocol.payload * bandwidth) + algorithm.local / params.local_copy
    if algorithm.circular:
        moving += protocol.drift * algorithm.wire**0.5
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
        bound_by=bound("nvlink" if slow.tier == "nvlink" else "ib", fixed, slow.moving),
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
        legs.append(_direct_leg(work, cluster, group, nvlink))
    if nodes > 1:
        algorithm = Algorithm(algorithm="direct", steps=1, wire=nic)
        leg = _least(_legs((algorithm,), cluster, "nic", work.ranks))
        legs.append(_with_peers(leg, work.ranks - group, cluster.fabric.nic))
    inside = legs[0] if group > 1 else None
    return _join(inside, legs[-1] if nodes > 1 else None)


def _direct_leg(work: Collective, cluster: Cluster, group: int, wire: float) -> _Leg:
    """Messages to all other ranks of the node at once."""
    tier, p2p, link = cluster.fabric.nvlink, cluster.fabric.p2p_nvlink, cluster.node.nvlink
    if p2p.channels is None:
        algorithm = Algorithm(algorithm="direct", steps=1, wire=wire)
        return _with_peers(_least(_legs((algorithm,), cluster, "nvlink", 0)), group - 1, tier)
    peers = group - 1
    found = over_channels(work.bytes / work.ranks, group, peers, p2p.alpha, link, p2p.channels, both_ways=True)
    return _Leg(
        tier="nvlink",
        name="direct/channels",
        fixed=found.fixed + (peers - 1) * tier.all_to_all_alpha,
        moving=found.moving,
        wire=wire,
        bandwidth=link.bandwidth,
        source=p2p.source,
        assumed=p2p.assumed,
    )


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
