"""Fit the power model of `simulator/engine/power.py` from sustained runs.

Prints the values for a profile's [gpu.power].

    python -m hardware_profiles.calibration.fit_power [h200 | h100]

Rows of `tables/<GPU>_sustained.csv` with op `duty`: a GEMM that alternates with copies or idling. At full clock (rows
that the power cap does not slow) the mean power is the time-weighted mean of the kinds of work: least squares gives the
power of GEMM, copy and idle. Rows beyond the cap give the exponent of slowdown = (demand / cap)^exponent.
"""

from __future__ import annotations

import argparse
import csv
from math import log
from pathlib import Path

import numpy as np

from simulator.inputs import load_hardware

TABLES = Path(__file__).parent / "tables"
SLOWED = 1.01
"""A GEMM slower than this against its burst is held back by power."""


def rows(gpu: str) -> list[dict[str, str]]:
    """The table of a GPU."""
    with (TABLES / f"{gpu}_sustained.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def fit(gpu: str = "h200") -> dict[str, float]:
    """Power of GEMM, copy, norm, attention and idle at full clock [W], the cap over the TDP, and the exponent."""
    table = rows(gpu)
    duty = [r for r in table if r["op"] == "duty" and r["k"]]
    alone = float(duty[0]["us_burst"])
    only = {r["form"]: float(r["power_w"]) for r in table if r["op"] == "duty" and not r["k"]}
    equations, powers, pressed = [], [], []
    for r in duty:
        others = float(r["seq"])
        slow = (float(r["us"]) - others) / alone
        if slow < SLOWED:
            part = alone / (alone + others)
            equations.append([part, *(((1 - part), 0.0) if r["form"] == "copy" else (0.0, 1 - part))])
            powers.append(float(r["power_w"]))
        else:
            pressed.append((r["form"], alone, others, slow, float(r["power_w"])))
    gemm, copy, idle = np.linalg.lstsq(
        np.array([*equations, [0.0, 1.0, 0.0]]), np.array([*powers, only["copy only"]]), rcond=None
    )[0]
    cap = float(np.mean([p[-1] for p in pressed]))
    exponents = []
    for form, own, others, slow, _ in pressed:
        demand = (own * gemm + others * (copy if form == "copy" else idle)) / (own + others)
        if demand > cap * 1.02:
            exponents.append(log(slow) / log(demand / cap))
    exponent = float(np.mean(exponents))
    attention = [float(r["us"]) / float(r["us_burst"]) for r in table if r["op"] == "attention"]
    return {
        "cap_of_tdp": cap / load_hardware(gpu).gpu.tdp,
        "idle": float(idle),
        "memory": (float(copy) + only["norm only"]) / 2,
        "tensor": float(gemm),
        "attention": cap * float(np.mean(attention)) ** (1 / exponent),
        "exponent": exponent,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measured = sorted(table.name.removesuffix("_sustained.csv") for table in TABLES.glob("*_sustained.csv"))
    parser.add_argument("gpu", nargs="?", default="h200", choices=measured, help="the GPU that was measured")
    for name, value in fit(parser.parse_args().gpu).items():
        print(f"{name} = {value:.4g}")


if __name__ == "__main__":
    main()
