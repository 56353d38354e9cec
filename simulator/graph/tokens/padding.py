"""Padding taken out before the attention core and put back behind it, as flash-attn's helpers do it.

`unpad_input` (Dao-AILab/flash-attention, flash_attn/bert_padding.py, 2.0 to 2.8) is called for queries, keys and
values, each time anew, also where no token is padding (mosaicml/llm-foundry, llmfoundry/models/layers/attention.py,
flash_attn_fn, 2023 and 2024). It sums the mask by sequence, counts its ones, reads their number (`nonzero`), lists
them, finds the longest sequence and reads that, too, sums the lengths up and pads them; then a kernel gathers the
tokens. Behind the core a tensor of zeros takes the outputs in. Backward gathers the gradient of these, and scatters
those of queries, keys and values into zeros. Kernels that gather and scatter compute every value's address.

Each read finds the host with nothing issued ahead, so that the GPU waits for what follows.
"""

from __future__ import annotations

from simulator.dtypes import BF16
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast, unvectorized
from simulator.graph.shapes import Shapes
from simulator.ops import HostRead, Streaming

MASK, INDEX = 1.0, 8.0
"""Bytes of a token in the mask, and of its index [B]."""
COUNTING, LISTING, SUMMING = 2, 4, 3
"""Small kernels: sums by sequence and the count of ones; selection in two kernels, indices, the longest sequence; sums
of lengths, zeros and a copy that pads them (PyTorch 2.1, aten/src/ATen/native/cuda/Nonzero.cu, functional.pad)."""


def take_out(builder: SegmentBuilder, s: Shapes, parts: dict[str, int]) -> None:
    """Queries, keys and values (`parts`: width of each on one rank) without what pads them."""
    if not s.stack.padding_removed:
        return
    for which, width in parts.items():
        name = f"attn.{which}.unpad"
        builder.add(f"{name}.count", "elem.small", cast(s.tokens, MASK, 0.0), count=COUNTING)
        builder.add(f"{name}.count.read", "wait.host", HostRead(seconds=s.stack.host_read))
        builder.add(f"{name}.list", "elem.small", cast(s.tokens, MASK, INDEX), count=LISTING)
        builder.add(f"{name}.longest.read", "wait.host", HostRead(seconds=s.stack.host_read))
        builder.add(f"{name}.lengths", "elem.small", cast(s.batch, INDEX, INDEX), count=SUMMING)
        builder.add(name, "elem.unvectorized", unvectorized(s.tokens * width, BF16, BF16))


def put_back(builder: SegmentBuilder, s: Shapes, width: int) -> None:
    """The core's output, of this width, among zeros; the core keeps its own."""
    values = s.tokens * width
    builder.add("attn.out.pad.zero", "elem", Streaming(read=0.0, written=values * BF16))
    builder.add("attn.out.pad", "elem.unvectorized", unvectorized(values, BF16, BF16), saved=values * BF16)


def take_out_gradient(builder: SegmentBuilder, s: Shapes, width: int) -> None:
    """The gradient of that output, gathered."""
    if s.stack.padding_removed:
        builder.add("attn.out.pad.bwd", "elem.unvectorized", unvectorized(s.tokens * width, BF16, BF16))


def put_back_gradients(builder: SegmentBuilder, s: Shapes, parts: dict[str, int]) -> None:
    """Gradients of queries, keys and values, scattered into zeros."""
    if not s.stack.padding_removed:
        return
    for which, width in parts.items():
        values = s.tokens * width
        builder.add(f"attn.{which}.unpad.zero.bwd", "elem", Streaming(read=0.0, written=values * BF16))
        builder.add(f"attn.{which}.unpad.bwd", "elem.unvectorized", unvectorized(values, BF16, BF16))
