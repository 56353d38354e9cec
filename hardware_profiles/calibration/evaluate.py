"""Predict a sample with a set of kernel parameters, and sum up the errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hardware_profiles.calibration.sample import Sample
from simulator.cost.attention_cost import attention_cost
from simulator.cost.cost import Share
from simulator.cost.decode_cost import decode_attention_cost
from simulator.cost.gemm_cost import gemm_cost
from simulator.cost.scan_cost import scan_cost
from simulator.cost.streaming_cost import fixed_cost, streaming_cost
from simulator.inputs import load_hardware
from simulator.ops import Attention, DecodeAttention, Gemm, Scan, Streaming
from simulator.spec.kernel_params import Kernels, rested

_NAMES = ("h800", "h100", "h200", "a100", "b200", "h20", "gb200", "b300", "gb300")
GPUS = {name: load_hardware(name).gpu for name in _NAMES}
"""GPUs that kernels are fitted for; rates and bandwidths are shares of the numbers in their profiles."""


LONG = 5e-5
"""Kernels from here on [s] make up most of a training step; shorter ones are blurred by clocks and launches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Errors of one class on one GPU over some samples: mean and largest absolute relative error, error of the sum, and
    the mean over the samples of at least `LONG` seconds."""

    cls: str
    hardware: str
    part: str
    count: int
    mape: float
    worst: float
    worst_label: str
    bias: float
    long_count: int
    long_mape: float


def predict(sample: Sample, kernels: Kernels) -> float:
    """Time of a sample by the cost models [s]: the mean of its runs at the boost clock and at the power limit."""
    if 0.0 < sample.rested < 1.0:
        first, last = (predict(replace(sample, rested=share), kernels) for share in (1.0, 0.0))
        return 1.0 / (sample.rested / first + (1.0 - sample.rested) / last)
    kernels = rested(kernels) if sample.rested else kernels
    gpu, share = GPUS[sample.hardware], Share(sms=sample.sms, partner_traffic=sample.traffic)
    total = 0.0
    for work in sample.work:
        if isinstance(work, Gemm):
            total += gemm_cost(work, sample.cls, gpu, kernels, share).duration
        elif isinstance(work, Attention):
            cls = sample.cls.replace("fwd", "bwd") if work.backward else sample.cls
            total += attention_cost(work, cls, gpu, kernels, share).duration
        elif isinstance(work, DecodeAttention):
            total += decode_attention_cost(work, sample.cls, gpu, kernels, share).duration
        elif isinstance(work, Scan):
            total += scan_cost(work, sample.cls, gpu, kernels, share).duration
        elif isinstance(work, Streaming):
            total += streaming_cost(work, sample.cls, gpu, kernels, share).duration
        else:
            total += fixed_cost(work, sample.cls, kernels).duration
    return total


def errors(cls: str, hardware: str, part: str, rows: list[Sample], kernels: Kernels) -> Errors:
    """Errors of `kernels` over `rows`."""
    return summed(cls, hardware, part, [Judged(s.label, predict(s, kernels), s.seconds) for s in rows])


class Judged(NamedTuple):
    """One measurement: its label, and the predicted and measured time [s]."""

    label: str
    predicted: float
    measured: float


def summed(cls: str, hardware: str, part: str, rows: Sequence[Judged]) -> Errors:
    """Errors of a class over some measurements."""
    off = [row.predicted / row.measured - 1.0 for row in rows]
    long = [abs(o) for o, row in zip(off, rows, strict=True) if row.measured >= LONG]
    at = max(range(len(rows)), key=lambda i: abs(off[i]))
    return Errors(
        cls=cls, hardware=hardware, part=part, count=len(rows), mape=sum(map(abs, off)) / len(off), worst=off[at],
        worst_label=rows[at].label, bias=sum(r.predicted for r in rows) / sum(r.measured for r in rows) - 1.0,
        long_count=len(long), long_mape=sum(long) / len(long) if long else 0.0,
    )  # fmt: skip
