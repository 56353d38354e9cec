"""Kernels of recurrent layers: which limit decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.cost.cost import Share
from simulator.cost.scan_cost import scan_cost
from simulator.errors import InputError
from simulator.inputs import load_hardware
from simulator.ops import Scan

H100 = load_hardware("h100")
WIDE = Scan(flops=1e9, read=1e6, written=1e6, ctas=4096)


def cost(work: Scan, sms: int = 132, cls: str = "scan.chunk"):  # type: ignore[no-untyped-def]
    return scan_cost(work, cls, H100.gpu, H100.kernels, Share(sms=sms))


def test_each_limit_decides_where_it_is_the_largest() -> None:
    p = H100.kernels.scan["scan.chunk"]
    many = cost(replace(WIDE, flops=1e13))
    assert (many.bound_by, many.duration) == ("tensor", pytest.approx(1e13 / (p.rate * 989e12) + p.launch, rel=0.01))
    moved = cost(replace(WIDE, read=1e10))
    assert moved.bound_by == "memory"
    chain = cost(replace(WIDE, ctas=64, steps=2048))
    assert (chain.bound_by, chain.duration) == ("latency", pytest.approx(2048 * p.step_time + p.launch, rel=0.01))


def test_few_ctas_leave_sms_idle() -> None:
    heavy = replace(WIDE, flops=1e12)
    assert cost(replace(heavy, ctas=33)).duration == pytest.approx(
        4 * cost(replace(heavy, ctas=132)).duration, rel=0.01
    )
    assert cost(heavy, sms=66).duration == pytest.approx(2 * cost(heavy).duration, rel=0.01)


def test_a_selective_scan_takes_what_its_instructions_do() -> None:
    """No GEMM: 1e10 values at 1e10 a second and SM, on all 132 SMs or half of them."""
    work = Scan(flops=0.0, read=1e6, written=1e6, ctas=8192, values=1e10)
    for sms in (132, 66):
        found = cost(work, sms=sms, cls="scan.selective")
        rate = H100.kernels.scan["scan.selective"].value_rate
        assert found.bound_by == "instructions"
        assert found.duration == pytest.approx(1e10 / (rate * sms) + 4e-6, rel=1e-3)
        assert "value_rate" in found.formula
    assert cost(work, cls="scan.selective.bwd").duration > 2 * cost(work, cls="scan.selective").duration


def test_what_nobody_measured_is_said_to_be_assumed() -> None:
    for cls in ("scan.chunk", "scan.state", "scan.solve", "scan.selective", "scan.selective.bwd"):
        found = cost(WIDE, cls=cls)
        assert not found.calibrated
        assert "assumed" in found.source
        assert H100.kernels.scan[cls].range


def test_a_kernel_without_ctas_cannot_be() -> None:
    with pytest.raises(InputError, match="scan of 0 CTAs"):
        cost(replace(WIDE, ctas=0))
