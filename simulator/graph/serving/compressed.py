"""DeepSeek-V4's attention over its cache: the window's keys, and entries that each stand for several tokens.

Each new token's projections join those that wait for their entry, in FP32; where an entry is full it is made, normed,
rotated and written (vLLM, vllm/models/deepseek_v4/compressor.py, 2026; two kernels). The core reads window and entries
in one kernel, as one head of keys that are the values (FlashMLA's for chosen keys).
"""

from __future__ import annotations

from simulator.dtypes import BF16, FP8, FP32, WIDTH
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast, gemm_class, precision_of, rotation
from simulator.graph.mixers import hyper
from simulator.graph.mixers.compressed import Dims, dims_of, is_indexed
from simulator.graph.mixers.indexer import INDEX, SPARSE
from simulator.graph.norm import norm_forward
from simulator.graph.serving.attention import Prompts, add_newest_scores, decode_class, decoding, prompts_of
from simulator.graph.serving.linear import add_up, gather, linear
from simulator.graph.serving.shapes import ServingShapes
from simulator.ops import Attention, Gemm, Streaming

KEY = 1.0
"""Bytes of a value of the indexer's keys in its cache: FP8 [B]."""


def prepare(s: ServingShapes) -> Segment:
    """`prepare.F`: streams to one, norm, projections, and the new keys and full entries written to the cache."""
    d = dims_of(s)
    builder = SegmentBuilder("prepare.F", "F", s)
    hyper.enter(builder, "attn", s, "")
    norm_forward(builder, "norm.attn", d.sharded, d.hidden)
    linear(builder, "attn.qkv_a", s, d.sharded, d.first, d.hidden)
    gather(builder, "attn.latent", s, d.tokens, d.first)
    norm_forward(builder, "norm.q_lora", d.tokens, d.latent)
    norm_forward(builder, "norm.kv", d.tokens, d.d)
    linear(builder, "attn.q_b", s, d.tokens, d.q, d.latent)
    norm_forward(builder, "norm.q", d.tokens * d.heads, d.d)
    builder.add("rope.qk", "rope", rotation(d.tokens * (d.heads + 1) * d.rope))
    builder.add("attn.kv.write", "kvcopy", cast(d.tokens * d.d, BF16, WIDTH[s.serving.kv_dtype]))
    _compress(builder, s, d)
    return builder.done()


def _compress(builder: SegmentBuilder, s: ServingShapes, d: Dims) -> None:
    """Projections of the new tokens, what waits for its entry, and the entries that are full: one in `rate` tokens."""
    if not d.rate:
        return
    m, keys = s.model, WIDTH[s.serving.kv_dtype]
    parts = [("compress", m.qk_head_dim, keys)]
    parts += [("index_compress", m.index_head_dim, KEY)] if is_indexed(s) else []
    entries = d.tokens / d.rate
    for part, wide, width in parts:
        n = m.attention_matrices()[part][1]
        builder.add(f"attn.{part}", "gemm.bf16", Gemm(m=d.tokens, n=n, k=d.hidden, precision="bf16"))
        builder.add(f"attn.{part}.wait", "elem", cast(d.tokens * n, BF16, FP32))
        work = Streaming(read=d.tokens * n * FP32, written=entries * wide * width)
        builder.add(f"attn.{part}.pool", "elem.reduce", work)
    if is_indexed(s):
        wide = m.index_n_heads * m.index_head_dim
        linear(builder, "attn.index_q", s, d.tokens, wide, d.latent)
        weights = Gemm(m=d.tokens, n=m.index_n_heads, k=d.hidden, precision="bf16")
        builder.add("attn.index_w", "gemm.bf16", weights)
        builder.add("rope.index", "rope", cast(d.tokens * wide, BF16, KEY))


def core(s: ServingShapes) -> SegmentBuilder:
    """`attn.F` up to the norm before the feed-forward part; the caller ends it."""
    d, m = dims_of(s), s.model
    builder = SegmentBuilder("attn.F", "F", s)
    if s.decodes:
        _choose_newest(builder, s)
        work = decoding(s, d.heads, 1, d.d, d.d, latent=True)
        builder.add("attn.core", decode_class("attn.decode.mla", s), work)
        if s.chunk:
            _prompts(builder, s, d, "attn.chunk", Prompts(1, s.chunk, s.chunk_context))
    else:
        _prompts(builder, s, d, "attn.core", prompts_of(s))
    if s.fp8:  # the cast rides on the rotation (vLLM, fused_inv_rope_fp8_quant.py, 2026)
        builder.add("rope.out", "rope", cast(d.tokens * d.q, BF16, FP8))
    else:
        builder.add("rope.out", "rope", rotation(d.tokens * d.heads * d.rope))
    grouped = Gemm(
        m=d.tokens * d.groups,
        n=d.rank,
        k=d.q // d.groups,
        precision=precision_of(s.recipe),
        form="grouped",
        groups=d.groups,
    )
    builder.add("attn.o_a", gemm_class(s.recipe), grouped)
    linear(builder, "attn.o_b", s, d.tokens, d.hidden, d.groups * d.rank)
    add_up(builder, "attn.o", s, d.tokens, d.hidden)
    hyper.leave(builder, "attn", s, "")
    hyper.enter(builder, "ffn", s, "")
    norm_forward(builder, "norm.ffn", d.sharded, m.hidden_size)
    return builder


def _choose_newest(builder: SegmentBuilder, s: ServingShapes) -> None:
    """Scores of all entries for the newest tokens, and the best of them."""
    rate = s.model.compress_rate
    if not is_indexed(s) or s.seq_kv < rate:
        return
    work = add_newest_scores(builder, s, s.seq_kv // rate, tuple(max(1, length // rate) for length in s.lengths))
    _top(builder, s, "attn.top", work.keys * s.seq, s.newest)


def _top(builder: SegmentBuilder, s: ServingShapes, name: str, scores: float, rows: int) -> None:
    work = Streaming(read=scores * FP32, written=rows * s.model.index_topk * INDEX)
    builder.add(name, "router.topk", work)


def _prompts(builder: SegmentBuilder, s: ServingShapes, d: Dims, name: str, prompts: Prompts) -> None:
    """The indexer and the core over prompts."""
    m, window, rate = s.model, s.model.sliding_window or 0, d.rate
    before, whole = (prompts.cached // rate, (prompts.cached + prompts.new) // rate) if rate else (0, 0)
    if is_indexed(s) and whole:
        scores = Attention(
            batch=prompts.count,
            seq_q=prompts.new,
            seq_kv=whole,
            heads=m.index_n_heads,
            kv_heads=1,
            d_qk=m.index_head_dim,
            d_v=1,
            cached=before,
        )
        builder.add(f"{name}.index", "attn.index", scores)
        rows = prompts.count * prompts.new
        _top(builder, s, f"{name}.top", scores.flops / scores.flops_per_pair / scores.heads, rows)
    cached = min(prompts.cached, window)
    work = Attention(
        batch=prompts.count,
        seq_q=prompts.new,
        seq_kv=cached + prompts.new,
        heads=d.heads,
        kv_heads=1,
        d_qk=d.d,
        d_v=d.d,
        window=window,
        cached=cached,
    )
    if whole:
        work = work.with_entries(whole, m.chosen_entries, before)
    builder.add(name, SPARSE.format("fwd"), work)
