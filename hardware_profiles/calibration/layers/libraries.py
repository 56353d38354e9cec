"""From GEMMs and attention of releases of cuBLASLt and cuDNN on one H200 to how much longer the earlier ones take.

A class takes the sum of its kernels' times under the earlier release over that under the one that the tables of its
GPU were measured with (CUDA 13.0: cuBLAS 13.1, cuDNN 9.19). Both ran in turn at the power limit: the earlier GEMMs take
longer at a clock that is hardly higher. A Hopper GPU's SMs are alike, so that its other GPUs take the same factors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from hardware_profiles.calibration.sample import Row, number, rows
from simulator.spec.kernel_params import Release

LATEST = {"h200_cublas.csv": "130100", "h200_cudnn.csv": "91900"}
"""Tables, and the release among theirs that the classes were measured with."""
RELEASES = {"cublas-12.5": ("h200_cublas.csv", "120503"), "cudnn-9.2": ("h200_cudnn.csv", "90201")}
"""Earlier releases by name, and the library's number in its table."""
CLASSES = {
    ("bf16", "fprop"): ("gemm.bf16", "gemm.bf16.grouped@streams"),
    ("bf16", "dgrad"): ("gemm.bf16", "gemm.bf16.grouped@streams"),
    ("bf16", "wgrad"): ("gemm.bf16.wgrad", "gemm.bf16.grouped_wgrad@streams"),
    ("fp8", "fprop"): ("gemm.fp8_tensor", "gemm.fp8_tensor.grouped@streams"),
    ("fp8", "dgrad"): ("gemm.fp8_tensor.split", "gemm.fp8_tensor.grouped.split@streams"),
    ("fp8", "wgrad"): ("gemm.fp8_tensor.wgrad", "gemm.fp8_tensor.grouped_wgrad@streams"),
    ("0", "forward"): ("attn.fwd@library",),
    ("1", "forward"): ("attn.fwd@library.causal",),
    ("0", "backward"): ("attn.bwd@library",),
    ("1", "backward"): ("attn.bwd@library.causal",),
}
"""Kernel classes by precision, or whether the mask is causal, and form; weight gradients were added into BF16, those
added into FP32 are taken to be as much longer."""
NOT_SHAPE = ("library", "us", "power_w", "sm_mhz")
SOURCE = "{name} against {latest} in turn on one H200 (table {table}); other Hopper GPUs: carried over: same SM"


def pairs(name: str) -> Mapping[str, list[tuple[float, float]]]:
    """Times of each class's shapes under a release and under the latest [s], in the order of its table."""
    table, number_of = RELEASES[name]
    found: dict[tuple[tuple[str, str], ...], dict[str, Row]] = defaultdict(dict)
    for row in rows(table):
        found[tuple((key, value) for key, value in row.items() if key not in NOT_SHAPE)][row["library"]] = row
    out: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for shape, by_library in found.items():
        of = dict(shape)
        times = number(by_library[number_of], "us") * 1e-6, number(by_library[LATEST[table]], "us") * 1e-6
        for cls in CLASSES[of["causal" if "causal" in of else "precision"], of["form"]]:
            out[cls].append(times)
    return out


def longer(times: Iterable[tuple[float, float]]) -> float:
    """How many times as long kernels take under one release as under another, given their times under both."""
    before, now = map(sum, zip(*times, strict=True))
    return float(f"{before / now:.4g}")


def releases() -> dict[str, Release]:
    """Every earlier release as a profile of a Hopper GPU has it."""
    return {
        name: Release(
            longer={cls: longer(times) for cls, times in sorted(pairs(name).items())},
            source=SOURCE.format(name=name, latest=LATEST[table], table=table.removesuffix(".csv")),
        )
        for name, (table, _) in RELEASES.items()
    }
