"""Copies of queries, keys and values around the rotation, as nanotron makes them.

Its activations lie (sequence, batch, width), FlashAttention's (batch, sequence, heads, width). One copy takes the
joined projection apart; keys and values are then concatenated, and copied once more so that each token's lie together
(huggingface/nanotron, src/nanotron/models/llama.py, CausalSelfAttention, 2023 to 2025). The core reads from these.
Backward concatenates the gradients of keys and values, stacks them with the queries', and copies all back to
(sequence, batch). With more than one sequence the core's output is copied for the output projection, and for its weight
gradient again, and so is the gradient.
"""

from __future__ import annotations

from simulator.dtypes import BF16
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast, unvectorized
from simulator.graph.shapes import Shapes

LENGTHS, INDEX = 8, 4.0
"""Small kernels that make the bounds of the sequences twice: zeros, sums of the mask, running sums in two kernels; and
bytes of a bound [B]."""


def apart(builder: SegmentBuilder, s: Shapes, queries: int, keys_and_values: int) -> None:
    """Out of the joined projection's output, of these widths on one rank; before the rotation."""
    if not s.stack.heads_copied:
        return
    t, kv = s.tokens, s.tokens * keys_and_values
    builder.add("attn.qkv.apart", "elem.unvectorized", unvectorized(t * queries + kv, BF16, BF16))
    builder.add("attn.kv.cat", "elem", cast(kv, BF16, BF16))
    builder.add("attn.kv.by_token", "elem.unvectorized", unvectorized(kv, BF16, BF16), saved=kv * BF16)


def bounds(builder: SegmentBuilder, s: Shapes) -> None:
    """The bounds of the sequences, for each layer anew."""
    if s.stack.heads_copied:
        builder.add("attn.bounds", "elem.small", cast(s.batch, INDEX, INDEX), count=LENGTHS)


def order(builder: SegmentBuilder, s: Shapes, width: int, name: str) -> None:
    """The core's output to (sequence, batch), or its gradient back."""
    if s.stack.heads_copied and s.batch > 1:
        builder.add(name, "elem.unvectorized", unvectorized(s.tokens * width, BF16, BF16))


def together(builder: SegmentBuilder, s: Shapes, queries: int, keys_and_values: int) -> None:
    """Gradients of all three to that of the joined projection, behind the rotation's."""
    t, kv = s.tokens, s.tokens * keys_and_values
    values = t * queries + kv
    builder.add("attn.kv.cat.bwd", "elem", cast(kv, BF16, BF16))
    builder.add("attn.qkv.stack.bwd", "cat.unvectorized", unvectorized(values, BF16, BF16))
    builder.add("attn.qkv.order.bwd", "elem.unvectorized", unvectorized(values, BF16, BF16))
