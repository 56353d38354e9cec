"""How much longer kernels of earlier releases of libraries take, as shipped and as measured."""

from __future__ import annotations

from statistics import fmean

import pytest

from hardware_profiles.calibration.layers.libraries import RELEASES, longer, pairs, releases
from simulator.cost.cost import Cost
from simulator.engine.pricing import lengthened, release_factor
from simulator.inputs import load_scenario
from simulator.ops import Attention, Gemm, Op
from tests.cost.profiles import kernels_of


@pytest.mark.parametrize("gpu", ["h20", "h100", "h200", "h800"])
def test_hopper_profiles_hold_what_the_tables_give(gpu: str) -> None:
    assert kernels_of(gpu).releases == releases()


@pytest.mark.parametrize("gpu", ["a100", "b200", "gb300"])
def test_other_gpus_hold_none(gpu: str) -> None:
    assert kernels_of(gpu).releases == {}


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_a_release_fits_shapes_that_it_was_not_taken_from(name: str) -> None:
    for cls, times in pairs(name).items():
        factor = longer(times[::2])
        off = [abs(factor * now / before - 1.0) for before, now in times[1::2]]
        assert fmean(off) < 0.045, cls


def test_the_factor_is_the_ratio_of_sums() -> None:
    assert longer([(3.0, 2.0), (1.0, 2.0)]) == 1.0
    assert longer([(3.0, 2.0), (3.0, 2.0)]) == 1.5


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_every_factor_lengthens_kernels_of_its_class(name: str) -> None:
    scenario = load_scenario("llama-3-8b", ["hardware=h100", "stack.cublas=12.5", "stack.cudnn=9.2"])
    kernels, cost = scenario.cluster.kernels, Cost(duration=1.0, bound_by="tensor", formula="t", terms=())
    for key, factor in kernels.releases[name].longer.items():
        cls = key.removesuffix(".causal")
        assert cls in kernels.gemm or cls in kernels.attention
        core = Attention(batch=1, seq_q=8, seq_kv=8, heads=1, kv_heads=1, d_qk=64, d_v=64, causal=cls != key)
        work = Gemm(m=8, n=8, k=8, precision="bf16") if cls in kernels.gemm else core
        op = Op(name="asked", cls=cls, part="F", segment="asked", work=work)
        found = lengthened(cost, release_factor(op, scenario.stack, kernels), "release")
        assert found.duration == factor
