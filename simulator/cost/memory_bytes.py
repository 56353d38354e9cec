"""Bytes that ops move through a GPU's memory."""

from __future__ import annotations

from simulator.cost.attention_cost import attention_bytes
from simulator.cost.gemm_cost import gemm_bytes
from simulator.ops import Attention, DecodeAttention, Gemm, Op, Scan, Streaming


def memory_bytes(op: Op) -> float:
    """Bytes that all kernels of an op move through memory [B]; 0 where that is not what they do."""
    match op.work:
        case Gemm():
            return gemm_bytes(op.work) * op.count
        case Attention():
            return attention_bytes(op.work) * op.count
        case Streaming() | DecodeAttention() | Scan():
            return op.work.bytes * op.count
        case _:
            return 0.0
