"""DeepSeek-V3.2's sparse attention: an indexer scores all earlier tokens, and each query attends to the best of them
(DeepSeek-V3.2 report, arXiv 2512.02556, section 2; FlashMLA and DeepGEMM have its kernels).

Scores are those of a few narrow heads that share one key, weighted and summed. The indexer learns by itself, in the
sparse stage: its input is detached, its loss compares its scores of the chosen tokens with the attention of all heads
there. Every tensor-parallel rank runs the whole indexer, as vLLM and SGLang do.

The layer around it is in `chosen`, and in serving in `simulator.graph.serving.mla`.
"""

from __future__ import annotations

from simulator.dtypes import BF16, FP32
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast, rotation
from simulator.graph.norm import norm_forward
from simulator.graph.shapes import Shapes
from simulator.ops import Attention, Gemm, Streaming
from simulator.spec.mixer import Mixer

INDEX = 4.0
"""Bytes of the index of a chosen token [B]."""
SPARSE = "attn.{}.sparse"
"""Kernel class of a core that gathers the keys of chosen tokens, by direction: it has no measurements yet."""


def is_sparse(s: Shapes) -> bool:
    """Whether queries attend to chosen tokens, or blocks of them, only."""
    return s.model.chosen_tokens > 0


def in_blocks(s: Shapes) -> bool:
    """Whether whole blocks of keys are chosen (MiniMax-M3): heads by their best key in a block, without weights."""
    return s.model.mixer_of(0) is Mixer.BLOCKS


def window_of(s: Shapes) -> int:
    """Tokens that a query attends to; 0: all. Of fewer earlier tokens a query has all."""
    return s.model.chosen_tokens


def core_class(s: Shapes, direction: str) -> str:
    """Kernel class of the core."""
    return SPARSE.format(direction) if is_sparse(s) else f"attn.{direction}"


def index_scores(s: Shapes, keys: int, *, window: int = 0, backward: bool = False) -> Attention:
    """The indexer's scores of so many keys: a GEMM as wide as a head, and one sum over the heads."""
    return Attention(
        batch=s.batch,
        seq_q=s.seq,
        seq_kv=keys,
        heads=s.model.index_n_heads,
        kv_heads=1,
        d_qk=s.model.index_head_dim,
        d_v=1,
        window=window,
        backward=backward,
        cached=s.seq_kv - s.seq if s.workload.serves else 0,
    )


def projections(builder: SegmentBuilder, s: Shapes, name: str = ".fwd") -> None:
    """Queries from their latent, one key and the heads' weights from the input; key and weights are kept."""
    m, t = s.model, s.tokens
    heads, keeps = m.index_n_heads, s.workload.keeps_activations
    for part, n, k in _parts(s):
        work = Gemm(m=t, n=n, k=k, precision="bf16")
        builder.add(f"attn.index_{part}{name}", "gemm.bf16", work, saved=t * n * BF16 if keeps else 0.0)
    statistics = FP32 if in_blocks(s) else 2 * FP32  # 1/rms of an RMSNorm, or mean and 1/deviation of a LayerNorm
    kept = t * (m.index_head_dim * BF16 + statistics) if keeps else 0.0  # rotated
    normed = t * (1 + (heads if in_blocks(s) else 0))
    norm_forward(builder, f"norm.index{name}", normed, m.index_head_dim, saved=kept * normed / t)
    rotated = m.qk_rope_head_dim or round(m.index_head_dim * m.partial_rotary_factor)
    builder.add(f"rope.index{name}", "rope", rotation(t * (heads + 1) * rotated))


def _parts(s: Shapes) -> tuple[tuple[str, int, int], ...]:
    """Projections: name, width of the output and of the input."""
    m = s.model
    found = (
        ("q", m.index_n_heads * m.index_head_dim, m.q_lora_rank or m.hidden_size),
        ("k", m.index_head_dim, m.hidden_size),
    )
    return found if in_blocks(s) else (*found, ("w", m.index_n_heads, m.hidden_size))


def choose(builder: SegmentBuilder, s: Shapes, name: str = ".fwd") -> None:
    """Scores of all earlier tokens, and the best of them."""
    work = index_scores(s, s.seq_kv)
    scores = work.flops / work.flops_per_pair / work.heads * FP32
    chosen = s.tokens * min(s.model.index_topk, s.seq_kv)
    if in_blocks(s):  # each head chooses for its group, among the best keys of blocks
        scores *= s.model.index_n_heads / s.model.index_block_size
        chosen *= s.model.index_n_heads
    kept = chosen * INDEX if s.workload.keeps_activations else 0.0
    builder.add(f"attn.index{name}", "attn.index", work)
    builder.add(
        f"attn.top{s.model.index_topk}{name}", "router.topk", Streaming(read=scores, written=chosen * INDEX), saved=kept
    )


def compare(builder: SegmentBuilder, s: Shapes, keys: int, window: int, heads: int, d_qk: int) -> None:
    """The indexer's loss over so many keys: what all heads attend to among those chosen, and the gradients of its
    scores."""
    target = Attention(
        batch=s.batch, seq_q=s.seq, seq_kv=keys, heads=heads, kv_heads=1, d_qk=d_qk, d_v=1, window=window
    )
    builder.add("attn.index_target.bwd", SPARSE.format("fwd"), target)
    builder.add("attn.index.bwd", SPARSE.format("bwd"), index_scores(s, keys, window=window, backward=True))


def learn(builder: SegmentBuilder, s: Shapes, heads: int, d_qk: int) -> None:
    """The indexer's own backward."""
    compare(builder, s, s.seq_kv, window_of(s), heads, d_qk)
    values = s.tokens * s.model.index_head_dim
    builder.add("norm.index.bwd", "norm.bwd", Streaming(read=2 * values * BF16, written=values * BF16))


def weight_gradients(builder: SegmentBuilder, s: Shapes) -> None:
    """Of the three projections; their inputs are detached, so there are no others."""
    kept = s.states.gradient_bytes
    for part, n, k in _parts(s):
        work = Gemm(m=n, n=k, k=s.tokens, precision="bf16", form="wgrad", out_bytes=kept)
        builder.add(f"attn.index_{part}.wgrad", "gemm.bf16.wgrad", work)


def written_keys(s: Shapes) -> Streaming:
    """The new tokens' keys of the indexer, written to its cache in FP8 with a scale each."""
    return cast(s.tokens, s.model.index_head_dim * BF16, s.model.index_head_dim + FP32)
