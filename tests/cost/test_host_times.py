"""The host times of Megatron-Core's stack are those of its tables."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from simulator.inputs import load_stack

ROOT = Path(__file__).parents[2]
STACK = load_stack("megatron-core")
OPS = {"F": (4, 1, 6), "B": (8, 1, 11)}
"""GEMMs, attention kernels and other ops of a Llama layer in the graph, forward and backward."""


def _rows(path: str) -> list[dict[str, str]]:
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def _module(name: str, recipe: str = "none") -> float:
    """Forward of a module, in BF16 or with one of Transformer Engine's FP8 recipes [s]."""
    rows = _rows("hardware_profiles/calibration/tables/h200_te_host.csv")
    return next(1e-6 * float(r["us_forward"]) for r in rows if (r["module"], r["recipe"]) == (name, recipe))


def _layer(direction: str) -> float:
    """Host time of a further Llama 3 8B layer [s]."""
    rows = _rows("workloads/facts/h200_te_host_layers.csv")
    rows = [r for r in rows if (r["waits"], r["case"], r["precision"]) == ("1", "llama-3-8b", "bf16")]
    one, five = (next(float(r[f"host_{direction}_us"]) for r in rows if r["layers"] == n) for n in ("1", "5"))
    return 1e-6 * (five - one) / 4


def _sum(direction: str) -> float:
    gemms, attention, others = OPS[direction]
    return gemms * STACK.host_gemm + attention * STACK.host_attention + others * (STACK.host_call + STACK.host_kernel)


def test_calls_of_modules() -> None:
    assert pytest.approx(_module("Linear"), rel=0.02) == STACK.host_gemm
    assert pytest.approx(_module("DotProductAttention"), rel=0.02) == STACK.host_attention
    each = (_module("GroupedLinear 128") - _module("GroupedLinear 8")) / 120
    assert pytest.approx(each, rel=0.02) == STACK.host_expert


def test_experts_in_fp8() -> None:
    """With current scaling, less the maximum, the scale and the cast of each expert's rows, which are ops apart."""
    many, few = (_module(f"GroupedLinear {n}", "current") for n in (128, 8))
    assert pytest.approx((many - few) / 120 - 3 * STACK.host_kernel, rel=0.02) == STACK.host_expert_fp8


def test_parameters_of_experts() -> None:
    """Backward of a layer with 128 experts over one with 16, for each expert of its two linear layers."""
    rows = _rows("workloads/facts/h200_te_host_layers.csv")
    many, few = (
        next(
            1e-6 * float(r["host_B_us"])
            for r in rows
            if (r["waits"], r["case"], r["precision"], r["layers"]) == ("1", case, "bf16", "1")
        )
        for case in ("qwen3-30b-a3b", "qwen3-30b-a3b ep8")
    )
    each = STACK.host_parameter + 2 * STACK.host_backward * STACK.host_expert
    assert each == pytest.approx((many - few) / (2 * 112), rel=0.02)


def test_a_layer_is_its_calls() -> None:
    assert _sum("F") == pytest.approx(_layer("F"), rel=0.02)
    assert STACK.host_backward * _sum("B") == pytest.approx(_layer("B"), rel=0.02)
