"""DeepSeek-V4's attention in training (its report, section 2.3): one vector of a token is its key and its value, of all
heads; queries attend to the last tokens (`sliding`), and to entries that each stand for several earlier ones: to all of
them where they stand for many (`hca`), to those that an indexer chooses where they stand for few (`csa`).

An entry is a weighted sum of its tokens' projections, normed and rotated; of `csa` tokens weigh in two entries, one
after the other, and the indexer has narrow entries of its own. Outputs are rotated back, projected in groups of heads,
and then together. The indexer learns as that of DeepSeek-V3.2 does (`indexer`). Kernels: FlashMLA's for chosen keys
read window and entries in one; nobody published those of training, so that classes are those of chosen keys, assumed.

Tensor parallelism splits heads and groups; every rank has the key, the entries and the choices. Context parallelism
gathers entries and the window's tokens, not all keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.dtypes import BF16, FP32
from simulator.graph import linear
from simulator.graph.attention import finish_backward, prepare_backward
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast, rotation
from simulator.graph.mixers import hyper
from simulator.graph.mixers.indexer import INDEX, SPARSE, compare, index_scores
from simulator.graph.norm import norm_backward, norm_forward, norm_output
from simulator.graph.parallel import gather, heads_per_rank, ranks_per_node, scatter, sharded_tokens
from simulator.graph.shapes import Shapes
from simulator.ops import Attention, Collective, Gemm, Part, Streaming
from simulator.spec.mixer import Mixer


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Widths of one rank's share.

    Parameters
    ----------
    tokens, sharded : tokens of attention, and of norms under sequence parallelism.
    hidden : width of the stream.
    heads, groups : query heads, and groups of them with a projection of their own.
    latent, d : width of the queries' latent, and of a head.
    rank : width that a group is projected to.
    rope : part of a head that rotates.
    entries : entries that this rank's tokens make.
    rate : tokens of an entry (0: none).
    compressed : width of the projection that entries are made of, indexer's included.
    """

    tokens: int
    sharded: int
    hidden: int
    heads: int
    groups: int
    latent: int
    d: int
    rank: int
    rope: int
    entries: int
    rate: int
    compressed: int

    @property
    def q(self) -> int:
        """Width of all queries, and of the output."""
        return self.heads * self.d

    @property
    def first(self) -> int:
        """Width of the projection to the latent and the key."""
        return self.latent + self.d


def dims_of(s: Shapes) -> Dims:
    """The widths for these shapes."""
    m = s.model
    matrices = m.attention_matrices()
    return Dims(
        tokens=s.tokens,
        sharded=sharded_tokens(s),
        hidden=m.hidden_size,
        heads=heads_per_rank(s),
        groups=max(1, m.o_groups // s.job.layout.tp),
        latent=m.q_lora_rank or 0,
        d=m.qk_head_dim,
        rank=m.o_lora_rank,
        rope=round(m.qk_head_dim * m.partial_rotary_factor),
        entries=s.batch * (s.seq // m.compress_rate) if m.compress_rate else 0,
        rate=m.compress_rate,
        compressed=sum(matrices[name][1] for name in ("compress", "index_compress") if name in matrices),
    )


def is_indexed(s: Shapes) -> bool:
    """Whether an indexer chooses entries."""
    return s.model.mixer_of(0) is Mixer.CSA


def core_work(s: Shapes, d: Dims, *, backward: bool) -> Attention:
    """The core: entries, and the last tokens; of a layer without entries the last tokens alone."""
    window, entries = s.model.sliding_window or 0, s.seq_kv // d.rate if d.rate else 0
    work = Attention(
        batch=s.batch,
        seq_q=s.seq,
        seq_kv=s.seq_kv,
        heads=d.heads,
        kv_heads=1,
        d_qk=d.d,
        d_v=d.d,
        backward=backward,
        window=window,
    )
    return work.with_entries(entries, s.model.chosen_entries) if entries else work


def queries(builder: SegmentBuilder, s: Shapes, d: Dims, *, again: bool) -> None:
    """From latent and key as projected to what the core reads; run once more in backward where they are recomputed."""
    part: Part | None = "R" if again else None
    name = "recompute" if again else "fwd"
    if not again or s.norm_again("latent"):
        kept = 0.0 if again else norm_output(s, d.tokens, d.latent, "latent")
        norm_forward(builder, f"norm.q_lora.{name}", d.tokens, d.latent, part=part, saved=kept)
        kept = 0.0 if again else norm_output(s, d.tokens, d.d, "latent")
        norm_forward(builder, f"norm.kv.{name}", d.tokens, d.d, part=part, saved=kept)
        builder.add(f"rope.k.{name}", "rope", rotation(d.tokens * d.rope), part=part)
    if again and not s.up_again:
        return
    linear.forward(builder, "attn.q_b", d.tokens, d.q, d.latent, recipe=s.recipe, recompute=again)
    kept = 0.0 if s.up_again or again else d.tokens * (d.q * BF16 + d.heads * FP32)
    norm_forward(builder, f"norm.q.{name}", d.tokens * d.heads, d.d, part=part, saved=kept)
    builder.add(f"rope.q.{name}", "rope", rotation(d.tokens * d.heads * d.rope), part=part)


def compress(builder: SegmentBuilder, s: Shapes, d: Dims, rows: int, name: str = ".fwd") -> None:
    """Entries of this rank's tokens, and of `csa` the indexer's with queries and weights. Published files keep these
    projections in BF16. Kept are projections, entries, and of each entry's norm the input and 1/rms."""
    if not d.rate:
        return
    m, keeps = s.model, s.workload.keeps_activations
    parts = [("compress", m.qk_head_dim)] + ([("index_compress", m.index_head_dim)] if is_indexed(s) else [])
    for part, wide in parts:
        n = m.attention_matrices()[part][1]
        kept = rows * n * BF16 if keeps else 0.0
        builder.add(f"attn.{part}{name}", "gemm.bf16", Gemm(m=rows, n=n, k=d.hidden, precision="bf16"), saved=kept)
        kept = d.entries * (2 * wide * BF16 + FP32) if keeps else 0.0
        work = Streaming(read=rows * n * BF16, written=d.entries * wide * BF16)
        builder.add(f"attn.{part}.pool{name}", "elem.reduce", work, saved=kept)
    if not is_indexed(s):
        return
    wide = m.index_n_heads * m.index_head_dim
    for part, n, k in (("q", wide, d.latent), ("w", m.index_n_heads, d.hidden)):
        kept = d.tokens * n * BF16 if keeps else 0.0
        builder.add(f"attn.index_{part}{name}", "gemm.bf16", Gemm(m=d.tokens, n=n, k=k, precision="bf16"), saved=kept)
    builder.add(f"rope.index{name}", "rope", rotation(d.tokens * m.index_n_heads * d.rope))


def choose(builder: SegmentBuilder, s: Shapes) -> None:
    """Scores of all earlier entries, and the best of them."""
    entries = s.seq_kv // s.model.compress_rate if is_indexed(s) else 0
    if not entries:
        return
    work, chosen = index_scores(s, entries), s.tokens * min(s.model.index_topk, entries)
    builder.add("attn.index.fwd", "attn.index", work)
    scored = Streaming(read=work.flops / work.flops_per_pair / work.heads * FP32, written=chosen * INDEX)
    kept = chosen * INDEX if s.workload.keeps_activations else 0.0
    builder.add(f"attn.top{s.model.index_topk}.fwd", "router.topk", scored, saved=kept)


def share_keys(builder: SegmentBuilder, s: Shapes, d: Dims, name: str, *, passes: int) -> None:
    """Context parallelism: ranks gather all entries, and the tokens before their own that windows reach."""
    cp = s.job.layout.cp
    if cp == 1:
        return
    index = s.model.index_head_dim if is_indexed(s) else 0
    values = (s.seq_kv // d.rate if d.rate else 0) * (d.d + index) + cp * (s.model.sliding_window or 0) * d.d
    work = Collective(kind="all_gather", bytes=passes * s.batch * values * BF16, ranks=cp, per_node=ranks_per_node(s))
    builder.add(name, f"comm.cp.{s.job.layout.cp_kind}", work)


def grouped(builder: SegmentBuilder, s: Shapes, d: Dims, kind: str) -> None:
    """The projection of each group of heads: forward, its input's gradient, or its weights'. A batched GEMM in BF16."""
    rows, wide = d.tokens * d.groups, d.q // d.groups
    if kind == "wgrad":
        kept = s.states.gradient_bytes
        work = Gemm(m=wide, n=d.rank, k=rows, precision="bf16", form="grouped_wgrad", groups=d.groups, out_bytes=kept)
        builder.add("attn.o_a.wgrad", "gemm.bf16.wgrad", work, part="W")
        return
    n, k = (d.rank, wide) if kind == "fwd" else (wide, d.rank)
    work = Gemm(m=rows, n=n, k=k, precision="bf16", form="grouped", groups=d.groups)
    kept = rows * d.rank * BF16 if kind == "fwd" and s.workload.keeps_activations else 0.0
    builder.add(f"attn.o_a.{kind}", "gemm.bf16", work, saved=kept)


def forward(s: Shapes) -> SegmentBuilder:
    """`attn.F` up to and including the norm before the feed-forward part; the caller ends it."""
    d = dims_of(s)
    builder = SegmentBuilder("attn.F", "F", s)
    kept = d.sharded * d.hidden * BF16 + norm_output(s, d.sharded, d.hidden)
    hyper.enter(builder, "attn", s)
    norm_forward(builder, "norm.attn.fwd", d.sharded, d.hidden, saved=kept)
    first = d.sharded * d.first * BF16
    linear.forward(builder, "attn.qkv_a", d.sharded, d.first, d.hidden, recipe=s.recipe, saved=first)
    gather(builder, "attn.latent", s, d.first)
    queries(builder, s, d, again=False)
    compress(builder, s, d, d.tokens)
    share_keys(builder, s, d, "attn.kv.transfer", passes=1)
    choose(builder, s)
    statistics = 0.0 if "core_attn" in s.recompute else d.tokens * d.heads * FP32
    core = core_work(s, d, backward=False)
    builder.add("attn.core.fwd", SPARSE.format("fwd"), core, saved=statistics + d.tokens * d.q * BF16)
    builder.add("rope.out.fwd", "rope", rotation(d.tokens * d.heads * d.rope))
    grouped(builder, s, d, "fwd")
    linear.forward(builder, "attn.o_b", d.tokens, d.hidden, d.groups * d.rank, recipe=s.recipe, place="row")
    scatter(builder, "attn.o", s, d.hidden)
    hyper.leave(builder, "attn", s)
    hyper.enter(builder, "ffn", s)
    norm_forward(builder, "norm.ffn.fwd", d.sharded, d.hidden, saved=kept)
    return builder


def _learn(builder: SegmentBuilder, s: Shapes, d: Dims) -> None:
    """The indexer's own backward: what all heads attend to among the chosen entries, and its scores' gradients."""
    entries = s.seq_kv // d.rate if is_indexed(s) else 0
    if not entries:
        return
    compare(builder, s, entries, s.model.index_topk, d.heads, d.d)
    builder.add("rope.index.bwd", "rope", rotation(d.tokens * s.model.index_n_heads * d.rope))


def _pool_backward(builder: SegmentBuilder, s: Shapes, d: Dims) -> None:
    """From the gradients of entries to those of what they are made of; the indexer's input is detached."""
    if not d.rate:
        return
    m = s.model
    parts = [("compress", m.qk_head_dim)] + ([("index_compress", m.index_head_dim)] if is_indexed(s) else [])
    for part, wide in parts:
        n = m.attention_matrices()[part][1]
        work = Streaming(read=(d.tokens * n + 2 * d.entries * wide) * BF16, written=d.tokens * n * BF16)
        builder.add(f"attn.{part}.pool.bwd", "elem", work)
    wide = m.attention_matrices()["compress"][1]
    builder.add("attn.compress.dgrad", "gemm.bf16", Gemm(m=d.tokens, n=d.hidden, k=wide, precision="bf16"))


def _core_backward(builder: SegmentBuilder, s: Shapes, d: Dims) -> None:
    """Backward of the core with the kernels before and after it."""
    prepare_backward(builder, s, d.tokens * d.q, d.tokens * d.q, part="I")
    share_keys(builder, s, d, "attn.dkv.transfer", passes=2)
    builder.add("attn.core.bwd", SPARSE.format("bwd"), core_work(s, d, backward=True))
    _learn(builder, s, d)
    finish_backward(builder, s, d.tokens * d.q)
    builder.add("rope.qk.bwd", "rope", rotation(d.tokens * (d.heads + 1) * d.rope))
    values = d.tokens * d.q
    builder.add("norm.q.bwd", "norm.bwd", Streaming(read=2 * values * BF16, written=values * BF16))


def backward(builder: SegmentBuilder, s: Shapes) -> Segment:
    """The rest of `attn.B` after the router's part."""
    d = dims_of(s)
    t, h, out = d.tokens, d.hidden, d.groups * d.rank
    norm_backward(builder, "norm.ffn", d.sharded, h)
    hyper.enter_backward(builder, "ffn", s)
    hyper.leave_backward(builder, "attn", s)
    gather(builder, "attn.o_g", s, h)
    linear.input_gradient(builder, "attn.o_b", t, h, out, recipe=s.recipe, place="row")
    if s.fp8:
        linear.cast_for_wgrad(builder, "attn.o_b", t, out, which="x")
        linear.cast_for_wgrad(builder, "attn.o_b", t, h, which="g")
    grouped(builder, s, d, "dgrad")
    builder.add("rope.out.bwd", "rope", rotation(t * d.heads * d.rope))
    if s.norm_again("latent") or s.up_again:
        queries(builder, s, d, again=True)
    if "core_attn" in s.recompute:
        builder.add("attn.core.recompute", SPARSE.format("fwd"), core_work(s, d, backward=False), part="R")
    _core_backward(builder, s, d)
    linear.input_gradient(builder, "attn.q_b", t, d.q, d.latent, recipe=s.recipe)
    if s.fp8:
        linear.cast_for_wgrad(builder, "attn.q_b", t, d.q, which="g")
        linear.cast_for_wgrad(builder, "attn.q_b", t, d.latent, which="x")
    norm_backward(builder, "norm.q_lora", t, d.latent)
    norm_backward(builder, "norm.kv", t, d.d)
    if s.norm_again("layer"):
        norm_forward(builder, "norm.attn.recompute", d.sharded, h, part="R")
    _pool_backward(builder, s, d)
    scatter(builder, "attn.latent_g", s, d.first)
    linear.input_gradient(builder, "attn.qkv_a", d.sharded, d.first, h, recipe=s.recipe, weight_first=False)
    if s.fp8:
        linear.cast_for_wgrad(builder, "attn.qkv_a", d.sharded, h, which="x")
        linear.cast_for_wgrad(builder, "attn.qkv_a", d.sharded, d.first, which="g")
    if d.rate:
        builder.add("attn.dx.add", "elem", cast(d.sharded * h, 2 * BF16, BF16))
    norm_backward(builder, "norm.attn", d.sharded, h)
    hyper.enter_backward(builder, "attn", s)
    return builder.done()


def weights(s: Shapes) -> Segment:
    """`attn.W`: the weight gradients, those of the hyper-connections included."""
    d, m = dims_of(s), s.model
    builder = SegmentBuilder("attn.W", "W", s)
    linear.weight_gradient(builder, "attn.o_b", d.tokens, d.hidden, d.groups * d.rank, recipe=s.recipe, place="row")
    grouped(builder, s, d, "wgrad")
    linear.weight_gradient(builder, "attn.q_b", d.tokens, d.q, d.latent, recipe=s.recipe)
    linear.weight_gradient(builder, "attn.qkv_a", d.sharded, d.first, d.hidden, recipe=s.recipe)
    kept = s.states.gradient_bytes
    for name in ("compress", "index_compress", "index_q", "index_w"):
        if name in m.attention_matrices():
            k, n = m.attention_matrices()[name]
            work = Gemm(m=n, n=k, k=d.tokens, precision="bf16", form="wgrad", out_bytes=kept)
            builder.add(f"attn.{name}.wgrad", "gemm.bf16.wgrad", work)
    hyper.weights(builder, "attn", s)
    hyper.weights(builder, "ffn", s)
    return builder.done()
