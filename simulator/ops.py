"""The intermediate representation: an `Op` carries work, never a duration.

A layer is a `LayerGraph`: ops in launch order, grouped into segments (`attn.F`, `dispatch.F`, `mlp.B` ...), each
segment on one stream. Kernels of one stream run in order; across streams an op waits for the ops in `after`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from simulator.dtypes import BF16, FP8

Part = Literal["F", "I", "W", "R"]
"""F forward, I input gradient, W weight gradient, R recomputation (runs in backward, before I)."""

Stream = Literal["compute", "comm"]
ConcurrentWith = Literal["nothing", "chunks", "whole"]
"""What a collective of the compute stream runs beside: nothing; the GEMM that it feeds or drains, chunk by chunk; as a
whole, one that does not need it."""
GemmPrecision = Literal["fp8_block", "fp8_tensor", "fp8_row", "bf16"]
GemmForm = Literal["dense", "wgrad", "grouped", "masked", "grouped_wgrad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """`groups` products of (m x k) by (k x n) in one kernel.

    `dense`/`wgrad`: groups = 1. `grouped`: m is the *total* of rows over the groups (padded), each group has its own
    (k x n) weight. `masked`: m is the rows *per group*, of which the library knows beforehand no more than this number;
    `rows`, where given, are those that are there. `grouped_wgrad`: k is the total over groups.
    `wgrad` forms accumulate into FP32 gradients: the output is read and written in FP32.
    `rows` may list unequal rows per group (before padding) of a grouped or masked GEMM; empty: equal.
    """

    m: int
    n: int
    k: int
    precision: GemmPrecision
    form: GemmForm = "dense"
    groups: int = 1
    rows: tuple[int, ...] = ()
    out_bytes: float = 2.0

    @property
    def flops(self) -> float:
        """Floating-point operations, 1 multiply-add = 2 [FLOP]."""
        return 2.0 * self.valid_rows * self.n * self.k

    @property
    def operand_bytes(self) -> float:
        """Width of one value of either operand [B]."""
        return BF16 if self.precision == "bf16" else FP8

    @property
    def valid_rows(self) -> int:
        """Rows of the output over all groups."""
        if self.form != "masked":
            return self.m
        return sum(self.rows) or self.m * self.groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Scaled-dot-product attention core, forward or backward (FlashAttention-like; scores never leave the chip)."""

    batch: int
    seq_q: int
    seq_kv: int
    heads: int
    kv_heads: int
    d_qk: int
    d_v: int
    causal: bool = True
    backward: bool = False
    precision: Literal["bf16", "fp8"] = "bf16"

    @property
    def flops_full(self) -> float:
        """FLOP over the full square of scores: 2 products forward, 5 backward (scores are recomputed)."""
        pairs = 2.0 * self.batch * self.heads * self.seq_q * self.seq_kv
        return pairs * (3 * self.d_qk + 2 * self.d_v) if self.backward else pairs * (self.d_qk + self.d_v)

    @property
    def flops(self) -> float:
        """FLOP with the causal mask counted as one half of the square [FLOP]."""
        return self.flops_full * (0.5 if self.causal else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeAttention:
    """Attention of the `q_len` newest tokens of each of `batch` sequences over `kv_len` cached keys, these tokens' too.

    `latent`: the first `d_v` entries of a key are its value, so that the cache holds `d_qk` entries a token and head of
    keys (MLA absorbed: 1 head, 576 and 512). `kv_dtype`: of the cache; products run in BF16. The mask among the new
    tokens is left out: they are few.
    """

    batch: int
    heads: int
    kv_heads: int
    d_qk: int
    d_v: int
    kv_len: int
    q_len: int = 1
    kv_dtype: Literal["bf16", "fp8"] = "bf16"
    latent: bool = False

    @property
    def flops(self) -> float:
        """Scores and values, 1 multiply-add = 2 [FLOP]."""
        return 2.0 * self.batch * self.heads * self.q_len * self.kv_len * (self.d_qk + self.d_v)

    @property
    def kv_bytes(self) -> float:
        """Keys and values of all sequences, read once [B]."""
        entries = self.d_qk if self.latent else self.d_qk + self.d_v
        return self.batch * self.kv_len * self.kv_heads * entries * (1.0 if self.kv_dtype == "fp8" else 2.0)

    @property
    def bytes(self) -> float:
        """The cache, and queries and outputs in BF16, once [B]."""
        return self.kv_bytes + 2.0 * self.batch * self.q_len * self.heads * (self.d_qk + self.d_v)


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """A memory-bound kernel: bytes read and written [B], and the CTAs of its grid (0: as many as it likes)."""

    read: float
    written: float
    blocks: int = 0

    @property
    def bytes(self) -> float:
        """Bytes moved [B]."""
        return self.read + self.written


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Kernels too small for bytes to matter: `launches` of them, each costs its class's fixed time."""

    launches: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Which experts a token may choose: `top_k` of `experts`, from the best `node_limit` of equal `groups`.

    `groups` and `node_limit` [1] are 0 where a token may choose any expert. A group is scored by the sum of its
    `scored` highest affinities (2: DeepSeek-V3, arXiv 2412.19437, section 2.1.2; 1: DeepSeek-V2, arXiv 2405.04434,
    section 2.1.2). What a token reaches through a gate is in `simulator.routing.gate`.
    """

    experts: int
    top_k: int
    groups: int = 0
    node_limit: int = 0
    scored: int = 2

    @property
    def is_limited(self) -> bool:
        """Whether a token chooses from some of the groups only."""
        return self.groups > 1 and 0 < self.node_limit < self.groups

    @property
    def group_size(self) -> int:
        """Experts of one group [1]."""
        return self.experts // self.groups


@dataclass(frozen=True, slots=True, kw_only=True)
class AllToAll:
    """Expert dispatch or combine of one rank: `tokens` local tokens of `hidden` values, `bytes_per_token` [B] each.

    `ranks` expert-parallel ranks hold the experts of the `gate`; volumes follow from both in `simulator.routing`.
    `weighted`: a combine that also sums the gradients of the gate weights, as the backward of a dispatch does.
    `imbalance`: load of the fullest rank over the mean.
    """

    direction: Literal["dispatch", "combine"]
    tokens: int
    hidden: int
    bytes_per_token: float
    ranks: int
    gate: Gate
    cached: bool = False
    low_latency: bool = False
    weighted: bool = False
    imbalance: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """Barrier and exchange of counts over `ranks` ranks before an all-to-all."""

    ranks: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PointToPoint:
    """One message to a neighbour [B]; `tier` tells which link it takes."""

    bytes: float
    tier: Literal["nvlink", "nic"]


CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A collective over `ranks` ranks, `per_node` of which share a node. `bytes` is the full buffer: the sum of all
    shards for all_gather (output) and reduce_scatter (input), the buffer of one rank for all_reduce/all_to_all.
    `kernels`: whose, a name in `fabric.all_reduce` of the hardware profile, or NCCL's; NCCL does what those do not."""

    kind: CollectiveKind
    bytes: float
    ranks: int
    per_node: int
    kernels: str = "nccl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """No kernel: at a barrier, `seconds` until the most loaded rank arrives [s]. Made by the engine, which alone knows
    how long the others work."""

    seconds: float


Work = Gemm | Attention | DecodeAttention | Streaming | Fixed | AllToAll | Notify | PointToPoint | Collective | Wait


class Facts(TypedDict, total=False):
    """The fields of an `Op` that others ask instead of its name, for functions that hand them on."""

    scales_with_load: bool
    reads_resident: bool
    adds_to_resident: bool
    saves_input: bool
    in_ring: bool
    read_by_backward: bool
    matrices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One kernel (or `count` equal ones, back to back).

    `name` is unique in its layer (`attn.q_b.fwd`), `cls` the kernel class that the cost model prices (`gemm.fp8`,
    `quant.token` ...), `part` F/I/W/R, `segment` where it stands in the layer (`attn.F`), `after` the ops of *other*
    streams it waits for, `saved` the bytes it keeps for backward [B], `concurrent_with` what a collective runs
    beside.

    Facts that follow from where the op was made:

    - `scales_with_load`: counted with the work of this rank's experts, which is longer on the most loaded rank;
    - `reads_resident`: reads what is in memory anyway (weights, kept logits), not activations of its own;
    - `adds_to_resident`: adds into gradients, which are in memory anyway;
    - `saves_input`: what it keeps for backward is (also) its input, the result of the op before;
    - `in_ring`: a collective that passes parts on instead of gathering the whole buffer;
    - `read_by_backward`: whether the backward of its layer reads what it makes;
    - `matrices`: output widths of the weight matrices that a GEMM multiplies by in one, of a linear layer that
      selective checkpointing counts (query, key, value: three); empty for everything else.
    """

    name: str
    cls: str
    part: Part
    segment: str
    work: Work
    stream: Stream = "compute"
    count: int = 1
    after: tuple[str, ...] = ()
    saved: float = 0.0
    concurrent_with: ConcurrentWith = "nothing"
    scales_with_load: bool = False
    reads_resident: bool = False
    adds_to_resident: bool = False
    saves_input: bool = False
    in_ring: bool = False
    read_by_backward: bool = True
    matrices: tuple[int, ...] = ()

    @property
    def flops(self) -> float:
        """FLOP of all `count` kernels; 0 for what does no tensor work."""
        return self.work.flops * self.count if isinstance(self.work, (Gemm, Attention, DecodeAttention)) else 0.0
