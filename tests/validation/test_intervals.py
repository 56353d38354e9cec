"""How intervals of published steps are counted and shown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from reports.terminal import validation_tables
from simulator.validation import Figure, Placed, coverage, off


def step(name: str, published: float, *, low: float = 0.95, high: float = 1.05, fp8: bool = False) -> Placed:
    figure = Figure(id=name, section="E", system="", quantity="step_time", value=1.0, unit="s", source="made up")
    recipe = "fp8_tensor" if fp8 else "bf16"
    return Placed(figure=figure, published=published, low=low, high=high, precision=recipe, experts=fp8)


STEPS = [step("E.one.a", 1.0), step("E.one.b", 1.04), step("E.two.a", 1.2, fp8=True), step("E.two.b", 0.9, fp8=True)]


def shown(placed: list[Placed]) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(*validation_tables._held(placed))
    return out.getvalue()


def test_steps_in_their_intervals_are_counted_by_family_and_by_kind() -> None:
    assert coverage(STEPS) == 0.5
    text = shown(STEPS)
    rows = {line.strip()[:8].strip(): line.split() for line in text.splitlines() if line.strip()}
    assert rows["E.one"][1:4] == ["2", "2", "100"]
    assert rows["E.two"][1:6] == ["2", "0", "0", "1", "1"]
    assert rows["all"][1:4] == ["4", "2", "50"]
    assert "FP8, experts" in text
    assert "BF16, dense" in text


def test_the_median_error_is_that_of_published_over_forecast() -> None:
    assert off(STEPS) == pytest.approx(0.02)
    assert off(STEPS[2:]) == pytest.approx(0.05)
    assert off([]) == coverage([]) == 0.0


def test_too_few_inside_are_explained_by_what_is_one_sided() -> None:
    assert "FP8, experts +5.0 %" in " ".join(shown(STEPS).split())
    assert "What is missing" not in shown(STEPS[:2])
    assert {"precision", "experts", "inside"} <= STEPS[0].as_dict().keys()
