"""GPUs of one type differ at the power limit: the deviation of what the same GEMM takes on each, as a demand."""

from __future__ import annotations

from math import exp, sqrt

import pytest

from hardware_profiles.calibration import fit_power
from simulator.inputs import load_hardware


def test_two_gpus_and_two_kernels_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logarithms of times 0 and 0.02, and 0 and 0.04: variances 0.0002 and 0.0008, mean 0.0005; a GPU measured with one
    kernel alone says nothing."""
    labels = {"m": "1", "n": "1", "k": "1"}
    times = (("bf16", 0.0), ("bf16", 0.02), ("fp8", 0.0), ("fp8", 0.04), ("fp8_row", 7.0))
    table = [labels | {"precision": precision, "us": str(exp(at))} for precision, at in times]
    monkeypatch.setattr(fit_power, "rows", lambda gpu, name: table)
    assert fit_power.spread("any", 0.5) == pytest.approx(sqrt(0.0005) / 0.5)


def test_none_without_a_table() -> None:
    assert fit_power.spread("h100", 0.5) == 0.0


def test_profiles_have_what_the_table_says() -> None:
    for name in ("h200", "h100", "h800"):
        power = load_hardware(name).gpu.power
        assert power is not None
        found = load_hardware("h200").gpu.power
        assert found is not None
        assert power.spread == pytest.approx(fit_power.spread("h200", found.exponent), abs=5e-5)
