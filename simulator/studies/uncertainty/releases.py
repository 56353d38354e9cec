"""How far the same kernel is off between two releases of software, on two machines with the same type of GPU.

A class was calibrated with one release on one machine; a run uses others. The tables of GEMMs hold shapes that
aiconfigurator measured twice, in the containers of SGLang and of TensorRT-LLM: on each type of GPU their difference has
a mean, which all GEMMs share, and a spread of single shapes.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from math import log
from statistics import fmean, pstdev

from simulator.studies.known_errors import Spread, root_mean_square

TABLES = ("a100_gemm", "h100_gemm", "b200_gemm", "gb200_gemm", "gb300_gemm")
ONE, OTHER = "aic_sglang", "aic_trtllm"
SHAPE = ("op", "precision", "form", "m", "n", "k", "groups")
PRECISIONS = ("bf16", "fp8_block")
"""In these both containers call the same libraries; in NVFP4 they call two."""
LONG = 50.0  # us; below it launches decide, which the kernel's own error holds
"""Kernels of training steps are longer."""

CLASSES = ("gemm.", "attn.")
"""Beginnings of the classes that libraries choose kernels for. Nothing is published of memory-bound kernels and of
collectives between releases: these are taken to be the same."""


@cache
def release_spread() -> Spread:
    """Deviation of the logarithm of a kernel's time in another release: root mean square over GPUs and precisions."""
    found = [_off(ratios) for ratios in _ratios()]
    return Spread(
        shared=root_mean_square(shared for shared, _ in found), each=root_mean_square(each for _, each in found)
    )


def _off(ratios: Sequence[float]) -> tuple[float, float]:
    """The mean, and the deviation of single shapes [log]."""
    return fmean(ratios), pstdev(ratios)


def _ratios() -> Iterator[list[float]]:
    """Of each type of GPU and precision, the logarithms of one release's times over the other's."""
    for name in TABLES:
        file = files("hardware_profiles").joinpath("calibration", "tables", f"{name}.csv")
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        times: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
        for row in csv.DictReader(lines):
            times[tuple(row[key] for key in SHAPE)][row["source"]] = float(row["us"])
        twice = {shape: by for shape, by in times.items() if {ONE, OTHER} <= by.keys() and min(by.values()) >= LONG}
        for precision in PRECISIONS:
            if ratios := [log(by[ONE] / by[OTHER]) for shape, by in twice.items() if shape[1] == precision]:
                yield ratios
