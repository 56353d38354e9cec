"""Errors shown with kernel classes are those of the kernels that ran."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from reports.views.trust import ClassTrust, trust_of
from simulator.inputs import load_scenario
from simulator.results.simulate import simulate


def mape(cls: str, hardware: str) -> float:
    """The error of a class on shapes that nobody had seen, as the calibration wrote it."""
    rows = json.loads((files("hardware_profiles") / "calibration" / "report.json").read_text(encoding="utf-8"))
    return float(next(r["mape"] for r in rows if (r["cls"], r["hardware"], r["part"]) == (cls, hardware, "unseen")))


def trusted(*overrides: str) -> dict[str, ClassTrust]:
    return {item.cls: item for item in trust_of(simulate(load_scenario("llama-3-8b", list(overrides))))}


@pytest.mark.parametrize(("stack", "attention"), [("torch-compile", "library"), ("torchtitan", "fa2")])
def test_attention_and_norms_have_the_errors_of_their_own_kernels(stack: str, attention: str) -> None:
    found = trusted(f"stack={stack}")
    assert found["attn.fwd"].error == mape(f"attn.fwd@{attention}", "h100")
    assert found["attn.bwd"].error == mape(f"attn.bwd@{attention}", "h100")
    assert found["norm.fwd.residual"].error == mape("norm.fwd.residual@compiled", "h100")
    assert found["norm.bwd"].error == mape("norm.bwd@compiled", "h100")
    assert found["norm.bwd"].kind == "unseen"


def test_norms_of_another_software_have_no_error_of_these() -> None:
    assert trusted()["norm.fwd"].error is None  # DeepSeek's, measured on an H800
