"""What ops need while they run, and what deferred weight gradients still need.

A block's temporary memory is that of its largest op: operands and results, without what is kept anyway. Ops run one
after the other, and a caching allocator reuses the memory of one for the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from simulator.graph.block import Block
from simulator.graph.shapes import Shapes
from simulator.graph.stage import build_blocks
from simulator.ops import AllToAll, Attention, Collective, DecodeAttention, Gemm, Op, PointToPoint, Scan, Streaming
from simulator.spec.model import BlockKind
from simulator.spec.recompute import CHECKPOINTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Memory of one block.

    Parameters
    ----------
    saved : kept by a microbatch from F on [B].
    for_weights : kept from I until W [B].
    temporary : in use while F, B, I or W of the block runs, by its letter [B].
    revived : kept by nobody, and there again while backward of the block runs [B].
    """

    saved: float
    for_weights: float
    temporary: dict[str, float]
    revived: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """Facts of the rank that an op does not have.

    Parameters
    ----------
    received : distinct tokens that an all-to-all brings.
    """

    received: int


def operands(op: Op, here: Here) -> tuple[float, float]:
    """Bytes of activations that an op reads and writes [B]; weights and their gradients are held already."""
    work = op.work
    if isinstance(work, Gemm):
        return _gemm(work, op.count)
    if isinstance(work, Attention):
        return _attention(work)
    if isinstance(work, DecodeAttention):  # the cache is held
        rows = 2.0 * work.batch * work.q_len * work.heads
        return rows * work.d_qk, rows * work.d_v
    if isinstance(work, Scan):
        return work.read, work.written
    if isinstance(work, Streaming):
        return (0.0, 0.0) if op.adds_to_resident else (work.read, work.written)
    if isinstance(work, AllToAll):
        own, others = work.tokens * work.bytes_per_token, here.received * work.bytes_per_token
        return (own, others) if work.direction == "dispatch" else (others, own)
    if isinstance(work, (Collective, PointToPoint)):  # messages of a ring; those between stages are no ops of a layer
        return work.bytes, work.bytes
    return 0.0, 0.0


def _gemm(work: Gemm, count: int) -> tuple[float, float]:
    size = work.operand_bytes
    if work.form in ("wgrad", "grouped_wgrad"):
        return count * size * (work.m + work.n) * float(work.k), 0.0
    return size * work.valid_rows * work.k, work.out_bytes * work.valid_rows * work.n


def _attention(work: Attention) -> tuple[float, float]:
    """Queries, keys, values and output in BF16; backward accumulates the gradient of the queries in FP32."""
    rows, keys = work.batch * work.seq_q * work.heads, work.batch * work.seq_kv * work.kv_heads
    q, k, v, out = 2.0 * rows * work.d_qk, 2.0 * keys * work.d_qk, 2.0 * keys * work.d_v, 2.0 * rows * work.d_v
    return (q + k + v + 2 * out, 2 * q + k + v) if work.backward else (q + k + v, out)


def _largest(ops: list[Op], here: Here) -> float:
    """Operands and results of the largest op, less what is kept of its result."""
    worst = 0.0
    for op, following in zip(ops, [*ops[1:], None], strict=False):
        read, written = operands(op, here)
        kept = op.saved + (following.saved if following is not None and following.saves_input else 0.0)
        worst = max(worst, op.alive + (0.0 if op.reads_resident else read) + max(0.0, written - kept))
    return worst


def _ops(block: Block, *directions: str) -> list[Op]:
    segments = block.forward + block.backward
    return [op for segment in segments if segment.direction in directions for op in segment.ops]


def footprint(block: Block, here: Here, revived: float = 0.0) -> Footprint:
    """The footprint of a block; `revived` [B] comes back to life when its forward is recomputed."""
    late = [op for op in _ops(block, "W") if isinstance(op.work, Gemm)]
    has_inputs = any(segment.direction == "B" for segment in block.backward)
    kept = sum(operands(op, here)[0] for op in late) if has_inputs else block.saved_bytes
    return Footprint(
        saved=block.saved_bytes,
        for_weights=kept,
        temporary={
            "F": _largest(_ops(block, "F"), here),
            "B": _largest(_ops(block, "B", "W"), here),
            "I": _largest(_ops(block, "B"), here),
            "W": _largest(_ops(block, "W"), here),
        },
        revived=revived,
    )


def footprints(shapes: Shapes, blocks: dict[BlockKind, Block]) -> dict[BlockKind, Footprint]:
    """Footprints by kind of block."""
    here = Here(received=shapes.received)
    revived = _revived(shapes, blocks)
    return {kind: footprint(block, here, revived[kind]) for kind, block in blocks.items()}


def _revived(shapes: Shapes, blocks: dict[BlockKind, Block]) -> dict[BlockKind, float]:
    """What backward makes again of each block and has at once: of a layer all, of parts of it the largest [B]."""
    found = dict.fromkeys(blocks, 0.0)
    for module in shapes.recompute & (CHECKPOINTED | {"layer", "ops"}):
        without = build_blocks(replace(shapes, recompute=shapes.recompute - {module}))
        found = {kind: max(size, without[kind].saved_bytes - blocks[kind].saved_bytes) for kind, size in found.items()}
    return found


def temporary(kind: str, blocks: Iterable[tuple[BlockKind, Footprint]]) -> float:
    """Temporary bytes of an action over these blocks, in the order of forward [B].

    Those of the largest op, with what is there again of the layers that run again together.
    """
    worst = top = revived = 0.0
    for which, one in blocks:
        if not which.is_inner:
            top = revived = 0.0
        top = max(top, one.temporary[kind])
        revived += one.revived if kind in ("B", "I") else 0.0
        worst = max(worst, top + revived)
    return worst
