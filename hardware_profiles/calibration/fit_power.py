"""Fit the power model of `simulator/power.py` from sustained runs; prints the values for a profile's [gpu.power].

    python -m hardware_profiles.calibration.fit_power

Rows of `tables/h200_sustained.csv` with op `duty`: a GEMM that alternates with copies or idling. At full clock (rows
that the power cap does not slow) the mean power is the time-weighted mean of the kinds of work: least squares gives the
power of GEMM, copy and idle. Rows beyond the cap give the exponent of slowdown = (demand / cap)^exponent.
"""

from __future__ import annotations

import csv
from math import log
from pathlib import Path

import numpy as np

from simulator.cost.cost import Share
from simulator.cost.gemm import gemm_cost
from simulator.inputs import load_hardware
from simulator.ops import Gemm, GemmPrecision

TABLE = Path(__file__).parent / "tables" / "h200_sustained.csv"
SLOWED = 1.01
"""A GEMM slower than this against its burst is held back by power."""


def rows() -> list[dict[str, str]]:
    """The table."""
    with TABLE.open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def tables_pace(table: list[dict[str, str]]) -> float:
    """How much longer the fitted GEMM classes last than rested kernels of the same shapes."""
    cluster = load_hardware("h200")
    ratios = []
    for r in table:
        if r["op"] != "gemm":
            continue
        precision: GemmPrecision = "bf16" if r["precision"] == "bf16" else "fp8_tensor"
        work = Gemm(m=int(r["m"]), n=int(r["n"]), k=int(r["k"]), precision=precision)
        cost = gemm_cost(work, f"gemm.{precision}", cluster.gpu, cluster.kernels, Share(sms=cluster.gpu.sms))
        ratios.append(cost.duration * 1e6 / float(r["us_burst"]))
    return float(np.mean(ratios))


def fit() -> dict[str, float]:
    """Power of GEMM, copy, norm, attention and idle at full clock [W], the cap over the TDP, and the exponent."""
    table = rows()
    duty = [r for r in table if r["op"] == "duty" and r["k"]]
    alone = float(duty[0]["us_burst"])
    only = {r["form"]: float(r["power_w"]) for r in table if r["op"] == "duty" and not r["k"]}
    equations, powers, pressed = [], [], []
    for r in duty:
        beside = float(r["seq"])
        slow = (float(r["us"]) - beside) / alone
        if slow < SLOWED:
            part = alone / (alone + beside)
            equations.append([part, *(((1 - part), 0.0) if r["form"] == "copy" else (0.0, 1 - part))])
            powers.append(float(r["power_w"]))
        else:
            pressed.append((r["form"], alone, beside, slow, float(r["power_w"])))
    gemm, copy, idle = np.linalg.lstsq(
        np.array([*equations, [0.0, 1.0, 0.0]]), np.array([*powers, only["copy only"]]), rcond=None
    )[0]
    cap = float(np.mean([p[-1] for p in pressed]))
    exponents = []
    for form, own, beside, slow, _ in pressed:
        demand = (own * gemm + beside * (copy if form == "copy" else idle)) / (own + beside)
        if demand > cap * 1.02:
            exponents.append(log(slow) / log(demand / cap))
    exponent = float(np.mean(exponents))
    attention = [float(r["us"]) / float(r["us_burst"]) for r in table if r["op"] == "attention"]
    return {
        "cap_of_tdp": cap / load_hardware("h200").gpu.tdp,
        "idle": float(idle),
        "memory": (float(copy) + only["norm only"]) / 2,
        "tensor": float(gemm),
        "attention": cap * float(np.mean(attention)) ** (1 / exponent),
        "exponent": exponent,
        "tables": tables_pace(table),
    }


if __name__ == "__main__":
    for name, value in fit().items():
        print(f"{name} = {value:.4g}")
