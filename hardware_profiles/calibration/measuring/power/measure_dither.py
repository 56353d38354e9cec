"""Measure how the power governor moves the clock: the times of equal segments of work under sustained load.

    python -m hardware_profiles.calibration.measuring.power.measure_dither OUT.csv

A segment is a GEMM and some norms; after 3 s of it, segments are timed one by one for 8 s by events. `sd_10ms`:
standard deviation of means over 10 ms, share of the mean (0 ms: of single segments). `wait_8`: by how much the slowest
of eight GPUs exceeds the mean, segment by segment, eight random shifts of the series standing for eight GPUs.
"""

from __future__ import annotations

import csv
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardware_profiles.calibration.measuring.power.measure_pieces import (
    lasting,
    multiplied,
    operand,
    seconds_each,
    state,
)

CASES = (("bf16", 4096, 13312, 8192, 4), ("fp8", 4096, 13312, 8192, 4), ("bf16", 4096, 4096, 8192, 2))
"""Precision, rows, columns and depth of the GEMM, and norms behind it."""
WARM, SECONDS = 3.0, 8.0
WINDOWS = (0, 10, 30, 100, 300)
RANKS = (2, 4, 8)


def summary(times: Any) -> dict[str, float]:
    """Deviations and waits of a series of times [any unit], shares of their mean."""
    mean = times.mean()
    rng, off, out = np.random.default_rng(0), times / mean - 1.0, {}
    for window in WINDOWS:
        many = max(1, round(window / mean))
        whole = len(off) // many * many
        out[f"sd_{window}ms"] = float(off[:whole].reshape(-1, many).mean(axis=1).std())
    for ranks in RANKS:
        shifted = [[np.roll(off, at) for at in rng.integers(0, len(off), ranks)] for _ in range(50)]
        out[f"wait_{ranks}"] = float(np.mean([np.max(each, axis=0).mean() for each in shifted]))
    return out


def series(precision: str, m: int, n: int, k: int, norms: int) -> Any:
    """Times of segments one after the other [ms]."""
    x, w = operand(m, k, precision), operand(n, k, precision)
    y, scale = operand(4096, 8192, "bf16"), operand(1, 8192, "bf16")[0]

    def segment() -> None:
        multiplied(x, w)
        for _ in range(norms):
            torch.nn.functional.rms_norm(y, (8192,), scale)

    each = seconds_each(segment, 20, 50)
    for _ in range(int(WARM / each)):
        segment()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(int(SECONDS / each) + 1)]
    events[0].record()
    for event in events[1:]:
        segment()
        event.record()
    torch.cuda.synchronize()
    return np.array([a.elapsed_time(b) for a, b in pairwise(events)])


def main() -> None:
    torch.manual_seed(0)
    warm, weight = operand(8192, 8192, "bf16"), operand(8192, 8192, "bf16")
    lasting(lambda: multiplied(warm, weight), 6.0)
    rows = []
    for precision, m, n, k, norms in CASES:
        times = series(precision, m, n, k, norms)
        row: dict[str, Any] = {"precision": precision, "m": m, "n": n, "k": k, "norms": norms, "segments": len(times)}
        watts, clock = state()
        row |= {"us": round(1e3 * float(times.mean()), 1), "sm_mhz": clock, "power_w": watts}
        rows.append(row | {name: round(value, 4) for name, value in summary(times).items()})
    with Path(sys.argv[1]).open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
