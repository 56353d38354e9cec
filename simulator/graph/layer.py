"""Whole layers: an attention block and a feed-forward block, dense or MoE, with the recomputation policy applied."""

from __future__ import annotations

from simulator.graph import attention, ffn, mla, moe
from simulator.graph.block import Block, Segment, SegmentBuilder
from simulator.graph.recompute import recomputed
from simulator.graph.shapes import Shapes


def _attention(s: Shapes, sms: int) -> SegmentBuilder:
    return mla.forward(s, sms) if s.model.is_mla else attention.forward(s, sms)


def _attention_backward(builder: SegmentBuilder, s: Shapes, sms: int) -> Segment:
    return mla.backward(builder, s, sms) if s.model.is_mla else attention.backward(builder, s, sms)


def _attention_weights(s: Shapes) -> Segment:
    return mla.weights(s) if s.model.is_mla else attention.weights(s)


def dense_layer(s: Shapes, sms: int) -> Block:
    """Attention and a dense feed-forward part: no expert parallelism, nothing to communicate (but tp and cp)."""
    ahead = (_attention(s, sms).done(), ffn.dense_forward(s, sms))
    back = (
        ffn.dense_backward(s, sms),
        ffn.dense_weights(s),
        _attention_backward(SegmentBuilder("attn.B", "I", s), s, sms),
        _attention_weights(s),
    )
    return recomputed(Block(kind="dense", forward=ahead, backward=back), s)


def moe_layer(s: Shapes, sms: int) -> Block:
    """Attention and the experts with their two exchanges each way."""
    first = _attention(s, sms)
    moe.router_forward(first, s)
    ahead = (first.done(), moe.dispatch(s), moe.forward(s), moe.combine(s), *moe.local_sum(s))
    gate = SegmentBuilder("attn.B", "I", s)
    moe.router_backward(gate, s)
    back = (
        *moe.local_copies_backward(s),
        moe.combine_backward(s),
        moe.backward(s, sms),
        moe.dispatch_backward(s),
        moe.weights(s),
        _attention_backward(gate, s, sms),
        _attention_weights(s),
    )
    return recomputed(Block(kind="moe", forward=ahead, backward=back), s)
