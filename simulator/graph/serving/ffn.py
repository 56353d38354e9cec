"""Dense feed-forward parts and shared experts of serving."""

from __future__ import annotations

from typing import Literal

from simulator.dtypes import BF16, FP8
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.ffn import activation_kernel, eager_activation
from simulator.graph.linear import cast
from simulator.graph.mixers import per_layer
from simulator.graph.norm import add_residual, norm_forward
from simulator.graph.parallel import sharded_tokens
from simulator.graph.serving.linear import add_up, gather, linear
from simulator.graph.serving.shapes import ServingShapes
from simulator.graph.shapes import Activated


def gated(
    builder: SegmentBuilder,
    name: Activated,
    s: ServingShapes,
    rows: int,
    inner: int,
    *,
    routed: bool = False,
    cast_apart: bool = False,
) -> None:
    """The activation between the two GEMMs, fused with the cast of its result under FP8 unless that is `cast_apart`."""
    eager_activation(builder, name, rows, inner, gated=s.model.gated_mlp, backward=False, scales_with_load=routed)
    out = FP8 if s.fp8 and not cast_apart else BF16
    cls, work = activation_kernel(s, rows, inner, gated=s.model.gated_mlp, out=out)
    builder.add(f"{name}.act", cls, work, scales_with_load=routed)
    if s.fp8 and cast_apart:
        builder.add(f"{name}.act.quant", "quant.token", cast(rows * inner, BF16, FP8), scales_with_load=routed)


def feed_forward(builder: SegmentBuilder, name: Literal["dense", "shared"], s: ServingShapes, *, split: bool) -> None:
    """Both GEMMs. `split`: each tensor-parallel rank has a part of the width and works on all tokens; else it has all
    of it and works on its own tokens."""
    model, h = s.model, s.model.hidden_size
    width = model.intermediate_size if name == "dense" else model.shared_width
    tokens, inner = (s.tokens, width // s.job.layout.tp) if split else (sharded_tokens(s), width)
    if split:
        gather(builder, f"{name}.x", s, tokens, h)
    linear(builder, f"{name}.up_gate", s, tokens, inner * (2 if model.gated_mlp else 1), h)
    gated(builder, name, s, tokens, inner)
    linear(builder, f"{name}.down", s, tokens, h, inner, is_cast=True)


def dense(s: ServingShapes) -> Segment:
    """`mlp.F` of a dense layer."""
    h = s.model.hidden_size
    builder = SegmentBuilder("mlp.F", "F", s)
    feed_forward(builder, "dense", s, split=True)
    add_up(builder, "dense", s, s.tokens, h)
    behind = s.model.norm_placement != "pre"
    if behind:
        norm_forward(builder, "norm.ffn.out", sharded_tokens(s), h)
    add_residual(builder, "dense", s, h, alone=behind)  # else the norm of the next layer adds it
    per_layer.add(builder, s, "")
    return builder.done()
