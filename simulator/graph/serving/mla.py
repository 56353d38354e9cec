"""Multi-head latent attention over a cache of latents: absorbed for decode, expanded for prefill.

Decode multiplies the queries by W_UK and the averaged latents by W_UV, head by head, and attends over the latents
themselves, which is cheaper while there are few queries for each cached token (DeepSeek-V2, arXiv 2405.04434, section
2.1.2). Prefill expands keys and values, those of cached latents too; a prompt's chunk that runs along with decode
likewise.
"""

from __future__ import annotations

from simulator.dtypes import BF16
from simulator.graph.attention import gate_output, gate_width
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast, rotation
from simulator.graph.mixers.indexer import is_sparse, projections, written_keys
from simulator.graph.mla import Dims, dims_of
from simulator.graph.norm import norm_forward
from simulator.graph.serving.attention import (
    choose_newest,
    chunked,
    decode_class,
    decoding,
    enter,
    finish,
    prefilling,
    prompts_of,
    write,
)
from simulator.graph.serving.linear import gather, linear
from simulator.graph.serving.shapes import ServingShapes
from simulator.ops import Gemm


def prepare(s: ServingShapes) -> Segment:
    """`prepare.F`: norm, projections down and up, rotation, and the new latents written to the cache."""
    d = dims_of(s)
    t, h = d.tokens, d.hidden
    builder = SegmentBuilder("prepare.F", "F", s)
    enter(builder, s)
    if d.q_lora:
        linear(builder, "attn.qkv_a", s, d.sharded, d.q_lora + d.kv_lora + d.rope, h)
        gather(builder, "attn.latent", s, t, d.q_lora + d.kv_lora + d.rope)
        if "latent_norms" in s.software.fused:
            norm_forward(builder, "norm.latents", t, d.q_lora + d.kv_lora)
        else:
            norm_forward(builder, "norm.q_lora", t, d.q_lora)
            norm_forward(builder, "norm.kv_lora", t, d.kv_lora)
        linear(builder, "attn.q_b", s, t, d.q, d.q_lora)
    else:
        gather(builder, "attn.x", s, t, h)
        linear(builder, "attn.q", s, t, d.q, h)
        linear(builder, "attn.kv_a", s, t, d.kv_lora + d.rope, h)
        norm_forward(builder, "norm.kv_lora", t, d.kv_lora)
    if gate_width(s):
        if d.q_lora:
            gather(builder, "attn.x", s, t, h)
        linear(builder, "attn.gate_proj", s, t, gate_width(s), h)
    builder.add("rope.qk", "rope", rotation(t * (d.heads + 1) * d.rope))
    write(builder, s, t * (d.kv_lora + d.rope))
    if is_sparse(s):
        projections(builder, s, "")
        builder.add("attn.index.write", "kvcopy", written_keys(s))
    if s.decodes or is_sparse(s):
        _per_head(builder, "attn.w_uk", s, d, d.kv_lora, d.nope)
    if s.decodes:
        _expand(builder, "attn.chunk", s, d, s.chunk + s.chunk_context)
    elif not is_sparse(s):
        _expand(builder, "attn", s, d, s.batch * s.seq_kv)
    return builder.done()


def core(s: ServingShapes) -> SegmentBuilder:
    """`attn.F` up to the norm before the feed-forward part; the caller ends it."""
    d = dims_of(s)
    builder = SegmentBuilder("attn.F", "F", s)
    if is_sparse(s):
        choose_newest(builder, s)
    if s.decodes:
        work = decoding(s, d.heads, 1, d.kv_lora + d.rope, d.kv_lora, latent=True)
        builder.add("attn.core", decode_class("attn.decode.mla", s), work)
        _per_head(builder, "attn.w_uv", s, d, d.v, d.kv_lora)
        chunked(builder, s, d.heads, d.heads, d.nope + d.rope, d.v)
    elif is_sparse(s):  # all heads share the chosen tokens' latents, as in decode
        prefilling(builder, "attn.core", s, prompts_of(s), d.heads, 1, d.kv_lora + d.rope, d.kv_lora)
        _per_head(builder, "attn.w_uv", s, d, d.v, d.kv_lora)
    else:
        prefilling(builder, "attn.core", s, prompts_of(s), d.heads, d.heads, d.nope + d.rope, d.v)
    gate_output(builder, s)
    linear(builder, "attn.o", s, d.tokens, d.hidden, d.out)
    finish(builder, s)
    return builder


def _per_head(builder: SegmentBuilder, name: str, s: ServingShapes, d: Dims, n: int, k: int) -> None:
    """One GEMM for each head, in BF16: a batched GEMM of the library's, not its grouped kernels."""
    work = Gemm(m=s.newest * d.heads, n=n, k=k, precision="bf16", form="grouped", groups=d.heads)
    builder.add(name, "gemm.bf16", work)


def _expand(builder: SegmentBuilder, name: str, s: ServingShapes, d: Dims, rows: int) -> None:
    """Keys and values of all heads from the latents, cached ones too, and the rotary key next to each head's."""
    if rows:
        linear(builder, f"{name}.kv_b", s, rows, d.kv, d.kv_lora)
        builder.add(f"{name}.k.join", "kvcopy", cast(rows * d.q, BF16, BF16))
