"""Hyper-connections: several streams stand where others have one residual (arXiv 2409.19606; constrained, arXiv
2512.24880; DeepSeek-V4 report, section 2.2).

Before a branch one projection of all streams, divided by their root mean square, gives weights of a token: with one
kernel that reads the streams again their mixing matrix is made doubly stochastic, and the branch's input is a weighted
sum. Behind it another mixes the streams and adds the branch's output to each. The kernels are those that DeepSeek
published (github.com/deepseek-ai/DeepGEMM, tf32_hc_prenorm_gemm; github.com/deepseek-ai/TileKernels, mhc, 2026). Kept
are the streams, the projected weights and 1/rms in FP32, and what the branch made; backward mixes again.
"""

from __future__ import annotations

from typing import Literal

from simulator.dtypes import BF16, FP32
from simulator.graph.block import SegmentBuilder
from simulator.graph.parallel import sharded_tokens
from simulator.graph.shapes import Shapes
from simulator.ops import Gemm, Part, Streaming

Branch = Literal["attn", "ffn"]


def mixes(s: Shapes) -> bool:
    """Whether the model has more than one stream."""
    return s.model.hc_mult > 1


def _moved(s: Shapes, read: int, written: int, *, weights: int = 0, made: int = 0) -> Streaming:
    """A kernel over so many streams read and written, and `weights` of a token read and `made` in FP32."""
    rows, h = sharded_tokens(s), s.model.hidden_size
    return Streaming(read=rows * (read * h * BF16 + weights * FP32), written=rows * (written * h * BF16 + made * FP32))


def enter(builder: SegmentBuilder, branch: Branch, s: Shapes, name: str = ".fwd") -> None:
    """From the streams to a branch's input, which the norm behind keeps."""
    if not mixes(s):
        return
    rows, model = sharded_tokens(s), s.model
    n, wide = model.hc_weights, model.stream_width
    kept = rows * (wide * BF16 + (n + 1) * FP32) if s.workload.keeps_activations else 0.0
    work = Gemm(m=rows, n=n, k=wide, precision="bf16", out_bytes=FP32)
    builder.add(f"hc.{branch}.weights{name}", "gemm.bf16", work, saved=kept)
    builder.add(f"hc.{branch}.in{name}", "elem", _moved(s, model.hc_mult, 1, weights=n, made=n))


def leave(
    builder: SegmentBuilder, branch: Branch, s: Shapes, name: str = ".fwd", *, after: tuple[str, ...] = ()
) -> None:
    """From a branch's output to the streams."""
    if not mixes(s):
        return
    rows, model = sharded_tokens(s), s.model
    kept = rows * model.hidden_size * BF16 if s.workload.keeps_activations else 0.0
    work = _moved(s, model.hc_mult + 1, model.hc_mult, weights=model.hc_weights)
    builder.add(f"hc.{branch}.out{name}", "elem", work, after=after, saved=kept)


def leave_backward(builder: SegmentBuilder, branch: Branch, s: Shapes) -> None:
    """From the streams' gradient to that of a branch's output, and of what passes it by."""
    if mixes(s):
        n, w = s.model.hc_mult, s.model.hc_weights
        builder.add(f"hc.{branch}.out.bwd", "elem", _moved(s, 2 * n + 1, n + 1, weights=w, made=w))


def enter_backward(builder: SegmentBuilder, branch: Branch, s: Shapes) -> None:
    """From the gradient of a branch's input to the streams' before it."""
    if not mixes(s):
        return
    n, w = s.model.hc_mult, s.model.hc_weights
    builder.add(f"hc.{branch}.in.bwd", "elem", _moved(s, 2 * n + 1, n, weights=w, made=w))
    work = Gemm(m=sharded_tokens(s), n=s.model.stream_width, k=w, precision="bf16")
    builder.add(f"hc.{branch}.weights.dgrad", "gemm.bf16", work)
    builder.add(f"hc.{branch}.rms.bwd", "elem", _moved(s, 3 * n, n))


def weights(builder: SegmentBuilder, branch: Branch, s: Shapes) -> None:
    """The projection's gradient."""
    if mixes(s):
        rows, kept = sharded_tokens(s), s.states.gradient_bytes
        work = Gemm(
            m=s.model.hc_weights, n=s.model.stream_width, k=rows, precision="bf16", form="wgrad", out_bytes=kept
        )
        builder.add(f"hc.{branch}.weights.wgrad", "gemm.bf16.wgrad", work, part="W")


def spread(builder: SegmentBuilder, s: Shapes, name: str) -> None:
    """The embedding, once for each stream; backward sums their gradients."""
    if mixes(s):
        n = s.model.hc_mult
        builder.add(name, "elem", _moved(s, n, 1) if name.endswith("bwd") else _moved(s, 1, n))


def collapse(builder: SegmentBuilder, s: Shapes, name: str = ".fwd", *, rows: int = 0) -> None:
    """One stream of all before an output head, for `rows` tokens (0: all)."""
    if not mixes(s):
        return
    count, model = rows or sharded_tokens(s), s.model
    n, wide = model.hc_mult, model.stream_width
    kept = count * (wide * BF16 + (n + 1) * FP32) if s.workload.keeps_activations else 0.0
    work = Gemm(m=count, n=n, k=wide, precision="bf16", out_bytes=FP32)
    builder.add(f"hc.head.weights{name}", "gemm.bf16", work, saved=kept)
    moved = Streaming(read=count * (wide * BF16 + n * FP32), written=count * model.hidden_size * BF16)
    builder.add(f"hc.head.in{name}", "elem", moved)


def collapse_backward(builder: SegmentBuilder, late: SegmentBuilder, s: Shapes) -> None:
    """The streams' gradient, and that of the projection."""
    if not mixes(s):
        return
    rows, n, wide = sharded_tokens(s), s.model.hc_mult, s.model.stream_width
    builder.add("hc.head.in.bwd", "elem", _moved(s, n + 1, n, weights=n, made=n))
    builder.add("hc.head.weights.dgrad", "gemm.bf16", Gemm(m=rows, n=wide, k=n, precision="bf16"))
    builder.add("hc.head.rms.bwd", "elem", _moved(s, 3 * n, n))
    part: Part = "W"
    work = Gemm(m=n, n=wide, k=rows, precision="bf16", form="wgrad", out_bytes=s.states.gradient_bytes)
    late.add("hc.head.weights.wgrad", "gemm.bf16.wgrad", work, part=part)
