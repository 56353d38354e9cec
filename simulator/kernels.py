"""Parameters of the kernel cost models, one small set a kernel class, fitted from measurements.

A leaf: plain frozen values that a TOML file (`hardware_profiles/kernels/<name>.toml`) fills. Rates are fractions of a
peak of the GPU, so that a class fitted on one GPU can be asked about another of the same architecture; times are
seconds. Every class says where it comes from (`source`), where it holds (`range`) and whether anybody measured it
(`assumed`).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmParams:
    """A tiled GEMM kernel: which tiles it may pick and what a tile costs.

    `tiles` are the (rows, columns) of output tiles the library chooses among, `k_block` the depth of one main-loop
    step. `rate` is the main loop's share of the tensor peak of one SM (at boost clock), `block_time` [s] what every
    main-loop step costs beside its multiply-adds, `tile_time` [s] the fill and drain of one output tile,
    `store_rate` [B/s] per SM of the part of the write-out that is not hidden. `launch` [s] is paid once a kernel,
    `bandwidth` is the attainable share of the displayed memory bandwidth, `stream_rate` [B/s] per SM the rate at
    which one SM can pull operands. `power_rate` is the share of the whole GPU's tensor peak that its power budget
    sustains (0: no cap). `cluster`: CTAs scheduled together.
    `traffic` tells how much a neighbour's memory traffic slows the kernel: by a share `traffic * partner / peak
    bandwidth`. `persistent_stall`: a grid sized for the whole GPU waits when SMs are taken.
    """

    tiles: tuple[tuple[int, int], ...]
    k_block: int
    rate: float
    block_time: float
    tile_time: float
    store_rate: float
    launch: float
    bandwidth: float
    stream_rate: float
    power_rate: float = 0.0
    cluster: int = 1
    traffic: float = 0.0
    group_align: int = 1
    source: str
    range: str = ""
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRate:
    """Main-loop rate of an attention kernel for one pair of head dimensions, as a share of the peak of an SM."""

    d_qk: int
    d_v: int
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionParams:
    """A FlashAttention-like kernel: tiles of `block_q` queries that walk over blocks of `block_kv` keys.

    `rates` hold the main-loop rate per pair of head dimensions (between them: nearest), `tile_time` [s] the cost of
    opening and closing one tile, `launch` [s] of the kernel, `bandwidth` the attainable share of memory bandwidth,
    `traffic` the sensitivity to a neighbour's memory traffic (see `GemmParams`).
    """

    block_q: int
    block_kv: int
    rates: tuple[AttentionRate, ...]
    tile_time: float
    launch: float
    bandwidth: float
    causal_time: float = 0.0
    power_rate: float = 0.0
    traffic: float = 0.0
    source: str
    range: str = ""
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamParams:
    """A memory-bound kernel: a fixed time and a bandwidth.

    `launch` [s] is paid once, `bandwidth` is the attainable share of the displayed memory bandwidth, `l2_gain` the
    factor by which bytes that stay in L2 are cheaper, `sm_rate` [B/s] what one SM can move, `traffic` the sensitivity
    to a neighbour's memory traffic.
    """

    launch: float
    bandwidth: float
    l2_gain: float = 1.0
    sm_rate: float = 0.0
    traffic: float = 1.0
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
    """All calibrated kernel classes of one GPU. `gap` [s] stands behind every kernel on a stream."""

    name: str
    gap: float
    gap_source: str
    gemm: dict[str, GemmParams] = field(default_factory=dict)
    attention: dict[str, AttentionParams] = field(default_factory=dict)
    stream: dict[str, StreamParams] = field(default_factory=dict)
    fixed: dict[str, FixedParams] = field(default_factory=dict)
    source: str = ""
