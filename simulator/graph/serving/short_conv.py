"""Layers of short convolutions in serving: of each sequence the last few tokens of every channel are kept."""

from __future__ import annotations

from simulator.dtypes import BF16
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast
from simulator.graph.mixers.recurrent import state_of
from simulator.graph.mixers.short_conv import gate
from simulator.graph.serving.attention import enter, finish
from simulator.graph.serving.linear import gather, linear
from simulator.graph.serving.shapes import ServingShapes
from simulator.ops import Streaming


def prepare(s: ServingShapes) -> Segment:
    """`prepare.F`: norm, projection, and the gate before the convolution."""
    builder = SegmentBuilder("prepare.F", "F", s)
    enter(builder, s)
    gather(builder, "mixer.x", s, s.tokens, s.model.hidden_size)
    linear(builder, "mixer.in", s, s.tokens, state_of(s).projected, s.model.hidden_size)
    gate(builder, "mixer.before", s)
    return builder.done()


def core(s: ServingShapes) -> SegmentBuilder:
    """`attn.F` up to the norm before the feed-forward part; the caller ends it."""
    builder = SegmentBuilder("attn.F", "F", s)
    r = state_of(s)
    moved = cast(s.tokens * r.inner, BF16, BF16)
    kept = s.batch * r.conv_values * BF16 if s.decodes else 0.0
    cls = "conv.token" if s.decodes else "conv"
    builder.add("mixer.conv", cls, Streaming(read=moved.read + kept, written=moved.written + kept))
    gate(builder, "mixer.behind", s)
    linear(builder, "mixer.out", s, s.tokens, s.model.hidden_size, r.inner)
    finish(builder, s)
    return builder
