"""Parameters of communication beyond the bandwidth and latency of links.

Link bandwidths are in `hardware.Link` and are attainable; nothing here derates them. The parameters below are fixed
times, the work of SMs per byte, and how well stages overlap. Every group has its `source`; `assumed` is True where
nobody measured it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

NetworkKind = Literal["fat_tree_2", "fat_tree_3", "multi_plane_fat_tree", "rail_optimised", "slim_fly", "dragonfly"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One wire protocol of a collective library; the cheapest one is taken for each message.

    The protocol named `sharp` reduces in the NVLink switches.

    Parameters
    ----------
    alpha : fixed time, paid once [s].
    step : time of a hop of the ring or a level of the tree [latencies of the link].
    payload : share of the wire's bytes that is data, the rest is flags (LL: 0.5; LL128: 120/128; large messages: 1).
    drift : time by which the channels of a ring, which pass on what they receive, drift apart: times the square root of
        the bytes over the link [s / sqrt(B)].
    """

    alpha: float
    step: float
    payload: float
    drift: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Collectives over one kind of link.

    Parameters
    ----------
    protocols : wire protocols by name.
    local_copy : rate at which a rank copies its own shard from input to output [B/s].
    all_to_all_alpha : time added per peer of an all-to-all [s].
    sms : SMs that a collective holds (NCCL: one per channel); across nodes: for each NIC that the group has in a node.
    sms_source : where `sms` comes from.
    source : where the values come from.
    assumed : True if nobody measured them.
    """

    protocols: dict[str, Protocol]
    local_copy: float
    all_to_all_alpha: float
    sms: int
    sms_source: str
    source: str
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectAllReduce:
    """All-reduces of serving engines within a node: ranks read each other's buffers over NVLink, without a ring.

    One-shot: each rank reads and sums all buffers. Two-shot: each rank sums its part, then reads the other parts; one
    more synchronisation, n / 2 times fewer bytes.

    Parameters
    ----------
    one_alpha, two_alpha : fixed time [s].
    one_peer, two_peer : time for each rank beyond two [s].
    one_rate, two_rate : rate at which the few CTAs load remote bytes [B/s].
    below : (ranks, bytes) pairs by rising ranks: up to so many ranks, smaller buffers are reduced in one shot [B].
    most : larger buffers, and more ranks than `below` names, are left to NCCL [B].
    sms : SMs that the kernel holds.
    source : where the values come from.
    assumed : True if nobody measured them.
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
class Channels:
    """How the channels of NCCL, one SM each, carry messages over NVLink (`simulator.cost.message_cost`).

    Parameters
    ----------
    count : channels of all messages together, a power of two.
    rate : what one channel can move one way [B/s].
    overlap : exponent of the norm that joins the time of the link and that of the channels (large: the longer decides).
    both_overlap : the same where a rank sends and receives at once.
    fill : rate at which a channel copies its last chunk out of the buffer [B/s].
    both_fill : the same where a rank sends and receives at once [B/s].
    ll_alpha : launch and handshake of a message so small that it takes the protocol of low latency (LL) [s].
    ll_payload : share of the wire's bytes that is data under LL.
    both_alpha : time added where one call sends and receives [s].
    """

    count: int
    rate: float
    overlap: float
    both_overlap: float
    fill: float
    both_fill: float
    ll_alpha: float
    ll_payload: float
    both_alpha: float


@dataclass(frozen=True, slots=True, kw_only=True)
class P2p:
    """Point-to-point messages.

    Parameters
    ----------
    alpha : launch and handshake [s].
    source : where the value comes from.
    assumed : True if nobody measured it.
    channels : what limits a message besides the link; None: the link alone.
    """

    alpha: float
    source: str
    assumed: bool = False
    channels: Channels | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpParams:
    """Throughput kernels for expert dispatch and combine (DeepEP-like): staging for the NIC and forwarding over NVLink.

    Parameters
    ----------
    send_rate : bytes staged for the NIC, one copy per (token, node), own node included [B/s per SM].
    forward_rate : bytes delivered over NVLink, one copy per (token, rank) [B/s per SM].
    overlap : exponent p of the norm that joins link time and SM time (1: one after the other; large: fully overlapped).
    startup : fixed time of a dispatch [s].
    concurrent_dispatch_factor : how much longer its SM stages take while compute fills the other SMs, >= 1.
    concurrent_combine_factor : the same of a combine, which sums where a dispatch copies, >= 1.
    first_dispatch_factor : SM stages of a dispatch with layout, gate indices and weights, over one without, >= 1.
    weighted : SM stages of a combine that also sums the gate weights' gradients, over one that does not, >= 1.
    sm_overlap : exponent that joins the two SM stages first (0: as `overlap`; 1: they share the SMs' time).
    startup_combine : fixed time of a combine [s] (0: as `startup`).
    reduce : staging time of a byte of a combine, which sums over the ranks of a node first, over that of a dispatch.
    source : where the values come from.
    assumed : True if nobody measured them.
    """

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
    """Dispatch and combine kernels for decoding: every (token, expert) copy goes straight to its rank.

    Parameters
    ----------
    alpha_dispatch : fixed time of a dispatch [s].
    alpha_combine : fixed time of a combine [s].
    hop : time per doubling of ranks beyond 8 [s].
    staging_dispatch : copies into and out of the send buffers of a dispatch [B/s].
    staging_combine : the same of a combine [B/s].
    nvlink : whether ranks of the same node are reached over NVLink; otherwise all over the NIC.
    source : where the values come from.
    assumed : True if nobody measured them.
    """

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
    """The barrier before an all-to-all, with which ranks send token counts, and the kernel that counts (layout).

    Parameters
    ----------
    alpha : fixed time of the barrier [s].
    hop : time of the barrier per doubling of ranks [s].
    layout_alpha : fixed time of the layout kernel [s].
    layout_per_token : time of the layout kernel per token [s].
    source : where the values come from.
    assumed : True if nobody measured them.
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

    Parameters
    ----------
    kind : topology of the network.
    planes : independent networks, one per NIC of a node.
    ports : ports of one switch.
    oversubscription : downlinks over uplinks of a leaf switch, >= 1.
    pod : endpoints that reach each other without an oversubscribed layer (0: those of one leaf switch in each plane).
    base_latency : NIC and cable, for a message of 64 bytes [s].
    hop_latency : one switch [s].
    collisions : share of bandwidth left by flows that hash onto the same uplink (1: adaptive or static routing).
    source : where the values come from.
    assumed : True if nobody measured them.
    """

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
    """All communication parameters of one cluster.

    Parameters
    ----------
    nvlink, nic : collectives within a node, across nodes.
    p2p_nvlink, p2p_nic : point-to-point messages within a node, across nodes.
    ep : dispatch and combine by the name of the kernels.
    low_latency : dispatch and combine for decoding by the name of the kernels.
    notify : barrier and layout before an all-to-all.
    network : the switches.
    all_reduce : all-reduces of serving engines by the name of the kernels.
    """

    nvlink: Tier
    nic: Tier
    p2p_nvlink: P2p
    p2p_nic: P2p
    ep: dict[str, EpParams]
    low_latency: dict[str, LowLatency]
    notify: NotifyParams
    network: Network
    all_reduce: dict[str, DirectAllReduce] = field(default_factory=dict)
