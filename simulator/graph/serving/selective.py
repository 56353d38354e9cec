"""Mamba-1 layers of serving: the state of each sequence is kept, and each new token changes it.

A decode step reads and writes the whole state, in FP32, in the kernel that serves Mamba-2, too (state-spaces/mamba,
mamba_ssm/ops/triton/selective_state_update.py); a prompt is scanned as in training.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.dtypes import BF16, FP32
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.mixers.selective import channels_of, convolve, norm_chosen, scan_forward
from simulator.graph.serving.attention import enter, finish
from simulator.graph.serving.linear import gather, linear
from simulator.graph.serving.shapes import ServingShapes
from simulator.ops import Streaming


def prepare(s: ServingShapes) -> Segment:
    """`prepare.F`: norm, projections, convolution, and each token's steps, b and c."""
    builder = SegmentBuilder("prepare.F", "F", s)
    r, h, t = channels_of(s), s.model.hidden_size, s.tokens
    enter(builder, s)
    gather(builder, "mixer.x", s, t, h)
    linear(builder, "mixer.in", s, t, r.projected, h)
    convolve(builder, s, sequences=s.batch if s.decodes else 0)
    linear(builder, "mixer.select", s, t, r.selected, r.inner)
    norm_chosen(builder, s)
    linear(builder, "mixer.step", s, t, r.inner, r.steps)
    return builder.done()


def core(s: ServingShapes) -> SegmentBuilder:
    """`attn.F` up to the norm before the feed-forward part; the caller ends it."""
    builder = SegmentBuilder("attn.F", "F", s)
    r = channels_of(s)
    if s.decodes:
        kept = s.batch * r.state_values * FP32
        wide = s.newest * r.inner * BF16
        rows = 3 * wide + 2 * s.newest * r.key_dim * BF16
        builder.add("mixer.token", "scan.token@ssd", Streaming(read=kept + rows, written=s.seq * kept + wide))
        if s.chunk:
            scan_forward(builder, replace(s, batch=1, seq=s.chunk, tokens=s.chunk))
    else:
        scan_forward(builder, s)
    linear(builder, "mixer.out", s, s.tokens, s.model.hidden_size, r.inner)
    finish(builder, s)
    return builder
