"""A norm by the kernels that run: fused, PyTorch's own, or written out operation by operation."""

from __future__ import annotations

from functools import lru_cache

import pytest

from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.ops import Op, Streaming
from simulator.spec.model import BlockKind

TOKENS, H = 8192, 4096  # llama-3-8b, whole on one rank
VALUES = TOKENS * H
ALONE = ("layout.tp=1", "layout.pp=1", "layout.recompute=none", "stack=torch")
WRITTEN = "stack.norm_kernels=operators"


@lru_cache(maxsize=8)
def norm_ops(*changes: str) -> dict[str, Op]:
    """The kernels of the norm before attention, forward and backward."""
    blocks = build_blocks(shapes_of(load_scenario("llama-3-8b", (*ALONE, *changes))))
    return {op.name: op for op in blocks[BlockKind.DENSE].ops() if op.name.startswith("norm.attn.")}


def moved(ops: dict[str, Op], backward: bool) -> float:
    """Bytes that all kernels of a direction move, a value."""
    works = [(op.work, op.count) for op in ops.values() if op.segment.endswith(".B") == backward]
    return sum(w.bytes * count for w, count in works if isinstance(w, Streaming)) / VALUES


def test_a_written_out_norm_moves_every_operations_bytes() -> None:
    fused, written = norm_ops(), norm_ops(WRITTEN)
    # to FP32 (6), square (8), mean (4), scale (8), to BF16 (6), weight (4); the rest is a number for each row
    assert moved(written, backward=False) == pytest.approx(36.0, rel=0.01)
    assert moved(fused, backward=False) == 4.0
    # weight: gain and its sum (8), value (4); to FP32 (6), scale (8) with its gain and sum (16), mean (4), power and
    # twice (16), square (12), sum (12), to BF16 (6); the by-pass of the residual (6)
    assert moved(written, backward=True) == pytest.approx(98.0, rel=0.01)


def test_a_written_out_norm_keeps_its_input_in_fp32() -> None:
    kept = [sum(op.saved for op in norm_ops(*more).values()) for more in ((), (WRITTEN,))]
    assert kept[1] - kept[0] == 4.0 * VALUES


def test_pytorchs_own_backward_reads_its_operands_again_for_the_weight() -> None:
    own, others = norm_ops(), norm_ops("stack.norm_kernels=training")
    assert own["norm.attn.bwd_weight"].work.bytes == pytest.approx(4.0 * VALUES, rel=0.01)  # type: ignore[union-attr]
    assert set(others) - set(own) == {"norm.attn.bwd_finalize"}
