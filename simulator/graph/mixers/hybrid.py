"""Attention and Mamba-2 next to each other in a layer (Falcon-H1, arXiv 2507.22448, section 2.1): both read one norm of
the stream, and their outputs are summed.

Each branch is what it is alone, with the collectives of its own tensor parallelism (vLLM,
vllm/model_executor/models/falcon_h1.py, 2026: both output projections reduce by themselves). Falcon's multipliers scale
weights or ride on kernels that are there anyway: they cost nothing here.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.graph import attention
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.mixers import recurrent
from simulator.graph.norm import (
    enter_attention_backward,
    enter_branch,
    leave_attention,
    leave_branch_backward,
    sum_of_two,
)
from simulator.graph.parallel import sharded_tokens
from simulator.graph.shapes import Shapes


def summed(builder: SegmentBuilder, s: Shapes, name: str) -> None:
    """The branches' outputs, or the gradients of their input, added up."""
    builder.add(name, "elem", sum_of_two(sharded_tokens(s) * s.model.hidden_size))


def forward(s: Shapes) -> SegmentBuilder:
    """`attn.F` up to and including the norm before the feed-forward part; the caller ends it."""
    builder = SegmentBuilder("attn.F", "F", s)
    entered = enter_branch(builder, "norm.attn.fwd", s, s.formats.kept_bytes, gathered=True)
    recurrent.inside(builder, s, entered)
    attention.inside(builder, s, 0.0)
    summed(builder, s, "attn.mixers.fwd")
    leave_attention(builder, s)
    return builder


def backward(builder: SegmentBuilder, s: Shapes) -> Segment:
    """The rest of `attn.B`."""
    enter_attention_backward(builder, s)
    attention.to_projection(builder, s)
    recurrent.to_projection(builder, s)
    attention.normed_again(builder, s)
    attention.to_input(builder, s)
    recurrent.to_input(builder, s)
    summed(builder, s, "attn.mixers.bwd")
    leave_branch_backward(builder, "attn", s)
    return builder.done()


def weights(s: Shapes) -> Segment:
    """`attn.W`."""
    both = attention.weights(s)
    return replace(both, ops=both.ops + recurrent.weights(s).ops)
