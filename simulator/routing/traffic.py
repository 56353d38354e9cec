"""Bytes that dispatch and combine move over NVLink and the NICs."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.dtypes import FP32
from simulator.ops import Gate
from simulator.routing.gate import reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes that one rank sends in a dispatch, or receives in a combine.

    Parameters
    ----------
    nic : bytes over the NIC [B].
    nvlink : bytes over NVLink [B].
    sent : one copy per (token, node), own node included, as DeepEP reports its RDMA bandwidth [B].
    delivered : one copy per (token, rank), own rank included, as DeepEP reports its NVLink bandwidth [B].
    """

    nic: float
    nvlink: float
    sent: float
    delivered: float


def distinct(load: float, hit: float) -> float:
    """Tokens that reach a rank (or node) with `load` times the mean choices, over those that reach a mean one.

    A token reaches a mean one with probability `hit`. Several choices of a token travel once, so that this grows more
    slowly than the load: every choice misses independently of the others.
    """
    if hit >= 1.0:
        return 1.0
    return float((1.0 - (1.0 - hit) ** load) / hit)


def traffic(gate: Gate, *, tokens: int, bytes_per_token: float, ranks: int, ranks_per_node: int) -> Traffic:
    """Bytes one rank moves: once over the NIC per other node, then over NVLink to each other rank of that
    node."""
    hit = reach(gate, ranks, ranks_per_node)
    per_node = min(ranks, ranks_per_node)
    nodes = max(1, ranks // ranks_per_node)
    copy = tokens * bytes_per_token
    return Traffic(
        nic=copy * hit.nodes * (nodes - 1) / nodes,
        nvlink=copy * hit.ranks * (per_node - 1) / per_node,
        sent=copy * hit.nodes,
        delivered=copy * hit.ranks,
    )


def direct_traffic(*, tokens: int, bytes_per_token: float, ranks: int, ranks_per_node: int, top_k: int) -> Traffic:
    """Bytes one rank moves when every (token, expert) copy goes straight to its rank (none are shared)."""
    per_node = min(ranks, ranks_per_node)
    copies = tokens * bytes_per_token * top_k
    return Traffic(
        nic=copies * (ranks - per_node) / ranks,
        nvlink=copies * (per_node - 1) / ranks,
        sent=copies,
        delivered=copies,
    )


def gate_vector(experts: int, *, ranks: int, ranks_per_node: int) -> float:
    """Bytes of gate weights that Hybrid-EP sends along with each copy of a token: in FP32 those of all experts of the
    node it goes to, chosen or not (DeepEP, branch hybrid-ep, csrc/hybrid_ep/backend/hybrid_ep_backend.cuh, 2026-07:
    NUM_OF_EXPERTS_PER_RANK * NUM_OF_RANKS_PER_NODE) [B]."""
    return FP32 * experts / max(1, ranks // ranks_per_node)
