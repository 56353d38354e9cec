"""Errors of published step times by source, precision and GPU, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from reports.terminal.console import rendered
from reports.terminal.validation_tables import as_dict, markdown, report
from simulator.validation import Outcome, by_precision
from simulator.validation.figures import Figure
from simulator.validation.outcome import precision_of


def outcome(name: str, published: float, predicted: float, unit: str = "s", **config: Any) -> Outcome:
    figure = Figure(
        id=name, section="E", system="x", quantity="q", value=published, unit=unit, source="s", config=config
    )
    return Outcome(figure=figure, use="comparison", predicted=predicted)


STEPS = [
    outcome("E.a.1", 10.0, 9.0, precision="FP8", gpu="H100"),
    outcome("E.a.2", 10.0, 10.5, precision="FP8 (page default)", gpu="H100"),
    outcome("E.a.3", 100.0, 125.0, unit="tokens/s/GPU", precision="BF16", gpu="H100"),
    outcome("E.a.4", 40.0, 50.0, unit="GB", precision="BF16", gpu="H100"),
    outcome("B.x.1", 1.0, 2.0, precision="BF16", gpu="H100"),
]


def test_rates_count_as_times_and_memory_not_at_all() -> None:
    bf16, fp8 = by_precision(STEPS)
    assert (fp8.precision, fp8.errors) == ("FP8", pytest.approx((-0.1, 0.05)))
    assert (fp8.bias, fp8.mape, fp8.middle) == pytest.approx((-0.025, 0.075, 0.075))
    assert bf16.errors == pytest.approx((-0.2,))  # a quarter more tokens a second: a fifth less time


@pytest.mark.parametrize(
    ("stated", "name"),
    [("FP8-MX", "MXFP8"), ("FP8-CS (FP8-MX)", "FP8"), ("float8_rowwise", "FP8"), ("bf16", "BF16"), ("NVFP4", "FP4")],
)
def test_precisions_are_read_as_sources_spell_them(stated: str, name: str) -> None:
    assert precision_of(outcome("E.a.1", 1.0, 1.0, precision=stated).figure) == name


def test_report_page_and_json_hold_them() -> None:
    assert as_dict(STEPS)["steps"][1]["bias"] == pytest.approx(-0.025)  # type: ignore[index]
    assert "| E.a | FP8 | H100 | 2 | -2.5 % | 7.5 % | 7.5 % |" in markdown(STEPS)
    assert "by source and precision" in rendered(*report(STEPS), columns=80)
