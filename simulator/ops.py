"""The intermediate representation: an `Op` carries work, never a duration.

A layer is a `LayerGraph`: ops in launch order, grouped into segments (`attn.F`, `dispatch.F`, `mlp.B` ...), each
segment on one stream. Kernels of one stream run in order; across streams an op waits for the ops in `after`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict

from simulator.dtypes import BF16, FP8, MXFP8, NVFP4, WIDTH

Part = Literal["F", "I", "W", "R"]
"""F forward, I input gradient, W weight gradient, R recomputation (runs in backward, before I)."""

Unit = Literal["", "mlp", "moe", "shared_experts"]
"""Part of a layer that can run again as a whole: its feed-forward part, its experts with gate and all-to-alls, or the
shared experts (which are part of `moe`, too)."""

Stream = Literal["compute", "comm"]
ConcurrentWith = Literal["nothing", "chunks", "pipeline", "whole"]
"""What a collective of the compute stream is overlapped with: nothing; the kernel that it feeds or drains, a chunk for
each rank; the GEMM that it drains, cut along the weight; as a whole, a GEMM that does not need it."""
GemmPrecision = Literal["fp8_block", "fp8_tensor", "fp8_row", "mxfp8", "nvfp4", "bf16"]
GemmForm = Literal["dense", "wgrad", "grouped", "masked", "grouped_wgrad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """(m x k) by (k x n), or one such multiplication for each of `groups`, in one kernel.

    Forms: `dense` and `wgrad`: groups = 1. `grouped`: each group has its own (k x n) weight. `masked`: a grouped one
    that knows only an upper bound of the tokens per group. `wgrad` forms accumulate into FP32 gradients: the output is
    read and written in FP32.

    Parameters
    ----------
    m : rows of the output; grouped: the total over groups, padded; masked: expected tokens per group.
    n : columns of the output.
    k : length of the sums; grouped_wgrad: the total over groups.
    precision : format of the operands, and how FP8 is scaled.
    form : see above.
    groups : number of GEMMs in the kernel.
    rows : tokens of each group before padding, of a grouped or masked GEMM (empty: equal).
    out_bytes : width of an output value [B].
    weight_bytes : width of a weight value where it is stored narrower than GEMMs multiply it (0: as the operands) [B].
    split : partial sums of FP8 are added up outside the tensor cores (gradients in software that asks for it).
    left : SMs that its grid leaves free for a kernel that communicates.
    """

    m: int
    n: int
    k: int
    precision: GemmPrecision
    form: GemmForm = "dense"
    groups: int = 1
    rows: tuple[int, ...] = ()
    out_bytes: float = 2.0
    split: bool = field(default=False, repr=False)
    weight_bytes: float = field(default=0.0, repr=False)
    left: int = field(default=0, repr=False)

    @property
    def flops(self) -> float:
        """Floating-point operations, 1 multiply-add = 2 [FLOP]."""
        return 2.0 * self.valid_rows * self.n * self.k

    @property
    def operand_bytes(self) -> float:
        """Width of one value of either operand [B]."""
        return {"bf16": BF16, "mxfp8": MXFP8, "nvfp4": NVFP4}.get(self.precision, FP8)

    @property
    def valid_rows(self) -> int:
        """Rows of the output over all groups."""
        if self.form != "masked":
            return self.m
        return sum(self.rows) or self.m * self.groups


def seen_keys(first: int, last: int, window: int = 0, chunk: int = 0) -> float:
    """Keys that queries at positions from `first` to `last` attend to, mean; the diagonal counts by one half.

    `window`: a query sees itself and the `window` - 1 keys before (0: all). `chunk`: it sees those of its own chunk of
    so many tokens (0: all). Without either: the half of the square, (first + last) / 2.
    """
    if last <= first:
        return 0.0

    def area(end: int) -> float:
        if chunk:
            whole, rest = divmod(end, chunk)
            return (whole * chunk * chunk + rest * rest) / 2.0
        inside = min(end, window) if window else end
        return inside * inside / 2.0 + float(window) * (end - inside)

    return (area(last) - area(first)) / (last - first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The attention core, forward or backward (FlashAttention-like; scores never leave the chip).

    Parameters
    ----------
    batch : sequences.
    seq_q : queries of a sequence [tokens].
    seq_kv : keys of a sequence [tokens].
    heads : query heads.
    kv_heads : heads of keys and values.
    d_qk : width of a query or key head [elements].
    d_v : width of a value head [elements].
    causal : whether queries attend only to earlier keys.
    backward : whether it is the backward.
    window : keys that a query attends to, itself included [tokens] (0: all earlier ones).
    chunk : tokens of a chunk whose keys its queries attend to (0: all earlier ones).
    cached : keys before the first query of the sequence [tokens].
    entries : keys that each stand for several tokens, to which queries attend besides [1]; the queries' positions among
        them are as their positions among the tokens.
    chosen : entries that a query attends to at most (0: all earlier ones).
    cached_entries : entries before the first query.
    precision : format of the operands.
    """

    batch: int
    seq_q: int
    seq_kv: int
    heads: int
    kv_heads: int
    d_qk: int
    d_v: int
    causal: bool = True
    backward: bool = False
    window: int = field(default=0, repr=False)  # calibration splits its samples by their text: it must not change
    chunk: int = field(default=0, repr=False)
    cached: int = field(default=0, repr=False)
    entries: int = field(default=0, repr=False)
    chosen: int = field(default=0, repr=False)
    cached_entries: int = field(default=0, repr=False)
    precision: Literal["bf16", "fp8"] = "bf16"

    def with_entries(self, entries: int, chosen: int, cached: int = 0) -> Attention:
        """The same with so many entries of several tokens besides, of which each query sees at most `chosen`."""
        return replace(self, entries=entries, chosen=chosen, cached_entries=cached)

    @property
    def seen_entries(self) -> float:
        """Entries of several tokens that a query attends to, mean."""
        return seen_keys(self.cached_entries, self.entries, self.chosen)

    @property
    def is_banded(self) -> bool:
        """Whether queries attend to some of the earlier keys only."""
        return 0 < (self.window or self.chunk) < self.seq_kv

    @property
    def flops_per_pair(self) -> float:
        """FLOP of a query with a key: 2 GEMMs forward, 5 backward (scores are recomputed) [FLOP]."""
        return 2.0 * (3 * self.d_qk + 2 * self.d_v if self.backward else self.d_qk + self.d_v)

    @property
    def flops_full(self) -> float:
        """FLOP over the full square of scores, or the whole band of a window or chunk [FLOP]."""
        if self.is_banded:
            reach = 2.0 * seen_keys(0, self.seq_kv, 0, self.chunk) if self.chunk else float(self.window)
        else:
            reach = float(self.seq_kv)
        reach += min(self.entries, self.chosen or self.entries)
        return self.batch * self.heads * self.seq_q * reach * self.flops_per_pair

    @property
    def flops(self) -> float:
        """FLOP of the pairs that the mask leaves, the diagonal counted by one half [FLOP]."""
        if not self.causal or not (self.is_banded or self.cached or self.entries):
            return self.flops_full * (0.5 if self.causal else 1.0)
        keys = seen_keys(self.cached, self.seq_kv, self.window, self.chunk) + self.seen_entries
        return self.batch * self.heads * self.seq_q * keys * self.flops_per_pair


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeAttention:
    """Attention of the newest tokens over a KV cache. The mask among the new tokens is left out: they are few.

    Parameters
    ----------
    batch : sequences.
    heads : query heads.
    kv_heads : heads of keys and values.
    d_qk : width of a query or key head [elements].
    d_v : width of a value head [elements].
    kv_len : cached keys of a sequence, the new tokens' included [tokens]; where they differ, the mean, rounded.
    q_len : new tokens of a sequence [tokens].
    kv_dtype : format of the cache; GEMMs run in BF16.
    latent : the first `d_v` entries of a key are its value, so the cache holds `d_qk` entries per token and head of
        keys (absorbed MLA: 1 head, 576 and 512).
    lengths : cached keys of each sequence, where they differ [tokens].
    """

    batch: int
    heads: int
    kv_heads: int
    d_qk: int
    d_v: int
    kv_len: int
    q_len: int = 1
    kv_dtype: Literal["bf16", "fp8", "fp8_ds_mla"] = "bf16"
    latent: bool = False
    lengths: tuple[int, ...] = ()

    @property
    def keys(self) -> int:
        """Cached keys of all sequences [tokens]."""
        return sum(self.lengths) or self.batch * self.kv_len

    @property
    def flops(self) -> float:
        """Scores and values, 1 multiply-add = 2 [FLOP]."""
        return 2.0 * self.keys * self.heads * self.q_len * (self.d_qk + self.d_v)

    @property
    def kv_bytes(self) -> float:
        """Keys and values of all sequences, read once [B]."""
        entries = self.d_qk if self.latent else self.d_qk + self.d_v
        return self.keys * self.kv_heads * entries * WIDTH[self.kv_dtype]

    @property
    def bytes(self) -> float:
        """The cache, and queries and outputs in BF16, once [B]."""
        return self.kv_bytes + 2.0 * self.batch * self.q_len * self.heads * (self.d_qk + self.d_v)


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """A memory-bound kernel.

    Parameters
    ----------
    read : bytes read [B].
    written : bytes written [B].
    blocks : CTAs of its grid (0: as many as fit).
    values : values that instructions, not bytes, may limit: those of which a kernel computes every address, or much
        more than their bytes take (0: bytes decide).
    """

    read: float
    written: float
    blocks: int = 0
    values: float = 0.0

    @property
    def bytes(self) -> float:
        """Bytes moved [B]."""
        return self.read + self.written


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A kernel of a recurrent layer in chunks of tokens.

    Parameters
    ----------
    flops : FLOP of its GEMMs [FLOP].
    read : bytes read [B].
    written : bytes written [B].
    values : values of all tokens' states, where instructions outside the tensor cores compute them (0: GEMMs do).
    ctas : CTAs of its grid.
    steps : chunks, or tiles of one, that a CTA goes through one after the other (1: each has CTAs of its own).
    """

    flops: float
    read: float
    written: float
    ctas: int
    steps: int = 1
    values: float = 0.0

    @property
    def bytes(self) -> float:
        """Bytes moved [B]."""
        return self.read + self.written


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Kernels too small for their bytes to matter: `launches` of them, each with its class's fixed time."""

    launches: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The experts that a token may choose. What a token reaches through a gate is in `simulator.routing.gate`.

    Parameters
    ----------
    experts : routed experts of a layer.
    top_k : experts of a token.
    groups : equal groups of experts (0: a token may choose any expert).
    node_limit : groups that a token may choose from (0: all).
    scored : a group's score is the sum of so many highest affinities (2: DeepSeek-V3, arXiv 2412.19437, section 2.1.2;
        1: DeepSeek-V2, arXiv 2405.04434, section 2.1.2).
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
    """Dispatch or combine of one rank. Volumes follow from `ranks` and `gate` in `simulator.routing`.

    Parameters
    ----------
    direction : dispatch or combine.
    tokens : local tokens.
    hidden : values of a token.
    bytes_per_token : size of a token on the wire [B].
    ranks : expert-parallel ranks.
    gate : gate of the experts.
    cached : whether a dispatch reuses the layout of an earlier one.
    low_latency : whether the kernels for decoding run.
    weighted : a combine that also sums the gradients of the gate weights, as the backward of a dispatch does.
    imbalance : tokens that reach the rank around which it is timed, over the mean.
    node_imbalance : the same of that rank's node; 0: the other ranks of the node have the mean.
    barrier : whether ranks wait for each other in it, as no notify came before.
    copies_apart : whether the kernels at both ends, which copy tokens into and out of buffers, are ops of their own.
    per_node : expert-parallel ranks that a node has room for; 0: one for each of its GPUs.
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
    barrier: bool = False
    node_imbalance: float = 0.0
    copies_apart: bool = False
    per_node: int = 0

    def near(self, gpus: int) -> int:
        """Expert-parallel ranks that share a node of so many GPUs."""
        return min(self.ranks, self.per_node or gpus)

    @property
    def sent(self) -> Streaming:
        """What the sending kernel of a low-latency all-to-all copies: a dispatch casts each token once, a combine moves
        a result for every choice."""
        if self.direction == "dispatch":
            return Streaming(read=self.tokens * self.hidden * BF16, written=self.tokens * self.bytes_per_token)
        moved = self.tokens * self.gate.top_k * self.bytes_per_token
        return Streaming(read=moved, written=moved)

    @property
    def received(self) -> Streaming:
        """What its receiving kernel copies: a dispatch lays out a copy for every choice, a combine sums them up."""
        moved = self.tokens * self.gate.top_k * self.bytes_per_token
        if self.direction == "dispatch":
            return Streaming(read=moved, written=moved)
        return Streaming(read=moved, written=self.tokens * self.hidden * BF16)


SENT, RECEIVED = "permute.expand", "permute.reduce"
"""Kernel classes of the copies at both ends of a low-latency all-to-all: those of permutations, which copy alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """The barrier before an all-to-all, with which ranks send token counts.

    Parameters
    ----------
    ranks : ranks of the all-to-all.
    tokens : local tokens.
    """

    ranks: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PointToPoint:
    """One message to a neighbour.

    Parameters
    ----------
    bytes : size of the message [B].
    tier : link that it takes.
    both_ways : the rank receives as much at the same time.
    """

    bytes: float
    tier: Literal["nvlink", "nic"]
    both_ways: bool = False


CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A collective.

    Parameters
    ----------
    kind : which collective.
    bytes : full buffer [B]: the sum of all shards for all_gather (output) and reduce_scatter (input), one rank's buffer
        for all_reduce and all_to_all.
    ranks : ranks of the group.
    per_node : ranks of the group that share a node.
    kernels : a name in `fabric.all_reduce` of the hardware profile, or "nccl"; NCCL runs what the named kernels do not.
    sms : SMs that the GEMM leaves free for it while it drains that in pieces.
    """

    kind: CollectiveKind
    bytes: float
    ranks: int
    per_node: int
    kernels: str = "nccl"
    sms: int = field(default=0, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """No kernel: `seconds` at a barrier until the most loaded rank arrives [s]. Added by the engine, which knows how
    long other ranks compute."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRead:
    """No kernel: the host waits `seconds` for a result of the GPU (token counts), and issues what follows only then.

    After it the host is no longer ahead: the engine adds the time in which the GPU waits for kernels to be issued.
    """

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWork:
    """Copies between a GPU and its host, and what the host's CPU does with them.

    Parameters
    ----------
    to_host, from_host : bytes copied [B].
    memory : bytes of the host's memory that the CPU reads and writes [B].
    overlapped : whether the three run at once, part by part; else one after the other.
    """

    to_host: float = 0.0
    from_host: float = 0.0
    memory: float = 0.0
    overlapped: bool = False


Work = (
    Gemm
    | Scan
    | Attention
    | DecodeAttention
    | Streaming
    | Fixed
    | AllToAll
    | Notify
    | PointToPoint
    | Collective
    | HostWork
    | Wait
    | HostRead
)


class Facts(TypedDict, total=False):
    """Fields of an `Op` that state facts about it, for functions that pass them on."""

    count: int
    scales_with_load: bool
    reads_resident: bool
    adds_to_resident: bool
    saves_input: bool
    alive: float
    read_by_backward: bool
    matrices: tuple[int, ...]
    launches: int
    parameters: int
    captured: bool
    unit: Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One kernel, or `count` equal ones back to back. It carries work, never a time.

    Parameters
    ----------
    name : unique in its layer (`attn.q_b.fwd`).
    cls : kernel class that the cost model prices (`gemm.fp8`, `quant.token` ...).
    part : F, I, W or R.
    segment : where it is in the layer (`attn.F`).
    work : what it does.
    stream : stream that it runs on.
    count : number of kernels.
    after : ops of other streams that it waits for.
    saved : bytes that it keeps for backward [B].
    concurrent_with : what a collective is overlapped with.
    scales_with_load : counted as work of this rank's experts, which is longer on the most loaded rank.
    reads_resident : reads what is in memory anyway (weights, kept logits), not activations of its own.
    adds_to_resident : adds into gradients, which are in memory anyway.
    saves_input : what it keeps for backward is (also) its input, the result of the op before.
    alive : bytes that are there while it runs, in addition to its operands and to what is kept [B].
    read_by_backward : whether the backward of its layer reads its output.
    matrices : output widths of the weight matrices that a GEMM multiplies by at once, of a linear layer that selective
        checkpointing counts (query, key, value: three); empty for everything else.
    launches : kernels of one call, whose time together the class prices.
    parameters : parameters of experts whose gradients are complete behind it, one by one.
    captured : replayed as part of a CUDA graph: the host does not issue it by itself.
    unit : part of the layer that it belongs to, of those that can run again as a whole.
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
    alive: float = 0.0
    read_by_backward: bool = True
    matrices: tuple[int, ...] = ()
    launches: int = 1
    parameters: int = 0
    captured: bool = False
    unit: Unit = ""

    @property
    def flops(self) -> float:
        """FLOP of all `count` kernels; 0 for what does no tensor work."""
        return self.work.flops * self.count if isinstance(self.work, (Gemm, Attention, DecodeAttention, Scan)) else 0.0
