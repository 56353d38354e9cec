"""GEMMs in pieces and their collectives: cases by hand, bounds that hold for all, and the measurement."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.calibration.fit_power import rows
from simulator.cost.cost import Share
from simulator.cost.gemm_cost import gemm_cost, left_free
from simulator.cost.pieces import SPLITS, ends, gathered, scattered
from simulator.inputs import load_hardware
from simulator.ops import Gemm
from simulator.spec.kernel_params import rested

TIMES = st.floats(min_value=0.01, max_value=10.0)


def test_pieces_run_one_after_the_other_as_they_arrive() -> None:
    assert ends([0.0] * 3, 1.0) == [1.0, 2.0, 3.0]
    assert ends([0.0, 4.0, 4.5], 1.0) == [1.0, 5.0, 6.0]
    assert gathered(comm=7.0, piece=0.5, ranks=8) == pytest.approx(7.5)
    assert gathered(comm=0.7, piece=0.5, ranks=8) == pytest.approx(4.0)


def test_a_reduce_scatter_shows_what_is_sent_behind_the_last_piece() -> None:
    """Four pieces of 1 s; each is sent in 0.5 s, the last one after the end."""
    assert scattered(2.0, 1.0, SPLITS, sent=SPLITS) == pytest.approx(4.5)
    assert scattered(8.0, 1.0, SPLITS, sent=SPLITS) == pytest.approx(9.0)
    # in a ring a rank keeps its own part, which is the last piece
    assert scattered(3.0, 1.0, 4, sent=3) == pytest.approx(4.0)


@given(comm=TIMES, piece=TIMES, many=st.sampled_from((2, 4, 8)))
def test_both_take_no_less_than_either_and_no_more_than_one_after_the_other(
    comm: float, piece: float, many: int
) -> None:
    for found in (gathered(comm, piece, many), scattered(comm, piece, many, sent=many)):
        assert max(comm + piece, many * piece) - 1e-9 <= found <= comm + many * piece + 1e-9


FULL = 680.0
"""Rows that drew less [W] waited for the process that issued their pieces."""


@pytest.mark.parametrize("how", ["gather", "scatter"])
def test_pieces_one_after_the_other_are_what_was_measured(how: str) -> None:
    """The time of a GEMM in pieces over that of the whole, both at the power limit, against the forecasts' ratio."""
    cluster = load_hardware("h200")
    share, kernels = Share(sms=cluster.gpu.sms), rested(cluster.kernels)

    def seconds(m: int, row: dict[str, str]) -> float:
        work = Gemm(m=m, n=int(row["n"]), k=int(row["k"]), precision="bf16")
        return gemm_cost(work, "gemm.bf16", cluster.gpu, kernels, share).duration

    shape = ("ranks", "m", "n", "k")
    table = [r for r in rows("h200", "pieces") if r["precision"] == "bf16"]
    whole = {tuple(r[key] for key in shape): float(r["us"]) for r in table if r["how"] == "whole"}
    found = [r for r in table if r["how"] == how and float(r["power_w"]) > FULL]
    assert len(found) == 8
    off = []
    for r in found:
        ranks, m = int(r["ranks"]), int(r["m"])
        off.append(
            ranks * seconds(m // ranks, r) / seconds(m, r) - float(r["us"]) / whole[tuple(r[key] for key in shape)]
        )
    assert mean(abs(x) for x in off) < 0.045


@pytest.mark.parametrize(("precision", "low", "high"), [("bf16", 0.99, 1.01), ("fp8", 1.04, 1.12)])
def test_sms_left_free_cost_fp8_gemms_only(precision: Literal["bf16", "fp8"], low: float, high: float) -> None:
    """Measured with 16 of 132 SMs left free under sustained load, and the forecast at the power limit, where a GEMM on
    fewer SMs draws less."""
    free = 16
    shape = ("ranks", "m", "n", "k")
    table = [r for r in rows("h200", "pieces") if r["precision"] == precision]
    whole = {tuple(r[key] for key in shape): float(r["us"]) for r in table if r["how"] == "whole"}
    found = [float(r["us"]) / whole[tuple(r[key] for key in shape)] for r in table if r["how"] == "margin"]
    assert all(low <= one <= high for one in found)
    gpu = load_hardware("h200").gpu
    assert gpu.power is not None
    work = Gemm(m=4096, n=8192, k=7168, precision="bf16" if precision == "bf16" else "fp8_tensor", left=free)
    longer = left_free(work, gpu)
    draws = gpu.power.idle + (gpu.power.tensor - gpu.power.idle) / longer
    at_limit = longer * (draws / gpu.power.tensor) ** gpu.power.exponent
    assert at_limit == pytest.approx(mean(found), abs=0.01)
    assert left_free(replace(work, left=0), gpu) == 1.0


def test_a_gemm_that_leaves_sms_free_is_priced_so() -> None:
    cluster = load_hardware("h100")
    work = Gemm(m=2048, n=3072, k=12288, precision="fp8_tensor")
    whole, less = (
        dict(gemm_cost(each, "gemm.fp8_tensor", cluster.gpu, rested(cluster.kernels), Share(sms=132)).terms)
        for each in (work, replace(work, left=24))
    )
    assert less["left_free_factor"] == pytest.approx(132 / 108)
    assert less["tensor_s"] == whole["tensor_s"]
