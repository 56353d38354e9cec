"""NVFP4's GEMMs by cuBLASLt, as Transformer Engine runs them, on a B300 (table te_gemm_profiling).

What inference engines were timed with holds a cast of unknown length, and kernels of others: forecasts from it are 18 %
longer than the GEMMs alone. Clocks of that run lie between boost and the power limit; so do those of MXFP8's GEMMs in
the same run, whose forecast is known. NVFP4's time as a share of theirs is taken, on a B300 and a GB300, which have the
same SM. On a B200, whose FP4 peak is another share of its FP8 peak, nobody timed the same program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hardware_profiles.calibration.sample import rows
from simulator.cost.cost import Share
from simulator.cost.gemm_cost import gemm_cost
from simulator.ops import Gemm
from simulator.spec.hardware import Gpu
from simulator.spec.kernel_params import GemmParams, Kernels

TABLE = "te_gemm_profiling"
CLASS = "gemm.nvfp4@te"
HOME, SAME = "b300", ("b300", "gb300")
STANDS = {"mxfp8": "gemm.fp8_tensor", "nvfp4": "gemm.nvfp4"}
"""Classes that price the GEMMs of a precision (MXFP8: see `simulator.cost.classes.NEAREST`)."""


def shapes(row: dict[str, str]) -> Iterator[Gemm]:
    """The four GEMMs of a row's pass."""
    m, h, inner = (int(row[key]) for key in ("tokens", "hidden", "intermediate"))
    for n, k in ((3 * h, h), (h, h), (inner, h), (h, inner)):
        sizes = {"forward": (m, n, k), "input gradient": (m, k, n), "weight gradient": (n, k, m)}[row["pass"]]
        yield Gemm(m=sizes[0], n=sizes[1], k=sizes[2], precision=row["precision"])  # type: ignore[arg-type]


def sums(precision: str, kernels: Kernels, gpu: Gpu, cls: str) -> tuple[float, float]:
    """All passes of a precision: as measured and as forecast [s]."""
    measured = forecast = 0.0
    for row in rows(f"{TABLE}.csv"):
        if row["precision"] == precision:
            measured += float(row["ms"]) * 1e-3
            forecast += sum(gemm_cost(one, cls, gpu, kernels, Share(sms=gpu.sms)).duration for one in shapes(row))
    return measured, forecast


def pace(kernels: Kernels, gpu: Gpu) -> float:
    """Time of cuBLASLt's NVFP4 GEMMs over the forecast of class `gemm.nvfp4`, at the clocks of MXFP8's."""
    wide, narrow = (sums(one, kernels, gpu, STANDS[one]) for one in ("mxfp8", "nvfp4"))
    return (narrow[0] / narrow[1]) / (wide[0] / wide[1])


def paced(params: GemmParams, share: float) -> GemmParams:
    """The class on tensor cores that take `share` of the time."""
    source = f"{params.source}; at {share:.3f} of its time, as cuBLASLt's by Transformer Engine (table {TABLE})"
    rate, power = (float(f"{value / share:.4g}") for value in (params.rate, params.power_rate))
    return replace(params, rate=rate, power_rate=power, source=source)
