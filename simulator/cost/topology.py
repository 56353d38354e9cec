"""Cluster networks: how many endpoints, switches and links a topology has, what it costs, how far a message
travels.

Sizes are those of a full network of `ports`-port switches (arXiv 2505.09343, Table 3). `links` counts cables
between switches, as that table does; every endpoint has one more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulator.errors import InputError
from simulator.spec.comm_params import Network, NetworkKind

# Unit prices [USD]. The switch is assumed (range 20 000 to 60 000);
# `hardware_profiles/calibration/fit_fabric.py` solves the other two from the rows of arXiv 2505.09343, Table
# 3. The rows fix sums, not the split between switch and cable.
SWITCH_PRICE = 40_000.0
LINK_PRICE = 1_812.0  # between switches: optical, with two transceivers
ENDPOINT_PRICE = 705.0  # cable from NIC to leaf switch


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A built network.

    Parameters
    ----------
    kind : its topology.
    endpoints : NICs that it joins.
    switches : number of switches.
    links : number of links.
    hops : most switches on a shortest path between two endpoints.
    """

    kind: NetworkKind
    endpoints: int
    switches: int
    links: int
    hops: int

    @property
    def cost(self) -> float:
        """Price of switches, cables and transceivers [USD]; NICs are not in it."""
        return SWITCH_PRICE * self.switches + LINK_PRICE * self.links + ENDPOINT_PRICE * self.endpoints

    @property
    def cost_per_endpoint(self) -> float:
        """Price per endpoint [USD]."""
        return self.cost / self.endpoints


def build(kind: NetworkKind, *, ports: int = 64, planes: int = 8) -> Topology:
    """The largest network of `kind` from `ports`-port switches; `planes` matters to the multi-plane kinds
    only."""
    if ports < 4 or ports % 2:
        raise InputError(f"network.ports = {ports}: a switch needs an even number of ports, at least 4")
    if planes < 1:
        raise InputError(f"network.planes = {planes} must be at least 1")
    return _BUILD[kind](ports, planes)


def _fat_tree_2(ports: int, planes: int) -> Topology:
    """Leaves with half their ports down, spines that reach every leaf."""
    return Topology(kind="fat_tree_2", endpoints=ports**2 // 2, switches=3 * ports // 2, links=ports**2 // 2, hops=3)


def _fat_tree_3(ports: int, planes: int) -> Topology:
    """The k-ary fat tree (Al-Fares et al. 2008): k^3/4 endpoints, 5/4 k^2 switches."""
    return Topology(kind="fat_tree_3", endpoints=ports**3 // 4, switches=5 * ports**2 // 4, links=ports**3 // 2, hops=5)


def _planes_of(kind: NetworkKind) -> Callable[[int, int], Topology]:
    """`planes` separate two-layer fat trees, each serving one NIC of every node."""

    def make(ports: int, planes: int) -> Topology:
        one = _fat_tree_2(ports, 1)
        return Topology(
            kind=kind,
            endpoints=planes * one.endpoints,
            switches=planes * one.switches,
            links=planes * one.links,
            hops=one.hops,
        )

    return make


def _slim_fly(ports: int, planes: int) -> Topology:
    """McKay-Miller-Siran graph (Besta and Hoefler 2014): 2 q^2 switches of (3q - d)/2 neighbours, q = 4w + d.

    Half as many endpoints as neighbours, rounded up where ports allow; the largest q that fits is taken,
    prime or not."""
    best = 0, 0, 0
    for q in range(3, ports):
        d = {0: 0, 1: 1, 3: -1}.get(q % 4)
        if d is None:
            continue
        degree = (3 * q - d) // 2
        down = (degree + 1) // 2
        if degree + down <= ports:
            best = q, degree, down
    q, degree, down = best
    switches = 2 * q * q
    return Topology(kind="slim_fly", endpoints=switches * down, switches=switches, links=switches * degree // 2, hops=3)


def _dragonfly(ports: int, planes: int) -> Topology:
    """Balanced dragonfly (Kim et al. 2008), a = 2p = 2h, ports = p + h + a - 1 rounded up.

    Groups are a h + 1 at most; the published table takes a h - 1 of them, so does this.
    """
    p = ports // 4
    a = 2 * p
    groups = a * p - 1
    switches = a * groups
    local = groups * a * (a - 1) // 2
    between = groups * a * p // 2
    return Topology(kind="dragonfly", endpoints=p * switches, switches=switches, links=local + between, hops=4)


_BUILD: dict[NetworkKind, Callable[[int, int], Topology]] = {
    "fat_tree_2": _fat_tree_2,
    "fat_tree_3": _fat_tree_3,
    "multi_plane_fat_tree": _planes_of("multi_plane_fat_tree"),
    "rail_optimised": _planes_of("rail_optimised"),
    "slim_fly": _slim_fly,
    "dragonfly": _dragonfly,
}


def hops(network: Network, *, same_leaf: bool = False) -> int:
    """Switches a message crosses between two endpoints, at most [count]."""
    return 1 if same_leaf else build(network.kind, ports=network.ports, planes=network.planes).hops


def latency(network: Network, *, same_leaf: bool = False) -> float:
    """End-to-end time of a small message [s] (arXiv 2505.09343, Table 5, measures 64 bytes)."""
    return network.base_latency + network.hop_latency * hops(network, same_leaf=same_leaf)


def capacity(network: Network) -> int:
    """Endpoints the network can hold [count]; oversubscribed leaves trade uplinks for more of them."""
    full = build(network.kind, ports=network.ports, planes=network.planes).endpoints
    down = network.oversubscription / (1.0 + network.oversubscription)
    return int(full * 2.0 * down)


def pod(network: Network) -> int:
    """Endpoints that reach each other at full rate [count]: as given, else those below one leaf switch per plane."""
    if network.pod:
        return network.pod
    down = network.ports * network.oversubscription / (1.0 + network.oversubscription)
    return int(down) * network.planes


def attained(network: Network, bandwidth: float, endpoints: int) -> float:
    """Bandwidth [B/s] per endpoint of traffic spread evenly over `endpoints`, each link attaining `bandwidth`.

    What stays in the pod keeps the full rate; what leaves it shares the oversubscribed uplinks and suffers
    collisions. The slower of the two decides: traffic to all peers ends together.
    """
    _check(network)
    near = pod(network)
    if endpoints <= near:
        return bandwidth
    leaving = 1.0 - near / endpoints
    return bandwidth * min(1.0, network.collisions / network.oversubscription / leaving)


def _check(network: Network) -> None:
    if network.oversubscription < 1.0:
        raise InputError(
            f"network.oversubscription = {network.oversubscription}: downlinks over uplinks are at least 1"
        )
    if not 0.0 < network.collisions <= 1.0:
        raise InputError(f"network.collisions = {network.collisions} must lie above 0 and up to 1 (1: no collisions)")
    if network.pod < 0:
        raise InputError(f"network.pod = {network.pod} must be at least 0 (0: one leaf switch per plane)")
