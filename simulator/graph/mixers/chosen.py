"""DeepSeek-V3.2's latent attention in training: each query attends to the tokens that its indexer chooses (arXiv
2512.02556, section 2; `indexer`).

All heads read the chosen tokens' latents, as one key of 576 values whose first 512 are the value (MQA mode, section
2.1): queries are taken to the latents head by head, and outputs back. Queries, queries over latents and outputs over
latents are kept, which is more than keys and values of all heads would be. Nobody published the training kernels.
"""

from __future__ import annotations

from simulator.dtypes import BF16, FP32
from simulator.graph import linear
from simulator.graph.attention import finish_backward, prepare_backward
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import elementwise, rotation
from simulator.graph.mixers.indexer import SPARSE, choose, learn, projections, weight_gradients
from simulator.graph.mla import Dims, dims_of
from simulator.graph.norm import add_residual, norm_backward, norm_forward, norm_output
from simulator.graph.parallel import circulate_keys, gather, scatter
from simulator.graph.shapes import Shapes
from simulator.ops import Attention, Gemm, Part


def core_work(s: Shapes, d: Dims, *, backward: bool) -> Attention:
    """The attention core of one microbatch."""
    return Attention(
        batch=s.batch,
        seq_q=s.seq,
        seq_kv=s.seq_kv,
        heads=d.heads,
        kv_heads=1,
        d_qk=d.kv_lora + d.rope,
        d_v=d.kv_lora,
        backward=backward,
        window=s.model.index_topk,
    )


def _per_head(
    builder: SegmentBuilder,
    s: Shapes,
    d: Dims,
    name: str,
    n: int,
    k: int,
    *,
    part: Part | None = None,
    saved: float = 0.0,
) -> None:
    """One GEMM for each head, in BF16."""
    work = Gemm(m=d.tokens * d.heads, n=n, k=k, precision="bf16", form="grouped", groups=d.heads)
    builder.add(name, "gemm.bf16", work, part=part, saved=saved)


def _per_head_weights(builder: SegmentBuilder, s: Shapes, d: Dims, name: str, n: int) -> None:
    work = Gemm(
        m=d.kv_lora,
        n=n,
        k=d.tokens * d.heads,
        precision="bf16",
        form="grouped_wgrad",
        groups=d.heads,
        out_bytes=s.states.gradient_bytes,
    )
    builder.add(f"{name}.wgrad", "gemm.bf16.wgrad", work)


def _queries(builder: SegmentBuilder, s: Shapes, d: Dims, *, again: bool) -> None:
    """Norms of the latents, and queries over them; run once more in backward where they are recomputed."""
    name, part = ("recompute", "R") if again else ("fwd", None)
    step: Part | None = "R" if part else None
    if not again or s.norm_again("latent"):
        for norm, wide in (("norm.q_lora", d.q_lora), ("norm.kv_lora", d.kv_lora)):
            kept = 0.0 if again else norm_output(s, d.tokens, wide, "latent")
            norm_forward(builder, f"{norm}.{name}", d.tokens, wide, part=step, saved=kept)
    if not again:
        builder.add("rope.k.fwd", "rope", rotation(d.tokens * d.rope))
    if again and not s.up_again:
        return
    keep = 0.0 if s.up_again or again else d.tokens * BF16
    linear.forward(builder, "attn.q_b", d.tokens, d.q, d.q_lora, recipe=s.recipe, recompute=again, saved=keep * d.q)
    builder.add(f"rope.q.{name}", "rope", rotation(d.tokens * d.heads * d.rope), part=step)
    _per_head(builder, s, d, f"attn.w_uk.{name}", d.kv_lora, d.nope, part=step, saved=keep * d.heads * d.kv_lora)


def forward(s: Shapes) -> SegmentBuilder:
    """The segment `attn.F` up to and including the norm before the feed-forward part; the caller ends it."""
    d = dims_of(s)
    t, h = d.tokens, d.hidden
    builder = SegmentBuilder("attn.F", "F", s)
    kept = d.sharded * h * BF16 + norm_output(s, d.sharded, h)
    norm_forward(builder, "norm.attn.fwd", d.sharded, h, saved=kept)
    for name, wide in (("attn.q_a", d.q_lora), ("attn.kv_a", d.kv_lora + d.rope)):
        linear.forward(builder, name, d.sharded, wide, h, recipe=s.recipe, saved=d.sharded * wide * BF16)
    gather(builder, "attn.latent", s, d.q_lora + d.kv_lora + d.rope)
    _queries(builder, s, d, again=False)
    projections(builder, s)
    circulate_keys(builder, "attn.kv.transfer", s, d.kv_lora + d.rope + s.model.index_head_dim, passes=1)
    choose(builder, s)
    statistics = 0.0 if "core_attn" in s.recompute else t * d.heads * FP32
    kept_out = t * d.heads * d.kv_lora * BF16
    core = core_work(s, d, backward=False)
    builder.add("attn.core.fwd", SPARSE.format("fwd"), core, saved=statistics + kept_out)
    _per_head(builder, s, d, "attn.w_uv.fwd", d.v, d.kv_lora, saved=t * d.out * BF16)
    linear.forward(builder, "attn.o", t, h, d.out, recipe=s.recipe, place="row")
    scatter(builder, "attn.o", s, h)
    add_residual(builder, "attn", s, h)
    norm_forward(builder, "norm.ffn.fwd_residual", d.sharded, h, residual=True, saved=kept)
    return builder


def backward(builder: SegmentBuilder, s: Shapes) -> Segment:
    """The rest of `attn.B` after the router's part."""
    d = dims_of(s)
    t, h, kv_a = d.tokens, d.hidden, d.kv_lora + d.rope
    norm_backward(builder, "norm.ffn", d.sharded, h, residual=True)
    gather(builder, "attn.o_g", s, h)
    linear.input_gradient(builder, "attn.o", t, h, d.out, recipe=s.recipe, place="row")
    if s.fp8:
        linear.cast_for_wgrad(builder, "attn.o", t, d.out, which="x")
        linear.cast_for_wgrad(builder, "attn.o", t, h, which="g")
    _per_head(builder, s, d, "attn.w_uv.dgrad", d.kv_lora, d.v)
    if s.norm_again("latent") or s.up_again:
        _queries(builder, s, d, again=True)
    if "core_attn" in s.recompute:
        builder.add("attn.core.recompute", SPARSE.format("fwd"), core_work(s, d, backward=False), part="R")
    latents = t * d.heads * d.kv_lora
    prepare_backward(builder, s, t * d.heads * kv_a, latents, part="I")
    circulate_keys(builder, "attn.dkv.transfer", s, kv_a + s.model.index_head_dim, passes=2)
    builder.add("attn.core.bwd", SPARSE.format("bwd"), core_work(s, d, backward=True))
    learn(builder, s, d.heads, kv_a)
    finish_backward(builder, s, t * d.heads * kv_a)
    _per_head(builder, s, d, "attn.w_uk.dgrad", d.nope, d.kv_lora)
    builder.add("rope.qk.bwd", "rope", rotation(t * (d.heads + 1) * d.rope))
    linear.input_gradient(builder, "attn.q_b", t, d.q, d.q_lora, recipe=s.recipe)
    if s.fp8:
        linear.cast_for_wgrad(builder, "attn.q_b", t, d.q, which="g")
        linear.cast_for_wgrad(builder, "attn.q_b", t, d.q_lora, which="x")
    norm_backward(builder, "norm.kv_lora", t, d.kv_lora)
    norm_backward(builder, "norm.q_lora", t, d.q_lora)
    _input_gradients(builder, s, d)
    return builder.done()


def _input_gradients(builder: SegmentBuilder, s: Shapes, d: Dims) -> None:
    """From the latents' gradients back to the input of the layer."""
    t, h, kv_a = d.sharded, d.hidden, d.kv_lora + d.rope
    scatter(builder, "attn.latent_g", s, d.q_lora + kv_a)
    if s.norm_again("layer"):
        norm_forward(builder, "norm.attn.recompute", t, h, part="R")
    for name, wide in (("attn.kv_a", kv_a), ("attn.q_a", d.q_lora)):
        linear.input_gradient(builder, name, t, wide, h, recipe=s.recipe, weight_first=False)
        if s.fp8:
            linear.cast_for_wgrad(builder, name, t, h, which="x")
            linear.cast_for_wgrad(builder, name, t, wide, which="g")
    builder.add("attn.dx.add", "elem", elementwise(t * h, 2 * BF16, BF16))
    norm_backward(builder, "norm.attn", t, h, residual=True)


def weights(s: Shapes) -> Segment:
    """`attn.W`: the weight gradients."""
    d = dims_of(s)
    builder = SegmentBuilder("attn.W", "W", s)
    weight_gradients(builder, s)
    linear.weight_gradient(builder, "attn.o", d.tokens, d.hidden, d.out, recipe=s.recipe, place="row")
    _per_head_weights(builder, s, d, "attn.w_uv", d.v)
    _per_head_weights(builder, s, d, "attn.w_uk", d.nope)
    linear.weight_gradient(builder, "attn.q_b", d.tokens, d.q, d.q_lora, recipe=s.recipe)
    linear.weight_gradient(builder, "attn.kv_a", d.sharded, d.kv_lora + d.rope, d.hidden, recipe=s.recipe)
    linear.weight_gradient(builder, "attn.q_a", d.sharded, d.q_lora, d.hidden, recipe=s.recipe)
    return builder.done()
