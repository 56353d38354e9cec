"""FP32 units bound block-scaled FP8, and only that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.cost.cost import Share
from simulator.cost.gemm_cost import gemm_cost, promotion_time
from simulator.inputs import load_hardware
from simulator.ops import Gemm
from simulator.spec.hardware import Cluster

BLOCK = Gemm(m=4096, n=7168, k=2048, precision="fp8_block")
V3_HOPPER = load_hardware("h800")


def _duration(work: Gemm, cls: str, fp32: float, cluster: Cluster = V3_HOPPER) -> float:
    gpu = replace(cluster.gpu, peak=replace(cluster.gpu.peak, fp32=fp32))
    return gemm_cost(work, cls, gpu, cluster.kernels, Share(sms=gpu.sms)).duration


def test_a_step_adds_one_partial_sum_per_output() -> None:
    """128 x 128 sums, a multiply-add each, on one of 132 SMs of 66.9 TFLOP/s: 32,768 FLOP at 507 GFLOP/s."""
    assert promotion_time(BLOCK, V3_HOPPER.gpu, 128 * 128) == pytest.approx(64.65e-9, rel=1e-3)


def test_a_shipped_gpu_keeps_up_and_a_slow_one_does_not() -> None:
    known = _duration(BLOCK, "gemm.fp8", 0.0)
    assert _duration(BLOCK, "gemm.fp8", V3_HOPPER.gpu.peak.fp32) == known
    slow, slower = _duration(BLOCK, "gemm.fp8", 5e12), _duration(BLOCK, "gemm.fp8", 2.5e12)
    assert known < slow < slower < 2 * slow


@pytest.mark.parametrize(("precision", "cls"), [("bf16", "gemm.bf16"), ("fp8_tensor", "gemm.fp8_tensor")])
def test_other_precisions_stay_in_the_tensor_cores(precision: str, cls: str) -> None:
    work = replace(BLOCK, precision=precision)
    assert _duration(work, cls, 1e11) == _duration(work, cls, 0.0)


def test_blackwell_scales_by_block_itself() -> None:
    cluster = load_hardware("b200")
    assert _duration(BLOCK, "gemm.fp8", 1e11, cluster) == _duration(BLOCK, "gemm.fp8", 0.0, cluster)
