"""Measure by how much GPUs of one type differ at the power limit: two GEMMs under sustained load, one row each.

    python -m hardware_profiles.calibration.measuring.power.measure_gpus OUT.csv [SECONDS]

Appends, so that one file collects the GPUs of several machines. Operands are normal and the same on every GPU. The
second half of `SECONDS` counts; temperature is read behind it.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from hardware_profiles.calibration.measuring.power.measure_pieces import lasting, multiplied, operand
from hardware_profiles.calibration.measuring.power.sensors import uuid

CASES = (("bf16", 8192, 8192, 8192), ("fp8", 4096, 13312, 8192))
COLUMNS = ("gpu", "date", "precision", "m", "n", "k", "us", "sm_mhz", "power_w", "celsius")


def celsius(gpu: str) -> float:
    """Temperature of a GPU."""
    query = ["nvidia-smi", "-i", gpu, "--query-gpu=temperature.gpu", "--format=csv,noheader,nounits"]
    return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    out, seconds = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 14.0
    torch.manual_seed(0)
    gpu, fresh = uuid(), not out.exists()
    with out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if fresh:
            writer.writeheader()
        for precision, m, n, k in CASES:
            call = partial(multiplied, operand(m, k, precision), operand(n, k, precision))
            found = {name: round(value, 1) for name, value in lasting(call, seconds).items()}
            labels = {"gpu": gpu[4:12], "date": time.strftime("%F"), "precision": precision, "m": m, "n": n, "k": k}
            writer.writerow(labels | found | {"celsius": celsius(gpu)})


if __name__ == "__main__":
    main()
