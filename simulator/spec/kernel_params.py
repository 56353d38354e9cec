"""Parameters of the kernel cost models, one small set a kernel class, fitted from measurements.

A leaf: plain frozen values that a TOML file (`hardware_profiles/kernels/<name>.toml`) fills. Rates are shares of a
peak of the GPU, so that a class fitted on one GPU can be asked about another of the same architecture; times are
seconds. Every class says where it comes from (`source`), where it holds (`range`) and whether it was measured on
this GPU or is an assumption (`assumed`).

A class name may end in `@implementation` (`gemm.fp8@deepgemm`): another kernel for the same work.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmParams:
    """A tiled GEMM kernel: which tiles it may pick and what they cost.

    `tiles` are the (rows, columns) of output tiles the library chooses among, for the whole GPU; the last is the one
    for large problems, which it keeps when others hold SMs. `unusable_sms` SMs then stay idle, because clusters of CTAs
    no longer fit, and a CTA that finds no SM keeps the `tiles_per_cta` tiles it was given beforehand for another round.
    `k_block` is the depth of one step of the main loop. A step takes `block_time` [s] plus its multiply-adds at `rate`,
    a share of the tensor peak of one SM at boost clock. A tile pays `tile_time` [s] plus its write-out at `store_rate`
    [B/s] on one SM, as far as the next tile does not hide it. A kernel pays `launch` [s], and with more than two waves
    of tiles `reset` [s]: a kernel before it clears the counter that hands the tiles out. A few tiles with a long loop
    may be cut along K into up to `split` parts, which a second kernel (`reset` again) adds up.

    `power_rate` is the share of the tensor peak that the whole GPU reaches whatever its SMs could: what its power and
    L2 sustain for the length of a kernel. `loop_rate` (0: the same): for that of a benchmark's loop; inside a step of a
    GPU with a power model that model takes its place (`rested`). A library with a kernel for each group starts one
    every `group_time` [s] and runs at most `streams` at a time (0: one kernel for all groups). `bandwidth` is the
    attainable share of the displayed memory bandwidth, `load_rate` [B/s] what one SM can pull of operands (0: no
    limit), `fill` [s] what passes before memory streams. `traffic`: a neighbour that moves x of the displayed memory
    bandwidth slows the kernel by traffic * x. `row_align`: rows of a group are padded to this many.

    CTAs start in clusters of `cluster` tiles (rows, columns), which a group fills up with idle ones, on `cluster_sms`
    SMs (0: all): a cluster lies within a GPC, and large ones leave SMs of each out. Beyond `few` rows a group (or
    columns) the library takes its last tile whatever the others would cost (0: always the fastest), or, until two of a
    group's rows, columns and depth reach `large`, one of its last two. The first `one_wave` tiles it takes only where
    one wave is enough. `by_columns`: tiles are handed out down columns, and rows that L2 does not hold are read again
    for the next. `grid_from_expected_m`: a masked product starts only as many CTAs as its expected rows need in the
    fewest waves, and has to do with them whatever rows come.

    `l2_writeback` is the share of L2 that holds what other kernels wrote and memory has not got yet: a kernel that
    needs the room writes it back first.
    """

    tiles: tuple[tuple[int, int], ...]
    k_block: int
    rate: float
    block_time: float
    tile_time: float
    store_rate: float
    launch: float
    power_rate: float
    bandwidth: float
    loop_rate: float = 0.0
    reset: float = 0.0
    group_time: float = 0.0
    streams: int = 0
    split: int = 1
    load_rate: float = 0.0
    fill: float = 0.0
    traffic: float = 0.0
    row_align: int = 1
    unusable_sms: int = 0
    tiles_per_cta: int = 1
    cluster: tuple[int, int] = (1, 1)
    cluster_sms: int = 0
    few: int = 0
    large: int = 0
    one_wave: int = 0
    by_columns: bool = False
    grid_from_expected_m: bool = False
    l2_writeback: float = 0.0
    source: str
    range: str = ""
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRate:
    """Main-loop rate for one pair of head dimensions: share of the tensor peak of one SM at boost clock."""

    d_qk: int
    d_v: int
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionParams:
    """A FlashAttention-like kernel: tiles of `block_q` queries, each walking over blocks of `block_kv` keys.

    A tile pays `tile_time` [s] once and the main loop at the rate of its head dimensions (`rates`; other dimensions
    are interpolated by d_qk + d_v). `mask_blocks` is the number of extra key blocks' worth of time that a causal tile
    spends on its diagonal; `tail` the share of the longest tile's time by which the last SM of a causal kernel trails
    the mean (small where long tiles start first). `passes`: how often a backward's kernels before and after the main
    one read or write all tensors; `sums`, how often those that sum gradients over query heads with the same keys move
    these. `launch` [s] a kernel; `power_rate`, `bandwidth`, `traffic` as in `GemmParams`.
    `loop_clock`: the share of the boost clock that power sustains in a benchmark's loop, as `loop_rate` there.
    """

    block_q: int
    block_kv: int
    rates: tuple[AttentionRate, ...]
    tile_time: float
    launch: float
    power_rate: float
    bandwidth: float
    mask_blocks: float = 0.0
    tail: float = 0.25
    passes: float = 0.0
    sums: float = 0.0
    loop_clock: float = 1.0
    traffic: float = 0.0
    source: str
    range: str = ""
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeAttentionParams:
    """Attention of the newest tokens over a cache of keys (flash decoding): the keys of a sequence are cut into parts.

    Query heads that share keys, times the new tokens, stand in tiles of `block_q` rows; a CTA walks over blocks of
    `block_kv` keys. A block takes `block_time` [s] of waiting for its loads plus the multiply-adds of all CTAs on the
    SM (at most `resident`) at `rate`, a share of the tensor peak of one SM; rows that fill no tile cost as if there. A
    CTA pays `tile_time` [s] once. `launch` [s] a call. Parts are added up by a second kernel: `merge` [s] and
    `merge_step` [s] for each part of a sequence, one after the other.

    Two ways to cut. `even`: as many CTAs as run at once, all with as many blocks, a new sequence counted as `overhead`
    blocks more (FlashMLA, FlashInfer). Otherwise all sequences into equally many parts (FlashAttention-2): one where
    the tiles fill the share `full` of the CTAs that run at once; else, of at most `most`, the fewest whose waves are
    filled `keep` times as well as the best's. An uncut sequence then runs in another kernel, with tiles of `whole_q`
    rows and blocks of `whole_kv` keys (0: the same).

    `power_rate`: share of the tensor peak that the GPU's power sustains. `bandwidth`: attainable share of the displayed
    memory bandwidth. `l2_writeback`, `traffic`: as in `GemmParams`.
    """

    block_q: int
    block_kv: int
    resident: int
    rate: float
    block_time: float
    tile_time: float
    launch: float
    merge: float
    merge_step: float
    power_rate: float
    bandwidth: float
    even: bool = False
    overhead: int = 0
    full: float = 1.0
    keep: float = 1.0
    most: int = 128
    whole_q: int = 0
    whole_kv: int = 0
    l2_writeback: float = 0.0
    traffic: float = 0.0
    source: str
    range: str = ""
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamParams:
    """A memory-bound kernel: `launch` [s] plus its bytes at a bandwidth, or the chain of accesses of its CTAs.

    `bandwidth` is the attainable share of the displayed memory bandwidth, `sm_rate` [B/s] what one SM can move (0: no
    limit), `l2_gain` how many times faster bytes go that are still in L2 (1: no gain). `wave_time`: a kernel whose grid
    exactly fills the GPU runs in another wave when SMs are taken; that wave lasts this share of the first.
    `traffic`: see `GemmParams`; `concurrent_delay` [s] is what the start of the kernel takes longer beside a
    communication kernel (one that moves `Kernels.comm_traffic`; less in proportion).

    A CTA waits for its own loads: it lasts `cta_time` [s] and its part of the bytes at `cta_rate` [B/s] (0: no limit),
    together at most `cta_most` [s] (0: no such limit). `resident` CTAs fit on an SM (threads, registers, shared
    memory); 0: a persistent grid, whose CTAs all run at once.
    """

    launch: float
    bandwidth: float
    sm_rate: float = 0.0
    l2_gain: float = 1.0
    wave_time: float = 1.0
    traffic: float = 1.0
    concurrent_delay: float = 0.0
    cta_time: float = 0.0
    cta_rate: float = 0.0
    cta_most: float = 0.0
    resident: int = 0
    source: str
    range: str = ""
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedParams:
    """Kernels too small for their work to matter: `time` [s] each."""

    time: float
    source: str
    range: str = ""
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """All calibrated kernel classes of one GPU. `gap` [s] stands behind every kernel on a stream.

    `comm_traffic` [B/s] is the memory traffic that the calibration took for a DeepEP-like kernel running beside: hand
    the same to `Share.partner_traffic`.
    """

    name: str
    gap: float
    gap_source: str
    comm_traffic: float = 3e11
    gemm: dict[str, GemmParams] = field(default_factory=dict)
    attention: dict[str, AttentionParams] = field(default_factory=dict)
    decode: dict[str, DecodeAttentionParams] = field(default_factory=dict)
    stream: dict[str, StreamParams] = field(default_factory=dict)
    fixed: dict[str, FixedParams] = field(default_factory=dict)
    source: str = ""


def rested(kernels: Kernels) -> Kernels:
    """The same kernels with each product and attention as the first after a rest, at the boost clock."""
    return replace(
        kernels,
        gemm={cls: replace(p, loop_rate=0.0) for cls, p in kernels.gemm.items()},
        attention={cls: replace(p, loop_clock=1.0) for cls, p in kernels.attention.items()},
    )
