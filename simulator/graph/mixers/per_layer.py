"""Values of a token that enter every layer: from a table of their own and from a projection of the embedding (Gemma 4's
per-layer embeddings; transformers, models/gemma4/modeling_gemma4.py, get_per_layer_inputs, project_per_layer_inputs).

Behind the feed-forward part a layer projects the stream to so many values, multiplies them by its own, projects them
back, norms that and adds it. The projections are narrow: they stay in BF16 (assumed), and every tensor-parallel rank
holds them whole, as vLLM does (vllm/model_executor/models/gemma4.py, 2026: ReplicatedLinear); the table is split by its
rows. Kept are the stream, what both projections made, and what is multiplied between them.
"""

from __future__ import annotations

from simulator.dtypes import BF16, FP32
from simulator.graph import linear
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast
from simulator.graph.norm import add_residual, norm_backward, norm_forward, sum_of_two
from simulator.graph.parallel import scatter, sharded_tokens
from simulator.graph.shapes import Shapes
from simulator.ops import Streaming


def has_inputs(s: Shapes) -> bool:
    """Whether values of their own enter the layers."""
    return s.model.hidden_size_per_layer_input > 0


def look_up(builder: SegmentBuilder, s: Shapes, name: str = ".fwd") -> None:
    """At the embedding: those of all layers, from the table and from the embedding, normed by layer and summed."""
    if not has_inputs(s):
        return
    rows, wide, h = sharded_tokens(s), s.model.per_layer_width, s.model.hidden_size
    each, keeps = s.model.hidden_size_per_layer_input, s.workload.keeps_activations
    layers, values = s.model.num_hidden_layers, rows * wide
    builder.add(f"per_layer.table{name}", "embedding", cast(s.tokens * wide, BF16, BF16))
    scatter(builder, "per_layer.table", s, wide)
    kept = values * BF16 if keeps else 0.0
    linear.forward(builder, "per_layer.project", rows, wide, h, recipe="bf16", saved=kept)
    norm_forward(builder, f"norm.per_layer_input{name}", rows * layers, each, saved=rows * layers * FP32 * keeps)
    builder.add(f"per_layer.sum{name}", "elem", sum_of_two(values), saved=kept)


def look_up_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """Gradients of the table's rows, of the norm, the projection and, through it, the embedding."""
    if not has_inputs(s):
        return
    rows, wide, h = sharded_tokens(s), s.model.per_layer_width, s.model.hidden_size
    norm_backward(
        builder, "norm.per_layer_input", rows * s.model.num_hidden_layers, s.model.hidden_size_per_layer_input
    )
    linear.input_gradient(builder, "per_layer.project", rows, wide, h, recipe="bf16")
    builder.add("per_layer.embed.sum.bwd", "elem", sum_of_two(rows * h))
    linear.weight_gradient(builder, "per_layer.project", rows, wide, h, recipe="bf16")


def add(builder: SegmentBuilder, s: Shapes, name: str = ".fwd") -> None:
    """Behind the feed-forward part of a layer."""
    if not has_inputs(s):
        return
    rows, h, wide = sharded_tokens(s), s.model.hidden_size, s.model.hidden_size_per_layer_input
    keeps, values = s.workload.keeps_activations, rows * wide * BF16
    kept = rows * h * BF16 + values if keeps else 0.0
    linear.forward(builder, "per_layer.down", rows, wide, h, recipe="bf16", saved=kept)
    if s.stack.swiglu_fused:
        builder.add(f"per_layer.act{name}", "elem", Streaming(read=2 * values, written=values), saved=values * keeps)
    else:
        builder.add(f"per_layer.act{name}", "elem", Streaming(read=values, written=values), saved=values * keeps)
        builder.add(
            f"per_layer.multiply{name}", "elem", Streaming(read=2 * values, written=values), saved=values * keeps
        )
    linear.forward(builder, "per_layer.up", rows, h, wide, recipe="bf16")
    norm_forward(builder, f"norm.per_layer{name}", rows, h, saved=rows * (h * BF16 + FP32) * keeps)
    add_residual(builder, "per_layer", s, h, leaves=True)


def add_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """From the gradient of a layer's output to that of what the feed-forward part left."""
    if not has_inputs(s):
        return
    rows, h, wide = sharded_tokens(s), s.model.hidden_size, s.model.hidden_size_per_layer_input
    values = rows * wide * BF16
    norm_backward(builder, "norm.per_layer", rows, h)
    linear.input_gradient(builder, "per_layer.up", rows, h, wide, recipe="bf16")
    if s.stack.swiglu_fused:
        builder.add("per_layer.act.bwd", "elem", Streaming(read=3 * values, written=2 * values))
    else:
        builder.add("per_layer.act.bwd", "elem", Streaming(read=2 * values, written=values), count=3)
    linear.input_gradient(builder, "per_layer.down", rows, wide, h, recipe="bf16")
    builder.add("per_layer.residual.bwd", "elem", sum_of_two(rows * h))


def weights(builder: SegmentBuilder, s: Shapes) -> None:
    """Weight gradients of a layer's two projections."""
    if has_inputs(s):
        rows, h, wide = sharded_tokens(s), s.model.hidden_size, s.model.hidden_size_per_layer_input
        linear.weight_gradient(builder, "per_layer.up", rows, h, wide, recipe="bf16")
        linear.weight_gradient(builder, "per_layer.down", rows, wide, h, recipe="bf16")
