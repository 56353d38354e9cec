"""Samples of kernels that run concurrently with others: nothing is fitted to them."""

from __future__ import annotations

from hardware_profiles.calibration.sample import Row, Sample, Work, gemm, integer, number, rows
from hardware_profiles.calibration.samples import event_time
from simulator.engine.pricing import collective_of
from simulator.inputs import load_hardware
from simulator.ops import Attention, Streaming

MOVER_RATE = 3e10
"""Memory traffic of one SM of the copying neighbour of the contention table [B/s], from its own effect on the norm."""
CONTENTION_CASES: dict[str, tuple[str, Work]] = {
    "gemm_bf16_4096x24576x1536": ("gemm.bf16", gemm(4096, 24576, 1536, "bf16")),
    "gemm_bf16_4096x1536x7168": ("gemm.bf16", gemm(4096, 1536, 7168, "bf16")),
    "gemm_fp8_8192c": ("gemm.fp8_tensor", gemm(8192, 8192, 8192, "fp8_tensor")),
    "attn_4096x128h": (
        "attn.fwd@library",
        Attention(batch=1, seq_q=4096, seq_kv=4096, heads=128, kv_heads=128, d_qk=128, d_v=128),
    ),
    "rmsnorm_4096x7168": ("norm.fwd@library", Streaming(read=4096 * 7168 * 2, written=4096 * 7168 * 2)),
}


def contention() -> list[Sample]:
    """Kernels on an H200 concurrent with one that holds SMs (and moves memory): compared with, not fitted."""
    out, events = [], event_time(rows("h200_measured.csv"))
    for row in rows("h200_sm_contention.csv"):
        cls, work = CONTENTION_CASES[row["case"]]
        held = integer(row, "held_sms")
        out.append(
            Sample(
                hardware="h200", cls=cls, work=(work,), seconds=number(row, "us") * 1e-6 - events,
                table="h200_sm_contention", label=row["case"], sms=132 - held,
                traffic=MOVER_RATE * held * integer(row, "move"), rested=1.0,
            )
        )  # fmt: skip
    return out


CONCURRENT_CASES = {
    "concurrent:gemm_bf16_4096x24576x1536": ("gemm.bf16", gemm(4096, 24576, 1536, "bf16")),
    "concurrent:gemm_fp8_tensor_8192x8192x8192": ("gemm.fp8_tensor", gemm(8192, 8192, 8192, "fp8_tensor")),
    "concurrent:gemm_fp8_block_8192x8192x8192": ("gemm.fp8@library", gemm(8192, 8192, 8192, "fp8_block")),
}


def concurrent_traffic() -> list[Sample]:
    """GEMMs on an H200 concurrent with a copy whose own traffic is known."""
    events = event_time(rows("h200_measured.csv"))
    return [
        Sample(
            hardware="h200", cls=CONCURRENT_CASES[row["op"]][0], work=(CONCURRENT_CASES[row["op"]][1],),
            seconds=number(row, "us") * 1e-6 - events, table="h200_measured", label=row["op"],
            sms=132 - integer(row, "held_sms"), traffic=number(row, "traffic"), rested=1.0,
        )
        for row in rows("h200_measured.csv")
        if row["op"] in CONCURRENT_CASES
    ]  # fmt: skip


def _overlapped(row: Row) -> tuple[str, Work]:
    op, m, n, k = row["op"], integer(row, "m"), integer(row, "n"), integer(row, "k")
    if op == "gemm":
        return "gemm.bf16", gemm(m, n, k, "bf16")
    if op == "attention":
        return "attn.fwd@library", Attention(
            batch=1, seq_q=m, seq_kv=m, heads=n, kv_heads=n, d_qk=k, d_v=k, causal=True
        )
    return {"norm": "norm.fwd@library", "add": "elem"}[op], Streaming(read=2.0 * m * n, written=2.0 * m * n)


def concurrent_collectives() -> list[Sample]:
    """Kernels on an H100 concurrent with NCCL's collectives, which run all the time: compared with, not fitted.

    With SMs taken, a loop stays below the power limit (`h100_overlap.csv` has what it takes alone).
    """
    cluster = load_hardware("h100")
    taken = collective_of(cluster)
    out = []
    for row in rows("h100_overlap.csv"):
        if row["us_concurrent"]:
            cls, work = _overlapped(row)
            out.append(
                Sample(
                    hardware="h100", cls=cls, work=(work,), seconds=number(row, "us_concurrent") * 1e-6,
                    table="h100_overlap", label="concurrent:collective", sms=cluster.gpu.sms - taken.sms,
                    traffic=taken.traffic, rested=1.0,
                )
            )  # fmt: skip
    return out
