"""Largest values of tensors under delayed scaling: what ranks agree on before scales change.

Transformer Engine joins the largest values of all modules of a rank, takes their maximum over a group of ranks and
updates the scales: where the autocast region of a forward ends, and where its backward does (pytorch/fp8.py,
reduce_and_update_fp8_tensors, 2025). Megatron-Core opens a region for each pass over the layers of a stage
(core/transformer/transformer_block.py), over all ranks that hold the stage's parameters or parts of them, unless
`tp_only_amax_red` is set (core/parallel_state.py, get_amax_reduction_group). So the replicas meet in every microbatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simulator.dtypes import FP32
from simulator.graph.block import Block, Segment, SegmentBuilder
from simulator.graph.shapes import Shapes
from simulator.ops import Collective, Gemm, Streaming
from simulator.spec.scenario import amax_ranks

TENSORS = 3
"""Of each GEMM: its input, weight and output."""


def with_amax(blocks: Sequence[Block], s: Shapes) -> list[Block]:
    """The blocks of a stage, with the reductions behind the forward of its last and the backward of its first layer."""
    out, ranks = list(blocks), amax_ranks(s.job, s.stack, s.formats)
    narrow = [at for at, block in enumerate(out) if block.kind.is_layer and not block.kind.is_bf16]
    if ranks < 2 or not narrow:
        return out
    gemms = sum(op.count for at in narrow for one in out[at].forward for op in one.ops if isinstance(op.work, Gemm))
    ahead, size = out[narrow[-1]], TENSORS * gemms * FP32
    out[narrow[-1]] = replace(ahead, forward=_behind(ahead.forward, "F", s, size, ranks))
    back = out[narrow[0]]  # which may be the same
    out[narrow[0]] = replace(back, backward=_behind(back.backward, "B", s, size, ranks))
    return out


def _behind(segments: tuple[Segment, ...], direction: str, s: Shapes, size: float, ranks: int) -> tuple[Segment, ...]:
    """The segments with a reduction behind the last one of a direction that computes; a join and an update around it.

    `size`: of all largest values [B].
    """
    places = [i for i, one in enumerate(segments) if one.direction == direction and one.stream == "compute"]
    if not places:
        return segments
    last = segments[places[-1]]
    builder = SegmentBuilder(last.name, "F" if direction == "F" else "I", s)
    small = Streaming(read=size, written=size)
    work = Collective(kind="all_reduce", bytes=size, ranks=ranks, per_node=min(ranks, s.node_gpus))
    builder.add("amax.join", "elem.small", small)
    builder.add("amax.all_reduce", "comm.amax.all_reduce", work)
    builder.add("amax.update", "elem.small", small)
    longer = replace(last, ops=last.ops + builder.done().ops)
    return (*segments[: places[-1]], longer, *segments[places[-1] + 1 :])
