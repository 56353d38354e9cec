"""From tables of attention over chunks of queries and keys, of few heads and with windows, on one H200 to samples."""

from __future__ import annotations

from hardware_profiles.calibration.sample import Row, Sample, integer, number, rows
from simulator.ops import Attention

CLASS = {"cudnn": "library", "flash2": "fa2"}
OTHER_KERNEL = "splitkv"
"""PyTorch's FlashAttention-2 cuts the keys of few tiles into parts, in another kernel, which is no class."""


def work_of(row: Row) -> Attention:
    """The work of a row: a causal mask ends with the last key."""
    seq, keys, heads = integer(row, "seq"), integer(row, "kv_len"), integer(row, "heads")
    causal, width = row["causal"] == "1", integer(row, "d")
    return Attention(
        batch=1, seq_q=seq, seq_kv=keys, heads=heads, kv_heads=integer(row, "kv_heads", heads), d_qk=width,
        d_v=integer(row, "d_v", width), causal=causal, backward=row["backward"] == "1",
        cached=keys - seq if causal else 0,
    )  # fmt: skip


def chunks() -> list[Sample]:
    """All samples, each shape once; every second one of a class held out."""
    found: dict[tuple[str, Attention], Sample] = {}
    seen: dict[str, int] = {}
    for table in ("h200_narrow", "h200_chunks"):
        for row in rows(f"{table}.csv"):
            if row["op"] != "attention" or OTHER_KERNEL in row["kernel"]:
                continue
            work = work_of(row)
            cls = f"attn.{'bwd' if work.backward else 'fwd'}@{CLASS[row['impl']]}"
            if (cls, work) in found or _falls_back(work, row["impl"]):
                continue
            seen[cls] = seen.get(cls, 0) + 1
            found[cls, work] = Sample(
                hardware="h200", cls=cls, work=(work,), seconds=number(row, "busy_us") * 1e-6, table=table,
                label=f"{work.seq_q} x {work.seq_kv} x {work.heads} {'causal' if work.causal else ''}".strip(),
                rested=1.0, resolution=2.5e-7, held=seen[cls] % 2 == 0,
            )  # fmt: skip
    return list(found.values())


def windows() -> list[Sample]:
    """FlashAttention-2 with a window; every second shape held out. In backward every head has keys of its own."""
    out: list[Sample] = []
    for row in rows("h200_windows.csv"):
        seq, heads, backward = integer(row, "seq"), integer(row, "heads"), row["backward"] == "1"
        work = Attention(
            batch=integer(row, "batch"), seq_q=seq, seq_kv=seq, heads=heads,
            kv_heads=heads if backward else integer(row, "kv_heads"), d_qk=integer(row, "d_qk"),
            d_v=integer(row, "d_v"), backward=backward, window=integer(row, "window"),
        )  # fmt: skip
        out.append(
            Sample(
                hardware="h200", cls=f"attn.{'bwd' if backward else 'fwd'}@fa2", work=(work,),
                seconds=number(row, "us") * 1e-6, table="h200_windows", rested=1.0, resolution=2.5e-7,
                label=f"{work.batch} x {seq} x {heads} window {work.window}", held=len(out) // 2 % 2 == 1,
            )
        )  # fmt: skip
    return out


def _falls_back(work: Attention, impl: str) -> bool:
    """cuDNN's backward without a mask is another kernel at 192/128, a third slower."""
    return impl == "cudnn" and work.backward and work.d_qk != work.d_v and not work.causal
