"""Parameters of the kernel cost models, one small set for each kernel class, fitted from measurements.

Plain frozen values, read from `hardware_profiles/kernels/<name>.toml`. Rates are shares of a peak of the GPU, so that a
class fitted on one GPU also describes another one of the same architecture; times are seconds. Every class has its
`source`, the `range` that its fit covers, and whether it is `assumed` or was measured on this GPU.

A class name may end in `@implementation` (`gemm.fp8@deepgemm`): another kernel for the same work.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmParams:
    """A tiled GEMM kernel: the tiles it may pick and what they cost.

    A CTA computes one output tile after another. A tile is a loop over K in steps of `k_block`; tiles are done in waves
    over the SMs. `simulator.cost.gemm_cost` has the equations.

    Parameters
    ----------
    tiles : output tiles that the library chooses among (rows, columns); the last one is for large problems.
    k_block : depth of one main-loop step [elements].
    rate : multiply-add rate of a main-loop step, share of the tensor peak of one SM at boost clock.
    block_time : fixed time of a main-loop step [s].
    tile_time : fixed time of a tile [s].
    store_rate : write-out of a tile by one SM [B/s]; the next tile's main loop can hide it.
    launch : fixed time of a kernel [s].
    power_rate : share of the tensor peak that power and L2 of the whole GPU sustain for one kernel.
    bandwidth : attainable share of the displayed memory bandwidth.
    loop_rate : as `power_rate`, in a benchmark's loop (0: the same); a GPU's power model replaces it in a step.
    reset : time to clear the tile counter, paid with more than two waves and by a split along K [s].
    group_time : time between kernel starts of a library with one kernel per group [s].
    streams : how many kernels of such a library run at once (0: one kernel for all groups).
    split : most parts that the K loop of a GEMM with few tiles is cut into; a second kernel adds them up.
    load_rate : rate at which one SM can load operands [B/s] (0: no limit).
    fill : time before memory streams at full rate [s].
    traffic : slowdown per share of the displayed memory bandwidth that a concurrent kernel moves.
    row_align : the tokens of each group are padded to a multiple of this.
    unusable_sms : SMs that stay idle while others hold SMs, because clusters of CTAs no longer fit.
    tiles_per_cta : tiles assigned to a CTA beforehand, by the tile for large problems; a CTA without an SM runs later.
    cluster : tiles per cluster of CTAs (rows, columns); a group fills its last cluster with idle CTAs.
    cluster_sms : SMs that clusters of this size can use (0: all); a cluster lies within one GPC.
    few : rows of a mean group and columns beyond which only the last tiles are taken (0: always the fastest of all).
    large : size that two of rows, columns and depth must reach for the last tile; below it the last two are tried.
    one_wave : number of leading `tiles` that are taken only where one wave is enough.
    by_columns : tiles are assigned down columns, so that rows which L2 does not hold are read again.
    grid_from_expected_m : a masked GEMM starts only the CTAs that its expected rows need in the fewest waves.
    l2_writeback : share of L2 that holds other kernels' results, which must be written to memory first.
    source : where the values come from.
    range : shapes that the fit covers.
    assumed : True if nobody measured them on this GPU.
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
    """Main-loop rate of attention for one pair of head dimensions.

    Parameters
    ----------
    d_qk : width of a query or key head [elements].
    d_v : width of a value head [elements].
    rate : share of the tensor peak of one SM at boost clock.
    """

    d_qk: int
    d_v: int
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionParams:
    """A FlashAttention-like kernel: each tile of queries loops over blocks of keys.

    Parameters
    ----------
    block_q : queries of a tile [tokens].
    block_kv : keys of a block [tokens].
    rates : main-loop rates by head dimensions; others are interpolated by d_qk + d_v.
    tile_time : fixed time of a tile [s].
    launch : fixed time of a kernel [s].
    power_rate, bandwidth, traffic : as in `GemmParams`.
    mask_blocks : extra time of a causal tile on its diagonal, in key blocks.
    tail : how much later than the mean the last SM of a causal kernel ends, share of the longest tile's time.
    passes : how often a backward's kernels before and after the main one read or write all tensors.
    sums : how often the kernels that sum gradients over query heads with the same keys move these gradients.
    loop_clock : share of the boost clock that power sustains in a benchmark's loop (see `GemmParams.loop_rate`).
    source : where the values come from.
    range : shapes that the fit covers.
    assumed : True if nobody measured them on this GPU.
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
    """Attention of the newest tokens over a KV cache (flash decoding): the keys of a sequence are cut into parts.

    There are two ways to cut. `even` (FlashMLA, FlashInfer): as many CTAs as run at once, all with equally many blocks.
    Otherwise (FlashAttention-2) every sequence is cut into equally many parts: one part if the tiles fill the share
    `full` of the CTAs that run at once; else the fewest parts whose waves are filled `keep` times as well as the best.
    An uncut sequence runs in another kernel with its own tile. A second kernel adds up the parts.

    Parameters
    ----------
    block_q : rows of a tile: query heads that share keys × new tokens.
    block_kv : keys of a block [tokens].
    resident : most CTAs on one SM.
    rate : multiply-add rate of all CTAs of an SM, share of its tensor peak; a tile that is not full costs a full one.
    block_time : time that a block waits for its loads [s].
    tile_time : fixed time of a CTA [s].
    launch : fixed time of a call [s].
    merge : fixed time of the kernel that adds up parts [s].
    merge_step : time of that kernel for each part of a sequence [s].
    power_rate : share of the tensor peak that the GPU's power sustains.
    bandwidth : attainable share of the displayed memory bandwidth.
    even : whether keys are cut so that all CTAs have equally many blocks.
    overhead : cost of starting a sequence where cuts are even [blocks].
    full : see above, share of the CTAs that run at once.
    keep : see above, share of the best filling of waves.
    most : most parts of a sequence.
    whole_q : `block_q` of an uncut sequence (0: the same).
    whole_kv : `block_kv` of an uncut sequence [tokens] (0: the same).
    l2_writeback, traffic : as in `GemmParams`.
    source : where the values come from.
    range : shapes that the fit covers.
    assumed : True if nobody measured them on this GPU.
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
    """A memory-bound kernel: `launch` plus its bytes at a bandwidth, or the chain of accesses of its CTAs.

    Parameters
    ----------
    launch : fixed time of a kernel [s].
    bandwidth : attainable share of the displayed memory bandwidth.
    sm_rate : what one SM can move [B/s] (0: no limit).
    value_rate : values that the instructions of one SM get through [1/s], at boost clock (0: no limit).
    l2_gain : how many times faster bytes move that are still in L2 (1: no gain).
    wave_time : with fewer SMs a grid that exactly fills the GPU needs a second wave; its time, share of the first.
    traffic : slowdown per share of the displayed memory bandwidth that a concurrent kernel moves.
    concurrent_delay : later start while an all-to-all kernel moves `Kernels.comm_traffic` [s]; less in proportion.
    cta_time : fixed time of a CTA, which waits for its own loads [s].
    cta_rate : rate at which one CTA moves its bytes [B/s] (0: no limit).
    cta_most : most that a CTA takes [s] (0: no limit).
    resident : CTAs that fit on an SM by threads, registers and shared memory (0: a persistent grid, all run at once).
    source : where the values come from.
    range : sizes that the fit covers.
    assumed : True if nobody measured them on this GPU.
    """

    launch: float
    bandwidth: float
    sm_rate: float = 0.0
    value_rate: float = 0.0
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
class ScanParams:
    """A kernel of a recurrent layer in chunks.

    Parameters
    ----------
    rate : rate of its GEMMs on all SMs, share of the BF16 tensor peak.
    bandwidth : attainable share of the displayed memory bandwidth.
    step_time : least time of a CTA for one chunk [s].
    value_rate : values of a state that the instructions of one SM get through [1/s], at boost clock (0: no limit).
    launch : fixed time of a kernel [s].
    resident : CTAs that run on an SM at once.
    wide : time of a step of CTAs with twice as many columns of the state, over that of others (0: there are none).
    traffic : as in `GemmParams`.
    source : where the values come from.
    range : where the values may lie, or the shapes that the fit covers.
    assumed : True if nobody measured them on this GPU.
    """

    rate: float
    bandwidth: float
    step_time: float
    launch: float
    value_rate: float = 0.0
    resident: int = 2
    wide: float = 0.0
    traffic: float = 1.0
    source: str
    range: str = ""
    assumed: bool = False


def assumed_scans() -> dict[str, ScanParams]:
    """What stands in for kernels of recurrent layers in a profile without any.

    Their tiles (64 x 64 x 128) are those of attention kernels, which reach 0.3 to 0.6 of the tensor peak, with more
    of the time for loads; a CTA that goes from chunk to chunk waits for two GEMMs of a chunk after each other.

    Mamba-1's scan computes an exponential and a dozen other instructions for each value of a state, and reads b and c
    of a token, 4 B a value, from L2 for every channel (state-spaces/mamba, csrc/selective_scan, 2024). On an H100 (128
    lanes an SM, 16 of them for exponentials, 1.7 GHz; 5.5 TB/s of L2) each of the three allows 1.0 to 2.7e10 values a
    second and SM. Backward runs the forward again, and sums gradients of b and c over channels: a third of that.
    """
    source = "assumed: below attention kernels of the same tiles; nobody's measurements are here"
    chunk = ScanParams(
        rate=0.25,
        bandwidth=0.6,
        step_time=2e-6,
        launch=4e-6,
        source=source,
        range="rate 0.12 to 0.45, bandwidth 0.4 to 0.85, step 1 to 4 us",
        assumed=True,
    )
    selective = replace(
        chunk,
        step_time=5e-6,
        resident=8,
        value_rate=1.0e10,
        source="assumed: instructions and L2 bytes of mamba_ssm's selective scan; nobody's measurements are here",
        range="value_rate 5e9 to 2.2e10, bandwidth 0.4 to 0.85, step 2 to 12 us",
    )
    back = replace(
        selective,
        step_time=15e-6,
        value_rate=3.5e9,
        range="value_rate 1.5e9 to 8e9, bandwidth 0.4 to 0.85, step 5 to 40 us",
    )
    return {
        "scan.chunk": chunk,
        "scan.state": replace(chunk, resident=1),
        "scan.selective": selective,
        "scan.selective.bwd": back,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedParams:
    """Kernels too small for their work to matter.

    Parameters
    ----------
    time : time of each kernel [s].
    source : where the value comes from.
    range : sizes that it was measured at.
    assumed : True if nobody measured it on this GPU.
    """

    time: float
    source: str
    range: str = ""
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """An earlier release of a library, whose kernels take longer than those that the classes were measured with.

    Parameters
    ----------
    longer : how many times as long a kernel takes, by kernel class; of attention under a causal mask with ".causal".
    source : where the values come from.
    """

    longer: dict[str, float]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """All calibrated kernel classes of one GPU.

    Parameters
    ----------
    name : the file's name in `hardware_profiles/kernels`.
    gap : time between two kernels of a stream [s].
    gap_source : where `gap` comes from.
    comm_traffic : memory traffic of the all-to-all kernel that ran during the calibration [B/s]; see `Share`.
    gemm : GEMM parameters by kernel class.
    attention : attention parameters by kernel class.
    decode : decode-attention parameters by kernel class.
    scan : kernels of recurrent layers by kernel class.
    stream : memory-bound kernels by kernel class.
    fixed : kernels of fixed time by kernel class.
    releases : earlier releases of libraries by name and number, as "cublas-12.5".
    source : where the file comes from.
    """

    name: str
    gap: float
    gap_source: str
    comm_traffic: float = 3e11
    gemm: dict[str, GemmParams] = field(default_factory=dict)
    attention: dict[str, AttentionParams] = field(default_factory=dict)
    decode: dict[str, DecodeAttentionParams] = field(default_factory=dict)
    scan: dict[str, ScanParams] = field(default_factory=assumed_scans)
    stream: dict[str, StreamParams] = field(default_factory=dict)
    fixed: dict[str, FixedParams] = field(default_factory=dict)
    releases: dict[str, Release] = field(default_factory=dict)
    source: str = ""


def rested(kernels: Kernels) -> Kernels:
    """The same kernels with every GEMM and attention kernel at the boost clock, as the first one after idle time."""
    return replace(
        kernels,
        gemm={cls: replace(p, loop_rate=0.0) for cls, p in kernels.gemm.items()},
        attention={cls: replace(p, loop_clock=1.0) for cls, p in kernels.attention.items()},
    )
