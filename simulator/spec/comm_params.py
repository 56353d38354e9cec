"""Parameters of communication: what the links alone do not tell.

Bandwidths of links live in `hardware.Link` and are attainable. Nothing here derates them: the parameters
below are fixed times, the work that SMs do per byte, and how well stages overlap. Every group names its
`source`; `assumed` is True where nobody measured it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

NetworkKind = Literal["fat_tree_2", "fat_tree_3", "multi_plane_fat_tree", "rail_optimised", "slim_fly", "dragonfly"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One wire protocol of a collective library; the cheapest is taken for each message.

    `alpha` [s] is paid once, `step` [latencies of the link] per hop of the ring or level of the tree, and
    `payload` (0 to 1) is the part of the wire's bytes that is data: flags take the rest (LL: half; LL128: 8
    of 128 bytes), 1 for the protocol of large messages. The protocol named `sharp` reduces in the NVLink
    switches."""

    alpha: float
    step: float
    payload: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Collectives over one kind of link. `protocols` by name; `local_copy` [B/s] is the rate at which a rank
    copies its own shard between input and output; `all_to_all_alpha` [s] is added per peer of an
    all-to-all. A collective holds `sms` SMs (NCCL: one a channel, which no other kernel shares): within a node
    these of NVLink, across nodes those of each NIC that the group has in a node."""

    protocols: dict[str, Protocol]
    local_copy: float
    all_to_all_alpha: float
    sms: int
    sms_source: str
    source: str
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectAllReduce:
    """All-reduces of serving engines within a node: ranks read each other's buffers over NVLink, no ring.

    One-shot: each reads all others' and sums. Two-shot: each sums its part, then reads the others' sums; one
    synchronisation more, n / 2 times fewer bytes. Either takes `alpha` [s], `peer` [s] for each rank beyond two, and
    its bytes at `rate` [B/s], what the loads of its few CTAs pull. `below`: (ranks, bytes) pairs by rising ranks: up to
    so many ranks, buffers of fewer bytes go in one shot. `most` [B]: larger ones, and more ranks than `below` names,
    are left to NCCL. `sms` held.
    """

    one_alpha: float
    one_peer: float
    one_rate: float
    two_alpha: float
    two_peer: float
    two_rate: float
    below: tuple[tuple[int, float], ...]
    most: float
    sms: int
    source: str
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class P2p:
    """Point-to-point messages: `alpha` [s] of launch and handshake."""

    alpha: float
    source: str
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EpParams:
    """Throughput kernels for expert dispatch and combine (DeepEP-like): stages that run beside each other.

    `send_rate` [B/s per SM]: bytes staged for the NIC, one copy per (token, node), own node included.
    `forward_rate` [B/s per SM]: bytes delivered over NVLink, one copy per (token, rank). `overlap`: exponent
    p of the norm that joins the links' time with the SM stages' (1: one after the other, large: perfectly
    side by side); `sm_overlap` (0: the same) joins the SM stages with each other first, 1 where staging and forwarding
    share the SMs' time. `startup` [s]; `startup_combine` that of a combine (0: the same). A combine stages for the NIC
    what it has summed over the ranks of a node: `reduce` times as long a byte. `concurrent_dispatch_factor`,
    `concurrent_combine_factor` (>= 1): SM stages last that much longer while compute fills the other SMs; the two are
    different kernels, one copies and one sums. Metadata is per-token work of every stage: `first_dispatch_factor` (>=
    1) are the SM stages of a dispatch that also carries its layout, gate indices and weights, against one that reuses
    them; `weighted` (>= 1) those of a combine that also sums the gate weights' gradients."""

    send_rate: float
    forward_rate: float
    overlap: float
    startup: float
    concurrent_dispatch_factor: float
    concurrent_combine_factor: float
    first_dispatch_factor: float
    weighted: float
    sm_overlap: float = 0.0
    startup_combine: float = 0.0
    reduce: float = 1.0
    source: str
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LowLatency:
    """Kernels for decoding sizes: every (token, expert) copy goes straight to its rank.

    `alpha_dispatch`, `alpha_combine` [s] once, `hop` [s] per doubling of ranks beyond 8, `staging` [B/s] of
    copies in and out of the send buffers. `nvlink`: peers of the same node are reached over NVLink (else all
    over the NIC)."""

    alpha_dispatch: float
    alpha_combine: float
    hop: float
    staging_dispatch: float
    staging_combine: float
    nvlink: bool
    source: str
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyParams:
    """Barrier and exchange of counts before an all-to-all: `alpha` [s], `hop` [s] per doubling of ranks.

    `layout_per_token` [s]: counting which token goes where, `layout_alpha` [s] its fixed part.
    """

    alpha: float
    hop: float
    layout_alpha: float
    layout_per_token: float
    source: str
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The switches between nodes.

    `planes` networks side by side, one per NIC of a node; `ports` of one switch; `oversubscription` (>= 1):
    downlinks over uplinks of a leaf switch; `pod` [endpoints] that reach each other without crossing an
    oversubscribed layer (0: those below one leaf switch of each plane). `base_latency` [s] of NIC and cable
    of a 64-byte message, `hop_latency` [s] of each switch. `collisions` (0 to 1): part of the bandwidth left
    by flows that hash onto the same uplink (1: adaptive or static routing)."""

    kind: NetworkKind
    planes: int
    ports: int
    oversubscription: float
    pod: int
    base_latency: float
    hop_latency: float
    collisions: float
    source: str
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """All parameters of communication of one cluster. `ep`, `low_latency` and `all_reduce` by the name of the
    kernels."""

    nvlink: Tier
    nic: Tier
    p2p_nvlink: P2p
    p2p_nic: P2p
    ep: dict[str, EpParams]
    low_latency: dict[str, LowLatency]
    notify: NotifyParams
    network: Network
    all_reduce: dict[str, DirectAllReduce] = field(default_factory=dict)
