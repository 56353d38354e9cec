"""What comes before the first and after the last layer: embedding, final norm, head, loss, and the MTP projection.

Embedding and norms stay in BF16 also under FP8 (DeepSeek-V3 report, section 3.3.1), and so does the head unless the job
says otherwise (`precision.bf16`).
"""

from __future__ import annotations

from simulator.dtypes import BF16, FP32
from simulator.graph import linear, loss
from simulator.graph.block import Block, Segment, SegmentBuilder
from simulator.graph.linear import cast
from simulator.graph.loss import TOKEN_ID
from simulator.graph.mixers import depth, hyper, per_layer
from simulator.graph.norm import norm_backward, norm_forward, norm_output
from simulator.graph.parallel import gather, regather, scatter, sharded_tokens
from simulator.graph.shapes import Shapes
from simulator.ops import Facts, HostRead, Streaming
from simulator.spec.model import BlockKind


def embedding(s: Shapes) -> Block:
    """Gather of the embedding rows; backward adds the gradients into the main gradient."""
    t, h = s.tokens, s.model.hidden_size
    ahead, back = SegmentBuilder("embed.F", "F", s), SegmentBuilder("embed.W", "W", s)
    ahead.add("embed.fwd", "embedding", cast(t * h, BF16, BF16), saved=t * TOKEN_ID)
    scatter(ahead, "embed", s, h, in_layer=False)
    hyper.spread(ahead, s, "hc.embed.fwd")
    hyper.spread(back, s, "hc.embed.bwd")
    per_layer.look_up(ahead, s)
    per_layer.look_up_backward(back, s)
    gather(back, "embed.g", s.in_bf16(), h, in_layer=False)
    vocab = s.model.vocab_size // s.job.layout.tp
    _table_gradient(back, "embed.wgrad", t * h, vocab * h)
    if per_layer.has_inputs(s):
        wide = s.model.per_layer_width
        _table_gradient(back, "per_layer.table.wgrad", t * wide, s.model.vocab_size * wide)
    return Block(kind=BlockKind.EMBED, forward=(ahead.done(),), backward=(back.done(),))


def _table_gradient(builder: SegmentBuilder, name: str, values: int, table: int) -> None:
    """Gradients of the rows that were looked up, `values` altogether, added into the main gradient of the `table`.

    PyTorch's autograd makes a gradient of the whole table first, zeros where no row was looked up, and adds that
    (aten/src/ATen/native/cuda/Embedding.cu, embedding_dense_backward_cuda; `stack.table_gradient`). Its own kernels
    sort the tokens first; a compiled program adds them up atomically.
    """
    s, kept = builder.shapes, builder.shapes.states.gradient_bytes
    if builder.stack.table_gradient == "rows":
        work = Streaming(read=values * (BF16 + kept), written=values * kept)
        builder.add(name, "embedding.bwd", work, adds_to_resident=True)
        return
    there: Facts = {"adds_to_resident": True, "alive": table * BF16}
    builder.add(f"{name}.zero", "elem", Streaming(read=0.0, written=table * BF16))
    cls = "embedding.bwd" if builder.stack.norm_kernels == "compiled" else "embedding.bwd.table"
    builder.add(name, cls, Streaming(read=2 * values * BF16, written=values * BF16), **there)
    added = 1.0 if builder.fused_accumulation else 1.0 - 1.0 / max(1, s.job.microbatches)  # the first is kept as it is
    if added and not s.copies_shards:
        work = Streaming(read=added * table * (BF16 + kept), written=added * table * kept)
        builder.add(f"{name}_add", linear.sum_class(kept), work, **there)


def _head_forward(s: Shapes) -> Segment:
    """Final norm, head GEMM over this rank's share of the vocabulary, cross-entropy."""
    s = s.of_part("head")
    t, h, vocab = s.tokens, s.model.hidden_size, s.model.vocab_size // s.job.layout.tp
    builder = SegmentBuilder("head.F", "F", s)
    sharded = sharded_tokens(s)
    fused = s.stack.loss == "fused_linear"  # which does not need its input again
    output = sharded * FP32 if fused and not s.norm_again("end") else norm_output(s, sharded, h, "end", gathered=True)
    hyper.collapse(builder, s)
    depth.mix(builder, "head", s)
    norm_forward(builder, "norm.final.fwd", sharded, h, saved=sharded * h * BF16 + output)
    if fused:
        loss.fused_head(builder, s, t, vocab)
        return builder.done()
    gather(builder, "head.x", s, h, in_layer=False)
    linear.forward(builder, "head", t, vocab, h, recipe=s.recipe)
    loss.forward(builder, s, t, vocab)
    return builder.done()


def head(s: Shapes) -> Block:
    """Final norm, output head and loss."""
    s = s.of_part("head")
    t, h, vocab = s.tokens, s.model.hidden_size, s.model.vocab_size // s.job.layout.tp
    back, late = SegmentBuilder("head.B", "I", s), SegmentBuilder("head.W", "W", s)
    if s.stack.loss == "fused_linear":
        loss.scale_fused(back, late, s, t, vocab)
    else:
        if s.stack.gradient_check:
            back.add("loss.read", "wait.host", HostRead(seconds=2 * s.stack.host_read + s.stack.host_loss))
        loss.backward(back, s, t, vocab)
        regather(back, "head.x", s, h, in_layer=False)
        linear.input_gradient(back, "head", t, vocab, h, recipe=s.recipe)
        scatter(back, "head.dx", s, h, gradient=True, in_layer=False)
        linear.weight_gradient(late, "head", t, vocab, h, recipe=s.recipe)
    if s.norm_again("end"):
        norm_forward(back, "norm.final.recompute", sharded_tokens(s), h, part="R")
    norm_backward(back, "norm.final", sharded_tokens(s), h)
    hyper.collapse_backward(back, late, s)
    depth.mix_backward(back, "head", s)
    loss.metrics(late, s, t, vocab)
    return Block(kind=BlockKind.HEAD, forward=(_head_forward(s),), backward=(back.done(), late.done()))


def _projected(s: Shapes, rows: dict[str, int]) -> list[tuple[str, int, int]]:
    """Projections of an MTP module's entry: name, rows and input width of each. Of one stream both inputs are joined
    before one projection; of several each has its own, and the results are added (DeepSeek-V4; vLLM,
    vllm/models/deepseek_v4/nvidia/mtp.py, 2026)."""
    h = s.model.hidden_size
    if hyper.mixes(s):
        return [(f"mtp.proj_{which}", many, h) for which, many in rows.items()]
    return [("mtp.proj", s.tokens, 2 * h)]


def mtp_projection(s: Shapes) -> Block:
    """Entry of an MTP module: norms of the hidden state and of the next token's embedding, joined and projected
    (DeepSeek-V3 report, section 2.2, equation 21)."""
    s = s.of_part("mtp")
    t, h, streams = s.tokens, s.model.hidden_size, s.model.hc_mult
    ahead, back = SegmentBuilder("mtp.F", "F", s), SegmentBuilder("mtp.B", "I", s)
    rows = {"h": t * streams, "e": t}  # each stream is a row of its own
    ahead.add("mtp.embed.fwd", "embedding", cast(t * h, BF16, BF16), saved=t * TOKEN_ID)
    for which, many in rows.items():
        norm_forward(ahead, f"mtp.norm_{which}.fwd", many, h, saved=many * h * BF16 + norm_output(s, many, h, "end"))
    if not hyper.mixes(s):
        ahead.add("mtp.concat", "kvcopy", cast(t * 2 * h, BF16, BF16))
    for name, many, wide in _projected(s, rows):
        linear.forward(ahead, name, many, h, wide, recipe=s.recipe)
    if hyper.mixes(s):
        ahead.add("mtp.sum", "elem", cast(rows["h"] * h, 2 * BF16, BF16))
        back.add("mtp.sum.bwd", "elem.reduce", cast(rows["h"] * h, BF16, BF16 / streams))
    late = _mtp_backward(back, s, rows)
    return Block(kind=BlockKind.MTP, forward=(ahead.done(),), backward=(back.done(), late))


def _mtp_backward(back: SegmentBuilder, s: Shapes, rows: dict[str, int]) -> Segment:
    """Gradients of the projections' inputs and of the norms; returns the segment of the weights'."""
    t, h, late = s.tokens, s.model.hidden_size, SegmentBuilder("mtp.W", "W", s)
    if s.norm_again("end"):
        for which, many in rows.items():
            norm_forward(back, f"mtp.norm_{which}.recompute", many, h, part="R")
    for name, many, wide in _projected(s, rows):
        linear.input_gradient(back, name, many, h, wide, recipe=s.recipe)
        if s.fp8:
            linear.cast_for_wgrad(back, name, many, wide, which="x")
            linear.cast_for_wgrad(back, name, many, h, which="g")
    for which, many in rows.items():
        norm_backward(back, f"mtp.norm_{which}", many, h)
    for name, many, wide in _projected(s, rows):
        linear.weight_gradient(late, name, many, h, wide, recipe=s.recipe)
    _table_gradient(late, "mtp.embed.wgrad", t * h, s.model.vocab_size // s.job.layout.tp * h)
    return late.done()
