"""The gate: scores, the choice of experts and the weights of the chosen, forward and backward.

`stack.router` deepseek: the small kernels of DeepSeek's public profile. torch: a softmax gate in eager PyTorch
(`workloads/facts/measure_moe_step.py`), whose kernels were measured one by one on an H200
(`hardware_profiles/calibration/tables/h200_moe_layer.csv`), or what torch.compile makes of it.
"""

from __future__ import annotations

from simulator.dtypes import BF16, FP8, FP32
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast, elementwise
from simulator.graph.mixers import branches
from simulator.graph.norm import norm_forward
from simulator.graph.parallel import sharded_tokens
from simulator.graph.shapes import Shapes
from simulator.graph.tokens import latent, order
from simulator.ops import Fixed, Gemm, Streaming

ROUTER_FORWARD_KERNELS = (11, 16, 7)
"""Small kernels of the gate's forward in the profile: sigmoid, groups and masks before the top 8; gathers, weights and
the balance statistics between it and a second one; sums after that."""
ROUTER_BACKWARD_KERNELS = (15, 11)
"""The same in backward: of the chosen experts' weights, then of all scores."""
GATE_KERNELS = {"eager": 5, "compiled": 2}
"""PyTorch: widening, softmax, sum and division of the chosen weights, narrowing; by torch.compile one before and one
behind the top k (table h200_moe_layer, `gate`)."""
TOPK_KERNELS = 2
GATE_BACKWARD_KERNELS = 13


def last_of_forward(s: Shapes) -> str:
    """The op of the gate that the dispatch waits for."""
    if order.permutes_at_home(s):
        return "moe.permute_local.fwd"
    if s.fp8:
        return "moe.dispatch.fwd.quant"
    if s.model.moe_latent_size:
        return latent.THERE
    if order.in_pytorch(s):
        return "moe.counts"
    if s.stack.router != "deepseek":
        return "router.gate"
    return "router.weights" if s.model.num_hash_layers else "router.balance"


def router_forward(builder: SegmentBuilder, s: Shapes) -> None:
    """The gate, the cast of the tokens that travel, and their copies where every copy travels by itself."""
    with builder.inside("moe"):
        branches.enter(builder, s)
        _gate_forward(builder, s)


def _gate_forward(builder: SegmentBuilder, s: Shapes) -> None:
    t, h, experts = sharded_tokens(s), s.model.hidden_size, s.model.n_routed_experts
    saved = t * experts * FP32 + t * s.model.num_experts_per_tok * 12
    if s.stack.router == "torch":
        gate = Gemm(m=t, n=experts, k=h, precision="bf16")
        builder.add("router.gate.fwd", "gemm.bf16", gate, saved=saved)
        if s.model.num_hash_layers:
            look_up(builder, s)
        else:
            builder.add("router.topk", "router.topk@torch", _chosen(s), launches=TOPK_KERNELS)
        kernels = GATE_KERNELS["compiled" if s.stack.swiglu_fused else "eager"]
        builder.add("router.gate", "router.gate@torch", scores(s), count=kernels)
    else:
        gate = Gemm(m=t, n=experts, k=h, precision="bf16", out_bytes=FP32)
        builder.add("router.gate.fwd", "gemm.bf16.router", gate, saved=saved)
        (_by_table if s.model.num_hash_layers else _by_scores)(builder, s)
    if order.in_pytorch(s):
        order.sort_at_home(builder, s)
    latent.there(builder, s)
    if s.fp8:
        work = cast(t * s.model.expert_hidden, BF16, FP8)
        builder.add("moe.dispatch.fwd.quant", "quant.token", work, scales_with_load=True)
    order.copy_at_home(builder, s)


def _by_scores(builder: SegmentBuilder, s: Shapes) -> None:
    """The kernels of the profile that choose by affinity."""
    first, weights, balance = ROUTER_FORWARD_KERNELS
    experts, top_k = s.model.n_routed_experts, s.model.num_experts_per_tok
    builder.add("router.scores", "router.scores", scores(s), count=first)
    top = cast(sharded_tokens(s) * experts, FP32, 0.0)
    builder.add(f"router.top{top_k}_of_{experts}", "router.topk", top)
    builder.add("router.weights", "router.weights", Fixed(launches=weights))
    builder.add("router.topk_2nd", "router.topk", top)
    builder.add("router.balance", "router.balance", Fixed(launches=balance))


def _by_table(builder: SegmentBuilder, s: Shapes) -> None:
    """Affinities weigh experts that a table names: nothing is chosen, and no balance is kept."""
    _, weights, _ = ROUTER_FORWARD_KERNELS
    builder.add("router.scores", "router.scores", scores(s))
    look_up(builder, s)
    builder.add("router.weights", "router.weights", Fixed(launches=weights))


TABLE_INDEX = 4.0
"""Bytes of an expert's number in the table of a hash-routed layer, and of a chosen one [B]."""


def look_up(builder: SegmentBuilder, s: Shapes) -> None:
    """Experts of each token, by its number in the vocabulary (DeepSeek-V4 report, section 2.1)."""
    chosen = sharded_tokens(s) * s.model.num_experts_per_tok
    builder.add("router.table", "elem", cast(chosen, TABLE_INDEX, TABLE_INDEX))


def scores(s: Shapes) -> Streaming:
    """A kernel of the gate over the scores of all tokens and experts, FP32."""
    return cast(sharded_tokens(s) * s.model.n_routed_experts, FP32, FP32)


def _chosen(s: Shapes) -> Streaming:
    """The top k of every token: scores read, values and int64 indices written."""
    t = sharded_tokens(s)
    return Streaming(read=t * s.model.n_routed_experts * FP32, written=t * s.model.num_experts_per_tok * 12.0)


def router_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """The gate's gradients, at the head of `attn.B`; they wait for the gate weights' gradient to come home."""
    t, h, experts = sharded_tokens(s), s.model.hidden_size, s.model.n_routed_experts
    home: tuple[str, ...] = ("moe.dispatch.bwd.a2a_combine",) if order.travels(s) else ()
    home = order.copy_at_home_backward(builder, s, home)
    cls = "gemm.bf16.router"
    wgrad = Gemm(m=experts, n=h, k=t, precision="bf16", form="wgrad", out_bytes=s.states.gradient_bytes)
    if s.stack.router == "torch":
        cls = "gemm.bf16"
        builder.add("router.bwd", "router.gate.bwd@torch", scores(s), count=GATE_BACKWARD_KERNELS, after=home)
    else:
        weights, back = ROUTER_BACKWARD_KERNELS
        builder.add("router.bwd.weights", "router.weights", Fixed(launches=weights), after=home)
        builder.add("router.bwd.scores", "router.scores", scores(s), count=back)
    if s.model.branch_norms and s.norm_again("layer"):
        norm_forward(builder, "norm.router.recompute", t, h, part="R")
    builder.add("router.gate.dgrad", cls, Gemm(m=t, n=h, k=experts, precision="bf16"))
    builder.add("router.gate.wgrad", cls, wgrad, part="W")
    latent.there_backward(builder, s)
    if s.model.branch_norms:
        branches.enter_backward(builder, s)
    else:
        builder.add("router.grad.add", "elem", elementwise(t * h, 2 * BF16, BF16))
