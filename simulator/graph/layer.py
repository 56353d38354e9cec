"""Whole layers: an attention block and a feed-forward block, dense or MoE, with the recomputation policy applied."""

from __future__ import annotations

from dataclasses import replace

from simulator.graph import attention, ffn, mla, moe
from simulator.graph.block import Block, Segment, Tape
from simulator.graph.shapes import Shapes
from simulator.ops import Op


def _attention(s: Shapes, sms: int) -> Tape:
    return mla.forward(s, sms) if s.model.is_mla else attention.forward(s, sms)


def _attention_backward(tape: Tape, s: Shapes, sms: int) -> Segment:
    return mla.backward(tape, s, sms) if s.model.is_mla else attention.backward(tape, s, sms)


def _attention_weights(s: Shapes) -> Segment:
    return mla.weights(s) if s.model.is_mla else attention.weights(s)


def dense_layer(s: Shapes, sms: int) -> Block:
    """Attention and a dense feed-forward part: no expert parallelism, nothing to communicate (but tp and cp)."""
    ahead = (_attention(s, sms).done(), ffn.dense_forward(s))
    back = (
        ffn.dense_backward(s, sms),
        ffn.dense_weights(s),
        _attention_backward(Tape("attn.B", "I", s.stack), s, sms),
        _attention_weights(s),
    )
    return _recomputed(Block(kind="dense", forward=ahead, backward=back), s)


def moe_layer(s: Shapes, sms: int) -> Block:
    """Attention and the experts with their two exchanges each way."""
    first = _attention(s, sms)
    moe.router_forward(first, s)
    ahead = (first.done(), moe.dispatch(s), moe.forward(s), moe.combine(s), *moe.local_sum(s))
    gate = Tape("attn.B", "I", s.stack)
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
    return _recomputed(Block(kind="moe", forward=ahead, backward=back), s)


def _again(op: Op, ops: dict[str, str]) -> Op:
    """The op as it runs a second time, at the start of backward."""
    after = tuple(ops[name] for name in op.after)
    segment = op.segment.replace(".F", "_again.B")
    return replace(op, name=f"{op.name}.again", part="R", segment=segment, after=after, saved=0.0)


def _recomputed(block: Block, s: Shapes) -> Block:
    """With full recomputation the whole forward runs again before backward and only the layer's input is kept."""
    if not s.recompute_all:
        return block
    kept = s.tokens * s.model.hidden_size * 2.0
    names = {op.name: f"{op.name}.again" for segment in block.forward for op in segment.ops}
    ahead: list[Segment] = []
    again: list[Segment] = []
    for index, segment in enumerate(block.forward):
        bare = tuple(
            replace(op, saved=kept if index == 0 and place == 0 else 0.0) for place, op in enumerate(segment.ops)
        )
        ahead.append(replace(segment, ops=bare))
        # The last exchange carries the layer's output away: backward does not need it again.
        if segment.name not in ("combine.F", "out.F"):
            ops = tuple(_again(op, names) for op in segment.ops)
            again.append(replace(segment, name=segment.name.replace(".F", "_again.B"), ops=ops))
    return replace(block, forward=tuple(ahead), backward=tuple(again) + block.backward)
