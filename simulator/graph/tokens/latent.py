"""Experts in a narrower width (LatentMoE, arXiv 2604.12374: Nemotron 3 Super): a projection of each token behind the
gate, and one of the experts' sum back to the model's width. What travels, and what the experts work on, is as wide as
the latent; gate and shared experts read the token itself. Kimi K3 norms the sum before it is projected back.

Every tensor-parallel rank holds both projections and works on its own part of the tokens (NVIDIA/Megatron-LM,
megatron/core/transformer/moe/moe_layer.py, 2026: fc1_latent_proj and fc2_latent_proj are duplicated). They stay in BF16
under narrow recipes, as NVIDIA trained them (the report's section on NVFP4).
"""

from __future__ import annotations

from simulator.dtypes import BF16
from simulator.graph import linear
from simulator.graph.block import SegmentBuilder
from simulator.graph.norm import norm_backward, norm_forward, norm_output
from simulator.graph.parallel import sharded_tokens
from simulator.graph.shapes import Shapes
from simulator.ops import Gemm

THERE = "moe.latent_in.fwd"
"""The op whose output travels."""


def kept(s: Shapes) -> float:
    """Bytes kept of the experts' sum, which the projection back reads [B]; 0 without one."""
    return float(sharded_tokens(s) * s.model.moe_latent_size * BF16)


def there(builder: SegmentBuilder, s: Shapes) -> None:
    """Tokens to the experts' width; the gate keeps what it reads."""
    if s.model.moe_latent_size:
        t, h = sharded_tokens(s), s.model.hidden_size
        linear.forward(builder, "moe.latent_in", t, s.model.moe_latent_size, h, recipe="bf16")


def back(builder: SegmentBuilder, s: Shapes, after: tuple[str, ...]) -> tuple[str, ...]:
    """The experts' sum to the model's width. Returns what is still to wait for."""
    if not s.model.moe_latent_size:
        return after
    rows, wide = sharded_tokens(s), s.model.moe_latent_size
    if s.model.moe_latent_norm:
        norm_forward(builder, "norm.latent.fwd", rows, wide, saved=norm_output(s, rows, wide), after=after)
        after = ()
    work = Gemm(m=rows, n=s.model.hidden_size, k=wide, precision="bf16")
    builder.add("moe.latent_out.fwd", "gemm.bf16", work, after=after, matrices=(work.n,), read_by_backward=False)
    return ()


def there_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """The gradient that came home, to the model's width."""
    if s.model.moe_latent_size:
        t, h = sharded_tokens(s), s.model.hidden_size
        linear.input_gradient(builder, "moe.latent_in", t, s.model.moe_latent_size, h, recipe="bf16")


def back_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """The gradient of the experts' sum, before it travels."""
    if s.model.moe_latent_size:
        t, h = sharded_tokens(s), s.model.hidden_size
        if s.model.moe_latent_norm and s.norm_again("layer"):
            norm_forward(builder, "norm.latent.recompute", t, s.model.moe_latent_size, part="R")
        linear.input_gradient(builder, "moe.latent_out", t, h, s.model.moe_latent_size, recipe="bf16")
        if s.model.moe_latent_norm:
            norm_backward(builder, "norm.latent", t, s.model.moe_latent_size)


def there_weights(builder: SegmentBuilder, s: Shapes) -> None:
    """Its weight gradient."""
    if s.model.moe_latent_size:
        t, h = sharded_tokens(s), s.model.hidden_size
        linear.weight_gradient(builder, "moe.latent_in", t, s.model.moe_latent_size, h, recipe="bf16")


def back_weights(builder: SegmentBuilder, s: Shapes) -> None:
    """Its weight gradient."""
    if s.model.moe_latent_size:
        t, h = sharded_tokens(s), s.model.hidden_size
        linear.weight_gradient(builder, "moe.latent_out", t, h, s.model.moe_latent_size, recipe="bf16")
