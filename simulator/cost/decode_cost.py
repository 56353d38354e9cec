"""Time of decode attention: few new tokens over a long KV cache, cut into parts so that all SMs are used.

    t = launch + norm4( t_tensor, FLOP / power rate, bytes / bandwidth ) + merge

`t_tensor` is what the busiest SM's CTAs take: key blocks, each of which waits for its loads and computes the
multiply-adds of the CTAs that share the SM, on tiles of heads whose empty rows cost as much as full ones. With few
heads per group memory is the bound; with 128 heads on one latent (MLA) the tensor cores do. How keys are cut is the
library's rule (`DecodeAttentionParams`): evenly over the CTAs that run at once, or every sequence into as many parts as
fill waves of CTAs well. Parts are added up by a second kernel, which loops over the parts of a sequence.

Kernels over an FP8 cache are of classes of their own (`.fp8`) where they were measured: of grouped heads TensorRT-LLM's
take half the time of those over BF16, vLLM's 0.7 and SGLang's 0.9 of it. Elsewhere they are assumed to differ by the
bytes alone, and are marked as not calibrated. On an H100 one release of SGLang takes 2.31 ms for a batch of 128 with
8,192 latents in FP8 and 0.52 ms in BF16, since it casts them first (aiconfigurator database, SGLang 0.5.14).

Where sequences differ in length, an even cut still gives every CTA the same share of all keys. The other rule cuts
them all into parts as long as those of the longest; a CTA takes the next part when it has done one, in the order of the
grid, and the step ends with the last (list scheduling).
"""

from __future__ import annotations

from functools import lru_cache
from heapq import heapreplace
from math import ceil
from typing import NamedTuple

from simulator.cost.classes import params_for
from simulator.cost.cost import Cost, Share
from simulator.cost.gemm_cost import norm4, tensor_peak, written_back
from simulator.errors import InputError
from simulator.ops import DecodeAttention
from simulator.spec.hardware import Gpu
from simulator.spec.kernel_params import DecodeAttentionParams, Kernels

FORMULA = "launch + norm4(waves*(blocks*block + ends), power, memory) * traffic_factor + merge"


class Cut(NamedTuple):
    """How the keys of decode attention are cut.

    Parameters
    ----------
    parts : parts of a sequence.
    ctas : CTAs of the grid.
    waves : rounds of CTAs over the GPU.
    blocks : key blocks of a CTA in each round; fewer where some sequences are shorter than the longest.
    rows : rows of a CTA's tile.
    keys : keys of a block [tokens].
    """

    parts: int
    ctas: int
    waves: int
    blocks: float
    rows: int
    keys: int


@lru_cache(maxsize=4096)
def parts_of(tiles: int, slots: int, blocks: int, full: float, keep: float, most: int) -> int:
    """Parts of a sequence of `blocks` key blocks where `tiles` sequences and heads share `slots` CTAs.

    FlashAttention-2's rule (Dao, flash-attention 2.8, csrc/flash_attn/flash_api.cpp): waves filled well, few parts.
    """
    if tiles >= full * slots:
        return 1
    filled = {}
    for parts in range(1, min(most, slots, blocks) + 1):
        if parts == 1 or ceil(blocks / parts) != ceil(blocks / (parts - 1)):
            waves = tiles * parts / slots
            filled[parts] = waves / ceil(waves)
    best = max(filled.values())
    return min(parts for parts, share in filled.items() if share >= min(1.0, keep) * best)


def _tiles(work: DecodeAttention, rows: int) -> int:
    """Tiles of query rows over all heads of keys of one sequence."""
    return work.kv_heads * ceil(work.heads // work.kv_heads * work.q_len / rows)


def cut(work: DecodeAttention, p: DecodeAttentionParams, sms: int) -> Cut:
    """How the library cuts the keys on `sms` SMs."""
    slots, tiles = p.resident * sms, _tiles(work, p.block_q)
    each = _blocks(work, p.block_kv)
    blocks = max(each)
    if p.even:
        ranks = max(1, slots // tiles)
        rounds = ceil(tiles * ranks / slots)
        together = sum(each) if len(each) > 1 else work.batch * blocks
        mine = ceil((together + work.batch * p.overhead) / ranks)
        parts = max(1, ceil(blocks / mine))
        return Cut(parts, tiles * min(ranks, work.batch * parts), rounds, mine, p.block_q, p.block_kv)
    parts = parts_of(work.batch * tiles, slots, blocks, p.full, p.keep, p.most)
    if parts > 1 or not p.whole_q:
        return _in_parts(work, each, tiles, ceil(blocks / parts), p, sms, whole=False)
    each = _blocks(work, p.whole_kv or p.block_kv)
    return _in_parts(work, each, _tiles(work, p.whole_q), max(each), p, sms, whole=True)


def _blocks(work: DecodeAttention, keys: int) -> tuple[int, ...]:
    """Key blocks of each sequence; one number where all are equal."""
    return tuple(ceil(length / keys) for length in work.lengths) or (ceil(work.kv_len / keys),)


def _in_parts(
    work: DecodeAttention, each: tuple[int, ...], tiles: int, most: int, p: DecodeAttentionParams, sms: int, whole: bool
) -> Cut:
    """The cut into parts of up to `most` blocks; `whole`: sequences are not cut, and tiles are those for that."""
    slots, longest = p.resident * sms, max(each)
    parts = ceil(longest / most)
    rows, keys = (p.whole_q, p.whole_kv or p.block_kv) if whole else (p.block_q, p.block_kv)
    ctas = tiles * (sum(ceil(blocks / most) for blocks in each) if len(each) > 1 else work.batch * parts)
    full = work.batch * tiles * parts
    shorter = 1.0
    if len(each) > 1:
        shorter = last_end(each, tiles, most, sms) / last_end((longest,) * work.batch, tiles, most, sms)
    return Cut(parts, ctas, ceil(full / slots), most * shorter, rows, keys)


@lru_cache(maxsize=4096)
def last_end(each: tuple[int, ...], tiles: int, most: int, sms: int) -> int:
    """When the last CTA ends, in key blocks, where SMs take the parts of the sequences in turn, one at a time each.

    CTAs that share an SM share its tensor cores, so that one that is left alone goes on faster: together they take as
    long as one after the other.
    """
    busy = [0] * sms
    end = 0
    for blocks in each:
        for at in range(0, blocks, most):
            part = min(most, blocks - at)
            for _ in range(tiles):
                done = busy[0] + part
                heapreplace(busy, done)
                end = max(end, done)
    return end


def _check(work: DecodeAttention, sms: int) -> None:
    if work.lengths and (len(work.lengths) != work.batch or min(work.lengths) < 1):
        raise InputError(
            f"decode attention: lengths of {len(work.lengths)} sequences: must be {work.batch}, each at least 1"
        )
    sizes = (work.batch, work.heads, work.kv_heads, work.d_qk, work.d_v, work.kv_len, work.q_len)
    if min(sizes) < 1:
        raise InputError(
            f"decode attention with batch, heads, kv_heads, d_qk, d_v, kv_len, q_len = {sizes}: must be at least 1"
        )
    if work.heads % work.kv_heads:
        raise InputError(f"decode attention: kv_heads {work.kv_heads}: must divide the {work.heads} query heads")
    if sms < 1:
        raise InputError(f"decode attention granted {sms} SMs: must be at least 1")


def decode_attention_cost(work: DecodeAttention, cls: str, gpu: Gpu, kernels: Kernels, share: Share) -> Cost:
    """Cost of decode attention of class `cls`, its merge included, on the SMs of `share` [s]."""
    _check(work, share.sms)
    p, calibrated, source = params_for(kernels.decode, cls, kernels.name)
    sms, peak = min(share.sms, gpu.sms), tensor_peak(gpu, "bf16")
    how = cut(work, p, sms)
    busy = min(p.resident, ceil(how.ctas / sms))
    multiply = 2.0 * how.rows * how.keys * (work.d_qk + work.d_v) / (p.rate * peak / gpu.sms)
    block = p.block_time + busy * multiply
    chain = how.waves * (how.blocks * block + p.tile_time)
    size = work.bytes + written_back(work.bytes, p.l2_writeback, gpu)
    power, memory = work.flops / (p.power_rate * peak), size / (p.bandwidth * gpu.hbm_bandwidth)
    merge = p.merge + how.parts * p.merge_step if how.parts > 1 else 0.0
    slow = 1.0 + p.traffic * share.partner_traffic / gpu.hbm_bandwidth
    body = norm4(chain, power, memory)
    fixed = p.launch + merge > body
    guessed = work.kv_dtype != "bf16" and (".fp8" not in cls or work.kv_dtype == "fp8_ds_mla")
    return Cost(
        duration=p.launch + body * slow + merge,
        bound_by="latency" if fixed else "memory" if memory > max(chain, power) else "tensor",
        formula=FORMULA,
        terms=(
            ("tile_rows", float(how.rows)),
            ("block_keys", float(how.keys)),
            ("parts", float(how.parts)),
            ("ctas", float(how.ctas)),
            ("sms", float(sms)),
            ("waves", float(how.waves)),
            ("blocks", float(how.blocks)),
            ("block_s", block),
            ("ends_s", p.tile_time),
            ("tensor_s", chain),
            ("power_rate", p.power_rate * peak),
            ("power_s", power),
            ("bytes", work.bytes),
            *((("written_back_bytes", size - work.bytes),) if p.l2_writeback else ()),
            ("bandwidth", p.bandwidth * gpu.hbm_bandwidth),
            ("memory_s", memory),
            ("merge_s", merge),
            ("launch_s", p.launch),
            ("traffic_factor", slow),
        ),
        source=f"{source}; of an FP8 cache fewer bytes, assumed" if guessed else source,
        calibrated=calibrated and not guessed,
    )
