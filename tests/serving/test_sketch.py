"""Quantiles within their error, whatever the numbers and their order."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.serving.sketch import ERROR, Sketch

numbers = st.lists(st.floats(min_value=1e-9, max_value=1e6) | st.just(0.0), min_size=1, max_size=200)


def _sketch(values: list[float]) -> Sketch:
    out = Sketch()
    for value in values:
        out.add(value)
    return out


@given(numbers, st.floats(min_value=0.01, max_value=1.0))
def test_quantiles_are_within_their_error(values: list[float], share: float) -> None:
    exact = sorted(values)[ceil(share * len(values)) - 1]
    found = _sketch(values).quantile(share)
    assert found == pytest.approx(exact, rel=1.01 * ERROR, abs=2e-12)


@given(numbers)
def test_order_and_grouping_change_nothing(values: list[float]) -> None:
    one, other, doubled = _sketch(values), _sketch(values[::-1]), Sketch()
    for value in values:
        doubled.add(value, 3)
    assert one.quantile(0.9) == other.quantile(0.9)
    assert one.mean == pytest.approx(sum(values) / len(values))
    assert doubled.count == 3 * len(values)
    assert doubled.quantile(0.5) == one.quantile(0.5)
    assert one.steps()[-1][1] == 1.0 if one.steps() else max(values) <= 1e-12


def test_without_numbers_there_is_nothing_to_say() -> None:
    assert Sketch().mean is None
    assert Sketch().quantile(0.5) is None
