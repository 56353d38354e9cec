"""Recomputation of whole layers: what forward keeps, and what runs again before backward.

Policies that recompute single ops (DeepSeek's, Megatron's attention core) are applied where those ops are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simulator.dtypes import BF16
from simulator.graph.block import Block, Segment
from simulator.graph.parallel import sharded_tokens
from simulator.graph.shapes import Shapes
from simulator.ops import AllToAll, Attention, Collective, Gemm, Op

SENT_AWAY = ("combine.F", "out.F")
"""The last all-to-all sends a layer's output away: backward does not need it again."""


def recomputed(block: Block, s: Shapes) -> Block:
    """The layer with the job's policy applied."""
    if "full" in s.recompute:
        return _whole(block, s)
    return _all_but_every_second_gemm(block, s) if "ops" in s.recompute else block


def _again(op: Op, ops: dict[str, str]) -> Op:
    """The op as it runs a second time, at the start of backward; `ops`: names of those that do, by their first."""
    after = tuple(ops[name] for name in op.after if name in ops)
    segment = op.segment.replace(".F", "_again.B")
    return replace(op, name=ops[op.name], part="R", segment=segment, after=after, saved=0.0)


def _rerun(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Forward segments as they run a second time."""
    names = {op.name: f"{op.name}.again" for segment in segments for op in segment.ops}
    return tuple(
        replace(
            segment,
            name=segment.name.replace(".F", "_again.B"),
            ops=tuple(_again(op, names) for op in segment.ops),
        )
        for segment in segments
    )


def _whole(block: Block, s: Shapes) -> Block:
    """Full recomputation: the whole forward runs again and only the layer's input is kept, sharded under sequence
    parallelism."""
    kept = sharded_tokens(s) * s.model.hidden_size * BF16
    ahead = tuple(
        replace(
            segment,
            ops=tuple(
                replace(op, saved=kept if index == 0 and place == 0 else 0.0) for place, op in enumerate(segment.ops)
            ),
        )
        for index, segment in enumerate(block.forward)
    )
    again = _rerun([segment for segment in block.forward if segment.name not in SENT_AWAY])
    return replace(block, forward=ahead, backward=again + block.backward)


def _all_but_every_second_gemm(block: Block, s: Shapes) -> Block:
    """PyTorch's selective checkpointing as TorchTitan applies it (arXiv 2410.06511; its policy `op`).

    Kept are the layer's input, the outputs of the attention core, all-to-alls and reduce-scatters, and of the first,
    third, ... GEMM of the layer, counted by its matrices: query, key, value, output, gate, up, down. Everything else
    that backward reads is recomputed, the grouped GEMMs of experts too.
    """
    ahead, again = [], []
    inputs, count = sharded_tokens(s) * s.model.hidden_size * BF16, 0
    for segment in block.forward:
        first: list[Op] = []
        second: list[Op] = []
        for op in segment.ops:
            widths = op.matrices
            odd = [width for at, width in enumerate(widths, count + 1) if at % 2]
            count += len(widths)
            first.append(replace(op, saved=inputs + _held(op, sum(odd))))
            inputs = 0.0
            if _read_again(op) and (not widths or len(odd) < len(widths)):
                second.append(_narrowed(op, sum(widths) - sum(odd)) if widths else op)
        ahead.append(replace(segment, ops=tuple(first)))
        if second:
            again.append(replace(segment, ops=tuple(second)))
    return replace(block, forward=tuple(ahead), backward=_rerun(again) + block.backward)


def _held(op: Op, width: int) -> float:
    """Bytes of an op's output that are kept; `width` is that of its GEMMs that are."""
    match op.work:
        case Gemm() as work:
            return work.m * width * BF16
        case Collective(kind="reduce_scatter") as work:
            return work.bytes / work.ranks
        case Attention() | AllToAll():
            return op.saved
    return 0.0


def _read_again(op: Op) -> bool:
    """Whether an op's output was not kept (a GEMM's may be in part), and backward reads it."""
    if op.stream == "comm" or isinstance(op.work, Attention) or not op.read_by_backward:
        return False
    return not isinstance(op.work, Collective) or op.work.kind == "all_gather"


def _narrowed(op: Op, width: int) -> Op:
    """A GEMM with only `width` columns of output."""
    assert isinstance(op.work, Gemm)
    return replace(op, work=replace(op.work, n=width))
