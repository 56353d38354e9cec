"""Attention over the outputs of earlier layers in the place of a plain residual (Attention Residuals, arXiv 2603.15031;
Kimi K3 report, arXiv 2607.24653, section 2.2).

The layers are cut into blocks. A branch reads a weighted mean of what each block before made, and of what its own block
has made so far; weights come from a norm of each and one vector. Nothing but memory is moved: no GEMM. In training the
mean is a kernel of its own, which is kept, as the norm behind reads it, with a weight and 1/rms of each source; in
serving one kernel adds, mixes and norms (vLLM, vllm/models/kimi_k3/nvidia/ops/attn_res.py, 2026). A block of the graph
stands for the mean layer: it reads as many sources as layers do in the mean.
"""

from __future__ import annotations

from typing import Literal

from simulator.dtypes import BF16, FP32
from simulator.graph.block import SegmentBuilder
from simulator.graph.parallel import sharded_tokens
from simulator.graph.shapes import Shapes
from simulator.ops import Streaming

Place = Literal["attn", "ffn", "head"]


def attends(s: Shapes) -> bool:
    """Whether branches read outputs of earlier blocks of layers."""
    return s.model.attn_res_block_size > 0


def _moved(s: Shapes, rows: int, read: float, written: float) -> Streaming:
    each = rows * s.model.hidden_size * BF16
    return Streaming(read=read * each, written=written * each)


def mix(builder: SegmentBuilder, place: Place, s: Shapes) -> None:
    """In training, before a branch's norm: earlier blocks and the sum so far read, their mean written."""
    if not attends(s):
        return
    rows, sources = sharded_tokens(s), s.model.earlier_blocks + 1
    kept = rows * (s.model.hidden_size * BF16 + 2 * sources * FP32)
    builder.add(f"res.{place}.fwd", "elem", _moved(s, rows, sources, 1), saved=kept)


def mix_backward(builder: SegmentBuilder, place: Place, s: Shapes) -> None:
    """Its gradient: that of the mean and all sources read, that of each source added to what it has already."""
    if not attends(s):
        return
    sources = s.model.earlier_blocks + 1
    builder.add(f"res.{place}.bwd", "elem", _moved(s, sharded_tokens(s), 1 + 2 * sources, sources))


def normed(builder: SegmentBuilder, name: str, s: Shapes, *, rows: int = 0) -> None:
    """In serving: a branch's output added to the sum so far, the mean with earlier blocks, and its norm, in one kernel
    over so many rows (0: all)."""
    count = rows or sharded_tokens(s)
    builder.add(name, "norm.fwd.residual", _moved(s, count, s.model.earlier_blocks + 2, 2))
