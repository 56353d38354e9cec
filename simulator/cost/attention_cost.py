"""Time of an attention core kernel: tiles of queries walking over keys, dynamically spread over the SMs granted.

    t = launch + norm4( t_tensor, FLOP / power rate, bytes / bandwidth ) + passes x bytes / bandwidth
    t_tensor = waves x tile, and of a causal kernel at most mean tiles on an SM + tail x longest tile

A tile's time is its key blocks at the main-loop rate of its head dimensions plus a fixed opening and closing; a causal
tile sees the blocks up to its diagonal, so tiles differ and the SM that gets a long one last trails the others. Time
follows SMs / (SMs - taken) where tiles are many. Backward has tiles of keys, each over all queries. Where query
heads share keys, backward kernels make the gradients of keys and values for each query head, and others sum them up:
sums x their bytes / bandwidth more.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from math import ceil

from simulator.cost.classes import params_for
from simulator.cost.cost import Cost, Share
from simulator.cost.gemm_cost import norm4, tensor_peak
from simulator.dtypes import WIDTH
from simulator.errors import InputError
from simulator.ops import Attention
from simulator.spec.hardware import Gpu
from simulator.spec.kernel_params import AttentionParams, Kernels

FORMULA = (
    "launch + norm4(min(waves*longest, max(tiles*tile/sms + tail, longest)), power, memory) * traffic_factor"
    " + passes*memory"
)
FORMULA_OF_SHARED = FORMULA + " + sums*shared_gradients"


def rate_of(p: AttentionParams, d_qk: int, d_v: int) -> float:
    """Main-loop rate for head dimensions, linear in d_qk + d_v between the fitted ones, held constant outside."""
    points = sorted((r.d_qk + r.d_v, r.rate) for r in p.rates)
    for r in p.rates:
        if (r.d_qk, r.d_v) == (d_qk, d_v):
            return r.rate
    x = d_qk + d_v
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def attention_bytes(work: Attention) -> float:
    """Queries, keys, values and output (and their gradients in backward) once [B]."""
    size = WIDTH[work.precision]
    q = work.batch * work.seq_q * work.heads
    kv = work.batch * (work.seq_kv + work.entries) * work.kv_heads
    once = size * (q * (work.d_qk + work.d_v) + kv * (work.d_qk + work.d_v))
    return once * 2.5 if work.backward else once


def shared_gradients(work: Attention) -> float:
    """Gradients of keys and values that are made for each query head, to be summed over those that share them [B]."""
    if not work.backward or work.heads == work.kv_heads:
        return 0.0
    size = WIDTH[work.precision]
    return size * work.batch * work.seq_kv * work.heads * (work.d_qk + work.d_v)


@lru_cache(maxsize=4096)
def banded_blocks(cached: int, end: int, window: int, chunk: int, block_q: int, block_kv: int) -> tuple[float, float]:
    """Blocks of keys that the tiles of queries from position `cached` to `end` need under a window or in chunks: mean
    and most. Kernels skip whole blocks only (flash-attention 2.8, csrc/flash_attn/src/flash_fwd_kernel.h,
    n_block_min and n_block_max)."""
    counts = []
    for first in range(cached, end, block_q):
        lowest = first // chunk * chunk if chunk else max(0, first - window + 1) if window else 0
        counts.append(ceil(min(first + block_q, end) / block_kv) - lowest // block_kv)
    return sum(counts) / len(counts), float(max(counts))


def key_blocks(work: Attention, p: AttentionParams) -> tuple[float, float]:
    """Blocks of keys of a tile, mean and most, what its masked ones cost more included in the mean.

    A window masks on both of its edges: twice what a causal mask costs, which is assumed.
    """
    full = float(ceil(work.seq_kv / p.block_kv))
    if work.causal and (work.is_banded or work.cached or work.entries):
        mean, most = banded_blocks(work.cached, work.seq_kv, work.window, work.chunk, p.block_q, p.block_kv)
        mean += p.mask_blocks * (2.0 if work.window else 1.0)
        if work.entries:
            mean += work.seen_entries / p.block_kv
            most += ceil(min(work.entries, work.chosen or work.entries) / p.block_kv)
        return mean, max(mean, most)
    mean = (full + 1.0) / 2.0 + p.mask_blocks if work.causal else full
    return min(mean, full + p.mask_blocks), full


def tiles_of(work: Attention, p: AttentionParams) -> tuple[int, float, float]:
    """Tiles of a head, and blocks that each works on, mean and most: tiles of queries over keys, in backward tiles of
    keys over queries (flash-attention 2.8, csrc/flash_attn/src/flash_bwd_kernel.h, seqk_parallel; cuDNN's, too). Bands
    have as many of both."""
    tiles = ceil(work.seq_q / p.block_q)
    mean, most = key_blocks(work, p)
    if not work.backward or work.is_banded or work.entries:
        return tiles, mean, most
    of_keys = ceil(work.seq_kv / p.block_kv)
    return of_keys, mean * tiles / of_keys, float(tiles)


def _check(work: Attention, sms: int) -> None:
    sizes = (work.batch, work.seq_q, work.seq_kv, work.heads, work.kv_heads, work.d_qk, work.d_v)
    if min(sizes) < 1:
        raise InputError(
            f"attention with batch, seq_q, seq_kv, heads, kv_heads, d_qk, d_v = {sizes}: must be at least 1"
        )
    if sms < 1:
        raise InputError(f"attention granted {sms} SMs: must be at least 1")


def attention_cost(work: Attention, cls: str, gpu: Gpu, kernels: Kernels, share: Share) -> Cost:
    """Cost of one attention kernel of class `cls` on the SMs of `share` [s]."""
    _check(work, share.sms)
    p, calibrated, source = params_for(kernels.attention, cls, kernels.name)
    peak = tensor_peak(gpu, work.precision)
    sms = min(share.sms, gpu.sms)
    tiles, mean, full = tiles_of(work, p)
    rows = work.batch * work.heads * tiles
    pace = rate_of(p, work.d_qk, work.d_v) * p.loop_clock * peak / gpu.sms
    block = work.flops_per_pair * p.block_q * p.block_kv / pace
    tile, longest = mean * block + p.tile_time, full * block + p.tile_time
    waves, share_of_tail = -(-rows // sms), p.tail if work.causal else 1.0
    tail = share_of_tail * longest * (1.0 - 1.0 / sms)
    tensor = min(waves * longest, max(rows * tile / sms + tail, longest))
    rate, bandwidth = p.power_rate * peak, p.bandwidth * gpu.hbm_bandwidth
    power, memory = work.flops / rate, attention_bytes(work) / bandwidth
    slow = 1.0 + p.traffic * share.partner_traffic / gpu.hbm_bandwidth
    passes, shared = p.passes if work.backward else 0.0, shared_gradients(work) / bandwidth if p.sums else 0.0
    return Cost(
        duration=p.launch + norm4(tensor, power, memory) * slow + passes * memory + p.sums * shared,
        bound_by="memory" if memory > tensor else "tensor",
        formula=FORMULA_OF_SHARED if shared else FORMULA,
        terms=(
            ("tiles", float(rows)),
            ("key_blocks", mean),
            ("block_s", block),
            ("ends_s", p.tile_time),
            ("tile_s", tile),
            ("longest_s", longest),
            ("sms", float(sms)),
            ("waves", float(waves)),
            ("tail_s", tail),
            ("tensor_s", tensor),
            ("power_rate", rate),
            ("power_s", power),
            ("bytes", attention_bytes(work)),
            ("bandwidth", bandwidth),
            ("memory_s", memory),
            ("passes", passes),
            *((("shared_gradients_s", shared), ("sums", p.sums)) if shared else ()),
            ("launch_s", p.launch),
            ("traffic_factor", slow),
        ),
        source=f"{source}; windows are fitted for FlashAttention-2's backward only" if work.is_banded else source,
        calibrated=calibrated and not (work.is_banded or work.entries),
    )
