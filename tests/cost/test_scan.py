"""Kernels of recurrent layers: which limit decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.cost.cost import Cost, Share
from simulator.cost.scan_cost import scan_cost
from simulator.errors import InputError
from simulator.inputs import load_hardware
from simulator.ops import Scan
from simulator.spec.kernel_params import Kernels, assumed_scans

H100 = load_hardware("h100")
BARE = replace(H100.kernels, scan=assumed_scans())
WIDE = Scan(flops=1e9, read=1e6, written=1e6, ctas=4096)


def cost(work: Scan, sms: int = 132, cls: str = "scan.chunk", kernels: Kernels = BARE) -> Cost:
    return scan_cost(work, cls, H100.gpu, kernels, Share(sms=sms))


def test_each_limit_decides_where_it_is_the_largest() -> None:
    p = BARE.scan["scan.chunk"]
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
        rate = BARE.scan["scan.selective"].value_rate
        assert found.bound_by == "instructions"
        assert found.duration == pytest.approx(1e10 / (rate * sms) + 4e-6, rel=1e-3)
        assert "value_rate" in found.formula
    assert cost(work, cls="scan.selective.bwd").duration > 2 * cost(work, cls="scan.selective").duration


def test_what_nobody_measured_is_said_to_be_assumed() -> None:
    """A profile without any prices every class of theirs by what stands in."""
    for cls in ("scan.chunk", "scan.state", "scan.out.bwd", "scan.kkt@kda", "scan.selective", "scan.selective.bwd"):
        found = cost(WIDE, cls=cls)
        assert not found.calibrated
        assert "assumed" in found.source
    assert all(p.range for p in BARE.scan.values())


def test_twice_as_many_columns_a_cta_where_that_is_the_shorter_chain() -> None:
    """132 CTAs run at once: 200 of them take two rounds, 100 of twice the width one of 1.4 times the length."""
    state = replace(BARE.scan["scan.state"], wide=1.4)
    kernels = replace(BARE, scan={"scan.state": state})
    chain = {
        ctas: dict(cost(replace(WIDE, ctas=ctas, steps=1000), cls="scan.state", kernels=kernels).terms)["chain_s"]
        for ctas in (100, 200, 300)
    }
    step = 1000 * state.step_time
    assert chain == {100: step, 200: pytest.approx(1.4 * step), 300: pytest.approx(2.8 * step)}


def test_a_step_takes_as_many_cycles_on_another_gpu() -> None:
    """Carried from an H200 (1.83 GHz where its peak is quoted) to an A100 (1.41 GHz)."""
    own, other = (load_hardware(name) for name in ("h200", "a100"))
    there, here = own.kernels.scan["scan.state"], other.kernels.scan["scan.state"]
    assert here.step_time * other.gpu.boost_clock == pytest.approx(there.step_time * own.gpu.boost_clock, rel=1e-3)
    assert here.assumed
    assert "cycles" in here.source
    assert not there.assumed


def test_a_kernel_without_ctas_cannot_be() -> None:
    with pytest.raises(InputError, match="scan of 0 CTAs"):
        cost(replace(WIDE, ctas=0))
