"""Measure how soon the power governor takes the clock down again after a pause.

    python -m hardware_profiles.calibration.measuring.power.measure_pauses OUT.csv

Rounds: GEMMs for `BUSY` seconds, then a pause without work, many times over; from the third round on every GEMM is
timed by events. `share_0ms` ...: mean time of the GEMMs that begin in that window of a round (up to the next window's
beginning), over that of GEMMs without pauses (`us_lasting`); `busy_share`: of all of them.
"""

from __future__ import annotations

import csv
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardware_profiles.calibration.measuring.power.measure_pieces import lasting, multiplied, operand, seconds_each

CASES = (("bf16", 4096, 13312, 8192), ("fp8", 4096, 13312, 8192))
PAUSES = (0.0, 0.02, 0.1, 0.5, 2.0)
BUSY, ROUNDS = 1.2, 6
EDGES = (0, 10, 20, 50, 100, 200, 400, 800)


def round_of(call: Any, many: int, pause: float) -> Any:
    """Beginning within the round and time of each GEMM [ms]."""
    time.sleep(pause)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(many + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    times = np.array([a.elapsed_time(b) for a, b in pairwise(events)])
    return np.cumsum(times) - times, times


def main() -> None:
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for precision, m, n, k in CASES:
        x, w = operand(m, k, precision), operand(n, k, precision)

        def call(x: Any = x, w: Any = w) -> None:
            multiplied(x, w)

        lasting(call, 4.0)
        each = seconds_each(call, 20, 50)
        many = int(BUSY / each)
        alone = 0.0
        for pause in PAUSES:
            found = [round_of(call, many, pause) for _ in range(ROUNDS)][2:]
            began, took = (np.concatenate(part) for part in zip(*found, strict=True))
            alone = alone or float(took.mean())
            row = {
                "precision": precision,
                "m": m,
                "n": n,
                "k": k,
                "pause_s": pause,
                "us_lasting": round(alone * 1e3, 1),
            }
            for low, high in pairwise((*EDGES, 10**9)):
                inside = took[(began >= low) & (began < high)]
                row[f"share_{low}ms"] = round(float(inside.mean()) / alone, 4) if len(inside) else ""
            rows.append(row | {"busy_share": round(float(took.mean()) / alone, 4)})
            print(rows[-1], flush=True)
    head = f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, measuring/power/measure_pauses.py\n"
    with Path(sys.argv[1]).open("w", newline="", encoding="utf-8") as file:
        file.write(head)
        out = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        out.writeheader()
        out.writerows(rows)


if __name__ == "__main__":
    main()
