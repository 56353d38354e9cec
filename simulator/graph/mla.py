"""Multi-head latent attention as DeepSeek trains it (arXiv 2405.04434, section 2.1; 2412.19437, section 2.1.1).

Op names, order and bytes follow DeepSeek's public training profile (`deepseek-ai/profile-data`), tabulated in
`workloads/facts/h800_layer_ops.csv`.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.dtypes import BF16, FP32, WIDTH
from simulator.graph import linear
from simulator.graph.attention import finish_backward, gate_output, gate_width, prepare_backward
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast, elementwise
from simulator.graph.mixers import context, depth
from simulator.graph.norm import add_residual, norm_backward, norm_forward, norm_output
from simulator.graph.parallel import gather, heads_per_rank, scatter, sharded_tokens
from simulator.graph.precision.core import cast_operands, core_of
from simulator.graph.shapes import Shapes
from simulator.ops import Attention, Part, Streaming


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Widths of one rank's share of the heads."""

    tokens: int
    sharded: int
    hidden: int
    heads: int
    q_lora: int
    kv_lora: int
    nope: int
    rope: int
    v: int

    @property
    def q(self) -> int:
        """Width of all queries (and of all keys)."""
        return self.heads * (self.nope + self.rope)

    @property
    def kv(self) -> int:
        """Width of the key/value up-projection."""
        return self.heads * (self.nope + self.v)

    @property
    def out(self) -> int:
        """Width of the attention output."""
        return self.heads * self.v


def dims_of(s: Shapes) -> Dims:
    """The widths of MLA for these shapes."""
    model = s.model
    return Dims(
        tokens=s.tokens,
        sharded=sharded_tokens(s),
        hidden=model.hidden_size,
        heads=heads_per_rank(s),
        q_lora=model.q_lora_rank or 0,
        kv_lora=model.kv_lora_rank or 0,
        nope=model.qk_nope_head_dim or 0,
        rope=model.qk_rope_head_dim or 0,
        v=model.v_head_dim or 0,
    )


def core_work(s: Shapes, d: Dims, *, backward: bool) -> Attention:
    """The attention core of one microbatch."""
    return Attention(
        batch=s.batch,
        seq_q=s.seq,
        seq_kv=s.seq_kv,
        heads=d.heads,
        kv_heads=d.heads,
        d_qk=d.nope + d.rope,
        d_v=d.v,
        causal=True,
        backward=backward,
    )


def _up_projections(builder: SegmentBuilder, s: Shapes, d: Dims, *, again: bool) -> None:
    """Latents to queries, keys and values; run once more in backward where they are recomputed."""
    tail = "_r" if again else ""
    part: Part | None = "R" if again else None
    name = "recompute" if again else "fwd"
    rope = "recompute" if again else "fwd"
    keep = 0.0 if s.up_again or again else 1.0
    if not again or s.norm_again("latent"):
        if d.q_lora:
            norm_forward(
                builder,
                f"norm.q_lora.{name}",
                d.tokens,
                d.q_lora,
                part=part,
                saved=0.0 if again else norm_output(s, d.tokens, d.q_lora, "latent", each=s.formats.kept_bytes),
            )
        builder.add(
            f"attn.kv_slice.copy{tail}", "elem.strided", elementwise(d.tokens * d.kv_lora, BF16, BF16), part=part
        )
        norm_forward(
            builder,
            f"norm.kv_lora.{name}",
            d.tokens,
            d.kv_lora,
            part=part,
            saved=0.0 if again else norm_output(s, d.tokens, d.kv_lora, "latent", each=s.formats.kept_bytes),
        )
        if not again:
            builder.add("attn.k_pe.copy", "elem.strided", elementwise(d.tokens * d.rope, BF16, BF16))
    if again and not s.up_again:
        return
    if d.q_lora:
        linear.forward(
            builder,
            "attn.q_b",
            d.tokens,
            d.q,
            d.q_lora,
            recipe=s.recipe,
            recompute=again,
            saved=keep * d.tokens * d.q * BF16,
        )
    linear.forward(
        builder,
        "attn.kv_b",
        d.tokens,
        d.kv,
        d.kv_lora,
        recipe=s.recipe,
        recompute=again,
        saved=keep * d.tokens * d.out * BF16,
    )
    builder.add(f"rope.k.{rope}", "rope", linear.rotation(d.tokens * d.rope), part=part)
    builder.add(
        f"attn.k_nope.copy{tail}",
        "kvcopy",
        cast(d.tokens * d.heads * d.nope, BF16, BF16),
        part=part,
        saved=keep * d.tokens * d.q * BF16,
    )
    builder.add(
        f"attn.k_pe.bcast{tail}",
        "elem.strided",
        elementwise(d.tokens * d.heads * d.rope, 0.0, BF16),  # one head's keys are read, then found in L2
        part=part,
    )
    if d.q_lora or not again:  # queries without a latent are kept themselves
        builder.add(f"rope.q.{rope}", "rope", linear.rotation(d.tokens * d.heads * d.rope), part=part)


def _gate(builder: SegmentBuilder, s: Shapes, d: Dims) -> None:
    """The core's output times a gate that is projected from the layer's input (Kimi K3)."""
    wide = gate_width(s)
    if not wide:
        return
    if d.q_lora:  # queries without a latent have gathered it already
        gather(builder, "attn.x", s, d.hidden)
    saved = d.tokens * wide * BF16
    linear.forward(builder, "attn.gate_proj", d.tokens, wide, d.hidden, recipe=s.recipe, place="column", saved=saved)
    gate_output(builder, s)


def _gate_gradient(builder: SegmentBuilder, s: Shapes, d: Dims) -> None:
    """From the gate's gradient to that of the layer's input, to which it is added."""
    wide, t, h = gate_width(s), d.tokens, d.hidden
    if not wide:
        return
    linear.input_gradient(builder, "attn.gate_proj", t, wide, h, recipe=s.recipe, place="column")
    if s.fp8:
        linear.cast_for_wgrad(builder, "attn.gate_proj", t, h, which="x")
        linear.cast_for_wgrad(builder, "attn.gate_proj", t, wide, which="g")
    scatter(builder, "attn.gate_dx", s, h, gradient=True)
    builder.add("attn.gate_dx.add", "elem", elementwise(d.sharded * h, 2 * BF16, BF16))


def forward(s: Shapes) -> SegmentBuilder:
    """The segment `attn.F` up to and including the norm before the feed-forward part; the caller ends it."""
    d = dims_of(s)
    t, h = d.tokens, d.hidden
    builder = SegmentBuilder("attn.F", "F", s)
    each = 2 * s.formats.copied_bytes or BF16  # both projections keep their own form of it
    kept_norm = d.sharded * h * BF16 + norm_output(s, d.sharded, h, each=each)
    depth.mix(builder, "attn", s)
    norm_forward(builder, "norm.attn.fwd", d.sharded, h, saved=kept_norm)
    if d.q_lora:
        linear.forward(builder, "attn.q_a", d.sharded, d.q_lora, h, recipe=s.recipe, saved=d.sharded * d.q_lora * BF16)
    else:
        gather(builder, "attn.x", s, h)
        linear.forward(builder, "attn.q", t, d.q, h, recipe=s.recipe, saved=t * d.q * BF16)
    linear.forward(
        builder,
        "attn.kv_a",
        d.sharded,
        d.kv_lora + d.rope,
        h,
        recipe=s.recipe,
        saved=d.sharded * (d.kv_lora + (d.rope if s.up_again else 0)) * BF16,
    )
    gather(builder, "attn.latent", s, (d.q_lora or 0) + d.kv_lora + d.rope)
    _up_projections(builder, s, d, again=False)
    statistics = 0.0 if "core_attn" in s.recompute else t * d.heads * FP32
    kept_out = t * d.out * (WIDTH["e5m6"] if s.fp8 else BF16 + s.formats.copied_bytes)
    core = core_of(s, core_work(s, d, backward=False))
    cast_operands(builder, s, core, "attn.core.fwd")
    context.forward(builder, s, core, "attn.core.fwd", saved=statistics + kept_out)
    if s.fp8:
        builder.add("attn.out.save_e5m6", "quant.special", cast(t * d.out, BF16, WIDTH["e5m6"]))
    _gate(builder, s, d)
    linear.forward(builder, "attn.o", t, h, d.out, recipe=s.recipe, place="row")
    scatter(builder, "attn.o", s, h)
    builder.add("attn.out.scale", "elem", elementwise(d.sharded * h, BF16, BF16))
    add_residual(builder, "attn", s, h)
    depth.mix(builder, "ffn", s)
    kept_norm = d.sharded * h * BF16 + norm_output(s, d.sharded, h, each=s.ffn_input)
    norm_forward(builder, "norm.ffn.fwd_residual", d.sharded, h, residual=True, saved=kept_norm)
    return builder


def _core_backward(builder: SegmentBuilder, s: Shapes, d: Dims) -> None:
    """Backward of the core with the kernels before and after it."""
    t = d.tokens
    prepare_backward(builder, s, t * d.q, t * d.out, part="I")
    core = core_of(s, core_work(s, d, backward=True))
    cast_operands(builder, s, core, "attn.core.bwd")
    context.backward(builder, s, core, "attn.core.bwd")
    finish_backward(builder, s, t * d.q)
    builder.add("rope.q.bwd", "rope", linear.rotation(d.tokens * d.heads * d.rope))


def _latent_gradients(builder: SegmentBuilder, s: Shapes, d: Dims) -> None:
    """From dq, dk, dv back to the two latents."""
    t = d.tokens
    if d.q_lora:
        linear.input_gradient(builder, "attn.q_b", t, d.q, d.q_lora, recipe=s.recipe)
    builder.add("attn.k_pe.reduce", "elem.reduce", Streaming(read=t * d.heads * d.rope * BF16, written=0.0))
    builder.add("rope.k.bwd", "rope", linear.rotation(d.tokens * d.rope))
    builder.add("attn.dk_nope.copy", "kvcopy", cast(t * d.heads * d.nope, BF16, BF16))
    builder.add("attn.dv.copy", "kvcopy", cast(t * d.out, BF16, BF16))
    linear.input_gradient(builder, "attn.kv_b", t, d.kv, d.kv_lora, recipe=s.recipe)
    if s.fp8:
        linear.cast_for_wgrad(builder, "attn.kv_b", t, d.kv, which="g")
        linear.cast_for_wgrad(builder, "attn.kv_b", t, d.kv_lora, which="x")
        if d.q_lora:
            linear.cast_for_wgrad(builder, "attn.q_b", t, d.q, which="g")
            linear.cast_for_wgrad(builder, "attn.q_b", t, d.q_lora, which="x")
    norm_backward(builder, "norm.kv_lora", t, d.kv_lora)
    if d.q_lora:
        norm_backward(builder, "norm.q_lora", t, d.q_lora)


def _input_gradients(builder: SegmentBuilder, s: Shapes, d: Dims) -> None:
    """From the latents' gradients back to the input of the layer."""
    t, h, kv_a = d.sharded, d.hidden, d.kv_lora + d.rope
    scatter(builder, "attn.latent_g", s, (d.q_lora or 0) + kv_a)
    builder.add("attn.dkv_a.fill", "elem", elementwise(t * kv_a, 0.0, BF16), count=2)
    builder.add("attn.dkv_a.copy_pe", "elem.strided", elementwise(t * d.rope, BF16, BF16))
    builder.add("attn.dkv_a.copy_kv", "elem.strided", elementwise(t * d.kv_lora, BF16, BF16))
    builder.add("attn.dkv_a.add", "elem", elementwise(t * kv_a, 2 * BF16, BF16))
    if s.norm_again("layer"):
        norm_forward(builder, "norm.attn.recompute", t, h, part="R")
    first = [("attn.kv_a", kv_a, t)] + ([("attn.q_a", d.q_lora, t)] if d.q_lora else [("attn.q", d.q, d.tokens)])
    for name, width, rows in first:
        linear.input_gradient(builder, name, rows, width, h, recipe=s.recipe, weight_first=False)
        if s.fp8:
            linear.cast_for_wgrad(builder, name, rows, h, which="x")
            linear.cast_for_wgrad(builder, name, rows, width, which="g")
    builder.add("attn.dx.add", "elem", elementwise(t * h, 2 * BF16, BF16))
    _gate_gradient(builder, s, d)
    norm_backward(builder, "norm.attn", t, h, residual=True)
    depth.mix_backward(builder, "attn", s)


def backward(builder: SegmentBuilder, s: Shapes) -> Segment:
    """The rest of `attn.B` after the router's part: from the gradient of the block's output to that of its input."""
    d = dims_of(s)
    t, h = d.tokens, d.hidden
    norm_backward(builder, "norm.ffn", d.sharded, h, residual=True)
    depth.mix_backward(builder, "ffn", s)
    builder.add("attn.out.scale.bwd", "elem", elementwise(d.sharded * h, BF16, BF16))
    gather(builder, "attn.o_g", s, h)
    if s.fp8:
        builder.add("attn.out.load_e5m6", "quant.special", cast(t * d.out, WIDTH["e5m6"], BF16), part="R")
    linear.input_gradient(builder, "attn.o", t, h, d.out, recipe=s.recipe, place="row", weight_first=False)
    gate_output(builder, s, backward=True)
    if s.fp8:
        linear.cast_for_wgrad(builder, "attn.o", t, d.out, which="x")
        linear.cast_for_wgrad(builder, "attn.o", t, h, which="g")
    if s.norm_again("latent") or s.up_again:
        _up_projections(builder, s, d, again=True)
    if "core_attn" in s.recompute:
        core = core_of(s, core_work(s, d, backward=False))
        cast_operands(builder, s, core, "attn.core.recompute", part="R")
        context.forward(builder, s, core, "attn.core.recompute", part="R")
    _core_backward(builder, s, d)
    _latent_gradients(builder, s, d)
    _input_gradients(builder, s, d)
    return builder.done()


def weights(s: Shapes) -> Segment:
    """`attn.W`: the weight gradients."""
    d = dims_of(s)
    builder = SegmentBuilder("attn.W", "W", s)
    linear.weight_gradient(builder, "attn.o", d.tokens, d.hidden, d.out, recipe=s.recipe, place="row")
    if gate_width(s):
        linear.weight_gradient(builder, "attn.gate_proj", d.tokens, gate_width(s), d.hidden, recipe=s.recipe)
    linear.weight_gradient(builder, "attn.kv_b", d.tokens, d.kv, d.kv_lora, recipe=s.recipe)
    if d.q_lora:
        linear.weight_gradient(builder, "attn.q_b", d.tokens, d.q, d.q_lora, recipe=s.recipe)
    linear.weight_gradient(builder, "attn.kv_a", d.sharded, d.kv_lora + d.rope, d.hidden, recipe=s.recipe)
    if d.q_lora:
        linear.weight_gradient(builder, "attn.q_a", d.sharded, d.q_lora, d.hidden, recipe=s.recipe)
    else:
        linear.weight_gradient(builder, "attn.q", d.tokens, d.q, d.hidden, recipe=s.recipe)
    return builder.done()
