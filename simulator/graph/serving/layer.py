"""Each kind of block of a serving step."""

from __future__ import annotations

from dataclasses import replace

from simulator.dtypes import BF16
from simulator.graph.block import Block, Segment, SegmentBuilder
from simulator.graph.linear import cast
from simulator.graph.loss import TOKEN_ID
from simulator.graph.mixers import depth, hyper, per_layer
from simulator.graph.norm import norm_forward
from simulator.graph.parallel import sharded_tokens
from simulator.graph.serving import (
    attention,
    compressed,
    draft,
    ffn,
    hybrid,
    mla,
    moe,
    recurrent,
    selective,
    short_conv,
)
from simulator.graph.serving.linear import add_up
from simulator.graph.serving.shapes import ServingShapes
from simulator.ops import Collective, Gemm, Op, Streaming
from simulator.spec.mixer import BlockKind, Mixer


def build_block(kind: BlockKind, s: ServingShapes) -> Block:
    """One block. `mtp` is the first pass that drafts, `draft` each further one."""
    build = {
        BlockKind.EMBED: _embedding,
        BlockKind.HEAD: _head,
        BlockKind.MTP: _first_draft,
        BlockKind.DRAFT: _further_draft,
    }
    segments = _layer(kind, s) if kind.is_layer else build[kind](s)
    return Block(kind=kind, forward=tuple(_served(segment) for segment in segments), backward=())


def _layer(kind: BlockKind, s: ServingShapes) -> tuple[Segment, ...]:
    """A layer of this kind, with the sizes that the model's layers of this kind have."""
    own = replace(s, model=s.model.of_kind(kind))
    if kind.mixer is Mixer.NONE:
        core = SegmentBuilder("attn.F", "F", own)
        norm_forward(core, "norm.ffn", sharded_tokens(own), own.model.hidden_size, residual=True)
        return moe.layer(own, core) if kind.is_moe else (core.done(), ffn.dense(own))
    if kind.ffn == "none":
        before, core = _attention(own)
        return before, core.done()
    return _moe_layer(own) if kind.is_moe else _dense_layer(own)


def serving_kinds(s: ServingShapes) -> tuple[BlockKind, ...]:
    """The blocks of a step in order: those of the main model, then one for each pass that drafts."""
    drafts = (BlockKind.MTP, *[BlockKind.DRAFT] * (len(s.drafts) - 1)) if s.drafts else ()
    return (BlockKind.EMBED, *s.model.layer_kinds(), BlockKind.HEAD, *drafts)


SMALL = 1e6
"""Bytes below which a memory-bound kernel is of a class of its own: the least that the others were measured at [B]."""
SMALL_CLASS = {
    "elem": "elem.small",
    "elem.unvectorized": "elem.small",
    "swiglu": "swiglu.small",
    "norm.fwd": "norm.small",
    "norm.fwd.narrow": "norm.small",
    "norm.fwd.residual": "norm.small",
    "rope": "rope.small",
    "kvcopy": "kvcopy.small",
    "quant.token": "quant.small",
    "permute.expand": "permute.small",
    "permute.reduce": "permute.small",
}
"""Class of a kernel -> its class below `SMALL`, with its operands in L2. A residual counts by its bytes."""


def _served(segment: Segment) -> Segment:
    """The segment as serving runs it: nothing is kept for a backward, and memory-bound kernels over few bytes, of which
    decode steps are full, are of classes of their own (`SMALL_CLASS`)."""
    return replace(segment, ops=tuple(_served_op(op) for op in segment.ops))


def _served_op(op: Op) -> Op:
    small = isinstance(op.work, Streaming) and op.work.bytes < SMALL
    cls = SMALL_CLASS.get(op.cls, op.cls) if small else op.cls
    return replace(op, cls=cls, saved=0.0) if op.saved or cls != op.cls else op


def _attention(s: ServingShapes) -> tuple[Segment, SegmentBuilder]:
    mixer = s.model.mixer_of(0)
    if mixer.has_state:
        form = {Mixer.MAMBA1: selective, Mixer.CONV: short_conv, Mixer.HYBRID: hybrid}.get(mixer, recurrent)
    else:
        form = compressed if s.model.shared_key_value else mla if s.model.is_mla else attention
    before: Segment = form.prepare(s)
    started: SegmentBuilder = form.core(s)
    return before, started


def _dense_layer(s: ServingShapes) -> tuple[Segment, ...]:
    before, core = _attention(s)
    return before, core.done(), ffn.dense(s)


def _moe_layer(s: ServingShapes) -> tuple[Segment, ...]:
    before, core = _attention(s)
    return (before, *moe.layer(s, core))


def _first_draft(s: ServingShapes) -> tuple[Segment, ...]:
    return _draft(s.drafts[0])


def _further_draft(s: ServingShapes) -> tuple[Segment, ...]:
    return _draft(s.drafts[1])


def _draft(s: ServingShapes) -> tuple[Segment, ...]:
    """One pass of the MTP module."""
    layer = _layer(s.model.layer_kind(s.model.num_hidden_layers), s)
    return (draft.projection(s), *layer, *_head(draft.sampled_once(s)))


def _embedding(s: ServingShapes) -> tuple[Segment, ...]:
    """Rows of the new tokens; each tensor-parallel rank has a part of the vocabulary."""
    h = s.model.hidden_size
    builder = SegmentBuilder("embed.F", "F", s)
    builder.add("embed", "embedding", cast(s.tokens * h, BF16, BF16))
    add_up(builder, "embed", s, s.tokens, h)
    hyper.spread(builder, s, "hc.embed")
    per_layer.look_up(builder, s, "")
    if s.fuses_norms:
        norm_forward(builder, "norm.first", s.tokens, h)  # the others are part of the all-reduces before them
    return (builder.done(),)


def _head(s: ServingShapes) -> tuple[Segment, ...]:
    """Final norm and logits of what is sampled from: each new token in decode, the last one of each prompt in prefill.

    Every rank samples greedily from all logits, and compares what was drafted with what it sampled.
    """
    h, tp = s.model.hidden_size, s.job.layout.tp
    rows, vocab = s.logit_rows, s.model.vocab_size // tp
    builder = SegmentBuilder("head.F", "F", s)
    hyper.collapse(builder, s, "", rows=rows)
    if depth.attends(s):
        depth.normed(builder, "norm.final", s, rows=rows)
    elif not s.fuses_norms:
        norm_forward(builder, "norm.final", rows, h, residual=True)
    builder.add("head", "gemm.bf16", Gemm(m=rows, n=vocab, k=h, precision="bf16"))
    if tp > 1:
        logits = Collective(kind="all_gather", bytes=rows * vocab * tp * BF16, ranks=tp, per_node=tp)
        builder.add("head.all_gather", "comm.tp.all_gather", logits)
    builder.add("sample", "elem.reduce", Streaming(read=rows * vocab * tp * BF16, written=0.0))
    if s.drafts and s.decodes:
        builder.add("mtp.verify", "elem", cast(rows, TOKEN_ID, TOKEN_ID))
    return (builder.done(),)
