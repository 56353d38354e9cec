"""Time of a GEMM kernel: output tiles in waves over the SMs granted, against power and memory.

    t = launch + reset + ( t_tensor^4 + t_power^4 + t_memory^4 )^(1/4)

`t_tensor` = waves x (K steps x step time + tile time): the slowest SM's tiles, for the tile shape that is fastest among
those the library takes for such a problem; from the third wave on tiles are assigned by a counter, which a small kernel
clears first (`reset`). `t_power` = FLOP over the rate that the power budget of the whole GPU sustains. `t_memory` = a
fill time, then operands and output once over the attainable memory bandwidth and into the SMs, and the write-back of
other kernels' data that these evict from L2; a kernel that goes down columns of tiles reads its rows again for the next
columns if L2 does not hold them. The 4-norm combines the bounds: a single one is exact, two equal ones cost 19 % more
than one. Where a library starts one kernel per group, these starts are a further bound in the same norm, and so are its
streams: each round of them is a wave, however few its tiles.

Before Blackwell the partial sums of block-scaled FP8 are scaled and added up outside the tensor cores, by the FP32
units, overlapped with the next step's multiply-adds (`promotion_time`): a step takes no less. Every term grows with m,
n, k and shrinks with SMs and bandwidth, and so does t.
"""

from __future__ import annotations

from math import ceil, expm1
from typing import NamedTuple

from simulator.cost.classes import params_for
from simulator.cost.cost import Bound, Cost, Share
from simulator.errors import InputError
from simulator.ops import Gemm
from simulator.spec.hardware import Gpu
from simulator.spec.kernel_params import GemmParams, Kernels

FORMULA = "launch + reset + norm4(waves*(k_steps*step + ends), power, memory) * traffic_factor"
FORMULA_OF_GROUPS = FORMULA.replace("norm4(", "norm4(norm4(") + ", starts)"

UNCOUNTED = 2
"""Waves up to which cuBLAS runs a kernel alone (kernels of `calibration/tables/h100_measured.csv`)."""

L2_HALVES = 2
"""Each partition of L2 caches what the SMs of its own GPCs access (NVIDIA A100 and H100 architecture whitepapers)."""


PROMOTED_EVERY = 128
"""Depth of block-scaled FP8 after which partial sums go from the tensor cores to FP32 (arXiv 2412.19437, section
3.3.2)."""


class Tile(NamedTuple):
    """One output tile on one SM: steps of its main loop, time of each [s], and of prologue and epilogue [s]."""

    k_steps: int
    step: float
    ends: float

    @property
    def time(self) -> float:
        """All of it [s]."""
        return self.k_steps * self.step + self.ends


class Tiling(NamedTuple):
    """Output tiles in waves.

    Parameters
    ----------
    tensor : time of the busiest SM [s].
    waves : rounds of tiles.
    reset : time to clear counters or add up parts [s].
    tile : one tile.
    bm, bn : rows and columns of a tile.
    tiles : number of tiles.
    parts : parts that each tile is cut into along K.
    preassigned : CTAs keep the tiles that were assigned to them beforehand.
    """

    tensor: float
    waves: int
    reset: float
    tile: Tile
    bm: int
    bn: int
    tiles: int
    parts: int = 1
    preassigned: bool = False

    @property
    def time(self) -> float:
        """All of it [s]."""
        return self.tensor + self.reset


def tensor_peak(gpu: Gpu, precision: str) -> float:
    """Dense tensor peak of the whole GPU for a precision [FLOP/s]; BF16 where the GPU has no narrower one."""
    if precision == "nvfp4" and gpu.peak.fp4:
        return gpu.peak.fp4
    return gpu.peak.fp8 if precision != "bf16" and gpu.peak.fp8 else gpu.peak.bf16


def norm4(a: float, b: float, c: float = 0.0) -> float:
    """(a^4 + b^4 + c^4)^(1/4), in the unit of its arguments."""
    top = max(a, b, c)
    if top <= 0.0:
        return 0.0
    return top * float(((a / top) ** 4 + (b / top) ** 4 + (c / top) ** 4) ** 0.25)


def _group_rows(work: Gemm, align: int) -> tuple[int, ...]:
    """Tokens per group, padded to `align`; one group for what is not grouped."""
    if work.form == "masked":
        return work.rows or (work.m,) * work.groups
    if work.form != "grouped" or work.groups == 1:
        return (work.m,)
    if work.rows:
        return tuple(ceil(r / align) * align for r in work.rows if r > 0)
    return ()


def _row_tiles(work: Gemm, rows: tuple[int, ...], block: int, side: int = 1) -> int:
    """Row tiles of `block` rows over all groups, in clusters of `side`, the last of a group filled up or not.

    Without a list of rows, m is a padded total of equal groups, at least one row each.
    """
    if rows:
        return sum(-(-r // (side * block)) for r in rows) * side
    if side > 1:
        groups = min(work.groups, work.m) if work.form == "grouped" else 1
        return groups * side * -(-work.m // (groups * side * block))
    return max(-(-work.m // block), min(work.groups, work.m))


def _tiles_for(work: Gemm, p: GemmParams) -> tuple[tuple[int, int], ...]:
    """The tiles that a library may pick: fewer as a mean group grows if it picks by shape, so that no larger GEMM is
    faster."""
    rows = work.m / (work.groups if work.form == "grouped" else 1)
    if not p.few or min(rows, work.n) <= p.few:
        return p.tiles
    depth = work.k / (work.groups if work.form == "grouped_wgrad" else 1)
    large = sum(side >= p.large for side in (rows, work.n, depth)) >= 2
    return p.tiles[-1:] if large else p.tiles[-2:]


def promotion_time(work: Gemm, gpu: Gpu, sums: float) -> float:
    """Time in which the FP32 units of one SM scale and add `sums` partial sums, a multiply-add each [s].

    0 where tensor cores scale by block themselves (Blackwell), or the profile has no FP32 rate.
    """
    if work.precision != "fp8_block" or gpu.architecture == "blackwell" or not gpu.peak.fp32:
        return 0.0
    return 2.0 * sums / (gpu.peak.fp32 / gpu.sms)


def _tile(work: Gemm, p: GemmParams, gpu: Gpu, bm: int, bn: int, parts: int) -> Tile:
    """One of `parts` of an output tile on one SM."""
    groups = work.groups if work.form == "grouped_wgrad" else 1
    steps = -(-work.k // (groups * parts * p.k_block))
    peak_sm = tensor_peak(gpu, work.precision) / gpu.sms
    step = p.block_time + 2.0 * bm * bn * p.k_block / (p.rate * peak_sm)
    step = max(step, promotion_time(work, gpu, bm * bn * p.k_block / PROMOTED_EVERY))
    return Tile(steps, step, p.tile_time + bm * bn * work.out_bytes / p.store_rate)


def _usable(p: GemmParams, gpu: Gpu, granted: int) -> int:
    """SMs that tiles run on: those that whole clusters find, less the unusable ones where others hold some."""
    whole = min(p.cluster_sms or gpu.sms, gpu.sms)
    return whole if granted >= gpu.sms else max(1, min(whole, granted - p.unusable_sms))


def _waves(work: Gemm, p: GemmParams, tiles: int, bm: int, bn: int, ctas: int) -> int:
    """Waves of `tiles` over `ctas`; of a masked GEMM over the CTAs that its expected rows need in the fewest waves."""
    if not p.grid_from_expected_m or work.form != "masked":
        return -(-tiles // ctas)
    expected = -(-work.m // bm) * -(-work.n // bn) * work.groups
    return -(-tiles * -(-expected // ctas) // expected)


def _tiling(work: Gemm, p: GemmParams, gpu: Gpu, granted: int) -> Tiling:
    """The tiling that runs: the fastest, or the last when it has more tiles than a shared GPU has SMs to give.

    The last tile's time is never below the fastest's, so time grows when a problem outgrows the SMs or SMs are taken.
    """
    usable = _usable(p, gpu, granted)
    rows = _group_rows(work, p.row_align)
    rounds = -(-busy_groups(work) // p.streams) if p.streams else 1
    groups = work.groups if work.form == "grouped_wgrad" else 1
    found: Tiling | None = None
    down, across = p.cluster
    for bm, bn in _tiles_for(work, p):
        tiles = _row_tiles(work, rows, bm, down) * across * -(-work.n // (bn * across)) * groups
        large = granted < gpu.sms and (bm, bn) == p.tiles[-1] and tiles > usable
        tiles_per_cta = p.tiles_per_cta if large else 1
        tile = _tile(work, p, gpu, bm, bn, 1)
        waves = max(tiles_per_cta * _waves(work, p, tiles, bm, bn, tiles_per_cta * usable), rounds)
        if waves > 1 and (bm, bn) in p.tiles[:-1][: p.one_wave]:
            continue
        reset = p.reset if waves > UNCOUNTED else 0.0
        whole = Tiling(waves * tile.time, waves, reset, tile, bm, bn, tiles, preassigned=large)
        if found is None or whole.time < found.time or large:
            found = whole
        parts = min(p.split, usable // tiles)
        if parts > 1:
            tile = _tile(work, p, gpu, bm, bn, parts)
            cut = Tiling(tile.time, 1, p.reset, tile, bm, bn, tiles, parts)
            found = min(found, cut, key=lambda tiling: tiling.time)
    if found is None:
        raise InputError("gemm: tiles: []: the kernel class needs at least one tile")
    return found


def busy_groups(work: Gemm) -> int:
    """Groups that have rows."""
    if work.rows:
        return sum(1 for r in work.rows if r > 0)
    return work.groups if work.form == "masked" else min(work.groups, work.m)


def gemm_bytes(work: Gemm) -> float:
    """Operands read once and the output written once (read and written in a weight gradient) [B]."""
    size = work.operand_bytes
    weight = float(work.n) * work.k
    if work.form in ("grouped", "masked"):
        weights = (work.weight_bytes or size) * busy_groups(work) * weight
        return size * work.valid_rows * work.k + weights + work.out_bytes * work.valid_rows * work.n
    groups = work.groups if work.form == "grouped_wgrad" else 1
    passes = 2.0 if work.form in ("wgrad", "grouped_wgrad") else 1.0
    return size * (work.m * work.k + weight) + passes * groups * work.out_bytes * work.m * work.n


def _power_rate(work: Gemm, p: GemmParams, gpu: Gpu) -> float:
    """What the whole GPU sustains for the length of a kernel, or of a benchmark's loop [FLOP/s]."""
    return (p.loop_rate or p.power_rate) * tensor_peak(gpu, work.precision)


def read_again(work: Gemm, p: GemmParams, gpu: Gpu, tiling: Tiling, sms: int) -> float:
    """Bytes that a kernel which goes down columns of tiles reads again [B].

    All SMs together work on `across` columns, or more where a column has fewer tiles. For the next ones the rows of
    the group are read again, all but what L2 still holds of them; each of its halves keeps what its own SMs read.
    """
    if not p.by_columns:
        return 0.0
    groups, across = max(1, work.groups), p.cluster[1]
    rows = work.m / groups if work.form == "grouped" else work.m
    depth = work.k / groups if work.form == "grouped_wgrad" else work.k
    size = rows * depth * work.operand_bytes
    passes = work.n / (tiling.bn * across) * min(1.0, rows * across / (tiling.bm * sms))
    return groups * size * max(0.0, passes - 1.0) * max(0.0, 1.0 - gpu.l2_bytes / L2_HALVES / size)


def written_back(size: float, l2_writeback: float, gpu: Gpu) -> float:
    """Bytes of other kernels that `size` bytes evict from L2 to memory, a line at random making room for each [B]; the
    share `l2_writeback` of L2 holds such bytes."""
    return l2_writeback * gpu.l2_bytes * -expm1(-size / gpu.l2_bytes) if l2_writeback else 0.0


def _memory_time(size: float, p: GemmParams, gpu: Gpu, sms: int) -> float:
    """Time to move `size` bytes through memory, with what they push out of L2, and into the SMs granted [s]."""
    load = size / (p.load_rate * min(sms, gpu.sms)) if p.load_rate else 0.0
    return p.fill + norm4((size + written_back(size, p.l2_writeback, gpu)) / (p.bandwidth * gpu.hbm_bandwidth), load)


def _terms_of_tiling(tiling: Tiling, p: GemmParams, sms: int, usable: int) -> tuple[tuple[str, float], ...]:
    """What `tensor_s` is made of; what plays no part is left out."""
    tile = tiling.tile
    return (
        ("tile_m", float(tiling.bm)),
        ("tile_n", float(tiling.bn)),
        ("tiles", float(tiling.tiles)),
        *((("cluster", float(p.cluster[0] * p.cluster[1])),) if p.cluster != (1, 1) else ()),
        *((("split_k", float(tiling.parts)),) if tiling.parts > 1 else ()),
        ("sms", float(sms)),
        *((("usable_sms", float(usable)),) if usable < sms else ()),
        *((("tiles_per_cta", float(p.tiles_per_cta)),) if tiling.preassigned and p.tiles_per_cta > 1 else ()),
        ("waves", float(tiling.waves)),
        ("k_steps", float(tile.k_steps)),
        ("step_s", tile.step),
        ("ends_s", tile.ends),
        ("tile_s", tile.time),
        ("reset_s", tiling.reset),
        ("tensor_s", tiling.tensor),
    )


def _terms_of_bounds(work: Gemm, p: GemmParams, gpu: Gpu, size: float, again: float) -> tuple[tuple[str, float], ...]:
    """What power and memory allow: of `size` bytes, `again` of them for a second time."""
    return (
        (f"{'loop' if p.loop_rate else 'power'}_rate", _power_rate(work, p, gpu)),
        ("power_s", work.flops / _power_rate(work, p, gpu)),
        ("bytes", size),
        *((("read_again_bytes", again),) if again else ()),
        *((("written_back_bytes", written_back(size, p.l2_writeback, gpu)),) if p.l2_writeback else ()),
        ("bandwidth", p.bandwidth * gpu.hbm_bandwidth),
        *((("load_rate", p.load_rate),) if p.load_rate else ()),
        ("fill_s", p.fill),
    )


def left_free(work: Gemm, gpu: Gpu) -> float:
    """How much longer a GEMM takes that leaves SMs free: the SMs in all over those that it has, in narrow formats.

    In BF16 it costs nothing (`calibration/tables/h200_pieces.csv`, rows `margin`, 16 of 132 SMs under sustained load:
    0.995 to 1.006 times the whole). In FP8 they are 1.047 to 1.118 times, 1.08 in the mean: what 132 / 116 is at the
    power limit, as fewer SMs draw less.
    """
    return 1.0 if not work.left or work.precision == "bf16" else gpu.sms / max(1, gpu.sms - work.left)


def _check(work: Gemm, sms: int) -> None:
    if min(work.m, work.n, work.k, work.groups) < 1:
        raise InputError(f"gemm {work.m} x {work.n} x {work.k}, groups {work.groups}: each must be at least 1")
    if sms < 1:
        raise InputError(f"gemm granted {sms} SMs: must be at least 1")


def gemm_cost(work: Gemm, cls: str, gpu: Gpu, kernels: Kernels, share: Share) -> Cost:
    """Cost of one GEMM kernel of class `cls` on the SMs of `share` [s]."""
    _check(work, share.sms)
    p, calibrated, source = params_for(kernels.gemm, cls, kernels.name)
    tiling = _tiling(work, p, gpu, share.sms)
    left = left_free(work, gpu)
    tensor, power = left * tiling.tensor, work.flops / _power_rate(work, p, gpu)
    again = read_again(work, p, gpu, tiling, _usable(p, gpu, share.sms))
    size = gemm_bytes(work) + again
    memory = _memory_time(size, p, gpu, share.sms)
    starts = p.group_time * busy_groups(work)
    slow = 1.0 + p.traffic * share.partner_traffic / gpu.hbm_bandwidth
    duration = p.launch + tiling.reset + norm4(norm4(tensor, power, memory) * slow, starts)
    bound: Bound = "latency" if p.launch > max(tensor, memory) else "memory" if memory > tensor else "tensor"
    return Cost(
        duration=duration,
        bound_by=bound,
        formula=FORMULA_OF_GROUPS if starts else FORMULA,
        terms=(
            *_terms_of_tiling(tiling, p, share.sms, _usable(p, gpu, share.sms)),
            *_terms_of_bounds(work, p, gpu, size, again),
            ("memory_s", memory),
            *((("starts_s", starts),) if starts else ()),
            *((("left_free_factor", left),) if left > 1.0 else ()),
            ("launch_s", p.launch),
            ("traffic_factor", slow),
        ),
        source=source,
        calibrated=calibrated and not work.weight_bytes,
    )
