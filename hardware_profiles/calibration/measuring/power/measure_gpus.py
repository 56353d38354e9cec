"""Measure by how much GPUs of one type differ at the power limit: two GEMMs under sustained load, one row each.

    python -m hardware_profiles.calibration.measuring.power.measure_gpus OUT.csv [SECONDS]

Appends, so that one file collects the GPUs of several machines. Operands are normal and the same on every GPU. The
second half of `SECONDS` counts: time, SM clock, power and temperature.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from hardware_profiles.calibration.measuring.power.measure_pieces import multiplied, operand

CASES = (("bf16", 8192, 8192, 8192), ("fp8", 4096, 13312, 8192))
ROUND = 0.05
"""GEMMs between two events [s]."""
COLUMNS = ("gpu", "date", "precision", "m", "n", "k", "us", "sm_mhz", "power_w", "celsius")
QUERY = "clocks.sm,power.draw,temperature.gpu"


def smi(query: str, *more: str) -> list[str]:
    """What nvidia-smi says of the first GPU."""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={query}", "--format=csv,noheader,nounits", *more]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(", ")


def timed(call: Any, many: int) -> float:
    """Mean time of so many calls [us]."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(many):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end) * 1e3 / many)


def lasting(call: Any, seconds: float) -> dict[str, float]:
    """Time of a call, clock, power and temperature in the second half of so long."""
    many = max(1, int(ROUND / (timed(call, 5) * 1e-6)))
    half, samples, times = time.time() + seconds / 2, [], []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            samples.append((time.time(), *map(float, smi(QUERY))))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    while time.time() < half + seconds / 2:
        times.append((time.time(), timed(call, many)))
    stop.set()
    thread.join()
    mine = [sample for sample in samples if sample[0] > half]
    late = [us for began, us in times if began > half]
    names = ("sm_mhz", "power_w", "celsius")
    means = {name: round(sum(s[1 + at] for s in mine) / len(mine), 1) for at, name in enumerate(names)}
    return {"us": round(sum(late) / len(late), 1), **means}


def main() -> None:
    out, seconds = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 14.0
    torch.manual_seed(0)
    (uuid,) = smi("uuid")
    fresh = not out.exists()
    with out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if fresh:
            writer.writeheader()
        for precision, m, n, k in CASES:
            x, w = operand(m, k, precision), operand(n, k, precision)
            row = lasting(lambda x=x, w=w: multiplied(x, w), seconds)
            labels = {"gpu": uuid[4:12], "date": time.strftime("%F"), "precision": precision, "m": m, "n": n, "k": k}
            writer.writerow(labels | row)
            print(labels | row, flush=True)


if __name__ == "__main__":
    main()
