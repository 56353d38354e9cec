"""Recurrent layers of serving: the state of each sequence is kept, and each new token changes it.

A decode step reads the whole state, in FP32, in one kernel (flash-linear-attention, fused_recurrent.py; mamba_ssm,
selective_state_update.py) and writes it. Tokens that are verified together pass through it one by one, and the state
behind each is written, since which of them counts shows later (vLLM, vllm/model_executor/layers/mamba/ops/mamba_ssm.py,
2026; SGLang and TensorRT-LLM keep as many). A prompt runs in chunks, as in training.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.dtypes import BF16, FP32
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.mixers import recurrent as mixer
from simulator.graph.mixers.recurrent import gated_norm, mix_forward, narrow, state_of
from simulator.graph.serving.attention import enter, finish
from simulator.graph.serving.linear import gather, linear
from simulator.graph.serving.shapes import ServingShapes
from simulator.ops import Streaming
from simulator.spec.mixer import StateShape


def prepare(s: ServingShapes) -> Segment:
    """`prepare.F`: norm, projection, convolution, and the numbers of each head."""
    builder = SegmentBuilder("prepare.F", "F", s)
    enter(builder, s)
    project(builder, s)
    return builder.done()


def project(builder: SegmentBuilder, s: ServingShapes) -> None:
    """The same behind the norm."""
    r, h = state_of(s), s.model.hidden_size
    gather(builder, "mixer.x", s, s.tokens, h)
    linear(builder, "mixer.in", s, s.tokens, r.projected, h)
    for name, n in narrow(r):
        linear(builder, name, s, s.tokens, n, r.rank)
    mixer.prepare(builder, s, sequences=s.batch if s.decodes else 0)


def core(s: ServingShapes) -> SegmentBuilder:
    """`attn.F` up to the norm before the feed-forward part; the caller ends it."""
    builder = SegmentBuilder("attn.F", "F", s)
    inside(builder, s)
    finish(builder, s)
    return builder


def inside(builder: SegmentBuilder, s: ServingShapes) -> None:
    """The state, and the output projection."""
    r = state_of(s)
    if s.decodes:
        kept = s.batch * r.state_values * FP32
        rows = s.batch * s.seq * (2 * r.heads * r.key_dim + r.inner) * BF16
        out = s.batch * s.seq * r.inner * BF16
        gate = 0.0 if r.norms else out
        builder.add("mixer.token", token_class(r), Streaming(read=kept + rows + gate, written=s.seq * kept + out))
        if s.chunk:
            mix_forward(builder, replace(s, batch=1, seq=s.chunk, tokens=s.chunk))
    else:
        mix_forward(builder, s)
    gated_norm(builder, s)
    linear(builder, "mixer.out", s, s.tokens, s.model.hidden_size, r.inner)


def token_class(r: StateShape) -> str:
    """The class of the kernel of a decode step: the delta rule, with a decay for each channel, or Mamba-2."""
    if not r.is_delta:
        return "scan.token@ssd"
    return "scan.token@kda" if r.rank else "scan.token"
