"""Attention and Mamba-2 next to each other (Falcon-H1, arXiv 2507.22448, section 2.1): both of one input, summed. Its
multipliers scale weights: they are left out."""

from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.gqa import gqa, gqa_input_grad, gqa_restore
from workloads.reference.layers.linear import Deferred
from workloads.reference.layers.mixers.recurrent import recurrent, recurrent_input_grad


def hybrid(run: Run, p: Weights, x: Array) -> tuple[Array, Saved]:
    """Output [B, S, hidden] of normalised input x [B, S, hidden]."""
    attended, saved = gqa(run, p, x)
    out, more = recurrent(run, p, x)
    return attended + out, saved | more


def hybrid_input_grad(run: Run, p: Weights, x: Array, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and the waiting weight gradients."""
    dx, deferred = gqa_input_grad(run, p, x, gqa_restore(run, p, saved), dy)
    dstate, more = recurrent_input_grad(run, p, x, saved, dy)
    return dx + dstate, [*deferred, *more]
