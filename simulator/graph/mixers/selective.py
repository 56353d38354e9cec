"""Mamba-1 layers in training: the selective scan (arXiv 2312.00752; Jamba, arXiv 2403.19887, section 2).

One projection makes what is convolved and its gate; from what was convolved come each token's step sizes, b and c
(normed in Jamba), and steps are projected to all channels. One kernel scans a channel's state over the tokens, adds the
skip and applies the gate; its backward makes the states again from those kept at the ends of chunks
(state-spaces/mamba, mamba_ssm/ops/selective_scan_interface.py, 2024: selective_scan_fn). No GEMM is in it: its FLOP do
not count. Kept bytes and FLOP of the projections are those of `workloads/reference/layers/mixers/selective.py`.

Tensor parallelism splits the channels: steps, b and c come from all of them, so that their ranks' shares are summed up,
forward and backward (vLLM, vllm/model_executor/layers/mamba/mamba_mixer.py, 2025: x_proj is row-parallel).
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from simulator.dtypes import BF16, FP32
from simulator.graph import linear
from simulator.graph.attention import normed_again
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.mixers.recurrent import length_of
from simulator.graph.norm import (
    enter_attention_backward,
    enter_branch,
    leave_attention,
    leave_branch_backward,
    sum_of_two,
)
from simulator.graph.parallel import all_reduce, gather, regather, scatter
from simulator.graph.shapes import Shapes
from simulator.ops import Scan, Streaming
from simulator.spec.mixer import SelectiveState

NORMS = 3
"""Norms of a token's steps, b and c."""


def channels_of(s: Shapes) -> SelectiveState:
    """This tensor-parallel rank's share of the channels."""
    whole = s.model.state
    assert isinstance(whole, SelectiveState)
    return replace(whole, heads=whole.heads // s.job.layout.tp)


def ends_bytes(s: Shapes) -> float:
    """States, and decays up to there, at the ends of all sequences' chunks [B]."""
    r = channels_of(s)
    chunks = s.tokens / length_of(s) * ceil(length_of(s) / r.chunk)
    return chunks * r.inner * 2 * r.key_dim * FP32


def scan_forward(builder: SegmentBuilder, s: Shapes) -> None:
    """The state's kernel: steps, what was convolved, its gate, b and c are read; the output is kept with and without
    its gate."""
    r = channels_of(s)
    wide, chosen = s.tokens * r.inner * BF16, 2 * s.tokens * r.key_dim * BF16
    written = 2 * wide + ends_bytes(s)
    work = _scan(s, 3 * wide + chosen, written)
    builder.add("mixer.scan.fwd", "scan.selective", work, saved=written)


def _scan(s: Shapes, read: float, written: float) -> Scan:
    r = channels_of(s)
    sequences = max(1, round(s.tokens / length_of(s)))
    chunks = ceil(length_of(s) / r.chunk)
    values = float(s.tokens * r.state_values)
    return Scan(flops=0.0, read=read, written=written, ctas=sequences * r.inner, steps=chunks, values=values)


def convolve(builder: SegmentBuilder, s: Shapes, *, sequences: int = 0) -> None:
    """The convolution with SiLU; `sequences`: whose last tokens it reads and writes as its state."""
    r = channels_of(s)
    wide = s.tokens * r.inner * BF16
    moved = wide + sequences * r.conv_values * BF16
    cls = "conv.token" if sequences else "conv"
    builder.add("mixer.conv.fwd", cls, Streaming(read=moved, written=moved), saved=wide)


def norm_chosen(builder: SegmentBuilder, s: Shapes) -> None:
    """Norms of steps, b and c, and the sum of the ranks' shares before them."""
    r, t = channels_of(s), s.tokens
    all_reduce(builder, "mixer.select", s, r.selected * BF16)
    if r.norms:
        values = t * r.selected * BF16
        work = Streaming(read=values / NORMS, written=values / NORMS)
        kept = values + NORMS * t * FP32
        builder.add("mixer.norms.fwd", "norm.fwd.narrow", work, count=NORMS, saved=kept)


def forward(s: Shapes) -> SegmentBuilder:
    """`attn.F` up to and including the norm before the feed-forward part; the caller ends it."""
    t, h, r = s.tokens, s.model.hidden_size, channels_of(s)
    builder = SegmentBuilder("attn.F", "F", s)
    entered = enter_branch(builder, "norm.attn.fwd", s, s.formats.kept_bytes, gathered=True)
    gather(builder, "mixer.x", s, h)
    kept, both = t * r.projected * BF16 + entered, (r.inner, r.inner)
    linear.forward(builder, "mixer.in", t, r.projected, h, recipe=s.recipe, place="column", saved=kept, matrices=both)
    convolve(builder, s)
    kept = t * r.selected * BF16
    linear.forward(builder, "mixer.select", t, r.selected, r.inner, recipe=s.recipe, place="row", saved=kept)
    norm_chosen(builder, s)
    kept = t * r.inner * BF16
    linear.forward(builder, "mixer.step", t, r.inner, r.steps, recipe=s.recipe, place="column", saved=kept)
    scan_forward(builder, s)
    linear.forward(builder, "mixer.out", t, h, r.inner, recipe=s.recipe, place="row")
    scatter(builder, "mixer.out", s, h)
    leave_attention(builder, s)
    return builder


def backward(builder: SegmentBuilder, s: Shapes) -> Segment:
    """The rest of `attn.B`."""
    t, h, r = s.tokens, s.model.hidden_size, channels_of(s)
    wide, chosen = t * r.inner * BF16, t * r.selected * BF16
    enter_attention_backward(builder, s)
    gather(builder, "mixer.out_g", s, h)
    _linear_backward(builder, s, "mixer.out", h, r.inner)
    read = 5 * wide + 2 * t * r.key_dim * BF16 + ends_bytes(s)
    work = _scan(s, read, 3 * wide + 2 * t * r.key_dim * FP32)
    builder.add("mixer.scan.bwd", "scan.selective.bwd", work)
    _linear_backward(builder, s, "mixer.step", r.inner, r.steps)
    all_reduce(builder, "mixer.select_g", s, r.selected * BF16)
    if r.norms:
        each = Streaming(read=2 * chosen / NORMS, written=chosen / NORMS)
        builder.add("mixer.norms.bwd", "norm.bwd", each, count=NORMS)
    _linear_backward(builder, s, "mixer.select", r.selected, r.inner)
    builder.add("mixer.select.sum", "elem", sum_of_two(t * r.inner))
    builder.add("mixer.conv.bwd", "conv.bwd", linear.cast(t * r.inner, 2 * BF16, BF16))
    normed_again(builder, s)
    regather(builder, "mixer.x", s, h)
    _linear_backward(builder, s, "mixer.in", r.projected, h)
    scatter(builder, "mixer.dx", s, h, gradient=True)
    leave_branch_backward(builder, "attn", s)
    return builder.done()


def _linear_backward(builder: SegmentBuilder, s: Shapes, name: str, n: int, k: int) -> None:
    """The input gradient of a projection from k to n, and the casts for its weight gradient."""
    linear.input_gradient(builder, name, s.tokens, n, k, recipe=s.recipe)
    if s.fp8:
        linear.cast_for_wgrad(builder, name, s.tokens, k, which="x")
        linear.cast_for_wgrad(builder, name, s.tokens, n, which="g")


def weights(s: Shapes) -> Segment:
    """`attn.W`: of the four projections; other weights' gradients ride on the kernels that read their inputs."""
    r, h, t = channels_of(s), s.model.hidden_size, s.tokens
    builder = SegmentBuilder("attn.W", "W", s)
    for name, n, k in (
        ("mixer.out", h, r.inner),
        ("mixer.step", r.inner, r.steps),
        ("mixer.select", r.selected, r.inner),
        ("mixer.in", r.projected, h),
    ):
        linear.weight_gradient(builder, name, t, n, k, recipe=s.recipe)
    return builder.done()
