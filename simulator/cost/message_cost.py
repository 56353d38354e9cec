"""Messages between two ranks, and all-to-alls, which are messages to every rank.

A message lasts alpha + latency + bytes / bandwidth. Over NVLink, where `Channels` are known, NCCL cuts it in parts, one
a channel; an SM each that copies its part chunk by chunk into a buffer of the receiver, who copies it out. What that
adds: few channels move less than the link; a rank that sends and receives at once shares its channels; the last chunk
is copied out when all else is over. Small messages take a protocol with flags between the data (LL). How many channels,
and when: NVIDIA/nccl, `src/enqueue.cc` (calcP2pChannelCount, P2P_LL_THRESHOLD), as of release 2.28.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.cost.cost import Bound, Cost
from simulator.errors import InputError
from simulator.ops import PointToPoint
from simulator.spec.comm_params import Channels
from simulator.spec.hardware import Cluster, Link

LL_MOST = 16 * 1024
"""A message whose part of a channel is no larger takes LL [B]."""
PART_MOST = 16 * 2**20
"""A part that is larger is spread over twice as many channels, while there are more [B]."""
CHUNK = 512 * 1024
"""What is copied at a time [B]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What messages of equal size to some peers take: `fixed` and `moving` [s]."""

    fixed: float
    moving: float


def spread(size: float, ranks: int, channels: Channels) -> int:
    """Channels of one message of `size` [B] in a group of `ranks`: an equal part for each rank, more if it is large."""
    many = max(1, channels.count // ranks)
    while size / many > PART_MOST and many < channels.count:
        many *= 2
    return many


def over_channels(
    size: float, ranks: int, peers: int, alpha: float, link: Link, channels: Channels, *, both_ways: bool
) -> Message:
    """Messages of `size` [B] to each of `peers` in a group of `ranks`, all at once."""
    many = spread(size, ranks, channels)
    part = size / many
    small = part <= LL_MOST
    rate = min(channels.count, many * peers) * channels.rate
    bandwidth = link.bandwidth * (channels.ll_payload if small else 1.0)
    p = channels.both_overlap if both_ways else channels.overlap
    moving = size * peers * (bandwidth**-p + rate**-p) ** (1.0 / p)
    if not small:
        moving += min(part, CHUNK) / (channels.both_fill if both_ways else channels.fill)
    return Message(fixed=(channels.ll_alpha if small else alpha) + link.latency, moving=moving)


def p2p_cost(work: PointToPoint, cluster: Cluster) -> Cost:
    """Time of one message to a neighbour: launch, latency, bytes over what link and channels attain.

    Raises InputError for negative bytes.
    """
    if work.bytes < 0:
        raise InputError(f"point-to-point bytes = {work.bytes:g} is negative")
    link = cluster.node.nvlink if work.tier == "nvlink" else cluster.node.nic
    params = cluster.fabric.p2p_nvlink if work.tier == "nvlink" else cluster.fabric.p2p_nic
    formula = "alpha + latency + bytes / bandwidth"
    fixed, moving = params.alpha + link.latency, work.bytes / link.bandwidth
    if params.channels is not None:
        found = over_channels(work.bytes, 2, 1, params.alpha, link, params.channels, both_ways=work.both_ways)
        fixed, moving = found.fixed + params.channels.both_alpha * work.both_ways, found.moving
        formula = "alpha + latency + bytes / (link and channels) + last chunk"
    return Cost(
        duration=fixed + moving,
        bound_by=bound("nvlink" if work.tier == "nvlink" else "ib", fixed, moving),
        formula=formula + (", both ways" if work.both_ways else ""),
        terms=(
            ("alpha_s", fixed - link.latency),
            ("latency_s", link.latency),
            ("bytes", work.bytes),
            ("bandwidth", work.bytes / moving if moving else link.bandwidth),
        ),
        source=params.source,
        calibrated=not params.assumed,
        nic_bytes=work.bytes if work.tier == "nic" else 0.0,
        nvlink_bytes=work.bytes if work.tier == "nvlink" else 0.0,
    )


def bound(link: Bound, fixed: float, moving: float) -> Bound:
    """What decides: the link, or latency."""
    return link if moving >= fixed else "latency"
