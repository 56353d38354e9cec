"""Each kind of block of a serving step."""

from __future__ import annotations

from dataclasses import replace

from simulator.dtypes import BF16
from simulator.graph.block import Block, Segment, SegmentBuilder
from simulator.graph.linear import cast
from simulator.graph.norm import norm_forward
from simulator.graph.serving import attention, ffn, mla, moe
from simulator.graph.serving.linear import add_up
from simulator.graph.serving.shapes import ServingShapes
from simulator.ops import Collective, Gemm, Streaming
from simulator.spec.model import BlockKind


def build_block(kind: BlockKind, s: ServingShapes) -> Block:
    """One block; the MTP modules do not run."""
    if kind.is_layer:
        own = replace(s, model=s.model.of_kind(kind))
        segments = _moe_layer(own) if kind.is_moe else _dense_layer(own)
    else:
        segments = {BlockKind.EMBED: _embedding, BlockKind.HEAD: _head}[kind](s)
    return Block(kind=kind, forward=tuple(_small_apart(segment) for segment in segments), backward=())


SMALL = 1e6
"""Bytes below which an elementwise kernel is of a class of its own: the least that class `elem` was measured at [B]."""


def _small_apart(segment: Segment) -> Segment:
    """The segment with elementwise kernels over few bytes in class `elem.small`: decode steps are full of them."""
    ops = (
        replace(op, cls="elem.small")
        if op.cls == "elem" and isinstance(op.work, Streaming) and op.work.bytes < SMALL
        else op
        for op in segment.ops
    )
    return replace(segment, ops=tuple(ops))


def _attention(s: ServingShapes) -> tuple[Segment, SegmentBuilder]:
    form = mla if s.model.is_mla else attention
    return form.prepare(s), form.core(s)


def _dense_layer(s: ServingShapes) -> tuple[Segment, ...]:
    before, core = _attention(s)
    return before, core.done(), ffn.dense(s)


def _moe_layer(s: ServingShapes) -> tuple[Segment, ...]:
    before, core = _attention(s)
    return (before, *moe.layer(s, core))


def _embedding(s: ServingShapes) -> tuple[Segment, ...]:
    """Rows of the new tokens; each tensor-parallel rank has a part of the vocabulary."""
    h = s.model.hidden_size
    builder = SegmentBuilder("embed.F", "F", s)
    builder.add("embed", "embedding", cast(s.tokens * h, BF16, BF16))
    add_up(builder, "embed", s, s.tokens, h)
    return (builder.done(),)


def _head(s: ServingShapes) -> tuple[Segment, ...]:
    """Final norm and logits of what is sampled from: each new token in decode, the last one of each prompt in prefill.

    Every rank samples greedily from all logits.
    """
    h, tp = s.model.hidden_size, s.job.layout.tp
    rows, vocab = s.tokens if s.decodes else s.batch, s.model.vocab_size // tp
    builder = SegmentBuilder("head.F", "F", s)
    norm_forward(builder, "norm.final", rows, h, residual=True)
    builder.add("head", "gemm.bf16", Gemm(m=rows, n=vocab, k=h, precision="bf16"))
    if tp > 1:
        logits = Collective(kind="all_gather", bytes=rows * vocab * tp * BF16, ranks=tp, per_node=tp)
        builder.add("head.all_gather", "comm.tp.all_gather", logits)
    builder.add("sample", "elem.reduce", Streaming(read=rows * vocab * tp * BF16, written=0.0))
    return (builder.done(),)
