"""The shipped parameters hold what is claimed for them on the tables in the project."""

from __future__ import annotations

import json
import tomllib
from collections import defaultdict
from dataclasses import fields
from importlib.resources import files

import pytest

from hardware_profiles.calibration import samples as tables
from hardware_profiles.calibration.evaluate import GPUS, errors, predict
from hardware_profiles.calibration.samples import Sample
from hardware_profiles.calibration.toml_text import kernels_toml
from simulator.kernels import Kernels
from tests.cost.profiles import kernels_of

NAMES = sorted(GPUS)
TRACE_GEMM = ("gemm.fp8", "gemm.fp8.grouped", "gemm.fp8.wgrad", "gemm.bf16.router")
FITTED_LIMITS = {
    ("h800", "gemm.fp8"): 0.05,
    ("h800", "gemm.fp8.grouped"): 0.05,
    ("h800", "gemm.fp8.wgrad"): 0.05,
    ("h800", "gemm.bf16.router"): 0.05,
    ("h800", "attn.fwd"): 0.05,
    ("h100", "attn.fwd"): 0.05,
    ("h200", "attn.fwd@library"): 0.06,
    ("h200", "attn.bwd@library"): 0.08,
    ("h200", "gemm.bf16"): 0.07,
    ("h200", "gemm.bf16.grouped_wgrad"): 0.05,
    ("h200", "gemm.fp8_tensor"): 0.085,
    ("h200", "gemm.fp8_row"): 0.1,
    ("a100", "attn.fwd"): 0.05,
}
"""Limits on the MAPE over held-out shapes. The H200's own GEMM runs differ by 5 % between repeats of one shape."""


def held_out(hardware: str, cls: str) -> list[Sample]:
    mine = [s for s in tables.everything() if s.cls == cls]
    return [s for s in tables.split(mine)[1] if s.hardware == hardware]


@pytest.mark.parametrize(("hardware", "cls"), FITTED_LIMITS)
def test_held_out_shapes(hardware: str, cls: str) -> None:
    rows = held_out(hardware, cls) or [s for s in tables.everything() if (s.hardware, s.cls) == (hardware, cls)]
    assert rows
    assert errors(cls, hardware, "held out", rows, kernels_of(hardware)).mape <= FITTED_LIMITS[hardware, cls]


@pytest.mark.parametrize("cls", TRACE_GEMM)
def test_every_gemm_class_of_the_trace(cls: str) -> None:
    rows = [s for s in tables.trace() if s.cls == cls]
    assert errors(cls, "h800", "trace", rows, kernels_of("h800")).mape <= 0.05


def test_streaming_classes_of_the_trace_within_12_percent_of_their_time() -> None:
    kernels = kernels_of("h800")
    measured: dict[str, float] = defaultdict(float)
    predicted: dict[str, float] = defaultdict(float)
    for s in tables.trace():
        if s.cls.split(".")[0] not in ("gemm", "attn"):
            base = ".".join(s.cls.split(".")[:2])
            measured[base] += s.seconds
            predicted[base] += predict(s, kernels)
    off = {cls: predicted[cls] / measured[cls] - 1 for cls in measured if cls != "scale_t.narrow"}
    assert not {cls: e for cls, e in off.items() if abs(e) > 0.12}
    assert abs(sum(predicted.values()) / sum(measured.values()) - 1) < 0.03


def test_long_streaming_kernels_of_the_trace_one_by_one() -> None:
    rows = [
        s for s in tables.trace() if s.cls.split(".")[0] not in ("gemm", "attn") and s.seconds > 5e-5 and s.sms > 20
    ]
    assert errors("streaming", "h800", "trace", rows, kernels_of("h800")).mape <= 0.12


@pytest.mark.parametrize(
    ("case", "limit"),
    [
        ("gemm_bf16_4096x24576x1536", 0.08),
        ("gemm_bf16_4096x1536x7168", 0.12),
        ("gemm_fp8_8192c", 0.1),
        ("attn_4096x128h", 0.05),
        ("rmsnorm_4096x7168", 0.06),
    ],
)
def test_the_contention_table_is_reproduced(case: str, limit: float) -> None:
    rows = [s for s in tables.contention() if s.label == case]
    assert errors(case, "h200", "contention", rows, kernels_of("h200")).mape <= limit


def test_norm_hardly_notices_sms_but_notices_traffic() -> None:
    rows = [s for s in tables.contention() if s.label.startswith("rmsnorm")]
    times = {(s.sms, s.traffic > 0): predict(s, kernels_of("h200")) for s in rows}
    assert times[68, False] == pytest.approx(times[132, False], rel=0.05)
    assert times[68, True] > 1.3 * times[132, False]


def test_another_hopper_gpu_within_10_percent() -> None:
    """cuBLAS parameters found on the H200 against the H100's small BF16 products, DeepGEMM's against its FP8 ones."""
    rows = [s for s in tables.everything() if s.hardware == "h100" and s.cls == "gemm.fp8@library"]
    assert errors("gemm.fp8@library", "h100", "compared", rows, kernels_of("h100")).mape <= 0.1


def test_no_end_to_end_figure_enters_a_fit() -> None:
    """Every sample is one kernel (or a forward with its backward) shorter than 100 ms, from a table of kernels."""
    allowed = {"h800_trace", "h800_kernels", "h200_kernels", "h200_measured", "published_kernels"}
    for s in tables.everything():
        assert s.table in allowed
        assert len(s.work) <= 2
        assert 0 < s.seconds < 0.1
    assert all(row["id"].startswith("C.") for row in tables.rows("published_kernels.csv"))


def test_the_split_is_fixed_and_has_no_shape_on_both_sides() -> None:
    rows = [s for s in tables.everything() if s.cls == "gemm.fp8"]
    fitted, held = tables.split(rows)
    assert [s.label for s in tables.split(rows)[1]] == [s.label for s in held]
    assert held
    assert not {s.work for s in fitted} & {s.work for s in held}


@pytest.mark.parametrize("name", NAMES)
def test_the_file_round_trips_and_names_its_sources(name: str) -> None:
    kernels = kernels_of(name)
    again = tomllib.loads(kernels_toml(kernels))
    assert again["gemm"].keys() == kernels.gemm.keys()
    assert files("hardware_profiles").joinpath("kernels", f"{name}.toml").read_text() == kernels_toml(kernels)
    for f in fields(Kernels):
        table = getattr(kernels, f.name)
        if isinstance(table, dict):
            assert all(p.source for p in table.values())


def test_a_class_nobody_measured_says_so() -> None:
    assert kernels_of("b200").stream["norm.fwd"].assumed
    assert "assumed" in kernels_of("b200").stream["norm.fwd"].source
    assert not kernels_of("h200").gemm["gemm.bf16"].assumed


def test_the_report_is_of_these_parameters() -> None:
    report = json.loads(files("hardware_profiles").joinpath("calibration", "report.json").read_text())
    row = next(r for r in report if (r["cls"], r["hardware"], r["part"]) == ("gemm.fp8", "h800", "held out"))
    now = errors("gemm.fp8", "h800", "held out", held_out("h800", "gemm.fp8"), kernels_of("h800"))
    assert row["mape"] == pytest.approx(now.mape, rel=1e-3)
