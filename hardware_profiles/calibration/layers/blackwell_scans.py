"""How long recurrent layers' kernels take on a Blackwell, as shares of their time on an H200 (table blackwell_scans).

Kernels in chunks, and the convolution, gain little there: written in Triton and CUDA for Hopper, they reach smaller
shares of the tensor peak and of the bandwidth. The same programs were timed on both, whole layers at once, so that all
kernels of a library are given the same share. Backward was not timed on an H200; from an H100 to a B200 it gains as
forward does (rows of `Helion`: within 12 %).

Mamba-2's kernels were not timed on both. Those of Mamba-3, of the same library, were on a GB200; other Blackwells are
to a GB200 as with the delta rule. TensorRT-LLM's copy of them on B200 is no measure: its autotuner chose for one token.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from statistics import median

from hardware_profiles.calibration.sample import rows
from simulator.spec.hardware import Gpu
from simulator.spec.kernel_params import ScanParams, StreamParams

TABLE = "blackwell_scans"
ORIGIN = "h200"
GPUS = ("b200", "b300", "gb200", "gb300")
BACKWARD = ".bwd"
"""In names of classes whose own pace is not known."""


def measured_pace(op: str, gpu: str, *, held_out: bool = False) -> float:
    """Median time of an op on a GPU over that on an H200, over the rows that both have."""
    return median(
        float(row[gpu]) / float(row[ORIGIN])
        for row in rows(f"{TABLE}.csv")
        if row["op"] == op and row[gpu] and row[ORIGIN] and (row["held_out"] == "1") == held_out
    )


def library(cls: str) -> str | None:
    """The op of the table whose kernels a class is of; None for those of decoding, which memory alone limits, and for
    all that is not of a recurrent layer."""
    name, _, variant = cls.partition("@")
    if name.endswith(".token") or not name.startswith(("scan.", "conv")):
        return None
    if name.startswith("conv"):
        return "conv"
    own = name.removeprefix("scan.").removesuffix(BACKWARD)
    delta = own in ("kkt", "wu", "state", "dv") or (own == "out" and variant != "ssd")
    return "kda.chunk" if variant == "kda" else "delta.chunk" if delta else "ssd.chunk"


@cache
def pace(op: str, gpu: str) -> float:
    """Time of an op of `library` on a Blackwell over that on an H200."""
    if op != "ssd.chunk":
        return measured_pace(op, gpu)
    kin = measured_pace("delta.chunk", gpu) / measured_pace("delta.chunk", "gb200")
    return measured_pace("mamba3.chunk", "gb200") * kin


def scan_pace(cls: str, target: str, origin: str) -> float | None:
    """`pace` of a class that is carried from one GPU to another, None where nobody measured it."""
    op = library(cls)
    return pace(op, target) if op and origin == ORIGIN and target in GPUS else None


def paced(params: ScanParams | StreamParams, share: float, here: Gpu, there: Gpu) -> ScanParams | StreamParams:
    """Parameters that make a kernel take `share` of its time on the GPU `there`, its launch apart."""

    def rounded(value: float) -> float:
        return float(f"{value:.4g}")

    bandwidth = rounded(params.bandwidth * there.hbm_bandwidth / here.hbm_bandwidth / share)
    if isinstance(params, StreamParams):
        return replace(params, bandwidth=bandwidth)
    rate = rounded(params.rate * there.peak.bf16 / here.peak.bf16 / share)
    step_time = rounded(params.step_time * share * here.sms / there.sms)
    return replace(params, bandwidth=bandwidth, rate=rate, step_time=step_time)


def reason(cls: str, target: str) -> str:
    """Where the parameters of a class that `scan_pace` knows come from."""
    op = library(cls) or ""
    whole = " as a whole" if op.endswith(".chunk") else ""
    like = ", as Mamba-3's kernels" if op == "ssd.chunk" else ", as its forward" if cls.endswith(BACKWARD) else ""
    return f"{target.upper()}: {pace(op, target):.2f} of its time there{whole} (table {TABLE}){like}"
