"""Samples of what eager PyTorch runs around the GEMMs of a layer on an H200 (`measuring/measure_eager.py`).

Every second size is held out, as the table marks them. Of calls of several kernels the sum of the kernels counts
(`busy_us`): gaps between them are the stack's.
"""

from __future__ import annotations

from hardware_profiles.calibration.evaluate import GPUS
from hardware_profiles.calibration.sample import Row, Sample, integer, number, rows
from simulator.dtypes import BF16
from simulator.ops import Streaming

TABLE = "h200_eager"

LEAST = 1 << 24
"""Parameters of an update that counts: a smaller one is two short launches."""
WHOLE_CALLS: dict[tuple[str, str], str] = {
    ("rope", "0"): "rope.eager",
    ("rope", "1"): "rope.eager.bwd",
    ("split", "1"): "split.eager",
    ("heads", "0"): "heads.eager",
    ("norm", "0"): "norm.fwd@eager",
    ("norm", "1"): "norm.bwd@eager",
}
"""Calls -> class, which prices all their kernels together by the bytes that one kernel would move."""


DRAWN = {
    "elem.view": "swiglu", "rope.eager": "rope", "rope.eager.bwd": "rope_bwd", "split.eager": "split",
    "heads.eager": "heads", "norm.fwd@eager": "norm", "norm.bwd@eager": "norm_bwd", "optimizer.bf16": "adamw",
    "permute.index_select": "index_select", "permute.index_add": "index_add", "unpermute.index_add": "index_add",
}  # fmt: skip
"""Class -> the call whose power under sustained load it draws."""


def power_shares() -> dict[str, float]:
    """Class -> power it draws, share of that of the memory-bound kernels of compiled software on an H200."""
    power = GPUS["h200"].power
    assert power is not None
    watts = {row["memory"]: number(row, "power_w") for row in rows(f"{TABLE}_power.csv") if row["op"] == "alone"}
    return {cls: round(watts[call] / power.memory, 3) for cls, call in DRAWN.items()}


def _works(row: Row) -> tuple[str, tuple[Streaming, ...]] | None:
    size = number(row, "bytes")
    if row["op"] == "swiglu" and row["backward"] == "0":  # silu(gate), and its product with the other half
        half = integer(row, "m") * integer(row, "n") * float(BF16)
        return "elem.view", (Streaming(read=half, written=half), Streaming(read=2 * half, written=half))
    if row["op"] == "adamw" and row["impl"] == "bfloat16" and integer(row, "m") >= LEAST:
        return "optimizer.bf16", (Streaming(read=size * 4 / 7, written=size * 3 / 7),)
    cls = WHOLE_CALLS.get((row["op"], row["backward"]))
    read = 2 / 3 if cls == "norm.bwd@eager" else 1 / 2
    return None if cls is None else (cls, (Streaming(read=size * read, written=size * (1 - read)),))


def eager() -> list[Sample]:
    """Samples of the table, those that are held out, too."""
    out = []
    for row in rows(f"{TABLE}.csv"):
        found = _works(row)
        if found is not None:
            label = f"{row['op']} {row['impl']} {row['m']} x {row['n']}, backward {row['backward']}"
            out.append(
                Sample(
                    hardware="h200", cls=found[0], work=found[1], seconds=number(row, "busy_us") * 1e-6, table=TABLE,
                    label=label, rested=1.0, resolution=2.5e-7, held=row["held_out"] == "1",
                )
            )  # fmt: skip
    return out
