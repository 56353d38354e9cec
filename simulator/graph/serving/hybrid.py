"""Attention and Mamba-2 next to each other in a layer of serving: a cache and a state."""

from __future__ import annotations

from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.serving import attention, recurrent
from simulator.graph.serving.linear import add_up
from simulator.graph.serving.shapes import ServingShapes


def prepare(s: ServingShapes) -> Segment:
    """`prepare.F`: one norm, and what both branches make of it."""
    builder = SegmentBuilder("prepare.F", "F", s)
    attention.enter(builder, s)
    recurrent.project(builder, s)
    attention.project(builder, s)
    return builder.done()


def core(s: ServingShapes) -> SegmentBuilder:
    """`attn.F` up to the norm before the feed-forward part; the caller ends it."""
    builder = SegmentBuilder("attn.F", "F", s)
    recurrent.inside(builder, s)
    add_up(builder, "mixer.out", s, s.tokens, s.model.hidden_size)
    attention.inside(builder, s)
    attention.finish(builder, s)
    return builder
