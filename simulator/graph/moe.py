"""DeepSeekMoE: gate, dispatch, routed and shared experts, combine (V3 report, sections 2.1.2 and 3.2.2).

Order and bytes follow DeepSeek's public training profile. `rows` are the routed tokens of the local experts (padded),
`received` the distinct tokens that arrive at this rank.

Shared experts are overlapped with the all-to-alls, as in that profile, or (`stack.shared_expert_overlap` false) run in
the segments of attention, where nothing is overlapped with them: forward before the dispatch, backward after its
gradient, as Megatron-Core does without --moe-shared-expert-overlap (megatron/core/transformer/moe/moe_layer.py, 2025).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from simulator.dtypes import BF16, FP8, FP32, fp8_bytes
from simulator.graph import ffn, linear
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast, elementwise, row_scales
from simulator.graph.norm import add_residual, norm_forward, sum_of_two
from simulator.graph.parallel import gather, regather, scatter, sharded_tokens
from simulator.graph.shapes import Shapes
from simulator.ops import AllToAll, Collective, CollectiveKind, Facts, Fixed, Gemm, Notify, Streaming

ROUTER_FORWARD_KERNELS = (11, 16, 7)
"""Small kernels of the gate's forward in the profile: sigmoid, groups and masks before the top 8; gathers, weights and
the balance statistics between it and a second one; sums after that."""
ROUTER_BACKWARD_KERNELS = (15, 11)
"""The same in backward: of the chosen experts' weights, then of all scores."""

ROW_BYTES = 4.0
"""Bytes of the map's entry for a row, an int32 that backward permutes by [B]."""


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


def dispatched_bytes(s: Shapes) -> float:
    """Bytes of one token on the wire at dispatch: FP8 values with FP32 scales, or BF16 [B]."""
    return fp8_bytes(s.model.hidden_size) if s.fp8 else s.model.hidden_size * BF16


def all_to_all(s: Shapes, direction: Literal["dispatch", "combine"], *, backward: bool = False) -> AllToAll:
    """Dispatch or combine of this rank's tokens; combine is always BF16 (report, section 3.2.2).

    Backward reuses the layout of the forward, and a combine also returns the gate weights' gradients (DeepEP's
    README, `dispatch_backward`).
    """
    model = s.model
    return AllToAll(
        direction=direction,
        tokens=sharded_tokens(s),
        hidden=model.hidden_size,
        bytes_per_token=dispatched_bytes(s) if direction == "dispatch" else model.hidden_size * BF16,
        ranks=s.job.layout.ep,
        gate=model.gate,
        cached=backward,
        weighted=backward and direction == "combine",
        imbalance=s.imbalance,
    )


def router_forward(builder: SegmentBuilder, s: Shapes) -> None:
    """The gate and the cast of the tokens that travel."""
    with builder.inside("moe"):
        _router_forward(builder, s)


def _router_forward(builder: SegmentBuilder, s: Shapes) -> None:
    t, h, experts = sharded_tokens(s), s.model.hidden_size, s.model.n_routed_experts
    builder.add(
        "router.gate.fwd",
        "gemm.bf16.router",
        Gemm(m=t, n=experts, k=h, precision="bf16", out_bytes=FP32),
        saved=t * experts * FP32 + t * s.model.num_experts_per_tok * 12,
    )
    scores, weights, balance = ROUTER_FORWARD_KERNELS
    builder.add("router.scores", "router.scores", _scores(s), count=scores)
    builder.add(f"router.top{s.model.num_experts_per_tok}_of_{experts}", "router.topk", cast(t * experts, FP32, 0.0))
    builder.add("router.weights", "router.weights", Fixed(launches=weights))
    builder.add("router.topk_2nd", "router.topk", cast(t * experts, FP32, 0.0))
    builder.add("router.balance", "router.balance", Fixed(launches=balance))
    if s.fp8:
        builder.add("moe.dispatch.fwd.quant", "quant.token", cast(t * h, BF16, FP8), scales_with_load=True)
    if s.stack.dispatcher == "nccl":
        builder.add("moe.permute_local.fwd", "permute.expand", _local_copies(s), scales_with_load=True)


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


def _scores(s: Shapes) -> Streaming:
    """A kernel of the gate over the scores of all tokens and experts, FP32."""
    return cast(sharded_tokens(s) * s.model.n_routed_experts, FP32, FP32)


def _local_copies(s: Shapes) -> Streaming:
    """A plain all-to-all carries every (token, expert) copy: tokens are copied once per expert before it."""
    each = dispatched_bytes(s)
    copies = sharded_tokens(s) * s.model.num_experts_per_tok
    return Streaming(read=sharded_tokens(s) * each, written=copies * each)


def _local_sum(s: Shapes) -> Streaming:
    """The inverse: the copies of a token summed into one."""
    t, width = sharded_tokens(s), s.model.hidden_size * BF16
    return Streaming(read=t * s.model.num_experts_per_tok * width, written=t * width)


def local_sum(s: Shapes) -> tuple[Segment, ...]:
    """`out.F`: after a plain all-to-all the copies of each token are summed at home; shared experts and residual are
    added, where nothing fuses that."""
    builder = SegmentBuilder("out.F", "F", s)
    home: tuple[str, ...] = ("moe.combine.fwd.a2a",)
    with builder.inside("moe"):
        if s.stack.dispatcher == "nccl":
            builder.add("moe.unpermute_local.fwd", "permute.reduce", _local_sum(s), after=home, scales_with_load=True)
            home = ()
        if s.model.shared_width and not s.stack.residual_fused:
            work = sum_of_two(sharded_tokens(s) * s.model.hidden_size)
            builder.add("moe.shared.sum", "elem", work, after=home, scales_with_load=True)
            home = ()
    add_residual(builder, "moe", s, s.model.hidden_size, after=home, scales_with_load=True)
    done = builder.done()
    return (done,) if done.ops else ()


def local_copies_backward(s: Shapes) -> tuple[Segment, ...]:
    """`out.B`: the gradient of that sum, before the experts' backward."""
    if s.stack.dispatcher != "nccl":
        return ()
    builder = SegmentBuilder("out.B", "I", s)
    builder.add("moe.unpermute_local.bwd", "permute.expand", _local_copies(s), scales_with_load=True)
    return (builder.done(),)


def dispatch(s: Shapes) -> Segment:
    """`dispatch.F`: layout, notify, all-to-all."""
    builder = SegmentBuilder("dispatch.F", "F", s, "comm")
    builder.unit = "moe"
    last = "moe.dispatch.fwd.quant" if s.fp8 else "router.balance"
    if s.stack.dispatcher == "nccl":
        last = "moe.permute_local.fwd"
    builder.add("moe.dispatch.fwd.layout", "comm.layout", Notify(ranks=s.job.layout.ep, tokens=s.tokens), after=(last,))
    builder.add("moe.dispatch.fwd.notify", "comm.notify", Notify(ranks=s.job.layout.ep, tokens=s.tokens))
    builder.add("moe.dispatch.fwd.a2a", "comm.dispatch", all_to_all(s, "dispatch"))
    return builder.done()


def _all_to_all_segment(
    s: Shapes, segment: str, name: str, direction: Literal["dispatch", "combine"], after: str
) -> Segment:
    """Notify and all-to-all after the op `after`."""
    builder = SegmentBuilder(segment, "F" if segment.endswith("F") else "I", s, "comm")
    builder.unit = "moe"
    builder.add(f"{name}.notify", "comm.notify", Notify(ranks=s.job.layout.ep, tokens=s.tokens), after=(after,))
    suffix = "a2a" if segment.endswith("F") else f"a2a_{direction}"
    work = all_to_all(s, direction, backward=segment.endswith("B"))
    builder.add(f"{name}.{suffix}", f"comm.{direction}", work)
    return builder.done()


def combine(s: Shapes) -> Segment:
    """`combine.F`: the expert outputs travel home in BF16."""
    return _all_to_all_segment(s, "combine.F", "moe.combine.fwd", "combine", forward_end(s))


def forward_end(s: Shapes) -> str:
    """The last op of `mlp.F`."""
    last = "shared" if shared_of(s, overlapped=True) else "moe"
    if s.fp8:
        return f"{last}.up_gate.save_fp8"
    return "shared.down.fwd" if last == "shared" else "moe.unpermute.fwd"


def combine_backward(s: Shapes) -> Segment:
    """`combine.B`: the gradient of the combine is a dispatch with the cached layout."""
    builder = SegmentBuilder("combine.B", "I", s, "comm")
    t, h = sharded_tokens(s), s.model.hidden_size
    if s.fp8:
        builder.add("moe.combine.bwd.quant", "quant.token", cast(t * h, BF16, FP8))
    builder.add("moe.combine.bwd.notify", "comm.notify", Notify(ranks=s.job.layout.ep, tokens=s.tokens))
    builder.add("moe.combine.bwd.a2a_dispatch", "comm.dispatch", all_to_all(s, "dispatch", backward=True))
    return builder.done()


def dispatch_backward(s: Shapes) -> Segment:
    """`dispatch.B`: the gradient of the dispatch is a combine."""
    shared = shared_of(s, overlapped=True)
    last = "shared.up_gate.dgrad" if shared else "moe.unpermute.grad"
    if s.fp8 and shared:
        last = "shared.up_gate.quant_x_t"
    elif s.fp8:
        last = "moe.up_gate.quant_g_t"
    return _all_to_all_segment(s, "dispatch.B", "moe.dispatch.bwd", "combine", last)


def _grouped(s: Shapes, n: int, k: int) -> Gemm:
    """One grouped GEMM over the local experts."""
    return Gemm(m=s.rows, n=n, k=k, precision=linear.precision_of(s.recipe), form="grouped", groups=s.local_experts)


def _over_experts_parts(
    builder: SegmentBuilder, s: Shapes, name: str, kind: CollectiveKind, after: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Expert tensor parallelism: the ranks that share an expert gather the tokens of all of them, and scatter the sums
    (Megatron-Core's expert-tensor-parallel groups). Returns what is still to wait for."""
    etp = s.job.layout.etp
    if etp == 1:
        return after
    each = dispatched_bytes(s) if kind == "all_gather" else s.model.hidden_size * BF16
    work = Collective(kind=kind, bytes=s.received * each, ranks=etp, per_node=min(etp, s.node_gpus))
    builder.add(f"{name}.{kind}", f"comm.etp.{kind}", work, after=after, scales_with_load=True)
    return ()


def _permute(s: Shapes, width: int) -> Streaming:
    """Tokens as received to rows sorted by expert (FP8 with scales, or BF16)."""
    each = fp8_bytes(width) if s.fp8 else width * BF16
    return Streaming(read=s.received * each, written=s.rows * each)


def _gate_weights(s: Shapes) -> Streaming:
    """The FP32 gate weights of the tokens received, scaled: one for each of a token's experts, here or elsewhere."""
    return elementwise(s.received * s.model.num_experts_per_tok, FP32, FP32)


def _unpermute(s: Shapes, width: int) -> Streaming:
    """Rows back to tokens, summed over the experts of a token."""
    return Streaming(read=s.rows * width * BF16, written=s.received * width * BF16)


def forward(s: Shapes) -> Segment:
    """`mlp.F`: shared up projection, permute, the two grouped GEMMs, un-permute, shared down projection."""
    h, inner, experts = s.model.hidden_size, expert_inner(s), s.local_experts
    shared = shared_of(s, overlapped=True)
    builder = SegmentBuilder("mlp.F", "F", s)
    builder.unit = "moe"
    if shared:
        with builder.inside("shared_experts"):
            gather(builder, "shared.x", s, h)
            ffn.up(builder, shared, s, cast_input=False)
    kept_x = fp8_bytes(s.received * h) if s.fp8 else s.rows * h * BF16
    gathered = _over_experts_parts(builder, s, "moe.x", "all_gather", after=("moe.dispatch.fwd.a2a",))
    builder.add("moe.map.count", "permute.map.count", Fixed(), after=gathered, scales_with_load=True)
    builder.add("moe.map.build", "permute.map.build", Fixed(), saved=s.rows * ROW_BYTES, scales_with_load=True)
    builder.add("moe.permute.fwd", "permute.expand", _permute(s, h), saved=kept_x, scales_with_load=True)
    if s.fp8:
        linear.weight_transpose(builder, "moe.up_gate", expert_up(s), h, experts=experts)
        builder.add("moe.up_gate.scale_t", "scale_t.rows", row_scales(s.rows, h), scales_with_load=True)
    builder.add(
        "moe.up_gate.fwd",
        linear.gemm_class(s.recipe, ".grouped"),
        _grouped(s, expert_up(s), h),
        saved=ffn.kept_up(s, s.rows, expert_up(s)),
        scales_with_load=True,
    )
    if s.fp8:
        builder.add("moe.gate_w.scale", "elem", _gate_weights(s), scales_with_load=True)
    ffn.eager_activation(builder, "moe", s.rows, inner, gated=s.model.gated_mlp, backward=False, scales_with_load=True)
    builder.add(
        "moe.swiglu.fwd_quant" if s.fp8 else "moe.swiglu.fwd",
        ffn.activation_class(s.model),
        ffn.activation_work(s.rows, inner, gated=s.model.gated_mlp, out=FP8 if s.fp8 else BF16),
        saved=ffn.kept_activation(s, "moe", s.rows, inner),
        scales_with_load=True,
    )
    if s.fp8:
        linear.weight_transpose(builder, "moe.down", h, inner, experts=experts)
        builder.add("moe.down.scale_t", "scale_t.rows", row_scales(s.rows, inner), scales_with_load=True)
        builder.add("moe.tensormap.fill", "tensormap", Fixed(), scales_with_load=True)
    last: Facts = {"scales_with_load": True, "read_by_backward": False}
    weighs = s.stack.gate_weights == "output"
    down: Facts = {**last, "read_by_backward": weighs}
    kept = s.rows * h * BF16 if weighs else 0.0
    builder.add("moe.down.fwd", linear.gemm_class(s.recipe, ".grouped"), _grouped(s, h, inner), saved=kept, **down)
    if weighs:
        builder.add("moe.weigh.fwd", "elem", cast(s.rows * h, BF16, BF16), **last)
    builder.add("moe.unpermute.fwd", "permute.reduce", _unpermute(s, h), **last)
    _over_experts_parts(builder, s, "moe.y", "reduce_scatter")
    if shared:
        with builder.inside("shared_experts"):
            ffn.down(builder, shared, s)
            scatter(builder, "shared", s, h)
    if s.fp8:
        work = cast(s.rows * expert_up(s), BF16, FP8)
        builder.add("moe.up_gate.save_fp8", "quant.token", work, scales_with_load=True)
    if shared:
        with builder.inside("shared_experts"):
            ffn.save(builder, shared)
    return builder.done()


def _expert_down_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """From the arriving gradient to that of the experts' up projection."""
    h, inner = s.model.hidden_size, expert_inner(s)
    wait: tuple[str, ...] = ("moe.combine.bwd.a2a_dispatch",)
    if s.fp8:
        values = s.rows * expert_up(s)
        work = Streaming(read=values * FP8, written=values * BF16, blocks=ffn.persistent(s))
        builder.add("moe.up_gate.dequant", "dequant", work, part="R", scales_with_load=True)
    wait = _over_experts_parts(builder, s, "moe.dy", "all_gather", after=wait)
    builder.add("moe.permute.grad", "permute.expand", _permute(s, h), after=wait, scales_with_load=True)
    weighs = s.stack.gate_weights == "output"
    if weighs:
        builder.add("moe.weigh.bwd", "elem", cast(s.rows * h, 2 * BF16, BF16), scales_with_load=True)
    if s.fp8:
        builder.add("moe.down.scale_t_g", "scale_t.rows", row_scales(s.rows, h), scales_with_load=True)
    builder.add("moe.down.dgrad", linear.gemm_class(s.recipe, ".grouped"), _grouped(s, inner, h), scales_with_load=True)
    ffn.eager_activation(builder, "moe", s.rows, inner, gated=s.model.gated_mlp, backward=True, scales_with_load=True)
    again = s.activation_again("moe")
    builder.add(
        "moe.swiglu.fwd_bwd" if again else "moe.swiglu.bwd",
        ffn.activation_class(s.model),
        ffn.activation_backward_work(s.rows, inner, gated=s.model.gated_mlp, again=again),
        scales_with_load=True,
    )
    if not weighs:
        work = Streaming(read=2 * s.rows * inner * BF16, written=0.0)
        builder.add("moe.swiglu.gate_w_bwd", ffn.activation_class(s.model), work, scales_with_load=True)
    if s.fp8:
        linear_cast = cast(s.rows * inner, BF16 if again else FP8, FP8)
        builder.add("moe.swiglu_out.quant_t", "quant.chan_t", linear_cast, part="W", scales_with_load=True)
        builder.add("moe.gate_w.scale_b", "elem", _gate_weights(s), scales_with_load=True)


def backward(s: Shapes) -> Segment:
    """`mlp.B`."""
    h, t = s.model.hidden_size, sharded_tokens(s)
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
    builder.add(
        "moe.up_gate.dgrad",
        linear.gemm_class(s.recipe, ".grouped"),
        _grouped(s, h, expert_up(s)),
        scales_with_load=True,
    )
    builder.add("moe.unpermute.grad", "permute.reduce", _unpermute(s, h), scales_with_load=True)
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
    if s.stack.grouped_wgrad:
        work = Gemm(
            m=m, n=n, k=s.rows, precision=precision, form="grouped_wgrad", groups=s.local_experts, out_bytes=kept
        )
        builder.add(f"{name}.wgrad", linear.gemm_class(s.recipe, ".grouped_wgrad"), work, scales_with_load=True)
    else:
        rows = -(-s.rows // s.local_experts)
        work = Gemm(m=m, n=n, k=rows, precision=precision, form="wgrad", out_bytes=kept)
        builder.add(
            f"{name}.wgrad", linear.gemm_class(s.recipe, ".wgrad"), work, count=s.local_experts, scales_with_load=True
        )


def weights(s: Shapes) -> Segment:
    """`mlp.W`: weight gradients of shared and routed experts, with the permuting casts of their operands."""
    h, inner = s.model.hidden_size, expert_inner(s)
    shared = shared_of(s, overlapped=True)
    builder = SegmentBuilder("mlp.W", "W", s)
    if shared:
        linear.weight_gradient(builder, "shared.down", shared.tokens, h, shared.inner, recipe=s.recipe, place="row")
    permuted = Streaming(read=s.received * h * FP8, written=s.rows * h * FP8)
    if s.fp8:
        builder.add("moe.down.quant_g_t", "quant.chan_t.permuted", permuted, scales_with_load=True)
    _expert_wgrad(builder, s, "moe.down", inner, h)
    if s.fp8:
        builder.add("moe.up_gate.quant_x_t", "quant.chan_t.permuted", permuted, scales_with_load=True)
    _expert_wgrad(builder, s, "moe.up_gate", h, expert_up(s))
    if shared:
        linear.weight_gradient(builder, "shared.up_gate", shared.tokens, shared.up, h, recipe=s.recipe)
    return builder.done()


def shared_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """Input gradients of shared experts that nothing overlaps, in `attn.B` behind those of the gate."""
    shared = shared_of(s, overlapped=False)
    if shared is None:
        return
    values = sharded_tokens(s) * shared.hidden
    gather(builder, "shared.g", s, shared.hidden)
    ffn.down_backward(builder, shared, s, gradient_fp8=s.fp8)
    if s.fp8 and s.norm_again("layer"):
        builder.add("shared.x.quant_recompute", "quant.token", cast(values, BF16, FP8), part="R")
    if s.fp8:
        builder.add("shared.x.dequant", "dequant", _dequant(values, ffn.persistent(s)), part="R")
    regather(builder, "shared.x", s, shared.hidden)
    ffn.up_backward(builder, shared)
    scatter(builder, "shared.dx", s, shared.hidden, gradient=True)


def with_shared_weights(attention: Segment, s: Shapes) -> Segment:
    """`attn.W` with the weight gradients of shared experts that nothing overlaps."""
    shared = shared_of(s, overlapped=False)
    if shared is None:
        return attention
    builder = SegmentBuilder(attention.name, "W", s)
    linear.weight_gradient(
        builder, "shared.down", shared.tokens, shared.hidden, shared.inner, recipe=s.recipe, place="row"
    )
    linear.weight_gradient(builder, "shared.up_gate", shared.tokens, shared.up, shared.hidden, recipe=s.recipe)
    return replace(attention, ops=builder.done().ops + attention.ops)


def router_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """The gate's gradients, at the head of `attn.B`; they wait for the gate weights' gradient to come home."""
    t, h, experts = sharded_tokens(s), s.model.hidden_size, s.model.n_routed_experts
    weights, scores = ROUTER_BACKWARD_KERNELS
    home: tuple[str, ...] = ("moe.dispatch.bwd.a2a_combine",)
    if s.stack.dispatcher == "nccl":
        builder.add("moe.permute_local.bwd", "permute.reduce", _local_sum(s), after=home, scales_with_load=True)
        home = ()
    builder.add("router.bwd.weights", "router.weights", Fixed(launches=weights), after=home)
    builder.add("router.bwd.scores", "router.scores", _scores(s), count=scores)
    builder.add("router.gate.dgrad", "gemm.bf16.router", Gemm(m=t, n=h, k=experts, precision="bf16"))
    wgrad = Gemm(m=experts, n=h, k=t, precision="bf16", form="wgrad", out_bytes=s.states.gradient_bytes)
    builder.add("router.gate.wgrad", "gemm.bf16.router", wgrad, part="W")
    builder.add("router.grad.add", "elem", elementwise(t * h, 2 * BF16, BF16))
