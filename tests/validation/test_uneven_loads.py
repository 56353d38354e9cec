"""Published throughput under uneven loads next to the forecast."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.validation.runs.uneven_loads import uneven_runs

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "loads.md"


@pytest.mark.slow
def test_the_page_shows_todays_forecasts_next_to_the_published_throughput() -> None:
    found = list(uneven_runs())
    page = PAGE.read_text(encoding="utf-8")
    for one in found:
        assert f"{one.load.max_over_mean:.2f} | {one.load.throughput:.2f} | {one.forecast:.2f} |" in page
    by_load = sorted(found, key=lambda one: one.load.max_over_mean)
    assert [one.forecast for one in by_load] == sorted((one.forecast for one in found), reverse=True)
    assert all(0.0 < one.forecast < 1.0 for one in found)
