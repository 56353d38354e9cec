"""Recomputation of whole layers, and of parts of them as a whole: what forward keeps, and what runs again.

Policies that recompute single ops (norms, activations, the attention core) are applied where those ops are made.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import get_args

from simulator.dtypes import BF16
from simulator.graph.block import Block, Segment
from simulator.graph.norm import kept_of_ffn_input
from simulator.graph.parallel import sharded_tokens
from simulator.graph.shapes import Shapes
from simulator.ops import AllToAll, Attention, Collective, Gemm, Op, Unit

UNITS: tuple[Unit, ...] = get_args(Unit)


def recomputed(block: Block, s: Shapes) -> Block:
    """The layer with the job's policy applied."""
    if "layer" in s.recompute:
        return _whole(block, s)
    if "ops" in s.recompute:
        return _all_but_every_second_gemm(block, s)
    names = {op.unit for op in block.ops()}
    if "mlp" in names and s.checkpoints("dense"):
        return _part(block, s, {"mlp"}, kept_of_ffn_input(s))
    if "moe" in names and s.checkpoints("moe"):
        return _part(block, s, {"moe", "shared_experts"}, kept_of_ffn_input(s))
    if "shared_experts" in names and s.checkpoints("shared"):
        return _part(block, s, {"shared_experts"}, 0.0)  # the gate keeps what they read
    return block


def inner(block: Block) -> Block:
    """A layer that runs again together with the one before: nothing of it is kept."""
    return replace(block, forward=_dropping(block.forward, UNITS, 0.0))


def _again(op: Op, ops: dict[str, str]) -> Op:
    """The op as it runs a second time, at the start of backward; `ops`: names of those that do, by their first."""
    after = tuple(ops[name] for name in op.after if name in ops)
    segment = op.segment.replace(".F", "_again.B")
    return replace(op, name=ops[op.name], part="R", segment=segment, after=after, saved=0.0)


def _rerun(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Forward segments as they run a second time; those that nothing is left of do not."""
    names = {op.name: f"{op.name}.again" for segment in segments for op in segment.ops}
    return tuple(
        replace(
            segment,
            name=segment.name.replace(".F", "_again.B"),
            ops=tuple(_again(op, names) for op in segment.ops),
        )
        for segment in segments
        if segment.ops
    )


def _until_last_saved(segments: Sequence[Segment], s: Shapes) -> list[Segment]:
    """What runs of these segments a second time: all, or up to the last value that backward reads.

    Megatron-Core's checkpoint calls the module once more, to its end (megatron/core/tensor_parallel/random.py, 2025);
    PyTorch's stops early (torch.utils.checkpoint.set_checkpoint_early_stop).
    """
    if not s.stack.checkpoint_early_stop:
        return list(segments)
    last = max((at for at, segment in enumerate(segments) if any(op.saved for op in segment.ops)), default=-1)
    out = list(segments[: last + 1])
    if out:
        ops = out[-1].ops
        end = max(at for at, op in enumerate(ops) if op.saved) + 1
        out[-1] = replace(out[-1], ops=ops[:end])
    return out


def _whole(block: Block, s: Shapes) -> Block:
    """Full recomputation: the whole forward runs again and only the layer's input is kept, sharded under sequence
    parallelism."""
    kept = sharded_tokens(s) * s.model.stream_width * BF16
    return replace(
        block,
        forward=_dropping(block.forward, UNITS, kept),
        backward=_rerun(_until_last_saved(block.forward, s)) + block.backward,
    )


def _part(block: Block, s: Shapes, units: Collection[Unit], kept: float) -> Block:
    """These parts of a layer run again: nothing is kept inside, and `kept` bytes of the input, where nothing else keeps
    it."""
    mine = [replace(one, ops=tuple(op for op in one.ops if op.unit in units)) for one in block.forward]
    again = _until_last_saved([one for one in mine if one.ops], s)
    return replace(block, forward=_dropping(block.forward, units, kept), backward=_rerun(again) + block.backward)


def _dropping(segments: Sequence[Segment], units: Collection[Unit], kept: float) -> tuple[Segment, ...]:
    """Forward segments in which ops of these units keep nothing, but the first of them `kept` bytes."""
    first = next((op.name for segment in segments for op in segment.ops if op.unit in units), "")
    return tuple(
        replace(
            segment,
            ops=tuple(
                replace(op, saved=kept if op.name == first else 0.0) if op.unit in units else op for op in segment.ops
            ),
        )
        for segment in segments
    )


def _all_but_every_second_gemm(block: Block, s: Shapes) -> Block:
    """PyTorch's selective checkpointing as TorchTitan applies it (arXiv 2410.06511; its policy `op`).

    Kept are the layer's input, the outputs of the attention core, all-to-alls and reduce-scatters, and of the first,
    third, ... GEMM of the layer, counted by its matrices: query, key, value, output, gate, up, down. Everything else
    that backward reads is recomputed, the grouped GEMMs of experts too.
    """
    ahead, again = [], []
    inputs, count = sharded_tokens(s) * s.model.stream_width * BF16, 0
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
