"""DeepSeekMoE: gate, dispatch, routed and shared experts, combine (V3 report, sections 2.1.2 and 3.2.2).

Order and bytes follow DeepSeek's public training profile. `rows` are the routed tokens of the local experts (padded),
`received` the distinct tokens that arrive at this rank.

Shared experts are overlapped with the all-to-alls, as in that profile, or (`stack.shared_expert_overlap` false) run in
the segments of attention, where nothing is overlapped with them: forward before the dispatch, backward after its
gradient, as Megatron-Core does without --moe-shared-expert-overlap (megatron/core/transformer/moe/moe_layer.py, 2025).
"""

from __future__ import annotations

from dataclasses import replace

from simulator.dtypes import BF16, FP8, FP32, fp8_bytes
from simulator.graph import ffn, linear
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast, elementwise, row_scales
from simulator.graph.mixers import branches, hyper
from simulator.graph.norm import (
    add_residual,
    drop_backward,
    norm_behind,
    norm_behind_backward,
    norm_forward,
    sum_of_two,
)
from simulator.graph.parallel import gather, regather, scatter, sharded_tokens
from simulator.graph.precision import casts
from simulator.graph.shapes import Shapes
from simulator.graph.tokens import biases, latent, order, travel
from simulator.ops import Collective, CollectiveKind, Facts, Fixed, Gemm, Streaming
from simulator.spec.precision import RECIPES


def expert_inner(s: Shapes) -> int:
    """Width of one routed expert on this rank."""
    return s.model.moe_intermediate_size // s.job.layout.etp


def expert_up(s: Shapes) -> int:
    """Output width of its first GEMM: gate and up, or up alone."""
    return expert_inner(s) * (2 if s.model.gated_mlp else 1)


def shared_of(s: Shapes, *, overlapped: bool) -> ffn.Ffn | None:
    """The shared experts, if there are any and the software runs them so: `overlapped` with the all-to-alls or not."""
    if not s.model.shared_width or s.stack.shared_expert_overlap is not overlapped:
        return None
    return ffn.ffn_of(s, "shared")


def shared_forward(builder: SegmentBuilder, s: Shapes) -> None:
    """Shared experts without overlap, at the end of `attn.F`: the dispatch is issued after them."""
    shared = shared_of(s, overlapped=False)
    if shared:
        with builder.inside("shared_experts"):
            gather(builder, "shared.x", s, shared.hidden)
            ffn.up(builder, shared, s, cast_input=False)
            ffn.down(builder, shared, s)
            scatter(builder, "shared", s, shared.hidden)
            ffn.save(builder, shared)


def local_sum(s: Shapes) -> tuple[Segment, ...]:
    """`out.F`: after a plain all-to-all the copies of each token are summed at home; shared experts and residual are
    added, where nothing fuses that."""
    builder = SegmentBuilder("out.F", "F", s)
    home: tuple[str, ...] = ("moe.combine.fwd.a2a",) if order.travels(s) else ()
    with builder.inside("moe"):
        home = order.merge_at_home(builder, s, home)
        home = latent.back(builder, s, home)
        home = branches.leave(builder, s, after=home)
        if s.model.shared_width and (s.model.branch_norms or not s.stack.residual_fused):
            work = sum_of_two(sharded_tokens(s) * s.model.hidden_size)
            builder.add("moe.shared.sum", "elem", work, after=home, scales_with_load=True)
            home = ()
    if hyper.mixes(s):
        hyper.leave(builder, "ffn", s, after=home)
    else:
        home = norm_behind(builder, "moe", s, after=home)
        behind = s.model.norm_placement != "pre"
        add_residual(builder, "moe", s, s.model.hidden_size, leaves=behind, after=home, scales_with_load=True)
    done = builder.done()
    return (done,) if done.ops else ()


def local_copies_backward(s: Shapes) -> tuple[Segment, ...]:
    """`out.B`: the gradient of that sum, and of the streams', before the experts' backward."""
    builder = SegmentBuilder("out.B", "I", s)
    hyper.leave_backward(builder, "ffn", s)
    if s.model.norm_placement != "pre":
        drop_backward(builder, "moe", s, s.model.hidden_size)
        norm_behind_backward(builder, "moe", s)
        branches.leave_backward(builder, s)
    latent.back_backward(builder, s)
    if order.permutes_at_home(s):
        order.merge_at_home_backward(builder, s)
    done = builder.done()
    return (done,) if done.ops else ()


def forward_end(s: Shapes) -> str:
    """The last op of `mlp.F`."""
    last = "shared" if shared_of(s, overlapped=True) else "moe"
    if s.fp8:
        return f"{last}.up_gate.save_fp8"
    if last == "shared":
        return "shared.down.fwd"
    if s.job.layout.etp > 1:
        return "moe.y.reduce_scatter"
    alone = biases.last_of_add(s) if biases.by_expert(s) else "moe.down.fwd"
    alone = "moe.weigh.fwd" if _weighs(s) else alone
    return alone if order.arrive_in_order(s) else "moe.unpermute.fwd"


def backward_end(s: Shapes) -> str:
    """The last op of `mlp.B`."""
    shared = shared_of(s, overlapped=True)
    if s.fp8:
        return "shared.up_gate.quant_x_t" if shared else "moe.up_gate.quant_g_t"
    if shared:
        return "shared.up_gate.dgrad"
    if s.job.layout.etp > 1:
        return "moe.dx.reduce_scatter"
    return "moe.up_gate.dgrad" if order.arrive_in_order(s) else "moe.unpermute.grad"


def _weighs(s: Shapes) -> bool:
    """Whether a kernel of its own multiplies the experts' outputs by gate weights; PyTorch's merge of rows does it."""
    return s.stack.gate_weights == "output" and not order.in_pytorch(s)


def _launches(s: Shapes) -> int:
    """Kernels of one GEMM over the local experts."""
    return s.local_experts if s.stack.grouped_gemm == "streams" else 1


def _pads(s: Shapes) -> bool:
    """Whether rows are copied to places that quantised GEMMs can start at, and back: Transformer Engine's grouped
    linear wants multiples of 16 or 32 rows for each expert. Hybrid-EP leaves them so, and equal capacities are
    (megatron/core/transformer/moe/experts.py, TEGroupedMLP.forward, 2025 to 2026: quantization_padding)."""
    aligned = s.stack.dispatcher == "hybrid_ep" or s.stack.token_counts == "capacity"
    return s.stack.grouped_gemm == "streams" and s.recipe not in ("bf16", "fp8") and not aligned


def _pad(builder: SegmentBuilder, s: Shapes, name: str) -> None:
    """All rows of the local experts copied."""
    if _pads(s):
        work = cast(s.rows * s.model.expert_hidden, BF16, BF16)
        builder.add(name, "permute.pad", work, scales_with_load=True, read_by_backward=False)


def _fused(s: Shapes) -> bool:
    """Whether the GEMMs around the activation compute it, weigh it and cast it, and so for gradients, and casts lay out
    scales as GEMMs read them (transformer_engine/pytorch/ops/fused/grouped_mlp.py, 2026: cuDNN's grouped_gemm_glu and
    grouped_gemm_dglu on Blackwell, forward_grouped_mlp.py before; in NVFP4 casts stay). That GEMMs take no longer for
    it is assumed. cuDNN-frontend's benchmark bears it out for 8 experts of 4,096 rows, K 8192, once clocks have settled
    (benchmark/cutedsl_fusion_kernels, 2026): forward, N 8192, 1.61 ms on GB200 and 1.40 on GB300, where the GEMM alone
    is forecast at 1.61 and 1.40; backward, N 4096, 0.87 and 0.72, forecast at 0.81 and 0.70."""
    return s.stack.grouped_gemm == "fused" and s.recipe == "mxfp8"


def _grouped(s: Shapes, n: int, k: int, *, gradient: bool = False) -> Gemm:
    """One grouped GEMM over the local experts."""
    return Gemm(
        m=s.rows,
        n=n,
        k=k,
        precision=linear.precision_of(s.recipe),
        form="grouped",
        groups=s.local_experts,
        split=gradient and linear.splits(s.recipe),
    )


def _over_experts_parts(
    builder: SegmentBuilder, s: Shapes, name: str, kind: CollectiveKind, after: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Expert tensor parallelism: the ranks that share an expert gather the tokens of all of them, and scatter the sums
    (Megatron-Core's expert-tensor-parallel groups). Returns what is still to wait for."""
    etp = s.job.layout.etp
    if etp == 1:
        return after
    each = order.each_bytes(s) if kind == "all_gather" else s.model.expert_hidden * BF16
    work = Collective(kind=kind, bytes=s.received * each, ranks=etp, per_node=min(etp, s.node_gpus))
    saved = latent.kept(s) if name == "moe.y" and not order.travels(s) else 0.0
    builder.add(f"{name}.{kind}", f"comm.etp.{kind}", work, after=after, scales_with_load=True, saved=saved)
    return ()


def _gate_weights(s: Shapes) -> Streaming:
    """The FP32 gate weights of the tokens received, scaled: one for each of a token's experts, here or elsewhere."""
    return elementwise(s.received * s.model.num_experts_per_tok, FP32, FP32)


def _casts(
    builder: SegmentBuilder, s: Shapes, name: str, width: int, out: int, *, backward: bool = False, made: bool = False
) -> None:
    """Operands of a grouped GEMM of the local experts, where each layer casts its own: x (rows, width) and weights in
    forward, the gradient (rows, out) and weights in backward; `made`: the GEMM before has cast x or the gradient."""
    if not RECIPES[s.recipe].by_layer:
        return
    make, values = (casts.of_gradient, s.rows * out) if backward else (casts.of_input, s.rows * width)
    many, weights = _casts_apart(s), s.local_experts * width * out
    if not (made and _fused(s)):
        make(builder, name, values / many, "alone", experts=True, scales_with_load=True, count=many)
    casts.of_weight(builder, name, weights, backward=backward)
    which = "dgrad" if backward else "fwd"
    casts.swizzle(builder, f"{name}.{which}", 0 if _fused(s) else values, weights, scales_with_load=True)


def _activation(builder: SegmentBuilder, s: Shapes, inner: int) -> None:
    """The activation, and before it the bound of its inputs, where no GEMM computes them."""
    if _fused(s):
        return
    biases.bound(builder, s, inner)
    ffn.eager_activation(builder, "moe", s.rows, inner, gated=s.model.gated_mlp, backward=False, scales_with_load=True)
    cls, work = ffn.activation_kernel(s, s.rows, inner, gated=s.model.gated_mlp, out=FP8 if s.fp8 else BF16)
    builder.add(
        "moe.swiglu.fwd_quant" if s.fp8 else "moe.swiglu.fwd",
        cls,
        work,
        saved=ffn.kept_activation(s, "moe", s.rows, inner),
        scales_with_load=True,
    )


def _activation_backward(builder: SegmentBuilder, s: Shapes, inner: int) -> None:
    """The gradients of the activation, of its bound and of the gate weights, where no GEMM computes them; else those of
    the second GEMMs' weighted biases alone, by a kernel (grouped_dbias_dscales)."""
    if _fused(s):
        if s.model.mlp_bias:
            read = s.rows * s.model.expert_hidden * BF16
            builder.add(
                "moe.down.bias.sum.bwd", "elem.reduce", Streaming(read=read, written=0.0), scales_with_load=True
            )
        return
    again = s.activation_again("moe")
    if again:
        biases.bound(builder, s, inner, part="R")
    ffn.eager_activation(builder, "moe", s.rows, inner, gated=s.model.gated_mlp, backward=True, scales_with_load=True)
    cls, work = ffn.activation_kernel(s, s.rows, inner, gated=s.model.gated_mlp, backward=True, again=again)
    builder.add("moe.swiglu.fwd_bwd" if again else "moe.swiglu.bwd", cls, work, scales_with_load=True)
    if not order.in_pytorch(s) and not _weighs(s):
        read = 2 if s.fp8 or not s.model.gated_mlp else 3  # else what the activation read, and its gradient
        work = Streaming(read=read * s.rows * inner * BF16, written=0.0)
        builder.add("moe.swiglu.gate_w_bwd", ffn.activation_class(s.model), work, scales_with_load=True)
    biases.bound_backward(builder, s, inner)


def _casts_apart(s: Shapes) -> int:
    """Casts of an operand of a grouped GEMM: Transformer Engine casts the rows of all experts at once where scales are
    delayed, and else those of each by kernels of their own (transformer_engine/pytorch/csrc/extensions/cast.cpp,
    multi_tensor_quantize_impl, 2.9, 2025-11)."""
    delayed = RECIPES[s.recipe].scaled == "tensor" and s.settings.scaling == "delayed"
    return 1 if delayed or s.stack.grouped_gemm != "streams" else s.local_experts


def forward(s: Shapes) -> Segment:
    """`mlp.F`: shared up projection, permute, the two grouped GEMMs, un-permute, shared down projection."""
    h, inner, experts = s.model.expert_hidden, expert_inner(s), s.local_experts
    shared = shared_of(s, overlapped=True)
    builder = SegmentBuilder("mlp.F", "F", s)
    builder.unit = "moe"
    if shared:
        with builder.inside("shared_experts"):
            gather(builder, "shared.x", s, shared.hidden)
            ffn.up(builder, shared, s, cast_input=False)
    kept_x = fp8_bytes(s.received * h) if s.fp8 else s.rows * h * s.formats.kept_bytes
    arrived = travel.arrived(s, "moe.dispatch.fwd.a2a")
    gathered = _over_experts_parts(builder, s, "moe.x", "all_gather", after=arrived)
    order.into_experts(builder, s, gathered, kept_x)
    _pad(builder, s, "moe.pad.fwd")
    if s.fp8:
        linear.weight_transpose(builder, "moe.up_gate", expert_up(s), h, experts=experts)
        builder.add("moe.up_gate.scale_t", "scale_t.rows", row_scales(s.rows, h), scales_with_load=True)
    _casts(builder, s, "moe.up_gate", h, expert_up(s))
    builder.add(
        "moe.up_gate.fwd",
        linear.gemm_class(s.recipe, ".grouped"),
        _grouped(s, expert_up(s), h),
        saved=ffn.kept_up(s, s.rows, expert_up(s)) + (ffn.kept_activation(s, "moe", s.rows, inner) if _fused(s) else 0),
        scales_with_load=True,
        launches=_launches(s),
    )
    if s.fp8:
        builder.add("moe.gate_w.scale", "elem", _gate_weights(s), scales_with_load=True)
    _activation(builder, s, inner)
    if s.fp8:
        linear.weight_transpose(builder, "moe.down", h, inner, experts=experts)
        builder.add("moe.down.scale_t", "scale_t.rows", row_scales(s.rows, inner), scales_with_load=True)
        builder.add("moe.tensormap.fill", "tensormap", Fixed(), scales_with_load=True)
    _casts(builder, s, "moe.down", inner, h, made=True)
    last: Facts = {"scales_with_load": True, "read_by_backward": False}
    kept = s.rows * h * BF16 if s.stack.gate_weights == "output" else 0.0
    read = kept > 0.0 or s.model.norm_placement != "pre"  # by gate weights' gradients, or a norm behind the branch
    down: Facts = {**last, "read_by_backward": read, "launches": _launches(s)}
    builder.add("moe.down.fwd", linear.gemm_class(s.recipe, ".grouped"), _grouped(s, h, inner), saved=kept, **down)
    biases.add(builder, s)
    _pad(builder, s, "moe.unpad.fwd")
    if _weighs(s):
        builder.add("moe.weigh.fwd", "elem", cast(s.rows * h, BF16, BF16), **last)
    order.out_of_experts(builder, s)
    _over_experts_parts(builder, s, "moe.y", "reduce_scatter")
    if shared:
        with builder.inside("shared_experts"):
            ffn.down(builder, shared, s)
            scatter(builder, "shared", s, shared.hidden)
    if s.fp8:
        work = cast(s.rows * expert_up(s), BF16, FP8)
        builder.add("moe.up_gate.save_fp8", "quant.token", work, scales_with_load=True)
    if shared:
        with builder.inside("shared_experts"):
            ffn.save(builder, shared)
    return builder.done()


def _expert_down_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """From the arriving gradient to that of the experts' up projection."""
    h, inner = s.model.expert_hidden, expert_inner(s)
    wait = travel.gradient_arrived(s)
    if s.fp8:
        values = s.rows * expert_up(s)
        work = Streaming(read=values * FP8, written=values * BF16, blocks=ffn.persistent(s))
        builder.add("moe.up_gate.dequant", "dequant", work, part="R", scales_with_load=True)
    wait = _over_experts_parts(builder, s, "moe.dy", "all_gather", after=wait)
    order.out_of_experts_backward(builder, s, wait)
    if _weighs(s):
        builder.add("moe.weigh.bwd", "elem", cast(s.rows * h, 2 * BF16, BF16), scales_with_load=True)
    _pad(builder, s, "moe.pad.grad")
    biases.add_backward(builder, s)
    if s.fp8:
        builder.add("moe.down.scale_t_g", "scale_t.rows", row_scales(s.rows, h), scales_with_load=True)
    _casts(builder, s, "moe.down", inner, h, backward=True)
    builder.add(
        "moe.down.dgrad", linear.gradient_class(s.recipe, ".grouped"), _grouped(s, inner, h, gradient=True),
        scales_with_load=True, launches=_launches(s),
    )  # fmt: skip
    _activation_backward(builder, s, inner)
    if s.fp8:
        linear_cast = cast(s.rows * inner, BF16 if s.activation_again("moe") else FP8, FP8)
        builder.add("moe.swiglu_out.quant_t", "quant.chan_t", linear_cast, part="W", scales_with_load=True)
        builder.add("moe.gate_w.scale_b", "elem", _gate_weights(s), scales_with_load=True)


def backward(s: Shapes) -> Segment:
    """`mlp.B`."""
    h, wide, t = s.model.hidden_size, s.model.expert_hidden, sharded_tokens(s)
    shared = shared_of(s, overlapped=True)
    builder = SegmentBuilder("mlp.B", "I", s)
    if shared:
        gather(builder, "shared.g", s, h)
        first = ("moe.combine.bwd.quant",) if s.fp8 else ()
        ffn.down_backward(builder, shared, s, gradient_fp8=s.fp8, after=first)
    _expert_down_backward(builder, s)
    if s.norm_again("layer"):
        norm_forward(builder, "norm.ffn.recompute", t, h, part="R")
        if s.fp8 and shared:
            builder.add("shared.x.quant_recompute", "quant.token", cast(t * h, BF16, FP8), part="R")
    if s.fp8:
        builder.add("moe.up_gate.quant_g", "quant.token", cast(s.rows * expert_up(s), BF16, FP8), scales_with_load=True)
        builder.add("moe.up_gate.scale_t_g", "scale_t.rows", row_scales(s.rows, expert_up(s)), scales_with_load=True)
    _casts(builder, s, "moe.up_gate", wide, expert_up(s), backward=True, made=True)
    builder.add(
        "moe.up_gate.dgrad", linear.gradient_class(s.recipe, ".grouped"),
        _grouped(s, wide, expert_up(s), gradient=True), scales_with_load=True, launches=_launches(s),
    )  # fmt: skip
    _pad(builder, s, "moe.unpad.grad")
    order.into_experts_backward(builder, s)
    _over_experts_parts(builder, s, "moe.dx", "reduce_scatter")
    if s.fp8:
        builder.add(
            "moe.up_gate.quant_g_t",
            "quant.chan_t",
            cast(s.rows * expert_up(s), BF16, FP8),
            part="W",
            scales_with_load=True,
        )
        if shared:
            builder.add("shared.x.dequant", "dequant", _dequant(t * h, ffn.persistent(s)), part="R")
    if shared:
        regather(builder, "shared.x", s, h)
        ffn.up_backward(builder, shared)
        scatter(builder, "shared.dx", s, h, gradient=True)
    return builder.done()


def _dequant(elements: int, blocks: int) -> Streaming:
    """FP8 back to BF16."""
    return Streaming(read=elements * FP8, written=elements * BF16, blocks=blocks)


def _expert_wgrad(builder: SegmentBuilder, s: Shapes, name: str, m: int, n: int) -> None:
    """Weight gradients of the local experts: one kernel each on alternating streams, or one grouped kernel."""
    precision, kept = linear.precision_of(s.recipe), s.states.gradient_bytes
    parameters = s.local_experts * biases.parameters_of(s)
    if RECIPES[s.recipe].by_layer:
        many = _casts_apart(s)
        apart = (s.rows * m / many, s.rows * n / many)
        casts.for_weight_gradient(builder, name, *apart, "alone", scales_with_load=True, count=many)
        if not _fused(s):
            casts.swizzle(builder, f"{name}.wgrad", s.rows * (m + n), 0, "W", scales_with_load=True)
    fused = s.stack.wgrad_accumulation_fused
    if s.stack.grouped_wgrad:
        work = Gemm(
            m=m, n=n, k=s.rows, precision=precision, form="grouped_wgrad", groups=s.local_experts,
            out_bytes=kept if fused else BF16 / 2, split=linear.splits(s.recipe),
        )  # fmt: skip
        builder.add(
            f"{name}.wgrad", linear.gemm_class(s.recipe, ".grouped_wgrad"), work, scales_with_load=True,
            launches=_launches(s), parameters=parameters,
        )  # fmt: skip
    else:
        rows = -(-s.rows // s.local_experts)
        work = Gemm(m=m, n=n, k=rows, precision=precision, form="wgrad", out_bytes=kept if fused else BF16)
        builder.add(
            f"{name}.wgrad", linear.gemm_class(s.recipe, ".wgrad"), work, count=s.local_experts, scales_with_load=True,
            parameters=parameters,
        )  # fmt: skip
    if not fused and not s.copies_shards:
        linear.add_gradient(builder, name, s.local_experts * m * n)


def weights(s: Shapes) -> Segment:
    """`mlp.W`: weight gradients of shared and routed experts, with the permuting casts of their operands."""
    h, inner = s.model.expert_hidden, expert_inner(s)
    shared = shared_of(s, overlapped=True)
    builder = SegmentBuilder("mlp.W", "W", s)
    latent.back_weights(builder, s)
    if shared:
        linear.weight_gradient(
            builder, "shared.down", shared.tokens, shared.hidden, shared.inner, recipe=shared.recipe, place="row"
        )
    permuted = Streaming(read=s.received * h * FP8, written=s.rows * h * FP8)
    if s.fp8:
        builder.add("moe.down.quant_g_t", "quant.chan_t.permuted", permuted, scales_with_load=True)
    _expert_wgrad(builder, s, "moe.down", inner, h)
    if s.fp8:
        builder.add("moe.up_gate.quant_x_t", "quant.chan_t.permuted", permuted, scales_with_load=True)
    _expert_wgrad(builder, s, "moe.up_gate", h, expert_up(s))
    if shared:
        linear.weight_gradient(
            builder,
            "shared.up_gate",
            shared.tokens,
            shared.up,
            shared.hidden,
            recipe=shared.recipe,
            matrices=shared.projected,
        )
    return builder.done()


def shared_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """Input gradients of shared experts that nothing overlaps, in `attn.B` behind those of the gate."""
    shared = shared_of(s, overlapped=False)
    if shared is None:
        return
    values = sharded_tokens(s) * shared.hidden
    gather(builder, "shared.g", s, shared.hidden)
    ffn.down_backward(builder, shared, s, gradient_fp8=shared.fp8)
    if s.fp8 and s.norm_again("layer"):
        builder.add("shared.x.quant_recompute", "quant.token", cast(values, BF16, FP8), part="R")
    if s.fp8:
        builder.add("shared.x.dequant", "dequant", _dequant(values, ffn.persistent(s)), part="R")
    regather(builder, "shared.x", s, shared.hidden)
    ffn.up_backward(builder, shared)
    scatter(builder, "shared.dx", s, shared.hidden, gradient=True)


def with_late_weights(attention: Segment, s: Shapes) -> Segment:
    """`attn.W` with the weight gradients that are ready behind the experts' backward: of the projection to their width,
    and of shared experts that nothing overlaps."""
    shared = shared_of(s, overlapped=False)
    builder = SegmentBuilder(attention.name, "W", s)
    latent.there_weights(builder, s)
    if shared:
        linear.weight_gradient(
            builder, "shared.down", shared.tokens, shared.hidden, shared.inner, recipe=shared.recipe, place="row"
        )
        linear.weight_gradient(
            builder,
            "shared.up_gate",
            shared.tokens,
            shared.up,
            shared.hidden,
            recipe=shared.recipe,
            matrices=shared.projected,
        )
    return replace(attention, ops=builder.done().ops + attention.ops)
