"""Recurrent layers in training: the gated delta rule (Qwen3-Next), with a decay for each channel (Kimi Linear), and
Mamba-2, in chunks.

One projection, a short convolution, the state's kernels (`scans`), a gated norm, and the output projection. FLOP and
kept bytes are those of `workloads/reference/layers/mixers/recurrent.py`.

Tensor parallelism splits the heads, context parallelism too: an all-to-all brings each rank all tokens of its heads,
and another brings the output back (Megatron-Core, megatron/core/ssm/mamba_context_parallel.py).
"""

from __future__ import annotations

from dataclasses import replace

from simulator.dtypes import BF16, FP32
from simulator.graph import linear
from simulator.graph.attention import normed_again
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.mixers.scans import (
    Chunks,
    Kernel,
    delta_backward,
    delta_forward,
    delta_states,
    ssd_backward,
    ssd_forward,
    ssd_states,
)
from simulator.graph.norm import (
    enter_attention_backward,
    enter_branch,
    leave_attention,
    leave_branch_backward,
)
from simulator.graph.parallel import gather, ranks_per_node, regather, scatter
from simulator.graph.shapes import Shapes
from simulator.ops import Collective, Part, Streaming
from simulator.spec.mixer import StateShape


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


def length_of(s: Shapes) -> int:
    """Tokens of a sequence that pass through the state: in serving the new ones."""
    return s.seq if s.workload.serves else s.seq_kv


def chunks_of(s: Shapes) -> Chunks:
    """One rank's share of the heads over the tokens of a microbatch."""
    r = state_of(s)
    gates = joined(s) or not (r.is_delta or r.norms)
    return Chunks(tokens=s.tokens, length=length_of(s), sequences=s.batch, r=r, parts=s.job.layout.cp, gates=gates)


def joined(s: Shapes) -> bool:
    """Whether Mamba-2's convolution, state and gate are one function (`stack.mamba2`), as only training calls it."""
    return s.stack.mamba2 == "joined" and not s.workload.serves and not s.model.state.is_delta


def sequences_first(builder: SegmentBuilder, name: str, s: Shapes, width: int) -> None:
    """What is (token, sequence, `width`) is copied to (sequence, token, `width`), or back; one sequence is both."""
    if joined(s) and s.batch > 1:
        builder.add(name, "elem", linear.elementwise(s.tokens * width, BF16, BF16))


def launch(
    builder: SegmentBuilder, way: str, kernels: tuple[Kernel, ...], *, part: Part | None = None, **saved: float
) -> None:
    """Add kernels as `mixer.NAME.way`; `saved`: what those of a name keep [B]."""
    for one in kernels:
        kept = saved.get(one.name, 0.0)
        builder.add(f"mixer.{one.name}.{way}", one.cls, one.work, part=part, count=one.many, saved=kept)


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
    sequences_first(builder, "mixer.sequences.fwd", s, r.projected)
    prepare(builder, s)
    mix_forward(builder, s)
    sequences_first(builder, "mixer.values.fwd", s, r.inner)
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


def prepare(builder: SegmentBuilder, s: Shapes, *, sequences: int = 0) -> None:
    """Convolution with SiLU, the numbers of each head, and queries and keys of length one; `sequences`: whose last
    tokens the convolution reads and writes as its state."""
    t, r = s.tokens, state_of(s)
    kept = 0 if joined(s) else r.inner if r.is_delta else r.channels
    moved = t * r.channels * BF16 + sequences * r.conv_values * BF16
    work = Streaming(read=moved, written=moved)
    builder.add("mixer.conv.fwd", "conv.token" if sequences else "conv", work, saved=t * kept * BF16)
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
    """The norm of the output, with its gate where the state's kernel does not multiply by it; its result is kept as
    the input of the output projection."""
    t, r = s.tokens, state_of(s)
    if not r.norms:
        return
    values = t * r.inner * BF16
    kept = values + t * r.norms * FP32
    read = values if joined(s) else 2 * values
    builder.add("mixer.norm.fwd", "norm.fwd.narrow", Streaming(read=read, written=values), saved=kept)


def mix_forward(builder: SegmentBuilder, s: Shapes) -> None:
    """The kernels over the state: of the delta rule the inverse of each chunk's matrix is kept, too."""
    c = chunks_of(s)
    if c.r.is_delta:
        launch(builder, "fwd", delta_forward(c), kkt=c.pairs * c.r.heads * BF16, scan=c.value_bytes)
    else:
        gated = c.value_bytes if c.gates else 0.0
        launch(builder, "fwd", ssd_forward(c), scan=c.value_bytes + gated)


def mix_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """Their backward: what lies between chunks is made again first; behind one function, the convolution, too."""
    c = chunks_of(s)
    if joined(s):
        moved = s.tokens * c.r.channels * BF16
        builder.add("mixer.conv.recompute", "conv", Streaming(read=moved, written=moved), part="R")
    launch(builder, "recompute", (delta_states if c.r.is_delta else ssd_states)(c), part="R")
    launch(builder, "bwd", (delta_backward if c.r.is_delta else ssd_backward)(c))


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
    with_gate = Streaming(read=3 * values, written=2 * values)
    if r.norms:
        plain = Streaming(read=2 * values, written=values)
        builder.add("mixer.norm.bwd", "norm.bwd", plain if joined(s) else with_gate)
    if joined(s) or not r.norms:
        builder.add("mixer.gated.bwd", "elem", with_gate)
    mix_backward(builder, s)
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
    builder.add("mixer.conv.bwd", "conv.bwd", linear.cast(t * r.channels, 2 * BF16, BF16))
    sequences_first(builder, "mixer.sequences.bwd", s, r.projected)
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
