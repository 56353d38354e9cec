"""Grouped-query attention over a KV cache: one fused QKV projection, the cache written, the core, the output."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.dtypes import BF16, FP32, WIDTH
from simulator.graph.attention import gate_output, output_width, place_heads, projected, widths
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast
from simulator.graph.mixers import depth
from simulator.graph.mixers.hybrid import summed
from simulator.graph.mixers.indexer import (
    INDEX,
    choose,
    core_class,
    in_blocks,
    is_sparse,
    projections,
    window_of,
    written_keys,
)
from simulator.graph.norm import add_residual, norm_forward
from simulator.graph.parallel import heads_per_rank, kv_heads_per_rank, sharded_tokens
from simulator.graph.serving.linear import add_up, gather, linear
from simulator.graph.serving.shapes import ServingShapes
from simulator.ops import Attention, DecodeAttention, Streaming
from simulator.spec.mixer import Mixer


def prepare(s: ServingShapes) -> Segment:
    """`prepare.F`: norm, projections, rotation, and the new keys and values written to the cache."""
    builder = SegmentBuilder("prepare.F", "F", s)
    enter(builder, s)
    project(builder, s)
    return builder.done()


def project(builder: SegmentBuilder, s: ServingShapes) -> None:
    """The same behind the norm."""
    t, h = s.tokens, s.model.hidden_size
    _, kv = widths(s)
    gather(builder, "attn.x", s, t, h)
    linear(builder, "attn.qkv", s, t, sum(projected(s)), h)
    place_heads(builder, s)
    if not s.model.mixer_of(0).reuses:
        write(builder, s, t * kv)
    if is_sparse(s):
        projections(builder, s, "")
        builder.add("attn.index.write", "kvcopy", written_keys(s))


def write(builder: SegmentBuilder, s: ServingShapes, values: int) -> None:
    """New keys and values go to the cache, in its format, unless the rotation before writes them (`rope_write`)."""
    if "rope_write" not in s.software.fused or s.model.positions != "rope":
        builder.add("attn.kv.write", "kvcopy", cast(values, BF16, WIDTH[s.serving.kv_dtype]))


def enter(builder: SegmentBuilder, s: ServingShapes) -> None:
    """The norm before attention, where there is one."""
    if depth.attends(s):
        depth.normed(builder, "norm.attn", s)
    elif s.model.norm_placement != "post" and not s.fuses_norms:
        norm_forward(builder, "norm.attn", sharded_tokens(s), s.model.hidden_size, residual=True)


def core(s: ServingShapes) -> SegmentBuilder:
    """`attn.F` up to the norm before the feed-forward part; the caller ends it."""
    builder = SegmentBuilder("attn.F", "F", s)
    inside(builder, s)
    finish(builder, s)
    return builder


def inside(builder: SegmentBuilder, s: ServingShapes) -> None:
    """The core, and the output projection."""
    t, h, d, d_v = s.tokens, s.model.hidden_size, s.model.qk_head_dim, s.model.v_dim
    heads, kv_heads = heads_per_rank(s), kv_heads_per_rank(s)
    if is_sparse(s):
        choose_newest(builder, s)
    if s.decodes:
        builder.add("attn.core", decode_class("attn.decode", s), decoding(s, heads, kv_heads, d, d_v, latent=False))
        chunked(builder, s, heads, kv_heads, d, d_v)
    else:
        prefilling(builder, "attn.core", s, prompts_of(s), heads, kv_heads, d, d_v)
    gate_output(builder, s)
    linear(builder, "attn.o", s, t, h, output_width(s))


def finish(builder: SegmentBuilder, s: ServingShapes) -> None:
    """The sum over tensor-parallel ranks, the residual, and the norms behind attention and before what follows."""
    h = s.model.hidden_size
    add_up(builder, "attn.o", s, s.tokens, h)
    if s.model.mixer_of(0) is Mixer.HYBRID:
        summed(builder, s, "attn.mixers")
    model, rows = s.model, sharded_tokens(s)
    if model.norm_placement != "pre":
        norm_forward(builder, "norm.attn.out", rows, h)
    sequential = model.norm_placement == "pre" and not model.parallel_block
    add_residual(builder, "attn", s, h, alone=not sequential)
    if model.mixer_only_layers:
        return
    if depth.attends(s):
        depth.normed(builder, "norm.ffn", s)
        return
    if model.norm_placement != "post" and not (model.parallel_block and model.shared_norm) and not s.fuses_norms:
        norm_forward(builder, "norm.ffn", rows, h, residual=sequential)


def decode_class(cls: str, s: ServingShapes) -> str:
    """The kernel class of whoever's decode attention the software runs, over a cache of this format."""
    narrow = "" if s.serving.kv_dtype == "bf16" else ".fp8"
    return f"{cls}{narrow}@{s.software.decode_attention}"


def kept_keys(s: ServingShapes, length: int) -> int:
    """Keys that the newest of `length` tokens attends to: all, those of the window, or those of its chunk so far."""
    return s.model.keys_of_newest(length)


def decoding(s: ServingShapes, heads: int, kv_heads: int, d_qk: int, d_v: int, *, latent: bool) -> DecodeAttention:
    """Attention of the newest tokens over the whole cache."""
    return DecodeAttention(
        batch=s.batch,
        heads=heads,
        kv_heads=kv_heads,
        d_qk=d_qk,
        d_v=d_v,
        kv_len=kept_keys(s, s.seq_kv),
        q_len=s.seq,
        kv_dtype=s.serving.kv_dtype,
        latent=latent,
        lengths=tuple(kept_keys(s, length) for length in s.lengths),
    )


def add_newest_scores(
    builder: SegmentBuilder, s: ServingShapes, keys: int, lengths: tuple[int, ...]
) -> DecodeAttention:
    """The indexer's scores of all cached keys (in the mean, and of each sequence) for the newest tokens."""
    work = DecodeAttention(
        batch=s.batch,
        heads=s.model.index_n_heads,
        kv_heads=1,
        d_qk=s.model.index_head_dim,
        d_v=1,
        kv_len=keys,
        q_len=s.seq,
        kv_dtype="fp8",
        lengths=lengths,
    )
    builder.add("attn.index", decode_class("attn.decode.index", s), work)
    return work


def choose_newest(builder: SegmentBuilder, s: ServingShapes) -> None:
    """The indexer over all cached keys, and the best tokens of each query."""
    m = s.model
    if not s.decodes:
        choose(builder, s, "")
        return
    work = add_newest_scores(builder, s, s.seq_kv, s.lengths)
    scores = work.keys * s.seq * FP32
    if in_blocks(s):
        scores *= m.index_n_heads / m.index_block_size
    builder.add("attn.top", "router.topk", Streaming(read=scores, written=s.tokens * m.index_topk * INDEX))


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of a pass: `count` of `new` tokens each, over `cached` ones."""

    count: int
    new: int
    cached: int


def prompts_of(s: ServingShapes) -> Prompts:
    """The prompts of a prefill; where their cached parts differ, the mean: the FLOP are the same."""
    return Prompts(s.batch, s.seq, s.seq_kv - s.seq)


def chunked(builder: SegmentBuilder, s: ServingShapes, heads: int, kv_heads: int, d_qk: int, d_v: int) -> None:
    """Attention of a prompt's chunk that runs along with decode: a kernel of its own, as vLLM and SGLang launch."""
    if s.chunk:
        prefilling(builder, "attn.chunk", s, Prompts(1, s.chunk, s.chunk_context), heads, kv_heads, d_qk, d_v)


def prefilling(
    builder: SegmentBuilder,
    name: str,
    s: ServingShapes,
    prompts: Prompts,
    heads: int,
    kv_heads: int,
    d_qk: int,
    d_v: int,
) -> None:
    """Attention of prompts: causal among the new tokens, and all of them over what is cached before.

    Kernels take both in one; as ops they are two, since the FLOP of the second have no mask. With a window or chunks
    the mask spans both, and so does the one op.
    """
    window, chunk = s.model.sliding_window or window_of(s), s.model.attention_chunk_size
    cached = prompts.cached % chunk if chunk else min(prompts.cached, window)

    def work(length: int, *, causal: bool) -> Attention:
        return Attention(
            batch=prompts.count,
            seq_q=prompts.new,
            seq_kv=length,
            heads=heads,
            kv_heads=kv_heads,
            d_qk=d_qk,
            d_v=d_v,
            causal=causal,
            window=window,
            chunk=chunk,
            cached=cached,
        )

    if window or chunk:
        builder.add(name, core_class(s, "fwd"), work(cached + prompts.new, causal=True))
        return
    if prompts.cached:
        builder.add(f"{name}.cached", "attn.fwd", work(prompts.cached, causal=False))
    builder.add(name, "attn.fwd", work(prompts.new, causal=True))
