"""What the calibration knows of its own errors, by kernel class and GPU.

`hardware_profiles/calibration/report.json` and `report_fabric.json` hold, for every class, the mean absolute relative
error (MAPE) over kernels, and the error of their sum (bias). Measurements made after the form of the model was settled
(`unseen`) count before those held out of the fit, and these before the fitted ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import pi, sqrt
from statistics import median
from typing import Any

from simulator.engine.pricing import kernel_class
from simulator.spec.kernel_params import Kernels
from simulator.spec.stack import LIBRARY, Stack

REPORTS = ("report.json", "report_fabric.json")
PARTS = ("fitted", "held out", "unseen")
"""Kinds of samples, the latest wins."""
NORMAL = sqrt(pi / 2.0)
"""Standard deviation over mean absolute deviation of a normal variate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownError:
    """Errors of one class on one GPU: `mape`, `bias` [relative], over `samples` kernels of which `part`."""

    mape: float
    bias: float
    samples: int
    part: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Standard deviations of the logarithm of a time: the error that all kernels of a class share, and the error that
    each has of its own."""

    shared: float
    each: float


def measured_as(cls: str, stack: Stack, kernels: Kernels) -> str:
    """The class as the calibration measured it: all-to-all, attention and norms by the kernels the software runs, a
    collective whatever for."""
    if cls in ("comm.dispatch", "comm.combine"):
        return "comm.all_to_all" if stack.dispatcher in LIBRARY else f"{cls}@{stack.dispatcher}"
    return f"comm.{cls.rpartition('.')[2]}" if cls.startswith("comm.") else kernel_class(cls, stack, kernels)


@cache
def known_errors(hardware: str) -> Mapping[str, KnownError]:
    """Kernel class -> its errors on a GPU."""
    out: dict[str, KnownError] = {}
    for part in PARTS:
        for row in _rows():
            if row["hardware"] == hardware and row["part"] == part:
                out[row["cls"]] = _known(row)
    return out


def _known(row: Mapping[str, Any]) -> KnownError:
    return KnownError(
        mape=float(row["mape"]), bias=float(row["bias"]), samples=int(row["count"]), part=str(row["part"])
    )


@cache
def _rows() -> Sequence[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for name in REPORTS:
        file = files("hardware_profiles").joinpath("calibration", name)
        rows += json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return rows


def spread_of(known: KnownError) -> Spread:
    """How far times of a class may be off.

    The kernels of a training step are few, and need not be those of the benchmark: all of them may be off together by
    the bias, or by what the mean of so few samples leaves open, whichever is more. The rest is each kernel's own. Only
    fitted samples flatter: their errors are widened as much as held-out ones exceed fitted ones elsewhere.
    """
    sigma = NORMAL * known.mape * (widening() if known.part == "fitted" else 1.0)
    shared = min(sigma, max(abs(known.bias), sigma / sqrt(known.samples)))
    return Spread(shared=shared, each=sqrt(max(0.0, sigma**2 - shared**2)))


@cache
def widening() -> float:
    """Median ratio of the errors on held-out or unseen samples to those on fitted ones, over classes with both."""
    fitted = {_key(row): float(row["mape"]) for row in _rows() if row["part"] == "fitted" and row["mape"] > 0.0}
    ratios = [
        float(row["mape"]) / fitted[_key(row)] for row in _rows() if row["part"] in PARTS[1:] and _key(row) in fitted
    ]
    return max(1.0, median(ratios)) if ratios else 1.0


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row["cls"]), str(row["hardware"])


@cache
def transferred() -> float:
    """Root mean square, over classes, of the error [log] on a GPU or in a situation that a class was not fitted on."""
    return root_mean_square(NORMAL * float(row["mape"]) for row in _rows() if str(row["part"]).startswith("compared"))


def root_mean_square(values: Iterable[float]) -> float:
    squares = [value**2 for value in values]
    return sqrt(sum(squares) / len(squares)) if squares else 0.0
