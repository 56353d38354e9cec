"""The price of any op: one function per kind of work, and the shares a kernel may be granted."""

from __future__ import annotations

from simulator.cost.all_to_all_cost import all_to_all_cost, notify_cost
from simulator.cost.attention_cost import attention_cost
from simulator.cost.collective_cost import collective_cost, p2p_cost
from simulator.cost.cost import Cost, Share
from simulator.cost.gemm_cost import gemm_cost
from simulator.cost.streaming_cost import fixed_cost, streaming_cost
from simulator.ops import (
    AllToAll,
    Attention,
    Collective,
    Fixed,
    Gemm,
    Notify,
    Op,
    PointToPoint,
    Streaming,
)
from simulator.spec.hardware import Cluster


def price(op: Op, cluster: Cluster, share: Share, *, comm_sms: int, concurrent: bool, dispatcher: str) -> Cost:
    """Cost of one launch of `op` on the SMs of `share`; communication kernels hold `comm_sms` SMs.

    `concurrent`: for an exchange, whether compute runs beside it.
    """
    gpu, kernels, work = cluster.gpu, cluster.kernels, op.work
    match work:
        case Gemm():
            return gemm_cost(work, op.cls, gpu, kernels, share)
        case Attention():
            return attention_cost(work, op.cls, gpu, kernels, share)
        case Streaming():
            return streaming_cost(work, op.cls, gpu, kernels, share)
        case Fixed():
            return fixed_cost(work, op.cls, kernels)
        case AllToAll():
            return all_to_all_cost(
                work,
                op.cls,
                cluster,
                sms=comm_sms,
                concurrent_with_compute=concurrent,
                dispatcher=dispatcher,
                scored=work.scored,
            )
        case Notify():
            return notify_cost(work, op.cls, cluster)
        case PointToPoint():
            return p2p_cost(work, cluster)
        case Collective():
            return collective_cost(work, cluster)


def launches_of(op: Op) -> int:
    """Kernels that an op is: `count` equal ones, or those of a group too small for their work to matter."""
    return op.count * (op.work.launches if isinstance(op.work, Fixed) else 1)


def times(cost: Cost, op: Op, gap: float) -> float:
    """Duration of all launches of an op with the gap behind each [s]."""
    return op.count * cost.duration + launches_of(op) * gap


def wait(seconds: float, why: str) -> Cost:
    """A wait, not work [s]."""
    return Cost(duration=seconds, bound_by="latency", formula=why, terms=(("wait_s", seconds),), source="routing")
