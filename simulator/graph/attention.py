"""Multi-head and grouped-query attention (Llama, Qwen, Mixtral, GPT): one fused QKV projection, core, output."""

from __future__ import annotations

from simulator.graph import linear
from simulator.graph.block import Segment, Tape
from simulator.graph.linear import BF16, FP32, cast
from simulator.graph.norm import norm_backward, norm_forward
from simulator.graph.parallel import gather, heads_per_rank, kv_heads_per_rank, scatter, sharded_tokens
from simulator.graph.shapes import Shapes
from simulator.ops import Attention, Streaming


def widths(s: Shapes) -> tuple[int, int]:
    """Width of the queries and of keys plus values on one rank."""
    d = s.model.qk_head_dim
    return heads_per_rank(s) * d, 2 * kv_heads_per_rank(s) * d


def core_work(s: Shapes, *, backward: bool) -> Attention:
    """The attention core of one microbatch."""
    d = s.model.qk_head_dim
    return Attention(
        batch=s.batch,
        seq_q=s.seq,
        seq_kv=s.seq_kv,
        heads=heads_per_rank(s),
        kv_heads=kv_heads_per_rank(s),
        d_qk=d,
        d_v=d,
        causal=True,
        backward=backward,
    )


def forward(s: Shapes, sms: int) -> Tape:
    """`attn.F` up to and including the norm before the feed-forward part; the caller ends it."""
    t, sharded, h = s.tokens, sharded_tokens(s), s.model.hidden_size
    q, kv = widths(s)
    tape = Tape("attn.F", "F")
    keep_norm = 0.0 if s.recompute_norms else float(sharded * h * BF16)
    norm_forward(tape, "norm.attn.fwd", sharded, h, sms, saved=sharded * h * BF16 + keep_norm)
    gather(tape, "attn.x", s, h)
    linear.forward(tape, "attn.qkv", t, q + kv, h, fp8=s.fp8, saved=t * (q + kv) * BF16)
    if s.model.positions == "rope":
        tape.add("rope.qk.fwd", "rope", cast(t * (q + kv // 2), BF16, BF16))
    kept = t * q * BF16 + t * heads_per_rank(s) * FP32
    tape.add("attn.core.fwd", "attn.fwd", core_work(s, backward=False), saved=kept)
    linear.forward(tape, "attn.o", t, h, q, fp8=s.fp8)
    scatter(tape, "attn.o", s, h)
    norm_forward(
        tape, "norm.ffn.fwd_residual", sharded, h, sms, residual=True, saved=sharded * h * BF16 + keep_norm
    )
    return tape


def backward(tape: Tape, s: Shapes, sms: int) -> Segment:
    """The rest of `attn.B`."""
    t, sharded, h = s.tokens, sharded_tokens(s), s.model.hidden_size
    q, kv = widths(s)
    norm_backward(tape, "norm.ffn", sharded, h, sms, residual=True)
    gather(tape, "attn.o_g", s, h)
    linear.input_gradient(tape, "attn.o", t, h, q, fp8=s.fp8)
    if s.fp8:
        linear.cast_for_wgrad(tape, "attn.o", t, q, which="x")
        linear.cast_for_wgrad(tape, "attn.o", t, h, which="g")
    if s.recompute_core:
        tape.add("attn.core.recompute", "attn.fwd", core_work(s, backward=False), part="R")
    accumulator = t * q * FP32
    tape.add("attn.core.bwd_pre", "attn.bwd_aux", Streaming(read=2 * t * q * BF16, written=accumulator))
    tape.add("attn.core.bwd", "attn.bwd", core_work(s, backward=True))
    tape.add("attn.core.bwd_post", "attn.bwd_aux", Streaming(read=accumulator, written=t * q * BF16))
    if s.model.positions == "rope":
        tape.add("rope.qk.bwd", "rope", cast(t * (q + kv // 2), BF16, BF16))
    if s.recompute_norms:
        norm_forward(tape, "norm.attn.recompute", sharded, h, sms, part="R")
    linear.input_gradient(tape, "attn.qkv", t, q + kv, h, fp8=s.fp8)
    if s.fp8:
        linear.cast_for_wgrad(tape, "attn.qkv", t, h, which="x")
        linear.cast_for_wgrad(tape, "attn.qkv", t, q + kv, which="g")
    scatter(tape, "attn.dx", s, h)
    norm_backward(tape, "norm.attn", sharded, h, sms, residual=True)
    return tape.done()


def weights(s: Shapes) -> Segment:
    """`attn.W`."""
    q, kv = widths(s)
    h = s.model.hidden_size
    tape = Tape("attn.W", "W")
    linear.weight_gradient(tape, "attn.o", s.tokens, h, q, fp8=s.fp8)
    linear.weight_gradient(tape, "attn.qkv", s.tokens, q + kv, h, fp8=s.fp8)
    return tape.done()
