"""Whole steps kernel by kernel: every program and kernel has its kind, and the parts are near."""

from __future__ import annotations

import pytest

from simulator.validation.figures import fact_rows
from simulator.validation.runs import step_parts


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", "GEMMs"),
        ("cutlass13device_kernel GroupProblemShape", "grouped GEMMs"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", "attention"),
        ("multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>", "optimizer"),
        ("indexFuncLargeIndex<c10::BFloat16", "by index"),
        ("triton_red_fused_index_select_mul_sum", "other memory-bound"),
        ("vectorized_elementwise_kernel<8; CUDAFunctor_add", "other memory-bound"),
    ],
)
def test_names_show_the_kind(kernel: str, kind: str) -> None:
    assert step_parts.kind_of(kernel, step_parts._NAMES) == kind


def test_every_measured_program_can_be_forecast() -> None:
    names = {row["program"] for row in fact_rows("h200_step_times.csv")}
    assert names == {row["program"] for row in fact_rows("h200_step_parts.csv")}
    assert all(step_parts.overrides_of(name) for name in names)


@pytest.mark.slow
def test_steps_and_their_parts_are_near() -> None:
    for one in step_parts.programs():
        measured, ours = one.step
        assert ours == pytest.approx(measured, rel=0.08), one.name
        for kind in ("GEMMs", "grouped GEMMs", "attention", "optimizer"):
            if kind in one.kinds and one.kinds[kind][0] > 0.1 * measured:
                assert one.kinds[kind][1] == pytest.approx(one.kinds[kind][0], rel=0.16), (one.name, kind)
