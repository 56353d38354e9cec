"""Maxima that scales are made of, reduced over the ranks that share them.

Delayed scaling (Transformer Engine): at the end of each pass through the layers of a pipeline stage, forward and
backward, the maxima of all its tensors are joined, reduced over ranks, and put into their histories
(transformer_engine/pytorch/fp8.py, reduce_and_update_fp8_tensors, 1.7 to 2.9: called where an outermost fp8_autocast
ends, and by the backward of its first module). Megatron-Core enters one for each such pass (megatron/core/transformer/
transformer_block.py) and reduces over tensor, context and data parallelism, unless told not to
(megatron/core/parallel_state.py, get_amax_reduction_group; `stack.maxima`): each microbatch, all replicas meet.

Nothing else runs meanwhile: the next pass needs the scales. In backward the reduction stands here at the end of the
stage's last layer, whose backward comes first, and in the software behind that of its first: it takes as long.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.dtypes import FP32
from simulator.graph.block import Block, Segment, SegmentBuilder
from simulator.graph.shapes import Shapes
from simulator.ops import Collective, Fixed

MODULES = 4
"""Linear layers of a transformer layer, at least: QKV, attention's output, both of the feed-forward part."""
TENSORS = 3
"""Maxima of each: input, weight, output."""
KERNELS = 2
"""Maxima joined before, and all histories and scales updated behind, by a kernel each."""


def are_reduced(s: Shapes) -> bool:
    """Whether a stage's maxima are reduced at the end of its passes."""
    return s.settings.shares_maxima and _ranks(s) > 1


def _ranks(s: Shapes) -> int:
    """Ranks that the maxima are reduced over."""
    layout = s.job.layout
    return layout.tp * layout.cp * (s.job.dp if s.stack.maxima == "all" else 1)


def with_reduction(block: Block, s: Shapes) -> Block:
    """A layer that is the last of its stage."""
    return replace(block, forward=_behind(block.forward, s, "F"), backward=_behind(block.backward, s, "B"))


def _behind(segments: tuple[Segment, ...], s: Shapes, direction: str) -> tuple[Segment, ...]:
    """The segments, the last of this direction that computes followed by the reduction."""
    last = max(
        (at for at, one in enumerate(segments) if one.stream == "compute" and one.direction == direction), default=-1
    )
    if last < 0:
        return segments
    segment = segments[last]
    builder = SegmentBuilder(segment.name, "F" if direction == "F" else "I", s)
    ranks = _ranks(s)
    near = max(d for d in range(1, min(ranks, s.node_gpus) + 1) if ranks % d == 0)
    work = Collective(kind="all_reduce", bytes=MODULES * TENSORS * FP32, ranks=ranks, per_node=near)
    name = "fwd" if direction == "F" else "bwd"
    builder.add(f"maxima.{name}.all_reduce", "comm.maxima.all_reduce", work)
    builder.add(f"maxima.{name}.update", "router.weights", Fixed(launches=KERNELS))
    own = replace(segment, ops=segment.ops + builder.done().ops)
    return (*segments[:last], own, *segments[last + 1 :])
