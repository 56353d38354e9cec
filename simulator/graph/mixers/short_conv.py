"""Layers of short convolutions in training (LFM2, arXiv 2511.23404): a projection to three parts, the first times the
third convolved over the last few tokens of its channel, the result times the second, and the output projection.

Both multiplications are kernels of their own next to the convolution's (vLLM,
vllm/model_executor/layers/mamba/short_conv.py, 2025). Kept are the three parts, what is convolved, what the convolution
makes, and the input of the output projection. Tensor parallelism splits the channels.
"""

from __future__ import annotations

from simulator.dtypes import BF16
from simulator.graph import linear
from simulator.graph.attention import normed_again
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast
from simulator.graph.mixers.recurrent import state_of
from simulator.graph.norm import (
    enter_attention_backward,
    enter_branch,
    leave_attention,
    leave_branch_backward,
    sum_of_two,
)
from simulator.graph.parallel import gather, regather, scatter
from simulator.graph.shapes import Shapes


def gate(builder: SegmentBuilder, name: str, s: Shapes) -> None:
    """Two parts multiplied, the result kept."""
    values = s.tokens * state_of(s).inner
    kept = values * BF16 if s.workload.keeps_activations else 0.0
    builder.add(name, "elem", sum_of_two(values), saved=kept)


def forward(s: Shapes) -> SegmentBuilder:
    """`attn.F` up to and including the norm before the feed-forward part; the caller ends it."""
    t, h, r = s.tokens, s.model.hidden_size, state_of(s)
    builder = SegmentBuilder("attn.F", "F", s)
    entered = enter_branch(builder, "norm.attn.fwd", s, s.formats.kept_bytes, gathered=True)
    gather(builder, "mixer.x", s, h)
    kept, parts = t * r.projected * BF16 + entered, (r.inner,) * 3
    linear.forward(builder, "mixer.in", t, r.projected, h, recipe=s.recipe, place="column", saved=kept, matrices=parts)
    gate(builder, "mixer.before.fwd", s)
    builder.add("mixer.conv.fwd", "conv", cast(t * r.inner, BF16, BF16), saved=t * r.inner * BF16)
    gate(builder, "mixer.behind.fwd", s)
    linear.forward(builder, "mixer.out", t, h, r.inner, recipe=s.recipe, place="row")
    scatter(builder, "mixer.out", s, h)
    leave_attention(builder, s)
    return builder


def backward(builder: SegmentBuilder, s: Shapes) -> Segment:
    """The rest of `attn.B`."""
    t, h, r = s.tokens, s.model.hidden_size, state_of(s)
    enter_attention_backward(builder, s)
    gather(builder, "mixer.out_g", s, h)
    linear.input_gradient(builder, "mixer.out", t, h, r.inner, recipe=s.recipe, place="row")
    _casts(builder, s, "mixer.out", h, r.inner)
    builder.add("mixer.behind.bwd", "elem", cast(t * r.inner, 3 * BF16, 2 * BF16))
    builder.add("mixer.conv.bwd", "conv.bwd", cast(t * r.inner, 2 * BF16, BF16))
    builder.add("mixer.before.bwd", "elem", cast(t * r.inner, 3 * BF16, 2 * BF16))
    normed_again(builder, s)
    regather(builder, "mixer.x", s, h)
    linear.input_gradient(builder, "mixer.in", t, r.projected, h, recipe=s.recipe, place="column")
    _casts(builder, s, "mixer.in", r.projected, h)
    scatter(builder, "mixer.dx", s, h, gradient=True)
    leave_branch_backward(builder, "attn", s)
    return builder.done()


def _casts(builder: SegmentBuilder, s: Shapes, name: str, n: int, k: int) -> None:
    """Operands of a projection's weight gradient."""
    if s.fp8:
        linear.cast_for_wgrad(builder, name, s.tokens, k, which="x")
        linear.cast_for_wgrad(builder, name, s.tokens, n, which="g")


def weights(s: Shapes) -> Segment:
    """`attn.W`: of both projections; the taps' gradients ride on the convolution's backward."""
    r, h = state_of(s), s.model.hidden_size
    builder = SegmentBuilder("attn.W", "W", s)
    linear.weight_gradient(builder, "mixer.out", s.tokens, h, r.inner, recipe=s.recipe, place="row")
    linear.weight_gradient(builder, "mixer.in", s.tokens, r.projected, h, recipe=s.recipe, place="column")
    return builder.done()
