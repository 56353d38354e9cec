"""The price of any op: one function per kind of work, and the shares a kernel may be granted."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Literal

from simulator.cost.all_to_all_cost import all_to_all_cost, notify_cost
from simulator.cost.attention_cost import attention_cost
from simulator.cost.collective_cost import collective_cost
from simulator.cost.cost import Cost, Share
from simulator.cost.decode_cost import decode_attention_cost
from simulator.cost.gemm_cost import gemm_cost
from simulator.cost.host_cost import host_cost
from simulator.cost.message_cost import p2p_cost
from simulator.cost.scan_cost import scan_cost
from simulator.cost.streaming_cost import fixed_cost, streaming_cost
from simulator.ops import (
    AllToAll,
    Attention,
    Collective,
    DecodeAttention,
    Fixed,
    Gemm,
    HostRead,
    HostWork,
    Notify,
    Op,
    PointToPoint,
    Scan,
    Streaming,
    Wait,
)
from simulator.spec.hardware import Cluster

GEMM_STREAMS = 4
"""Streams of the GEMMs of experts that are a kernel each (transformer_engine/common/gemm/cublaslt_gemm.cu, 2025)."""


def price(op: Op, cluster: Cluster, share: Share, *, comm_sms: int, concurrent: bool, dispatcher: str) -> Cost:
    """Cost of one launch of `op` on the SMs of `share`; communication kernels hold `comm_sms` SMs.

    `concurrent`: whether compute is concurrent with an all-to-all.
    """
    gpu, kernels, work = cluster.gpu, cluster.kernels, op.work
    match work:
        case Gemm():
            return gemm_cost(work, op.cls, gpu, kernels, share)
        case Attention():
            return attention_cost(work, op.cls, gpu, kernels, share)
        case DecodeAttention():
            return decode_attention_cost(work, op.cls, gpu, kernels, share)
        case Streaming() | Scan():
            return _streamed_cost(work, op.cls, cluster, share)
        case Fixed():
            return fixed_cost(work, op.cls, kernels)
        case Wait() | HostRead():
            pace = cluster.node.host_pace if isinstance(work, HostRead) else 1.0
            return wait_cost(replace(work, seconds=pace * work.seconds))
        case AllToAll():
            return all_to_all_cost(
                work, op.cls, cluster, sms=comm_sms, concurrent_with_compute=concurrent, dispatcher=dispatcher
            )
        case Notify() | PointToPoint() | Collective() | HostWork():
            return _message_cost(work, op.cls, cluster)


def _streamed_cost(work: Streaming | Scan, cls: str, cluster: Cluster, share: Share) -> Cost:
    """Memory-bound kernels, and those of recurrent layers, which often are."""
    if isinstance(work, Scan):
        return scan_cost(work, cls, cluster.gpu, cluster.kernels, share)
    return streaming_cost(work, cls, cluster.gpu, cluster.kernels, share)


def _message_cost(work: Notify | PointToPoint | Collective | HostWork, cls: str, cluster: Cluster) -> Cost:
    """Communication whose cost depends on nothing but itself and the links."""
    if isinstance(work, HostWork):
        return host_cost(work, cluster)
    if isinstance(work, Notify):
        return notify_cost(work, cls, cluster)
    return p2p_cost(work, cluster) if isinstance(work, PointToPoint) else collective_cost(work, cluster)


def launches_of(op: Op) -> int:
    """Kernels that an op is: `count` equal ones, or those of a group too small for their work to matter."""
    match op.work:
        case Fixed():
            return op.count * op.work.launches
        case Wait() | HostRead():
            return 0
        case _:
            return op.count * op.launches


def times(cost: Cost, op: Op, gap: float) -> float:
    """Duration of all launches of an op with the gap behind each [s]; GEMMs of experts run on several streams."""
    launches = launches_of(op)
    if isinstance(op.work, Gemm) and op.launches > 1:
        launches = op.count * ceil(op.launches / GEMM_STREAMS)
    return op.count * cost.duration + launches * gap


def wait_cost(work: Wait | HostRead, why: Literal["routing", "host"] = "routing") -> Cost:
    """A wait for the most loaded rank or for the host: as long as the engine sets, or the host takes to read."""
    formula = "(max/mean load - 1) x expert time" if why == "routing" else "issued - ready"
    reads = isinstance(work, HostRead)
    return Cost(
        duration=work.seconds,
        bound_by="latency",
        formula="copy to the host, until the call that waits returns" if reads else formula,
        terms=(("wait_s", work.seconds),),
        source="stack.host_read" if reads else why,
    )
