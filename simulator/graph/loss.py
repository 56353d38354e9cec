"""Cross-entropy over one rank's share of the vocabulary, as the software runs it (`stack.loss`).

| `stack.loss` | whose | passes over the logits |
|---|---|---|
| plain | PyTorch's cross-entropy of BF16 logits | what the classes `loss` and `loss.bwd` were measured on |
| fp32 | the same of logits widened to FP32 first | a cast each way around kernels twice as wide |
| compiled | torch.compile | maximum, sum; backward one pass: BF16 |
| parallel | Megatron-Core, tensor_parallel/cross_entropy.py | widen, max, subtract, exp, sum, divide; scale, narrow |
| parallel_fused | Megatron-Core, fusions/fused_cross_entropy.py | widen + maximum, exp + sum, divide; scale + narrow |
| te | Transformer Engine, cross_entropy.py (Triton) | maximum + sum, gradient; backward scales it: BF16 |
| chunked | torchtune, CEWithChunkedOutputLoss, compiled | as compiled, on FP32 copies of a chunk of tokens |
| fused_linear | Liger, fused_linear_cross_entropy.py | chunk by chunk, with head and its gradients |

`fused_linear` (arXiv 2410.10989, section 3.2) makes the logits of a chunk, their gradient in place, and with it the
gradients of the input and of the head; backward only scales the two. Neither logits nor the input of the head are kept.

Kept is what the backward pass reads: logits, softmax or gradient, in the width of the software. The all-reduces of a
few numbers a token over tensor-parallel ranks are left out.
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.dtypes import BF16, FP32
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast, sum_class, unvectorized
from simulator.graph.shapes import Shapes
from simulator.ops import Facts, Gemm

TOKEN_ID = 8.0
"""Bytes of a token or label, an int64 [B]."""


class Passes(NamedTuple):
    """Elementwise kernels one after the other, and the bytes that all of them together read and write a logit [B]."""

    kernels: int
    read: float
    written: float


CHUNKS = 8
"""Chunks of tokens of `chunked` (torchtune, CEWithChunkedOutputLoss, 2025: num_output_chunks)."""

FORWARD = {
    "chunked": Passes(3, BF16 + 2 * FP32, FP32),
    "compiled": Passes(2, 2 * BF16, 0.0),
    "parallel": Passes(6, BF16 + 5 * FP32, 4 * FP32),
    "parallel_fused": Passes(3, BF16 + 2 * FP32, 3 * FP32),
}
BACKWARD = {
    "chunked": Passes(2, BF16 + FP32, FP32 + BF16),
    "compiled": Passes(1, BF16, BF16),
    "parallel": Passes(2, 2 * FP32, FP32 + BF16),
    "parallel_fused": Passes(1, FP32, BF16),
    "te": Passes(1, BF16, BF16),
}
KEPT = {
    "plain": BF16,
    "fp32": FP32,
    "compiled": BF16,
    "parallel": FP32,
    "parallel_fused": FP32,
    "te": BF16,
    "chunked": BF16,
}
"""Bytes kept a logit [B]."""
ALIVE = {
    "plain": (BF16, BF16),
    "fp32": (BF16 + FP32, FP32),
    "parallel": (BF16, 0.0),
    "parallel_fused": (BF16, 0.0),
}
"""Bytes of a logit that are there next to what is kept and what is written, in forward and in backward [B].

PyTorch keeps the output of its log-softmax; in forward its input is there, and the BF16 logits that were widened, in
backward the gradient of that output (aten/src/ATen/native/LossNLL.cpp, cross_entropy_loss, 2025). Megatron-Core widens
BF16 logits and works in that copy in place. Others write over the logits.
"""
SHARDED = FP32
"""The same in addition where tensor parallelism splits the vocabulary in PyTorch: forward logits less their maximum,
backward the exponentials, are tensors of their own (torch/distributed/tensor/parallel/loss.py, 2025: _log_softmax,
_nll_loss_and_log_softmax_backward) [B]."""


def _alive(s: Shapes) -> tuple[float, float]:
    """Bytes of a logit there in addition, forward and backward [B]."""
    how = s.stack.loss
    forward, backward = ALIVE.get(how, (0.0, 0.0))
    split = how in ("plain", "fp32") and s.job.layout.tp > 1
    more = SHARDED if split else 0.0
    return forward + more, backward + more


def forward(builder: SegmentBuilder, s: Shapes, tokens: int, vocab: int) -> None:
    """From the logits of `tokens` over this rank's part `vocab` of the vocabulary to the loss."""
    how, logits = s.stack.loss, tokens * vocab
    if how == "chunked":
        _in_chunks(builder, "loss.fwd", FORWARD[how], logits, saved=tokens * (vocab * BF16 + FP32 + TOKEN_ID))
        return
    saved, alive = tokens * (vocab * KEPT[how] + FP32 + TOKEN_ID), _alive(s)[0] * logits
    if how == "te":
        builder.add("loss.fwd", "loss.te", cast(logits, BF16, 0.0), saved=saved, reads_resident=True, saves_input=True)
        builder.add("loss.gradient.fwd", "loss.te.write", cast(logits, BF16, BF16), reads_resident=True)
        return
    if how in FORWARD:
        kernels, read, written = FORWARD[how]
        work = cast(logits, read / kernels, written / kernels)
        facts: Facts = {"reads_resident": True, "saves_input": True, "alive": alive, "count": kernels}
        builder.add("loss.fwd", "elem", work, saved=saved, **facts)
        return
    if how == "fp32":
        builder.add("logits.to_fp32", "elem.unvectorized", unvectorized(logits, BF16, FP32))
    work = cast(logits, KEPT[how], 0.0)
    builder.add("loss.fwd", "loss", work, saved=saved, reads_resident=True, saves_input=True, alive=alive)


def backward(builder: SegmentBuilder, s: Shapes, tokens: int, vocab: int) -> None:
    """From the loss to the gradient of the logits in BF16."""
    how, logits = s.stack.loss, tokens * vocab
    if how == "chunked":
        _in_chunks(builder, "loss.bwd", BACKWARD[how], logits)
        return
    if how in BACKWARD:
        kernels, read, written = BACKWARD[how]
        work = cast(logits, read / kernels, written / kernels)
        builder.add("loss.bwd", "loss.te.write" if how == "te" else "elem", work, count=kernels, reads_resident=True)
        return
    work = cast(logits, KEPT[how], KEPT[how])
    builder.add("loss.bwd", "loss.bwd", work, reads_resident=True, alive=_alive(s)[1] * logits)
    if how == "fp32":
        builder.add("logits.to_bf16", "elem", cast(logits, FP32, BF16))


def metrics(builder: SegmentBuilder, s: Shapes, tokens: int, vocab: int) -> None:
    """Cross-entropies of the logits computed once more, for each metric that a program keeps of its training batches
    (Composer, composer/trainer/trainer.py, _eval_train_metrics, behind each microbatch's backward): PyTorch's, of
    logits widened to FP32, as autocast does it. The logits stay until then."""
    logits = tokens * vocab
    for at in range(s.stack.loss_metrics):
        alive: Facts = {"reads_resident": True, "alive": logits * BF16}
        wide = unvectorized(logits, BF16, FP32)
        builder.add(f"metric.{at}.to_fp32", "elem.unvectorized", wide, **alive)
        builder.add(f"metric.{at}.loss", "loss", cast(logits, FP32, 0.0), **alive)


def _in_chunks(builder: SegmentBuilder, name: str, passes: Passes, logits: int, saved: float = 0.0) -> None:
    """The passes over a chunk of the logits, one chunk after the other."""
    each, count = logits / CHUNKS, passes.kernels * CHUNKS
    work = cast(each, passes.read / passes.kernels, passes.written / passes.kernels)
    builder.add(name, "elem", work, count=count, saved=saved)


def chunk_of(tokens: int, vocab: int, hidden: int) -> int:
    """Tokens of a chunk of `fused_linear`, whose logits take about as much as the input of all (Liger, the same file)
    [tokens]."""
    parts = -(-vocab // hidden)
    return min(tokens, 1 << (-(-tokens // parts) - 1).bit_length())


def fused_head(builder: SegmentBuilder, s: Shapes, tokens: int, vocab: int) -> None:
    """Head and loss with their gradients, chunk by chunk."""
    h = s.model.hidden_size
    chunk = chunk_of(tokens, vocab, h)
    count = -(-tokens // chunk)
    rows = -(-tokens // count)
    wgrad = Gemm(m=vocab, n=h, k=rows, precision="bf16", form="wgrad", out_bytes=BF16)
    builder.add("head.fwd", "gemm.bf16", Gemm(m=rows, n=vocab, k=h, precision="bf16"), count=count)
    builder.add("loss.fwd", "elem", cast(rows * vocab, 2 * BF16, BF16), count=2 * count)
    kept = tokens * (h * BF16 + TOKEN_ID) + vocab * h * BF16
    builder.add(
        "head.dgrad", "gemm.bf16", Gemm(m=rows, n=h, k=vocab, precision="bf16"), part="I", count=count, saved=kept
    )
    builder.add("head.wgrad", "gemm.bf16.wgrad", wgrad, part="W", count=count, reads_resident=True)


def scale_fused(back: SegmentBuilder, late: SegmentBuilder, s: Shapes, tokens: int, vocab: int) -> None:
    """The two gradients that forward made, scaled by that of the loss; the head's added into the main gradient."""
    h, kept = s.model.hidden_size, s.states.gradient_bytes
    back.add("head.dgrad_scale", "elem", cast(tokens * h, BF16, BF16))
    late.add("head.wgrad_scale", "elem", cast(vocab * h, BF16, BF16), adds_to_resident=True)
    late.add("head.wgrad_add", sum_class(kept), cast(vocab * h, BF16 + kept, kept), adds_to_resident=True)
