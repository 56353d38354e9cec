"""Multi-head and grouped-query attention (Llama, Qwen, Mixtral, GPT): one fused QKV projection, core, output."""

from __future__ import annotations

from typing import Literal

from simulator.dtypes import BF16, FP32
from simulator.graph import linear
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast, unvectorized
from simulator.graph.mixers import context, indexer
from simulator.graph.norm import (
    enter_attention_backward,
    enter_branch,
    leave_attention,
    leave_branch_backward,
    norm_backward,
    norm_forward,
    norm_output,
    sum_of_two,
)
from simulator.graph.parallel import (
    all_reduce,
    circulate_keys,
    gather,
    heads_per_rank,
    kv_heads_per_rank,
    regather,
    scatter,
    sharded_tokens,
    shares_input,
)
from simulator.graph.precision.core import cast_operands, core_of
from simulator.graph.shapes import Shapes
from simulator.graph.tokens import heads, padding
from simulator.ops import Attention, Gemm, Part, Streaming

SOFTMAX_WARP, SOFTMAX_BLOCK = 2048, 9216
"""Up to so many scores a row, a warp, or a block of threads, keeps a row in registers; beyond, in shared memory: three
kernels of PyTorch (names: `calibration/tables/h100_measured.csv`). Megatron-LM's fused softmax is of the first kind."""


VALUE_NORM = "norm.v"
"""A norm of value heads, which has no weights (Gemma 4)."""


def softmax_class(row: int) -> str:
    """Kernel class of a softmax over rows of so many scores."""
    if row <= SOFTMAX_WARP:
        return "softmax"
    return "softmax.wide" if row <= SOFTMAX_BLOCK else "softmax.long"


def widths(s: Shapes) -> tuple[int, int]:
    """Width of the queries and of keys plus values on one rank."""
    return heads_per_rank(s) * s.model.qk_head_dim, kv_heads_per_rank(s) * (s.model.qk_head_dim + s.model.v_dim)


def projected(s: Shapes) -> tuple[int, ...]:
    """Widths on one rank of what the input is projected to: queries with the gate of the output, keys, values. None of
    the last where they are made of the keys', neither where keys and values are another layer's."""
    q, kv = widths(s)
    k = kv_heads_per_rank(s) * s.model.qk_head_dim
    made = (q + gate_width(s), k, kv - k)
    return made[:1] if s.model.mixer_of(0).reuses else made[:2] if s.model.attention_k_eq_v else made


def output_width(s: Shapes) -> int:
    """Width of the core's output on one rank."""
    return heads_per_rank(s) * s.model.v_dim


def _read_by_core(s: Shapes) -> dict[str, int]:
    """Widths of queries, keys and values on one rank, as the core reads them."""
    keys = heads_per_rank(s) if s.stack.keys_repeated else kv_heads_per_rank(s)
    return {"q": widths(s)[0], "k": keys * s.model.qk_head_dim, "v": keys * s.model.v_dim}


def core_work(s: Shapes, *, backward: bool) -> Attention:
    """The attention core of one microbatch."""
    return Attention(
        batch=s.batch,
        seq_q=s.seq,
        seq_kv=s.seq_kv,
        heads=heads_per_rank(s),
        kv_heads=heads_per_rank(s) if s.stack.keys_repeated else kv_heads_per_rank(s),
        d_qk=s.model.qk_head_dim,
        d_v=s.model.v_dim,
        causal=True,
        backward=backward,
        window=s.model.sliding_window or indexer.window_of(s),
        chunk=s.model.attention_chunk_size,
    )


def _scores(s: Shapes) -> int:
    """Scores of one rank's heads, the whole square: unfused kernels mask them, they do not skip them."""
    return s.batch * heads_per_rank(s) * s.seq * s.seq_kv


def _batched(s: Shapes, n: int, k: int) -> Gemm:
    """One GEMM per head."""
    return Gemm(m=s.batch * heads_per_rank(s) * s.seq, n=n, k=k, precision="bf16")


def _gather_all(builder: SegmentBuilder, s: Shapes, name: str, width: int, *, passes: int) -> None:
    """Context parallelism of cores that are no single kernel over all keys: these are gathered."""
    if indexer.is_sparse(s) or not s.stack.attention_fused:
        circulate_keys(builder, name, s, width, passes=passes)


def core_forward(
    builder: SegmentBuilder, s: Shapes, name: str, *, part: Part | None = None, saved: float = 0.0
) -> None:
    """The attention core: one fused kernel, or GEMMs, masked softmax and dropout on scores in memory
    (Megatron-LM, arXiv 1909.08053; without FlashAttention)."""
    if indexer.is_sparse(s):
        builder.add(name, indexer.core_class(s, "fwd"), core_work(s, backward=False), part=part, saved=saved)
        return
    if s.stack.attention_fused:
        core = core_of(s, core_work(s, backward=False))
        cast_operands(builder, s, core, name, part=part)
        context.forward(builder, s, core, name, part=part, saved=saved)
        return
    scores, d, d_v = _scores(s), s.model.qk_head_dim, s.model.v_dim
    kept = 0.0 if "core_attn" in s.recompute or part else scores * (2 * BF16 + 1.0)
    builder.add(f"{name}.qk", "gemm.bf16", _batched(s, s.seq_kv, d), part=part)
    builder.add(f"{name}.softmax", softmax_class(s.seq_kv), cast(scores, BF16, BF16), part=part)
    builder.add(f"{name}.dropout", "elem", cast(scores, BF16, BF16 + 1.0), part=part, saved=saved + kept)
    builder.add(f"{name}.pv", "gemm.bf16", _batched(s, d_v, s.seq_kv), part=part)


def prepare_backward(
    builder: SegmentBuilder, s: Shapes, queries: int, outputs: int, *, part: Part | None = None
) -> None:
    """FlashAttention-3 before its backward: D = rowsum(dO * O), and an empty accumulator for dQ. The classes of other
    kernels were measured with theirs."""
    if s.stack.attention == "fa3":
        work = Streaming(read=2 * outputs * BF16, written=queries * FP32)
        builder.add("attn.core.bwd_pre", "attn.bwd_aux", work, part=part)


def finish_backward(builder: SegmentBuilder, s: Shapes, queries: int) -> None:
    """FlashAttention-3 after its backward: dQ from FP32 to BF16."""
    if s.stack.attention == "fa3":
        builder.add("attn.core.bwd_post", "attn.bwd_aux", Streaming(read=queries * FP32, written=queries * BF16))


def core_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """Backward of the core: fused with its kernels before and after, or GEMM by GEMM."""
    q, _ = widths(s)
    if s.stack.attention_fused:
        prepare_backward(builder, s, s.tokens * q, s.tokens * output_width(s))
        if indexer.is_sparse(s):
            builder.add("attn.core.bwd", indexer.core_class(s, "bwd"), core_work(s, backward=True))
            indexer.learn(builder, s, heads_per_rank(s), s.model.qk_head_dim)
        else:
            core = core_of(s, core_work(s, backward=True))
            cast_operands(builder, s, core, "attn.core.bwd")
            context.backward(builder, s, core, "attn.core.bwd")
        finish_backward(builder, s, s.tokens * q)
        return
    scores, d, d_v = _scores(s), s.model.qk_head_dim, s.model.v_dim
    builder.add("attn.core.bwd.dp", "gemm.bf16", _batched(s, s.seq_kv, d_v))
    builder.add("attn.core.bwd.dv", "gemm.bf16", _batched(s, d_v, s.seq_kv))
    builder.add("attn.core.bwd.dropout", "elem", cast(scores, BF16 + 1.0, BF16))
    builder.add("attn.core.bwd.softmax", softmax_class(s.seq_kv), cast(scores, 2 * BF16, BF16))
    builder.add("attn.core.bwd.dq", "gemm.bf16", _batched(s, d, s.seq_kv))
    builder.add("attn.core.bwd.dk", "gemm.bf16", _batched(s, d, s.seq_kv))


HEADS: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")


def _contiguous(builder: SegmentBuilder, s: Shapes, kind: Literal["q", "k", "v"]) -> None:
    """Heads copied out of the output of a joined projection, where Transformer Engine wants them next to each other.

    That output lies by group of heads: queries, then a key and a value. Queries of groups of several, and heads with
    norms, are reshaped to single heads (Megatron-Core, core_r0.15.0, transformer/attention.py, SelfAttention
    .get_query_key_value_tensors); rotated queries and keys are new tensors, so that the values are copied, too
    (transformer_engine/pytorch/attention, get_qkv_layout). Else all are read where they
    lie. A kernel each (`calibration/tables/h200_te_experts.csv`, copy_q, copy_v).
    """
    if kind not in _copied(s):
        return
    many = heads_per_rank(s) if kind == "q" else kv_heads_per_rank(s)
    values = s.tokens * many * (s.model.v_dim if kind == "v" else s.model.qk_head_dim)
    builder.add(f"attn.{kind}.contiguous", "copy.heads", cast(values, BF16, BF16))


def _copied(s: Shapes) -> str:
    """Which of queries, keys and values are copied next to each other."""
    if s.stack.norm_kernels != "te" or s.stack.projections != "joined":
        return ""
    if s.model.qk_norm:
        return "qkv"
    grouped, rotated = heads_per_rank(s) > kv_heads_per_rank(s), s.model.positions == "rope"
    return ("q" if grouped else "") + ("v" if grouped or rotated else "")


def _head_norms(s: Shapes) -> tuple[tuple[str, int, int], ...]:
    """Norms of queries and keys before their rotation: name, rows and width of each on this rank.

    A row is a head (Qwen3, arXiv 2505.09388, section 2) or all heads of a token (OLMo 2, arXiv 2501.00656,
    section 2.1).
    """
    d, keys = s.model.qk_head_dim, kv_heads_per_rank(s)
    own = not s.model.mixer_of(0).reuses
    heads = [("norm.q", heads_per_rank(s)), *([("norm.k", keys)] if own else [])] if s.model.qk_norm else []
    if s.model.qk_norm_over == "projection":
        return tuple((name, s.tokens, many * d) for name, many in heads)
    values = ((VALUE_NORM, s.tokens * keys, s.model.v_dim),) if own and s.model.value_norm else ()
    return (*((name, s.tokens * many, d) for name, many in heads), *values)


def _reduce_statistics(builder: SegmentBuilder, s: Shapes, name: str) -> None:
    """A norm over the heads of all ranks needs one sum a token from each of them, in FP32."""
    if s.model.qk_norm_over == "projection":
        all_reduce(builder, name, s, FP32)


def place_heads(builder: SegmentBuilder, s: Shapes, *, again: bool = False) -> None:
    """Norms of query and key heads, and their rotation. Normed heads are kept before and, unless recomputed, after."""
    name = "recompute" if again else "fwd"
    part: Part | None = "R" if again else None
    for kind in () if again else HEADS:
        _contiguous(builder, s, kind)
    for norm, rows, width in _head_norms(s):
        _reduce_statistics(builder, s, f"{norm}.{name}")
        kept = 0.0 if again else norm_output(s, rows, width, "head")
        norm_forward(builder, f"{norm}.{name}", rows, width, part=part, saved=kept)
    if s.model.positions == "rope":
        _rotate(builder, s, name, part=part)


def _rotate(builder: SegmentBuilder, s: Shapes, name: str, *, part: Part | None = None) -> None:
    """Rotary embedding of queries and keys: one kernel, or written in eager modules on the halves (a, b) of each head,
    (a cos - b sin, b cos + a sin).

    Eager forward: four multiplications, two sums, and the concatenation. Backward: four multiplications and a
    sign, two sums of gradients, the concatenation of the halves' gradients, and their copy back to tokens before heads.
    Halves of heads are not next to each other, so all but the sums and backward's concatenation compute every value's
    address. Where a part of each head rotates, or some layers do not,
    only the values that rotate count: a block stands for the mean layer.
    """
    q, k = widths(s)[0], 0 if s.model.mixer_of(0).reuses else kv_heads_per_rank(s) * s.model.qk_head_dim
    if not s.model.rotated_share:
        return
    if s.stack.rope_complex:
        _rotate_complex(builder, _rotated(s, q + k), name, part=part)
        return
    if s.stack.rope_fused:
        builder.add(f"rope.qk.{name}", "rope", linear.rotation(_rotated(s, q + k)), part=part)
        return
    for which, width in (("q", q), ("k", k)) if k else (("q", q),):
        values = _rotated(s, width)
        half = unvectorized(values / 2, BF16, BF16)
        builder.add(f"rope.{which}.multiply.{name}", "elem.unvectorized", half, part=part, count=4)
        if name == "bwd":
            builder.add(f"rope.{which}.sign.{name}", "elem.unvectorized", half, part=part)
        builder.add(f"rope.{which}.sums.{name}", "elem", sum_of_two(values / 2), part=part, count=2)
        if name == "bwd":
            builder.add(f"rope.{which}.cat.{name}", "elem", cast(values, BF16, BF16), part=part)
            copied = unvectorized(s.tokens * width, BF16, BF16)
            builder.add(f"attn.{which}.copy.{name}", "elem.unvectorized", copied, part=part)
        else:
            builder.add(f"rope.{which}.cat.{name}", "cat.unvectorized", unvectorized(values, BF16, BF16), part=part)


def _rotate_complex(builder: SegmentBuilder, values: int, name: str, *, part: Part | None) -> None:
    """Pairs of values widened to complex numbers of FP32, multiplied with those of the table, and narrowed; the same
    for their gradients. torch.compile leaves the multiplication to PyTorch's kernel (torch/_inductor/lowering.py, 2025:
    complex inputs fall back), which reads the table of a token for all its heads."""
    pairs = unvectorized(values / 2, 2 * FP32, 2 * FP32)
    builder.add(f"rope.qk.widen.{name}", "elem", cast(values, BF16, FP32), part=part)
    builder.add(f"rope.qk.multiply.{name}", "elem.unvectorized", pairs, part=part)
    builder.add(f"rope.qk.narrow.{name}", "elem", cast(values, FP32, BF16), part=part)


def _repeat_keys(builder: SegmentBuilder, s: Shapes, name: str, *, backward: bool = False) -> None:
    """Keys and values copied for every query head that shares them, or their gradients summed over these."""
    (_, kv), d = widths(s), s.model.qk_head_dim + s.model.v_dim
    whole = heads_per_rank(s) * d
    if not s.stack.keys_repeated or kv == whole:
        return
    few, many = s.tokens * kv * BF16, s.tokens * whole * BF16
    if backward:
        builder.add(name, "elem.reduce", Streaming(read=many, written=few))
    else:
        builder.add(name, "elem", Streaming(read=few, written=many), saved=many - few)


def _by_sequence(builder: SegmentBuilder, s: Shapes) -> None:
    """Queries, keys and values to (batch, sequence) for FlashAttention-2, as Transformer Engine does it
    (pytorch/attention.py, 1.6 to 2.10: FlashAttention.forward, _PrepareQKVForFA) and Megatron-LM did before.

    One kernel takes the joined projection apart where all heads have keys and nothing rotates them, and one joins the
    gradients (`attn.qkv.cat.bwd`). Otherwise each that does not lie so is copied: with several sequences all, with one
    those that are still parts of the projection.
    """
    if not s.stack.batch_first or s.stack.attention != "fa2":
        return
    t, (_, kv), made, rotates = s.tokens, widths(s), projected(s), s.model.positions == "rope"
    if not rotates and kv_heads_per_rank(s) == heads_per_rank(s):
        builder.add("attn.core.prepare", "elem", cast(t * sum(made), BF16, BF16))
        return
    width = sum(made) if s.batch > 1 or not rotates else kv / 2
    builder.add("attn.core.prepare", "elem.unvectorized", unvectorized(t * width, BF16, BF16))


def _by_token(builder: SegmentBuilder, s: Shapes, name: str) -> None:
    """The core's output back to (sequence, batch), or its gradient to (batch, sequence)."""
    if s.stack.batch_first and s.stack.attention == "fa2" and s.batch > 1:
        builder.add(name, "elem.unvectorized", unvectorized(s.tokens * output_width(s), BF16, BF16))


def _rotated(s: Shapes, width: int) -> int:
    """Values that rotate of all tokens' `width`."""
    return round(s.tokens * width * s.model.rotated_share)


def gate_width(s: Shapes) -> int:
    """Values of the gate of the core's output on one rank; 0 without one."""
    return s.model.gate_width // s.job.layout.tp


def gate_output(builder: SegmentBuilder, s: Shapes, *, backward: bool = False) -> None:
    """The core's output times the sigmoid of its gate; backward reads the gradient, both factors, and writes two
    gradients. The result is kept as the input of the output projection, next to the output that the core reads."""
    gate, out = s.tokens * gate_width(s), s.tokens * output_width(s)
    if gate and backward:
        builder.add("attn.gate.bwd", "elem", Streaming(read=(2 * out + gate) * BF16, written=(out + gate) * BF16))
    elif gate:
        work = Streaming(read=(out + gate) * BF16, written=out * BF16)
        kept = out * BF16 if s.workload.keeps_activations else 0.0
        builder.add("attn.gate.fwd", "elem", work, saved=kept)


def forward(s: Shapes) -> SegmentBuilder:
    """`attn.F` up to and including the norm before the feed-forward part; the caller ends it."""
    builder = SegmentBuilder("attn.F", "F", s)
    entered = enter_branch(builder, "norm.attn.fwd", s, s.formats.kept_bytes, gathered=True)
    inside(builder, s, entered)
    leave_attention(builder, s)
    return builder


def inside(builder: SegmentBuilder, s: Shapes, entered: float) -> None:
    """From the norm's output to that of the branch; `entered`: bytes kept where no norm keeps its output [B]."""
    t, h = s.tokens, s.model.hidden_size
    (_, kv), made, out = widths(s), projected(s), output_width(s)
    gather(builder, "attn.x", s, h)
    linear.forward(
        builder,
        "attn.qkv",
        t,
        sum(made),
        h,
        recipe=s.recipe,
        place="column",
        saved=t * sum(made) * BF16 + entered,
        matrices=made,
    )
    if s.model.attention_bias and s.stack.bias_apart:
        builder.add("attn.qkv.bias.fwd", "elem.unvectorized", unvectorized(t * sum(made), BF16, BF16))
    heads.apart(builder, s, widths(s)[0], kv)
    place_heads(builder, s)
    kept = t * out * (BF16 + s.formats.copied_bytes) + (
        0.0 if "core_attn" in s.recompute else t * heads_per_rank(s) * FP32
    )
    _gather_all(builder, s, "attn.kv.transfer", kv, passes=1)
    if indexer.is_sparse(s):
        indexer.projections(builder, s)
        indexer.choose(builder, s)
    _repeat_keys(builder, s, "attn.kv.repeat.fwd")
    _by_sequence(builder, s)
    padding.take_out(builder, s, _read_by_core(s))
    heads.bounds(builder, s)
    core_forward(builder, s, "attn.core.fwd", saved=kept)
    _by_token(builder, s, "attn.out.order.fwd")
    heads.order(builder, s, out, "attn.out.by_sequence.fwd")
    if s.stack.padding_removed:
        padding.put_back(builder, s, out)
    elif not (s.stack.rope_fused or s.stack.rope_complex):
        # eager concatenation leaves heads before tokens; the core's output lies like its input
        builder.add("attn.out.copy", "elem.unvectorized", unvectorized(t * out, BF16, BF16), saved=t * out * BF16)
    gate_output(builder, s)
    linear.forward(builder, "attn.o", t, h, out, recipe=s.recipe, place="row")
    if not s.model.parallel_block:
        scatter(builder, "attn.o", s, h)


def _join_gradients(builder: SegmentBuilder, s: Shapes, values: int) -> None:
    """Gradients of queries, keys and values concatenated to that of the joined projection. Those of heads that
    Transformer Engine read where they lay come interleaved, so that every value's address is computed."""
    strided = s.stack.norm_kernels == "te" and not _copied(s)
    cls = "cat.unvectorized" if strided else "elem"
    builder.add("attn.qkv.cat.bwd", cls, unvectorized(values, BF16, BF16))


def _sum_gradients(builder: SegmentBuilder, s: Shapes, kv: int) -> None:
    """Gradients of keys and values that have several readers: those of a layer that reuses them are added to those of
    the layer that made them; one projection is the source of keys and of values."""
    if s.model.mixer_of(0).reuses:
        builder.add("attn.kv.sum.bwd", "elem", sum_of_two(s.tokens * kv))
    elif s.model.attention_k_eq_v:
        builder.add("attn.k.sum.bwd", "elem", sum_of_two(s.tokens * projected(s)[1]))


def backward(builder: SegmentBuilder, s: Shapes) -> Segment:
    """The rest of `attn.B`."""
    enter_attention_backward(builder, s)
    to_projection(builder, s)
    normed_again(builder, s)
    to_input(builder, s)
    leave_branch_backward(builder, "attn", s)
    return builder.done()


def normed_again(builder: SegmentBuilder, s: Shapes) -> None:
    """The norm before the branch once more, where its output was not kept."""
    if s.norm_again("layer") and s.model.norm_placement != "post":
        norm_forward(builder, "norm.attn.recompute", sharded_tokens(s), s.model.hidden_size, part="R")


def to_projection(builder: SegmentBuilder, s: Shapes) -> None:
    """From the gradient of the branch's output to that of queries, keys and values."""
    t, h = s.tokens, s.model.hidden_size
    (_, kv), out = widths(s), output_width(s)
    if s.model.attention_out_bias:
        linear.bias_gradient(builder, "attn.o", sharded_tokens(s), h)
    if not s.model.parallel_block:
        gather(builder, "attn.o_g", s, h)
    linear.input_gradient(builder, "attn.o", t, h, out, recipe=s.recipe, place="row")
    gate_output(builder, s, backward=True)
    if s.fp8:
        linear.cast_for_wgrad(builder, "attn.o", t, out, which="x")
        linear.cast_for_wgrad(builder, "attn.o", t, h, which="g")
    if _head_norms(s) and s.norm_again("head"):
        place_heads(builder, s, again=True)
    if "core_attn" in s.recompute:
        core_forward(builder, s, "attn.core.recompute", part="R")
    _gather_all(builder, s, "attn.dkv.transfer", kv, passes=2)
    _by_token(builder, s, "attn.out.order.bwd")
    heads.order(builder, s, out, "attn.out.by_sequence.bwd")
    heads.order(builder, s, out, "attn.o.input.bwd")
    padding.take_out_gradient(builder, s, output_width(s))
    core_backward(builder, s)
    padding.put_back_gradients(builder, s, _read_by_core(s))
    _to_joined(builder, s)


def _to_joined(builder: SegmentBuilder, s: Shapes) -> None:
    """From the gradients of what the core reads to that of the joined projection."""
    t, (_, kv) = s.tokens, widths(s)
    _repeat_keys(builder, s, "attn.kv.repeat.bwd", backward=True)
    if s.model.positions == "rope":
        _rotate(builder, s, "bwd")
    for name, rows, width in _head_norms(s):
        norm_backward(builder, name, rows, width, weights=name != VALUE_NORM)
        _reduce_statistics(builder, s, f"{name}.bwd")
    _sum_gradients(builder, s, kv)
    if s.stack.heads_copied:
        heads.together(builder, s, sum(projected(s)) - kv, kv)
    elif s.stack.split_copies:
        _join_gradients(builder, s, t * sum(projected(s)))
    if s.model.attention_bias and (s.stack.bias_apart or not s.stack.wgrad_accumulation_fused):
        linear.bias_gradient(builder, "attn.qkv", t, sum(projected(s)))


def to_input(builder: SegmentBuilder, s: Shapes) -> None:
    """On to the gradient of the norm's output."""
    t, h, made = s.tokens, s.model.hidden_size, sum(projected(s))
    if not shares_input(s):
        regather(builder, "attn.x", s, h)
    linear.input_gradient(builder, "attn.qkv", t, made, h, recipe=s.recipe, place="column", matrices=projected(s))
    if s.fp8:
        linear.cast_for_wgrad(builder, "attn.qkv", t, h, which="x")
        linear.cast_for_wgrad(builder, "attn.qkv", t, made, which="g")
    scatter(builder, "attn.dx", s, h, gradient=True)


def weights(s: Shapes) -> Segment:
    """`attn.W`."""
    h, wide = s.model.hidden_size, sum(projected(s))
    builder = SegmentBuilder("attn.W", "W", s)
    if indexer.is_sparse(s):
        indexer.weight_gradients(builder, s)
    linear.weight_gradient(builder, "attn.o", s.tokens, h, output_width(s), recipe=s.recipe, place="row")
    linear.weight_gradient(
        builder, "attn.qkv", s.tokens, wide, h, recipe=s.recipe, place="column", matrices=projected(s)
    )
    return builder.done()
