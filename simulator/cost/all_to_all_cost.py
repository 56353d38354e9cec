"""Expert dispatch and combine, and the notify before them.

A throughput kernel (DeepEP-like) is a pipeline: SMs stage each token once per node for the NIC, the NIC carries it, SMs
of the receiving node forward it over NVLink to each rank that wants it. NIC and NVLink work concurrently, so the slower
one decides; SM stages overlap with the links only in part, which the norm with exponent `overlap` models: time =
startup + (link^p + send^p + forward^p)^(1/p). Where it was measured over SMs and nodes (H100), both SM stages share the
SMs' time (`sm_overlap` 1) before they meet the links: time falls with the SMs until a link is full, at some 8 SMs over
4 nodes of InfiniBand and at more than 24 over 2. Without SMs (a communication co-processor) only the links are left.

Work per token comes on top of the bytes: a first dispatch carries its layout and the gate's indices and weights
(`first_dispatch_factor`), the combine of a dispatch's backward sums the gate weights' gradients in every stage
(`weighted`); DeepEP's own tests time neither. In DeepSeek's profile such a combine takes 6.55 and 6.54 ms, one without
6.00 and 6.07 ms. Two of each do not prove the cause (other compute is concurrent), but the number of tokens is not it:
34688 and 32512 routed tokens take the same time, and cached dispatches of these take 3.32 and 3.58 ms. An all-to-all
ends with the last rank that sends to this one, so it takes as long on all ranks as around the most loaded one: the
tokens of that rank's experts come over its own NVLink, and over the NICs and forwarding SMs of its whole node."""

from __future__ import annotations

from dataclasses import replace
from math import log2
from typing import TypeVar

from simulator.cost.collective_cost import collective_cost
from simulator.cost.cost import Bound, Cost, Share
from simulator.cost.streaming_cost import streaming_cost
from simulator.cost.topology import attained
from simulator.errors import InputError
from simulator.ops import RECEIVED, SENT, AllToAll, Collective, Notify
from simulator.routing.traffic import Traffic, direct_traffic, traffic
from simulator.spec.comm_params import EpParams, LowLatency
from simulator.spec.hardware import Cluster

LAYOUT = "comm.layout"
FORMULA = "startup + (max(nic, nvlink)^p + send^p + forward^p)^(1/p)"
FORMULA_OF_SHARED = "startup + (max(nic, nvlink)^p + ((send^q + forward^q)^(1/q))^p)^(1/p)"
T = TypeVar("T")


def all_to_all_cost(
    work: AllToAll,
    cls: str,
    cluster: Cluster,
    *,
    sms: int,
    concurrent_with_compute: bool,
    dispatcher: str = "deepep",
) -> Cost:
    """Time of one dispatch or combine of one rank.

    `cls` is the kernel class (`comm.dispatch`, `comm.combine`), `sms` the SMs the kernel holds (0: a
    co-processor moves the data), `concurrent_with_compute` whether other kernels fill the other SMs, `dispatcher` the
    kernels: a name in `fabric.ep`, or `nccl` for a plain all-to-all of every (token, expert) copy."""
    _check(work, sms)
    if work.ranks == 1:
        return Cost(duration=0.0, bound_by="latency", formula="one rank: nothing to move", source="definition")
    if work.low_latency:
        return _low_latency(work, cluster, dispatcher)
    if dispatcher == "nccl":
        return _library(work, cluster)
    params = _named(cluster.fabric.ep, dispatcher, "fabric.ep")
    moved = traffic(
        work.gate,
        tokens=work.tokens,
        bytes_per_token=work.bytes_per_token,
        ranks=work.ranks,
        ranks_per_node=work.per_node or cluster.node.gpus,
    )
    return _throughput(work, params, around(moved, work, cluster), cluster, sms, concurrent_with_compute)


def around(moved: Traffic, work: AllToAll, cluster: Cluster) -> Traffic:
    """The traffic of a mean rank scaled to the most loaded rank and its node; staging for the NIC stays even."""
    node = work.node_imbalance or 1.0 + (work.imbalance - 1.0) / work.near(cluster.node.gpus)
    return replace(moved, nic=node * moved.nic, nvlink=work.imbalance * moved.nvlink, delivered=node * moved.delivered)


def notify_cost(work: Notify, cls: str, cluster: Cluster) -> Cost:
    """Time of the barrier that sends token counts, or of counting the layout (class `comm.layout`).

    Waiting for the most loaded rank is not included: the engine adds it.
    """
    params = cluster.fabric.notify
    layout = cls == LAYOUT
    if layout:
        terms: tuple[tuple[str, float], ...] = (
            ("layout_alpha_s", params.layout_alpha),
            ("per_token_s", params.layout_per_token),
            ("tokens", float(work.tokens)),
        )
        duration = params.layout_alpha + params.layout_per_token * work.tokens
    else:
        doublings = log2(max(1, work.ranks))
        terms = (("alpha_s", params.alpha), ("hop_s", params.hop), ("doublings", doublings))
        duration = params.alpha + params.hop * doublings
    return Cost(
        duration=duration,
        bound_by="fixed" if layout else "latency",
        formula="alpha + tokens x per-token time" if layout else "alpha + hop x log2(ranks)",
        terms=terms,
        source=params.source,
        calibrated=not params.assumed,
    )


def _check(work: AllToAll, sms: int) -> None:
    if work.tokens < 0 or work.bytes_per_token < 0:
        raise InputError(
            f"{work.direction}: tokens = {work.tokens} and bytes_per_token = {work.bytes_per_token:g} "
            f"must not be negative"
        )
    if sms < 0:
        raise InputError(f"{work.direction}: sms = {sms} is negative; write 0 for a communication co-processor")


def _named(table: dict[str, T], name: str, where: str) -> T:
    if name not in table:
        known = ", ".join(sorted(table)) or "none"
        raise InputError(f"no kernels '{name}' in {where}; the hardware profile has {known}")
    return table[name]


def _throughput(
    work: AllToAll, params: EpParams, moved: Traffic, cluster: Cluster, sms: int, concurrent_with_compute: bool
) -> Cost:
    stages = _link_stages(moved, cluster, work.ranks) + _sm_stages(work, params, moved, sms, concurrent_with_compute)
    link = max(time for _, time in stages[:2])
    p, staged = params.overlap, tuple(time for _, time in stages[2:])
    if params.sm_overlap and staged:
        staged = (_norm(staged, params.sm_overlap),)
    joint = _norm((link, *staged), p)
    startup = (work.direction == "combine" and params.startup_combine) or params.startup
    name, slowest = max(stages, key=lambda stage: stage[1])
    return Cost(
        duration=startup + joint,
        bound_by=_BOUND[name] if slowest >= startup else "latency",
        formula=FORMULA_OF_SHARED if params.sm_overlap else FORMULA,
        terms=(
            ("startup_s", startup),
            *((f"{name}_s", time) for name, time in stages),
            ("overlap_p", p),
            *((("sm_overlap_q", params.sm_overlap),) if params.sm_overlap else ()),
            ("sms", float(sms)),
            ("nic_bytes", moved.nic),
            ("nvlink_bytes", moved.nvlink),
        ),
        source=params.source,
        calibrated=not params.assumed,
        nic_bytes=moved.nic,
        nvlink_bytes=moved.nvlink,
    )


_BOUND: dict[str, Bound] = {"nic": "ib", "nvlink": "nvlink", "send": "sm", "forward": "sm"}
Stages = tuple[tuple[str, float], ...]


def _link_stages(moved: Traffic, cluster: Cluster, ranks: int) -> Stages:
    """Seconds each link needs; its bandwidth is attainable and used without another factor."""
    nic = attained(cluster.fabric.network, cluster.node.nic.bandwidth, ranks)
    return ("nic", moved.nic / nic), ("nvlink", moved.nvlink / cluster.node.nvlink.bandwidth)


def _sm_stages(work: AllToAll, params: EpParams, moved: Traffic, sms: int, concurrent_with_compute: bool) -> Stages:
    """Seconds the SMs need to stage copies for the NIC and to forward them; none within one node for the
    former."""
    if sms == 0:
        return ()
    dispatch = work.direction == "dispatch"
    concurrent = params.concurrent_dispatch_factor if dispatch else params.concurrent_combine_factor
    slow = concurrent if concurrent_with_compute else 1.0
    if dispatch and not work.cached:
        slow *= params.first_dispatch_factor
    if work.weighted and not dispatch:
        slow *= params.weighted
    send = moved.sent * (1.0 if dispatch else params.reduce) if moved.nic > 0 else 0.0
    return (
        ("send", slow * send / (sms * params.send_rate)),
        ("forward", slow * moved.delivered / (sms * params.forward_rate)),
    )


def _norm(times: tuple[float, ...], p: float) -> float:
    """(sum of t^p)^(1/p), scaled so that no power overflows; p below 1 is 1: no stage lasts longer than alone."""
    top, p = max(times), max(1.0, p)
    return top * float(sum((t / top) ** p for t in times) ** (1.0 / p)) if top > 0 else 0.0


def _low_latency(work: AllToAll, cluster: Cluster, dispatcher: str) -> Cost:
    """Kernels for decoding: launch, hops, both links side by side, and copies through the send buffers."""
    params = _named(cluster.fabric.low_latency, dispatcher, "fabric.low_latency")
    moved = direct_traffic(
        tokens=work.tokens,
        bytes_per_token=work.bytes_per_token,
        ranks=work.ranks,
        ranks_per_node=cluster.node.gpus if params.nvlink else 1,
        top_k=work.gate.top_k,
    )
    moved = replace(moved, nic=work.imbalance * moved.nic, nvlink=work.imbalance * moved.nvlink)
    alpha, rate = _directed(params, work.direction)
    nic, nvlink = (time for _, time in _link_stages(moved, cluster, work.ranks))
    hops = params.hop * max(0.0, log2(work.ranks / 8))
    fixed, staging = alpha + hops, moved.sent / rate
    copies = _copies(work, cluster) if work.copies_apart else 0.0
    duration = max(fixed + max(nic, nvlink) + staging - copies, hops + max(nic, nvlink))
    return Cost(
        duration=duration,
        bound_by=_slowest(fixed - copies, nic, nvlink, staging),
        formula="alpha + hops + max(nic, nvlink) + staging" + (" - copies" if copies else ""),
        terms=(
            ("alpha_s", alpha),
            ("hops_s", hops),
            ("nic_s", nic),
            ("nvlink_s", nvlink),
            ("staging_s", staging),
            *((("copies_s", copies),) if copies else ()),
        ),
        source=params.source,
        calibrated=not params.assumed,
        nic_bytes=moved.nic,
        nvlink_bytes=moved.nvlink,
    )


def _copies(work: AllToAll, cluster: Cluster) -> float:
    """Time of the kernels at both ends, which are ops of their own: the measured times hold them [s]."""
    share = Share(sms=cluster.gpu.sms)
    ends = ((SENT, work.sent), (RECEIVED, work.received))
    return sum(streaming_cost(moved, cls, cluster.gpu, cluster.kernels, share).duration for cls, moved in ends)


def _slowest(fixed: float, nic: float, nvlink: float, staging: float) -> Bound:
    names: tuple[tuple[float, Bound], ...] = (
        (nic, "ib"),
        (nvlink, "nvlink"),
        (staging, "memory"),
        (fixed, "latency"),
    )
    return max(names)[1]


def _directed(params: LowLatency, direction: str) -> tuple[float, float]:
    if direction == "dispatch":
        return params.alpha_dispatch, params.staging_dispatch
    return params.alpha_combine, params.staging_combine


def _library(work: AllToAll, cluster: Cluster) -> Cost:
    """The library's all-to-all: every (token, expert) copy goes straight to its rank, nothing is shared.

    It ends with the rank that takes most.
    """
    size = work.tokens * work.bytes_per_token * work.gate.top_k * work.imbalance
    per_node = work.near(cluster.node.gpus)
    return collective_cost(Collective(kind="all_to_all", bytes=size, ranks=work.ranks, per_node=per_node), cluster)
