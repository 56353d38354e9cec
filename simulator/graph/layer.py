"""Whole layers: an attention block and a feed-forward block, dense or MoE, with the recomputation policy applied."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

from simulator.graph import attention, ffn, mla, moe
from simulator.graph.block import Block, Segment, SegmentBuilder
from simulator.graph.mixers import chosen, compressed, hybrid, recurrent, selective, short_conv
from simulator.graph.norm import enter_branch, leave_branch_backward
from simulator.graph.recompute import recomputed
from simulator.graph.shapes import Shapes
from simulator.graph.tokens import router, travel
from simulator.spec.mixer import BlockKind, Mixer


def _form(s: Shapes) -> ModuleType:
    """What builds the ops of this layer's mixer."""
    mixer = s.model.mixer_of(0)
    if mixer.has_state:
        return {Mixer.MAMBA1: selective, Mixer.CONV: short_conv, Mixer.HYBRID: hybrid}.get(mixer, recurrent)
    if s.model.shared_key_value:
        return compressed
    if s.model.is_mla:
        return chosen if mixer is Mixer.SPARSE else mla
    return attention


def _of_mixer(s: Shapes) -> Shapes:
    """With the recipe of this layer's mixer."""
    return s.of_part("recurrent" if s.model.mixer_of(0).is_recurrent else "attention")


def _attention(s: Shapes) -> SegmentBuilder:
    if s.model.mixer_of(0) is Mixer.NONE:
        builder = SegmentBuilder("attn.F", "F", s)
        enter_branch(builder, "norm.ffn.fwd", s, s.ffn_input, gathered=not s.ffn_is_moe)
        return builder
    started: SegmentBuilder = _form(s).forward(s)
    return started


def _attention_backward(builder: SegmentBuilder, s: Shapes) -> Segment:
    if s.model.mixer_of(0) is Mixer.NONE:
        leave_branch_backward(builder, "ffn", s)
        return builder.done()
    segment: Segment = _form(s).backward(builder, s)
    return segment


def _attention_weights(s: Shapes) -> Segment:
    if s.model.mixer_of(0) is Mixer.NONE:
        return SegmentBuilder("attn.W", "W", s).done()
    segment: Segment = _form(s).weights(s)
    return segment


def build_layer(kind: BlockKind, s: Shapes) -> Block:
    """A layer of this kind, with the sizes that the model's layers of this kind have."""
    own = replace(s, model=s.model.of_kind(kind))
    build = mixer_layer if kind.ffn == "none" else moe_layer if kind.is_moe else dense_layer
    block = build(own)
    back = tuple(segment for segment in block.backward if segment.ops)
    return replace(block, kind=kind, backward=back)


def mixer_layer(s: Shapes) -> Block:
    """What mixes tokens, and no feed-forward part (Nemotron-H, arXiv 2504.03624, section 2.1)."""
    own = _of_mixer(s)
    back = (_attention_backward(SegmentBuilder("attn.B", "I", own), own), _attention_weights(own))
    return recomputed(Block(kind=BlockKind.DENSE, forward=(_attention(own).done(),), backward=back), s)


def dense_layer(s: Shapes) -> Block:
    """Attention and a dense feed-forward part: no expert parallelism, nothing to communicate (but tp and cp)."""
    own = replace(_of_mixer(s), ffn_input=s.of_part("dense").formats.kept_bytes)
    ahead = (_attention(own).done(), ffn.dense_forward(s))
    back = (
        ffn.dense_backward(s),
        ffn.dense_weights(s),
        _attention_backward(SegmentBuilder("attn.B", "I", own), own),
        _attention_weights(own),
    )
    return recomputed(Block(kind=BlockKind.DENSE, forward=ahead, backward=back), s)


def moe_layer(s: Shapes) -> Block:
    """Attention and the experts, with dispatch and combine in forward and in backward."""
    own, s = replace(_of_mixer(s), ffn_is_moe=True), s.of_part("experts")
    first = _attention(own)
    router.router_forward(first, s)
    moe.shared_forward(first, s)
    ahead = (
        first.done(),
        *travel.dispatch(s),
        moe.forward(s),
        *travel.combine(s, moe.forward_end(s)),
        *moe.local_sum(s),
    )
    gate = SegmentBuilder("attn.B", "I", own)
    router.router_backward(gate, s)
    moe.shared_backward(gate, s)
    back = (
        *moe.local_copies_backward(s),
        *travel.combine_backward(s),
        moe.backward(s),
        *travel.dispatch_backward(s, moe.backward_end(s)),
        moe.weights(s),
        _attention_backward(gate, own),
        moe.with_late_weights(_attention_weights(own), s),
    )
    return recomputed(Block(kind=BlockKind.MOE, forward=ahead, backward=back), s)
