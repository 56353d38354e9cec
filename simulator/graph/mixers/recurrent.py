"""Recurrent layers in training: the gated delta rule (Qwen3-Next), with a decay for each channel (Kimi Linear), and
Mamba-2, in chunks.

One projection, a short convolution, the state's kernels, a gated norm, and the output projection. The kernels of the
delta rule are those of flash-linear-attention (fla/ops/gated_delta_rule/chunk.py: scaled k k^T, its inverse, w and u,
the states, the output; backward makes w, u and the states again); those of Mamba-2 are mamba_ssm's
(mamba_ssm/ops/triton/ssd_combined.py: states of chunks, c b^T, the scan of a chunk). FLOP and kept bytes are those of
`workloads/reference/layers/mixers/recurrent.py`.

Tensor parallelism splits the heads, context parallelism too: an all-to-all brings each rank all tokens of its heads,
and another brings the output back (Megatron-Core, megatron/core/ssm/mamba_context_parallel.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from simulator.dtypes import BF16, FP32
from simulator.graph import linear
from simulator.graph.attention import normed_again
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.norm import (
    enter_attention_backward,
    enter_branch,
    leave_attention,
    leave_branch_backward,
)
from simulator.graph.parallel import gather, ranks_per_node, regather, scatter
from simulator.graph.shapes import Shapes
from simulator.ops import Collective, Part, Scan, Streaming, seen_keys
from simulator.spec.mixer import StateShape

VALUES = 64
"""Columns of the state that a CTA of the kernel over the states holds (fla's autotuned BV; mamba_ssm's block of P)."""


def state_of(s: Shapes) -> StateShape:
    """This tensor-parallel rank's share of the heads; groups that do not divide are on every rank."""
    whole, tp = s.model.state, s.job.layout.tp
    norms = whole.heads // tp if whole.is_delta else max(1, whole.norms // tp) if whole.norms else 0
    return replace(
        whole,
        heads=whole.heads // tp,
        key_heads=max(1, whole.key_heads // tp),
        numbers=whole.numbers // tp if not whole.rank else whole.heads // tp + whole.gate_ranks * whole.rank,
        norms=norms,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """FLOP of the chunked form over a microbatch of `tokens`, `pairs` of them within chunks [FLOP]."""

    tokens: int
    pairs: float
    cubes: float
    r: StateShape

    @property
    def state(self) -> float:
        """One GEMM of all chunks with the state: tokens x key_dim x value_dim."""
        return 2.0 * self.tokens * self.r.state_values

    @property
    def keys(self) -> float:
        """One GEMM within the chunks as wide as a key, of all heads."""
        return 2.0 * self.pairs * self.r.heads * self.r.key_dim

    @property
    def shared_keys(self) -> float:
        """The same of heads that share their keys."""
        return 2.0 * self.pairs * self.r.key_heads * self.r.key_dim

    @property
    def values(self) -> float:
        """One GEMM within the chunks as wide as a value."""
        return 2.0 * self.pairs * self.r.inner

    @property
    def inverse(self) -> float:
        """One GEMM of two matrices of pairs."""
        return 2.0 * self.cubes * self.r.heads

    @property
    def states_bytes(self) -> float:
        """The states between chunks in BF16 [B]."""
        return self.r.state_values * BF16 * self.tokens / self.r.chunk


def length_of(s: Shapes) -> int:
    """Tokens of a sequence that pass through the state: in serving the new ones."""
    return s.seq if s.workload.serves else s.seq_kv


def counts_of(s: Shapes) -> Counts:
    """The GEMMs of one rank's share: with context parallelism it has all tokens of a part of its heads, which is as
    much as all heads of its own tokens."""
    r = state_of(s)
    length = length_of(s)
    mean = 2.0 * seen_keys(0, length, 0, r.chunk)
    whole, rest = divmod(length, r.chunk)
    cubes = (whole * r.chunk**3 + rest**3) / length
    return Counts(tokens=s.tokens, pairs=s.tokens * mean, cubes=s.tokens * cubes, r=r)


def scan(s: Shapes, flops: float, read: float, written: float, *, serial: bool = False) -> Scan:
    """A kernel over chunks; `serial`: its CTAs go from chunk to chunk."""
    r = state_of(s)
    chunks = ceil(length_of(s) / r.chunk)
    heads = s.batch * max(1, r.heads // s.job.layout.cp)
    if serial:
        return Scan(flops=flops, read=read, written=written, ctas=heads * ceil(r.value_dim / VALUES), steps=chunks)
    return Scan(flops=flops, read=read, written=written, ctas=heads * chunks)


def trade(builder: SegmentBuilder, name: str, s: Shapes, width: int) -> None:
    """Context parallelism: tokens for heads, or back; `width` values a token travel."""
    cp = s.job.layout.cp
    if cp > 1:
        work = Collective(kind="all_to_all", bytes=s.tokens * width * BF16, ranks=cp, per_node=ranks_per_node(s))
        builder.add(name, "comm.cp.all_to_all", work)


def forward(s: Shapes) -> SegmentBuilder:
    """`attn.F` up to and including the norm before the feed-forward part; the caller ends it."""
    builder = SegmentBuilder("attn.F", "F", s)
    entered = enter_branch(builder, "norm.attn.fwd", s, s.formats.kept_bytes, gathered=True)
    inside(builder, s, entered)
    leave_attention(builder, s)
    return builder


def inside(builder: SegmentBuilder, s: Shapes, entered: float) -> None:
    """From the norm's output to that of the branch; `entered`: bytes kept where no norm keeps its output [B]."""
    t, h, r = s.tokens, s.model.hidden_size, state_of(s)
    gather(builder, "mixer.x", s, h)
    kept = t * r.projected * BF16 + entered
    wide = (r.channels, r.projected - r.channels - r.numbers, r.numbers)
    linear.forward(builder, "mixer.in", t, r.projected, h, recipe=s.recipe, place="column", saved=kept, matrices=wide)
    for name, n in narrow(r):
        saved = t * n * BF16 if name == "mixer.gate" else 0.0
        linear.forward(builder, name, t, n, r.rank, recipe=s.recipe, saved=saved)
    trade(builder, "mixer.heads.fwd", s, traded(r))
    prepare(builder, s)
    (delta_forward if r.is_delta else ssd_forward)(builder, s)
    gated_norm(builder, s)
    trade(builder, "mixer.tokens.fwd", s, r.inner)
    linear.forward(builder, "mixer.out", t, h, r.inner, recipe=s.recipe, place="row")
    scatter(builder, "mixer.out", s, h)


def narrow(r: StateShape) -> tuple[tuple[str, int], ...]:
    """Projections of gate and decays from what the input projection made narrow: name and width."""
    if not r.rank:
        return ()
    decay = ("mixer.decay", r.decays)
    return (decay,) if r.full_gate else (("mixer.gate", r.inner), decay)


def traded(r: StateShape) -> int:
    """Values of a token that change ranks under context parallelism."""
    return r.projected if not r.rank else r.channels + r.inner + r.decays + r.heads


def prepare(builder: SegmentBuilder, s: Shapes) -> None:
    """Convolution with SiLU, the numbers of each head, and queries and keys of length one."""
    t, r = s.tokens, state_of(s)
    kept = r.inner if r.is_delta else r.channels
    work = linear.cast(t * r.channels, BF16, BF16)
    builder.add("mixer.conv.fwd", "conv", work, saved=t * kept * BF16)
    strength = r.heads * BF16 if r.is_delta else 0.0
    numbers = r.heads + r.decays if r.rank else r.numbers
    gates = Streaming(read=t * numbers * BF16, written=t * (r.decays * FP32 + strength))
    builder.add("mixer.gates.fwd", "elem", gates, saved=gates.written)
    if r.is_delta:
        repeated = 2 * t * r.heads * r.key_dim * BF16
        statistics = 2 * t * r.key_heads * FP32
        work = Streaming(read=2 * t * r.keys * BF16, written=repeated)
        builder.add("mixer.length.fwd", "norm.fwd.narrow", work, saved=repeated + statistics)


def gated_norm(builder: SegmentBuilder, s: Shapes) -> None:
    """The norm of the output with its gate; its result is kept as the input of the output projection. Without a norm
    the state's kernel gates its output by itself."""
    t, r = s.tokens, state_of(s)
    if not r.norms:
        return
    values = t * r.inner * BF16
    kept = values + t * r.norms * FP32
    builder.add("mixer.norm.fwd", "norm.fwd.narrow", Streaming(read=2 * values, written=values), saved=kept)


def delta_forward(builder: SegmentBuilder, s: Shapes) -> None:
    """The kernels of the delta rule."""
    c = counts_of(s)
    t, r = s.tokens, c.r
    k, v = t * r.heads * r.key_dim * BF16, t * r.inner * BF16
    pairs, kept = t * r.heads * r.chunk, c.pairs * r.heads * BF16
    builder.add("mixer.kkt.fwd", "scan.chunk", scan(s, c.keys, k, pairs * FP32))
    builder.add("mixer.solve.fwd", "scan.solve", scan(s, 0.0, pairs * FP32, pairs * BF16), saved=kept)
    _states_again(builder, c, s, k, v, pairs)
    work = scan(s, c.state + c.keys + c.values, 2 * k + v + c.states_bytes, v)
    builder.add("mixer.scan.fwd", "scan.chunk", work, saved=v)


def _states_again(
    builder: SegmentBuilder, c: Counts, s: Shapes, k: float, v: float, pairs: float, *, part: Part | None = None
) -> None:
    """w, u and the states between chunks."""
    name = "recompute" if part else "fwd"
    work = scan(s, c.keys + c.values, k + v + pairs * BF16, k + v)
    builder.add(f"mixer.wu.{name}", "scan.chunk", work, part=part)
    work = scan(s, 2 * c.state, 2 * k + v, v + c.states_bytes, serial=True)
    builder.add(f"mixer.state.{name}", "scan.state", work, part=part)


def ssd_forward(builder: SegmentBuilder, s: Shapes) -> None:
    """The kernels of Mamba-2."""
    c = counts_of(s)
    x = s.tokens * c.r.inner * BF16
    shared = s.tokens * c.r.keys * BF16
    _ssd_states(builder, c, s, x, shared)
    gated = 0.0 if c.r.norms else x  # the gate is read, and the gated output written as well
    work = scan(s, c.state + c.values, x + shared + c.states_bytes + gated, x + gated)
    builder.add("mixer.scan.fwd", "scan.chunk", work, saved=x + gated)


def _ssd_states(
    builder: SegmentBuilder, c: Counts, s: Shapes, x: float, shared: float, *, part: Part | None = None
) -> None:
    """States of the chunks, passed on from one to the next, and c b^T of each."""
    name = "recompute" if part else "fwd"
    builder.add(f"mixer.state.{name}", "scan.chunk", scan(s, c.state, x + shared, 2 * c.states_bytes), part=part)
    work = Streaming(read=2 * c.states_bytes, written=c.states_bytes)
    builder.add(f"mixer.pass.{name}", "elem", work, part=part)
    work_cb = scan(s, c.shared_keys, 2 * shared, s.tokens * c.r.key_heads * c.r.chunk * FP32)
    builder.add(f"mixer.cb.{name}", "scan.chunk", work_cb, part=part)


def delta_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """Backward of the delta rule: w, u and states once more, then from the last chunk to the first."""
    c = counts_of(s)
    t, r = s.tokens, c.r
    k, v, pairs = t * r.heads * r.key_dim * BF16, t * r.inner * BF16, t * r.heads * r.chunk
    _states_again(builder, c, s, k, v, pairs, part="R")
    builder.add("mixer.dv.bwd", "scan.chunk", scan(s, c.keys + c.values, 2 * k + v, v))
    states = scan(s, 3 * c.state, 3 * k + 2 * v, v + c.states_bytes, serial=True)
    builder.add("mixer.state.bwd", "scan.state", states)
    within = scan(s, 3 * c.state + 2 * c.keys + c.values, 2 * k + 3 * v + 2 * c.states_bytes, 3 * k)
    builder.add("mixer.scan.bwd", "scan.chunk", within)
    corrections = scan(s, 2 * c.keys + 2 * c.values, 2 * k + 2 * v + pairs * BF16, k + v + pairs * FP32)
    builder.add("mixer.wu.bwd", "scan.chunk", corrections)
    builder.add("mixer.kkt.bwd", "scan.chunk", scan(s, 3 * c.keys + 2 * c.inverse, k + pairs * (BF16 + FP32), k))


def ssd_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """Backward of Mamba-2's state."""
    c = counts_of(s)
    x, shared = s.tokens * c.r.inner * BF16, s.tokens * c.r.keys * BF16
    by_head = s.tokens * c.r.heads * c.r.key_dim * FP32
    _ssd_states(builder, c, s, x, shared, part="R")
    builder.add("mixer.state.bwd", "scan.chunk", scan(s, 3 * c.state, 2 * x + shared, x + by_head + c.states_bytes))
    builder.add("mixer.pass.bwd", "elem", Streaming(read=2 * c.states_bytes, written=c.states_bytes))
    work = scan(s, c.state + 2 * c.values, 2 * x + shared + c.states_bytes, x + by_head)
    builder.add("mixer.scan.bwd", "scan.chunk", work)
    builder.add("mixer.cb.bwd", "scan.chunk", scan(s, 2 * c.shared_keys, 2 * shared + by_head, 2 * shared))


def backward(builder: SegmentBuilder, s: Shapes) -> Segment:
    """The rest of `attn.B`."""
    enter_attention_backward(builder, s)
    to_projection(builder, s)
    normed_again(builder, s)
    to_input(builder, s)
    leave_branch_backward(builder, "attn", s)
    return builder.done()


def to_projection(builder: SegmentBuilder, s: Shapes) -> None:
    """From the gradient of the branch's output to that of what the input projection made."""
    t, h, r = s.tokens, s.model.hidden_size, state_of(s)
    gather(builder, "mixer.out_g", s, h)
    linear.input_gradient(builder, "mixer.out", t, h, r.inner, recipe=s.recipe, place="row")
    if s.fp8:
        linear.cast_for_wgrad(builder, "mixer.out", t, r.inner, which="x")
        linear.cast_for_wgrad(builder, "mixer.out", t, h, which="g")
    trade(builder, "mixer.tokens.bwd", s, r.inner)
    values = t * r.inner * BF16
    work = Streaming(read=3 * values, written=2 * values)
    builder.add(*(("mixer.norm.bwd", "norm.bwd") if r.norms else ("mixer.gated.bwd", "elem")), work)
    (delta_backward if r.is_delta else ssd_backward)(builder, s)
    if r.is_delta:
        work = Streaming(read=4 * t * r.heads * r.key_dim * BF16, written=2 * t * r.keys * BF16)
        builder.add("mixer.length.bwd", "norm.bwd", work)
    numbers = r.heads + r.decays if r.rank else r.numbers
    gates = Streaming(read=t * (r.heads + r.decays) * FP32 + t * numbers * BF16, written=t * numbers * BF16)
    builder.add("mixer.gates.bwd", "elem", gates)
    for name, n in narrow(r):
        linear.input_gradient(builder, name, t, n, r.rank, recipe=s.recipe)
        if s.fp8:
            linear.cast_for_wgrad(builder, name, t, r.rank, which="x")
            linear.cast_for_wgrad(builder, name, t, n, which="g")
    builder.add("mixer.conv.bwd", "conv", linear.cast(t * r.channels, 2 * BF16, BF16))
    trade(builder, "mixer.heads.bwd", s, traded(r))


def to_input(builder: SegmentBuilder, s: Shapes) -> None:
    """On to the gradient of the norm's output."""
    t, h, r = s.tokens, s.model.hidden_size, state_of(s)
    regather(builder, "mixer.x", s, h)
    linear.input_gradient(builder, "mixer.in", t, r.projected, h, recipe=s.recipe, place="column")
    if s.fp8:
        linear.cast_for_wgrad(builder, "mixer.in", t, h, which="x")
        linear.cast_for_wgrad(builder, "mixer.in", t, r.projected, which="g")
    scatter(builder, "mixer.dx", s, h, gradient=True)


def weights(s: Shapes) -> Segment:
    """`attn.W`: of both projections; the few other weights' gradients ride on the kernels that read their inputs."""
    r, h = state_of(s), s.model.hidden_size
    builder = SegmentBuilder("attn.W", "W", s)
    linear.weight_gradient(builder, "mixer.out", s.tokens, h, r.inner, recipe=s.recipe, place="row")
    for name, n in narrow(r):
        linear.weight_gradient(builder, name, s.tokens, n, r.rank, recipe=s.recipe)
    linear.weight_gradient(builder, "mixer.in", s.tokens, r.projected, h, recipe=s.recipe, place="column")
    return builder.done()
