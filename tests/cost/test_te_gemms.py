"""Transformer Engine's GEMMs on a B300: its documentation's times against the profile."""

from __future__ import annotations

import pytest

from hardware_profiles.calibration.evaluate import GPUS
from hardware_profiles.calibration.layers import te_gemms
from simulator.engine.pricing import kernel_class
from simulator.inputs import load_scenario
from tests.cost.profiles import kernels_of


def over(precision: str, cls: str) -> float:
    """Forecast of all passes over what was measured."""
    measured, forecast = te_gemms.sums(precision, kernels_of(te_gemms.HOME), GPUS[te_gemms.HOME], cls)
    return forecast / measured


def test_nvfp4_is_forecast_as_far_off_as_mxfp8_in_the_same_run() -> None:
    assert over("nvfp4", te_gemms.CLASS) == pytest.approx(over("mxfp8", "gemm.fp8_tensor"), rel=0.01)
    assert over("nvfp4", "gemm.nvfp4") > 1.12 * over("nvfp4", te_gemms.CLASS)


@pytest.mark.parametrize(
    ("precision", "cls"), [("bf16", "gemm.bf16"), ("fp8_tensor", "gemm.fp8_tensor"), ("mxfp8", "gemm.fp8_tensor")]
)
def test_other_precisions_agree(precision: str, cls: str) -> None:
    """Measured between boost and the power limit; forecast at the limit."""
    assert 1.0 < over(precision, cls) < 1.10


def test_a_pass_multiplies_the_same_matrices() -> None:
    row = {"tokens": "8", "hidden": "2", "intermediate": "4", "precision": "bf16"}
    passes = {
        name: list(te_gemms.shapes({**row, "pass": name})) for name in ("forward", "input gradient", "weight gradient")
    }
    assert [(g.m, g.n, g.k) for g in passes["forward"]] == [(8, 6, 2), (8, 2, 2), (8, 4, 2), (8, 2, 4)]
    assert [(g.m, g.n, g.k) for g in passes["input gradient"]] == [(8, 2, 6), (8, 2, 2), (8, 2, 4), (8, 4, 2)]
    assert [(g.m, g.n, g.k) for g in passes["weight gradient"]] == [(6, 2, 8), (2, 2, 8), (4, 2, 8), (2, 4, 8)]
    assert len({sum(g.m * g.n * g.k for g in gemms) for gemms in passes.values()}) == 1


@pytest.mark.parametrize(("hardware", "own"), [("b300", True), ("gb300", True), ("b200", False), ("gb200", False)])
def test_transformer_engine_runs_its_own_where_they_were_timed(hardware: str, own: bool) -> None:
    kernels = kernels_of(hardware)
    stack = load_scenario("llama-3-8b", ("stack=megatron-core",)).stack
    torch = load_scenario("llama-3-8b", ("stack=torch-compile", "layout.pp=1")).stack
    assert (kernel_class("gemm.nvfp4", stack, kernels) == te_gemms.CLASS) is own
    assert kernel_class("gemm.nvfp4.wgrad", stack, kernels) == (te_gemms.CLASS if own else "gemm.nvfp4.wgrad")
    assert kernel_class("gemm.nvfp4", torch, kernels) == "gemm.nvfp4"
