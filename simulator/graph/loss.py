"""Cross-entropy over one rank's share of the vocabulary, as the software runs it (`stack.loss`).

| `stack.loss` | whose | passes over the logits |
|---|---|---|
| plain | PyTorch's cross-entropy of BF16 logits | what the classes `loss` and `loss.bwd` were measured on |
| fp32 | the same of logits widened to FP32 first | a cast each way around kernels twice as wide |
| compiled | torch.compile | maximum, sum; backward one pass: BF16 |
| parallel | Megatron-Core, tensor_parallel/cross_entropy.py | widen, max, subtract, exp, sum, divide; scale, narrow |
| parallel_fused | Megatron-Core, fusions/fused_cross_entropy.py | widen + maximum, exp + sum, divide; scale + narrow |
| te | Transformer Engine, cross_entropy.py (Triton) | maximum + sum, gradient; backward scales it: BF16 |

Kept is what the backward pass reads: logits, softmax or gradient, in the width of the software. The all-reduces of a
few numbers a token over tensor-parallel ranks are left out.
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.dtypes import BF16, FP32
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast
from simulator.graph.shapes import Shapes

TOKEN_ID = 8.0
"""Bytes of a token or label, an int64 [B]."""


class Passes(NamedTuple):
    """Elementwise kernels one after the other, and the bytes that all of them together read and write a logit [B]."""

    kernels: int
    read: float
    written: float


FORWARD = {
    "compiled": Passes(2, 2 * BF16, 0.0),
    "parallel": Passes(6, BF16 + 5 * FP32, 4 * FP32),
    "parallel_fused": Passes(3, BF16 + 2 * FP32, 3 * FP32),
    "te": Passes(2, 2 * BF16, BF16),
}
BACKWARD = {
    "compiled": Passes(1, BF16, BF16),
    "parallel": Passes(2, 2 * FP32, FP32 + BF16),
    "parallel_fused": Passes(1, FP32, BF16),
    "te": Passes(1, BF16, BF16),
}
KEPT = {"plain": BF16, "fp32": FP32, "compiled": BF16, "parallel": FP32, "parallel_fused": FP32, "te": BF16}
"""Bytes kept a logit [B]."""


def forward(builder: SegmentBuilder, s: Shapes, tokens: int, vocab: int) -> None:
    """From the logits of `tokens` over this rank's part `vocab` of the vocabulary to the loss."""
    how, logits = s.stack.loss, tokens * vocab
    saved = tokens * (vocab * KEPT[how] + FP32 + TOKEN_ID)
    if how in FORWARD:
        kernels, read, written = FORWARD[how]
        work = cast(logits, read / kernels, written / kernels)
        builder.add("loss.fwd", "elem", work, count=kernels, saved=saved, reads_resident=True, saves_input=True)
        return
    if how == "fp32":
        builder.add("logits.to_fp32", "elem", cast(logits, BF16, FP32))
    work = cast(logits, KEPT[how], 0.0)
    builder.add("loss.fwd", "loss", work, saved=saved, reads_resident=True, saves_input=True)


def backward(builder: SegmentBuilder, s: Shapes, tokens: int, vocab: int) -> None:
    """From the loss to the gradient of the logits in BF16."""
    how, logits = s.stack.loss, tokens * vocab
    if how in BACKWARD:
        kernels, read, written = BACKWARD[how]
        work = cast(logits, read / kernels, written / kernels)
        builder.add("loss.bwd", "elem", work, count=kernels, reads_resident=True)
        return
    builder.add("loss.bwd", "loss.bwd", cast(logits, KEPT[how], KEPT[how]), reads_resident=True)
    if how == "fp32":
        builder.add("logits.to_bf16", "elem", cast(logits, FP32, BF16))
