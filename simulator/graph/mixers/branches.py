"""Norms around the parts of a layer with experts (Gemma 4; transformers, models/gemma4/modeling_gemma4.py,
Gemma4TextDecoderLayer): the gate and the experts each read a norm of the stream of their own, the shared experts that
of the feed-forward part; what the experts and the shared experts made is normed each before both are summed.
"""

from __future__ import annotations

from simulator.dtypes import BF16, FP32
from simulator.graph.block import SegmentBuilder
from simulator.graph.norm import norm_backward, norm_forward, norm_output
from simulator.graph.parallel import sharded_tokens
from simulator.graph.shapes import Shapes

BEHIND = ("shared", "experts")
"""Whose outputs are normed."""


def enter(builder: SegmentBuilder, s: Shapes, name: str = ".fwd") -> None:
    """Norms before the gate and the experts. The gate keeps what it reads; the experts keep rows of it, by expert."""
    if not s.model.branch_norms:
        return
    rows, h = sharded_tokens(s), s.model.hidden_size
    keeps = s.workload.keeps_activations
    norm_forward(builder, f"norm.router{name}", rows, h, saved=norm_output(s, rows, h) * keeps)
    again = s.norm_again("layer")
    norm_forward(builder, f"norm.experts{name}", rows, h, saved=0.0 if again else rows * FP32 * keeps)


def enter_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """Their gradients, each added to what by-passes it."""
    rows, h = sharded_tokens(s), s.model.hidden_size
    norm_backward(builder, "norm.router", rows, h, residual=True)
    norm_backward(builder, "norm.experts", rows, h, residual=True)


def leave(builder: SegmentBuilder, s: Shapes, name: str = ".fwd", *, after: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Norms behind both parts; returns what is still to wait for."""
    if not s.model.branch_norms:
        return after
    rows, h = sharded_tokens(s), s.model.hidden_size
    kept = rows * (h * BF16 + FP32) * s.workload.keeps_activations
    for part in BEHIND:
        norm_forward(builder, f"norm.{part}.out{name}", rows, h, saved=kept, after=after)
        after = ()
    return after


def leave_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """Gradients of what both parts made."""
    if s.model.branch_norms:
        for part in BEHIND:
            norm_backward(builder, f"norm.{part}.out", sharded_tokens(s), s.model.hidden_size)
