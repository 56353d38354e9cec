"""Which algorithm and protocol NCCL takes for a collective within a node of Hopper GPUs.

NCCL estimates latency + bytes / bandwidth for each pair and takes the least; so does this, with NCCL's constants
(NVIDIA/nccl, `src/graph/tuning.cc`, release 2.30 of 2026-06: baseLatencies, hwLatencies of NVLink, llMaxBws,
perChMaxRingLL128Bws, perChMaxTreeBws, nvlsEfficiency, treeCorrectionFactor). They are not its times: a collective is
priced by what was measured (`collective_cost`), once it is known which one runs. Its choices between two and four H200
are recorded (`calibration/tables/h200x2_collectives.csv`, `h200x4_collectives.csv`): a test holds this against all.

Across nodes, where NCCL's constants depend on the CPU and on the latencies of its search for rings, and on other
generations, of which no choices are recorded, the cheapest is taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log2

Choice = tuple[str, str]
"""Algorithm (ring, tree, sharp) and protocol (ll, ll128, simple, sharp)."""

CHANNELS = 24
"""Channels of a ring over NVLink 4 (recorded)."""
SEARCHED = 0.97
"""What NCCL's search finds for the channels of a ring together, over the link's attainable bandwidth: 24 of 15 GB/s of
371 (its steps: 60, 50, 40, 30, 24, 20, 15, 12 ... GB/s)."""
BASE = {("tree", "ll"): 6.8, ("tree", "ll128"): 14.0, ("tree", "simple"): 8.4,
        ("ring", "ll"): 6.6, ("ring", "ll128"): 14.0, ("ring", "simple"): 8.4}  # fmt: skip
"""Fixed latency [us]."""
HOP = {("tree", "ll"): 0.6, ("tree", "ll128"): 1.25, ("tree", "simple"): 4.0,
       ("ring", "ll"): 0.6, ("ring", "ll128"): 1.9, ("ring", "simple"): 3.4}  # fmt: skip
"""Latency of a step over NVLink [us]."""
PAIRS = frozenset({*BASE, ("sharp", "sharp")})
CLOSE = 1.02
"""How much longer an estimate may be to count as equal: NCCL's constants differ by more between releases."""
LL_MOST = 141.0
"""Most that LL attains in a node of Hopper [GB/s]."""
RING_LL128_MOST, TREE_MOST, TREE_LL128_MOST = 36.7, 38.7, 36.7
"""Most of a channel [GB/s]."""
NVLS_CHANNELS, NVLS_EFFICIENCY, NVLS_LATENCY = 16, 0.85, 25.0
CORRECTION = {
    "ll": (1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "ll128": (1.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.8, 0.9, 0.9, 0.9, 0.9),
    "simple": (0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.7, 0.7, 0.8,
               0.9, 0.9),
}  # fmt: skip
"""Bandwidth of trees by powers of two of the size, from 64 B on; 1 beyond."""


def chosen(kind: str, size: float, ranks: int, bandwidth: float, known: Iterable[Choice]) -> Choice:
    """The pair of `known` that NCCL takes for a buffer of `size` [B] over `ranks` of one node.

    `bandwidth` [B/s]: the link's. Raises ValueError where `known` is empty.
    """
    return min(known, key=lambda pair: estimate(kind, size, ranks, bandwidth, pair))


def protocols(kind: str, size: float, ranks: int, bandwidth: float, known: Iterable[Choice]) -> set[str]:
    """The protocols of the pairs that NCCL takes, or could: estimates within `CLOSE` of the least."""
    times = {pair: estimate(kind, size, ranks, bandwidth, pair) for pair in known}
    return {pair[1] for pair, time in times.items() if time <= CLOSE * min(times.values())}


def estimate(kind: str, size: float, ranks: int, bandwidth: float, pair: Choice) -> float:
    """NCCL's own estimate [us]; infinite for what it does not take: trees and NVLS for a broadcast, trees for a gather.

    NVLS is left out for two ranks: a ring moves no more there, and whether NCCL takes it depends on its release.
    """
    algorithm, _ = pair
    total = SEARCHED * bandwidth * 1e-9
    if algorithm == "sharp":
        return _nvls(kind, size, ranks, total) if ranks > 2 and kind != "broadcast" else float("inf")
    if algorithm == "tree":
        return _tree(size, ranks, total, pair) if kind == "all_reduce" else float("inf")
    return _ring(kind, size, ranks, total, pair)


def _ring(kind: str, size: float, ranks: int, total: float, pair: Choice) -> float:
    steps = {"all_reduce": 2 * (ranks - 1), "broadcast": ranks}.get(kind, ranks - 1)
    _, protocol = pair
    bus = {
        "ll": min(LL_MOST, 0.5 * total),
        "ll128": min(0.92 * total, CHANNELS * RING_LL128_MOST),
        "simple": total,
    }[protocol]
    hops = 1 if kind == "broadcast" else steps  # its channels are the same in and out: one latency
    return BASE[pair] + hops * HOP[pair] + _over(size, bus * ranks / steps)


def _tree(size: float, ranks: int, total: float, pair: Choice) -> float:
    _, protocol = pair
    bus = min(0.92 * total, CHANNELS * TREE_MOST)
    if protocol == "ll":
        bus = min(bus / 3.8, LL_MOST)
    if protocol == "ll128":
        bus = min(bus * 7.0 / 9.0, CHANNELS * TREE_LL128_MOST)
    power = int(log2(size / 64)) if size >= 64 else -1
    factors = CORRECTION[protocol]
    bus *= 0.5 * (factors[power] if 0 <= power < len(factors) else 1.0)
    return BASE[pair] + 2 * (ranks - 1) * HOP[pair] + _over(size, bus)


def _nvls(kind: str, size: float, ranks: int, total: float) -> float:
    bus = total * NVLS_EFFICIENCY * (NVLS_CHANNELS - 1) / NVLS_CHANNELS
    if kind == "all_reduce":
        return NVLS_LATENCY + _over(size, 2.0 * bus * ranks / (2 * (ranks - 1)))
    return NVLS_LATENCY + _over(size, bus * (ranks - 1) / ranks)


def _over(size: float, bandwidth: float) -> float:
    return size / (1e3 * bandwidth)
