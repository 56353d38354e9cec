"""Experts of serving: gate, dispatch, grouped or masked GEMMs, shared experts, combine.

Three ways for tokens to reach their experts: all-to-alls between data-parallel ranks (DeepEP's: low-latency kernels for
decode, which send every copy by itself and lay it out by expert; normal ones for prefill); an all-gather of the tokens
of all data-parallel ranks, and a reduce-scatter of what the experts made (vLLM's default, allgather_reducescatter); or
none, where tensor-parallel ranks hold all tokens and sum up what their experts made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from simulator.dtypes import BF16, FP8, FP32, MXFP4, fp8_bytes
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast, gemm_class, precision_of
from simulator.graph.mixers import branches, hyper
from simulator.graph.norm import add_residual, norm_forward, sum_of_two
from simulator.graph.parallel import sharded_tokens
from simulator.graph.serving.ffn import feed_forward, gated
from simulator.graph.serving.linear import add_up
from simulator.graph.serving.shapes import ServingShapes
from simulator.graph.tokens import order
from simulator.graph.tokens.router import look_up
from simulator.ops import RECEIVED, SENT, AllToAll, Collective, Fixed, Gemm, Notify, Streaming

INDEX = 8.0
"""Bytes of an index of PyTorch [B]."""
FUSED_INDEX, FUSED_SORT = 4.0, 2
"""Bytes of an index, and kernels, with which engines sort the chosen experts' ids where all ranks hold all tokens: one
counts and aligns, one sorts (sgl-project/sglang, sgl-kernel, moe_align_kernel.cu, 2025; vLLM has the same two). The
kernels of DeepSeek's training trace, which map what arrives of an all-to-all, work on thousands of times as many."""
EAGER_WEIGHTS, EAGER_COUNTS, EAGER_SORT = 3, 3, 6
"""Kernels that eager modules run for the weights of the chosen experts (sum, division, cast), for the rows of each
expert (histogram, cumulative sum, cast) and to sort rows by expert (`workloads/facts/measure_decode_step.py`)."""


def layer(s: ServingShapes, head: SegmentBuilder) -> tuple[Segment, ...]:
    """The segments behind attention; `head` is the one that ends with the norm before them."""
    _gate(head, s)
    travels = s.all_to_all
    segments = [head.done()]
    if travels:
        segments.append(_dispatch(s))
    if runs_shared(s):
        segments.append(_shared(s))
    segments.append(_experts(s))
    if travels:
        segments.append(_combine(s))
    segments.append(_out(s))
    return tuple(segment for segment in segments if segment.ops)


def tokens_of(s: ServingShapes) -> int:
    """Tokens that this rank brings: with all-to-alls its part of its tensor-parallel group's."""
    return sharded_tokens(s)


def runs_shared(s: ServingShapes) -> bool:
    """Whether each rank runs the shared experts on its own tokens; else some of the slots hold them."""
    return bool(s.model.shared_width) and not s.serving.shared_slots and not s.fuses_shared


def _gate(builder: SegmentBuilder, s: ServingShapes) -> None:
    """Scores of the experts and the choice; before a normal dispatch, the cast of what travels."""
    t, h, experts, wide = tokens_of(s), s.model.hidden_size, s.model.n_routed_experts, s.model.expert_hidden
    branches.enter(builder, s, "")
    gate = Gemm(m=t, n=experts, k=h, precision="bf16", out_bytes=FP32)
    builder.add("router.gate", "gemm.bf16", gate)  # the router's own class was measured at training's 4096 tokens
    if not s.software.router_fused:
        builder.add("router.scores", "router.scores", cast(t * experts, FP32, FP32), count=2)
        chosen = cast(t * s.model.num_experts_per_tok, FP32, FP32)
        builder.add("router.weights", "elem", chosen, count=EAGER_WEIGHTS)
    if s.model.num_hash_layers:
        look_up(builder, s)
    else:
        builder.add("router.topk", "router.topk", cast(t * experts, FP32, 0.0))
    if s.model.moe_latent_size:
        builder.add("moe.latent_in", "gemm.bf16", Gemm(m=t, n=wide, k=h, precision="bf16"))
    if s.fp8 and s.all_to_all and not s.decodes:
        builder.add("moe.dispatch.quant", "quant.token", cast(t * wide, BF16, FP8))
    if _by_copies(s):
        builder.add("moe.dispatch.send", SENT, _travel(s, "dispatch").sent)


def _by_copies(s: ServingShapes) -> bool:
    """Whether tokens travel by low-latency kernels: they hold SMs at both ends, and none while tokens are under way."""
    return s.decodes and s.all_to_all


def _travel(s: ServingShapes, direction: Literal["dispatch", "combine"]) -> AllToAll:
    """One all-to-all of this rank's tokens; FP8 with scales there, BF16 back."""
    h = s.model.expert_hidden
    each = fp8_bytes(h) if s.fp8 and direction == "dispatch" else h * BF16
    return AllToAll(
        direction=direction,
        tokens=tokens_of(s),
        hidden=h,
        bytes_per_token=each,
        ranks=s.job.layout.ep,
        gate=s.gate,
        low_latency=s.decodes,
        imbalance=s.imbalance,
        copies_apart=s.decodes,
    )


def _dispatch(s: ServingShapes) -> Segment:
    """`dispatch.F`. Low-latency kernels cast, count and send in one, and receive in another (DeepEP's README)."""
    builder = SegmentBuilder("dispatch.F", "F", s, "comm")
    last = "router.table" if s.model.num_hash_layers else "router.topk"
    last = "moe.latent_in" if s.model.moe_latent_size else last
    last = "moe.dispatch.quant" if s.fp8 and not s.decodes else last
    last = "moe.dispatch.send" if s.decodes else last
    notify = Notify(ranks=s.job.layout.ep, tokens=tokens_of(s))
    if s.decodes:
        builder.add("moe.dispatch.a2a", "comm.dispatch", _travel(s, "dispatch"), after=(last,))
    else:
        builder.add("moe.dispatch.layout", "comm.layout", notify, after=(last,))
        builder.add("moe.dispatch.notify", "comm.notify", notify)
        builder.add("moe.dispatch.a2a", "comm.dispatch", _travel(s, "dispatch"))
    return builder.done()


def _combine(s: ServingShapes) -> Segment:
    """`combine.F`: what the experts made travels home; low-latency kernels weigh and sum on arrival."""
    builder = SegmentBuilder("combine.F", "F", s, "comm")
    after: tuple[str, ...] = (_last(s),)
    if not s.decodes:
        builder.add(
            "moe.combine.notify", "comm.notify", Notify(ranks=s.job.layout.ep, tokens=tokens_of(s)), after=after
        )
        after = ()
    builder.add("moe.combine.a2a", "comm.combine", _travel(s, "combine"), after=after)
    return builder.done()


def _laid_out(s: ServingShapes) -> bool:
    """Whether tokens arrive sorted by expert, as masked GEMMs read them."""
    return s.decodes and s.software.masked and s.all_to_all


def _last(s: ServingShapes) -> str:
    """The last op of the experts."""
    if _by_copies(s):
        return "moe.combine.send"
    return "moe.down" if _laid_out(s) else "moe.unpermute"


def _shared(s: ServingShapes) -> Segment:
    """`shared.F`: the shared experts, while tokens travel where they do."""
    builder = SegmentBuilder("shared.F", "F", s)
    feed_forward(builder, "shared", s, split=not s.brings_own)
    return builder.done()


def _expert_gemm(s: ServingShapes, n: int, k: int) -> tuple[str, Gemm]:
    """Class and work of one GEMM over the experts that have rows."""
    precision, stored = precision_of(s.recipe), MXFP4 if s.serving.expert_weights == "mxfp4" else 0.0
    if s.decodes and s.software.masked:
        each = max(1, round(s.rows / s.local_experts))
        idle = s.local_experts - s.active
        rows = (round(s.rows / s.active),) * s.active + (0,) * idle if idle else ()
        work = Gemm(m=each, n=n, k=k, precision=precision, form="masked", groups=s.local_experts, rows=rows)
        return gemm_class(s.recipe, ".masked"), replace(work, weight_bytes=stored)
    m, groups = _rows(s), min(s.active, s.rows) + s.fuses_shared
    work = Gemm(m=m, n=n, k=k, precision=precision, form="grouped", groups=groups)
    return gemm_class(s.recipe, ".grouped"), replace(work, weight_bytes=stored)


def _rows(s: ServingShapes) -> int:
    """Rows of the experts' GEMMs: those of a shared expert that they hold, too."""
    return s.rows + (s.tokens if s.fuses_shared else 0)


def _gathers_rows(s: ServingShapes) -> bool:
    """Whether the experts' GEMMs gather their rows by themselves, so that nothing permutes tokens (Triton's)."""
    return not s.all_to_all and s.software.experts == "triton"


def _experts(s: ServingShapes) -> Segment:
    """`mlp.F`: the two GEMMs of the routed experts, with the kernels that sort rows by expert where none is masked."""
    h, inner = s.model.expert_hidden, s.model.moe_intermediate_size // s.job.layout.etp
    laid_out, own = _laid_out(s), _gathers_rows(s)
    builder = SegmentBuilder("mlp.F", "F", s)
    after = _arrived(builder, s)
    if not laid_out:
        _sort(builder, s, after)
        after = ()
    cls, work = _expert_gemm(s, inner * (2 if s.model.gated_mlp else 1), h)
    builder.add("moe.up_gate", cls, work, after=after, scales_with_load=True)
    gated(builder, "moe", s, _rows(s), inner, routed=True, cast_apart=own)
    cls, work = _expert_gemm(s, h, inner)
    builder.add("moe.down", cls, work, scales_with_load=True)
    if not laid_out:
        _merge(builder, s)
    if _by_copies(s):
        moved = Streaming(read=s.rows * h * BF16, written=s.rows * h * BF16)
        builder.add("moe.combine.send", SENT, moved, scales_with_load=True)
    if s.gathers:
        builder.add("moe.scatter", "comm.ep.reduce_scatter", _gathered(s, "reduce_scatter"))
    return builder.done()


def _by_index(s: ServingShapes) -> bool:
    """Whether PyTorch's own calls select many rows by index and add them back by index."""
    return order.in_pytorch(s) and not s.all_to_all and s.rows > order.SHORT_SORT


def _merge(builder: SegmentBuilder, s: ServingShapes) -> None:
    """The rows of a token summed up."""
    h = s.model.expert_hidden
    moved = Streaming(read=_rows(s) * h * BF16, written=s.received * h * BF16)
    cls, launches = "permute.reduce", 1
    if _by_index(s):
        cls, launches = f"unpermute.{s.stack.permute}", order.MERGE_LAUNCHES[s.stack.permute][0]
    builder.add("moe.unpermute", cls, moved, scales_with_load=True, launches=launches)


def _arrived(builder: SegmentBuilder, s: ServingShapes) -> tuple[str, ...]:
    """What brings the rows to their experts, if it holds SMs; what the next op waits for."""
    after: tuple[str, ...] = ("moe.dispatch.a2a",) if s.all_to_all else ()
    if _by_copies(s):
        moved = Streaming(read=s.rows * _width(s), written=s.rows * _width(s))
        builder.add("moe.dispatch.receive", RECEIVED, moved, after=after, scales_with_load=True)
        after = ()
    if s.gathers:
        builder.add("moe.gather", "comm.ep.all_gather", _gathered(s, "all_gather"))
    return after


def _width(s: ServingShapes) -> float:
    """Bytes of a token as the experts read it [B]."""
    h = s.model.expert_hidden
    return fp8_bytes(h) if s.fp8 else h * BF16


def _sort(builder: SegmentBuilder, s: ServingShapes, after: tuple[str, ...]) -> None:
    """Rows in the order of experts: their ids sorted, then the rows moved, unless the GEMM gathers them."""
    if s.software.router_fused and not s.all_to_all:
        ids = cast(s.rows, FUSED_INDEX, FUSED_INDEX)
        builder.add("moe.map.sort", "elem", ids, count=FUSED_SORT, after=after, scales_with_load=True)
    elif s.software.router_fused:
        builder.add("moe.map.count", "permute.map.count", Fixed(), after=after, scales_with_load=True)
        builder.add("moe.map.build", "permute.map.build", Fixed(), scales_with_load=True)
    elif _by_index(s):
        order.sort(builder, "moe.map.sort", s.rows, after)
        builder.add("moe.counts", "sort.counts", Fixed(launches=order.COUNT_LAUNCHES), scales_with_load=True)
    else:
        ids = cast(s.rows, INDEX, INDEX)
        builder.add("moe.map.sort", "elem", ids, count=EAGER_COUNTS + EAGER_SORT, after=after, scales_with_load=True)
    if not _gathers_rows(s):
        moved = Streaming(read=s.received * _width(s), written=s.rows * _width(s))
        cls = "permute.index_select" if _by_index(s) else "permute.expand"
        builder.add("moe.permute", cls, moved, scales_with_load=True)
    elif s.fp8:
        builder.add("moe.quant", "quant.token", cast(s.received * s.model.expert_hidden, BF16, FP8))


def _gathered(s: ServingShapes, kind: Literal["all_gather", "reduce_scatter"]) -> Collective:
    """A collective over the expert-parallel ranks, in BF16."""
    ep = s.job.layout.ep
    size = tokens_of(s) * ep * s.model.expert_hidden * BF16
    return Collective(kind=kind, bytes=size, ranks=ep, per_node=min(ep, s.node_gpus))


def _out(s: ServingShapes) -> Segment:
    """`out.F`: experts' sums back to the model's width, shared experts added, the sum over tensor-parallel ranks, the
    residual. The projection back is linear: it may run before partial sums are added (vLLM,
    vllm/model_executor/models/nemotron_h.py, 2026)."""
    h = s.model.hidden_size
    builder = SegmentBuilder("out.F", "F", s)
    after: tuple[str, ...] = ("moe.combine.a2a",) if s.all_to_all else ()
    if _by_copies(s):
        builder.add("moe.combine.receive", RECEIVED, _travel(s, "combine").received, after=after)
        after = ()
    summed = s.brings_own or s.model.branch_norms
    if s.model.moe_latent_norm and not summed:  # partial sums of experts and of shared experts, in one
        add_up(builder, "moe", s, s.tokens, s.model.moe_latent_size + (h if runs_shared(s) else 0))
        summed = True
    if s.model.moe_latent_size:
        after = _from_latent(builder, s, after)
    if s.model.branch_norms:
        after = _normed(builder, s, after)
    if runs_shared(s):
        builder.add("moe.shared.sum", "elem", sum_of_two(tokens_of(s) * h), after=after)
        after = ()
    if not summed:
        add_up(builder, "moe", s, s.tokens, h)
    if hyper.mixes(s):
        hyper.leave(builder, "ffn", s, "", after=after)
        return builder.done()
    behind = s.model.norm_placement != "pre"
    if behind:
        norm_forward(builder, "norm.moe.out", tokens_of(s), h, after=after)
        after = ()
    add_residual(builder, "moe", s, h, alone=behind, after=after)
    return builder.done()


def _from_latent(builder: SegmentBuilder, s: ServingShapes, after: tuple[str, ...]) -> tuple[str, ...]:
    """The experts' sums, normed where the model does that, back to its width; returns what is still to wait for."""
    rows, wide = tokens_of(s), s.model.moe_latent_size
    if s.model.moe_latent_norm:
        norm_forward(builder, "norm.latent", rows, wide, after=after)
        after = ()
    work = Gemm(m=rows, n=s.model.hidden_size, k=wide, precision="bf16")
    builder.add("moe.latent_out", "gemm.bf16", work, after=after)
    return ()


def _normed(builder: SegmentBuilder, s: ServingShapes, after: tuple[str, ...]) -> tuple[str, ...]:
    """Both parts' outputs, each summed over tensor-parallel ranks before its norm; returns what is still to wait
    for."""
    if not s.brings_own:
        for part in branches.BEHIND:
            add_up(builder, f"moe.{part}", s, s.tokens, s.model.hidden_size)
    return branches.leave(builder, s, "", after=after)
