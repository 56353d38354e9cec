"""Heat maps and slowest ranks of uneven steps on the page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from reports.html import write_simulation
from reports.html.waits_page import SHADES, waits_context
from reports.views import words
from simulator.inputs import load_scenario
from simulator.results.rank_waits import RankWaits
from simulator.results.simulate import simulate

TWO = RankWaits(
    ranks=(0, 5),
    layers=(-1, 3, 4),
    load=np.array([[1.0, 1.5, 0.5], [1.0, 0.5, 1.5]]),
    waited=np.array([[0.0, 0.0, 0.002], [0.001, 0.004, 0.0]]),
    caused=np.array([[0.001, 0.004, 0.0], [0.0, 0.0, 0.002]]),
    by_cause={"load": 0.006, "jitter": 0.002},
)
MS = words.unit_for(0.01)


def test_maps_have_layers_in_order_with_gradients_last() -> None:
    shown = waits_context(TWO, MS)
    assert shown is not None
    assert (shown["first_layer"], shown["last_layer"]) == ("3", "gradients")
    load, caused, waited = shown["maps"]
    assert (load["columns"], load["rows"]) == (3, 2)
    assert (load["least"], load["most"]) == ("0.50", "1.50")
    darkest = {round(opacity, 3): path for opacity, path in load["shades"]}[1.0]
    assert darkest == "M0,0h10v10h-10zM10,10h10v10h-10z"  # rank 0 in layer 3, rank 5 in layer 4
    assert [len(one["shades"]) for one in (caused, waited)] == [3, 3]


def test_the_rank_that_others_wait_for_comes_first_with_its_worst_layer() -> None:
    shown = waits_context(TWO, MS)
    assert shown is not None
    assert [row["rank"] for row in shown["slowest"]] == ["0", "5"]
    assert shown["slowest"][0]["layer"] == "3"
    assert shown["slowest"][0]["caused"] == MS.of(0.005)
    assert [(one["name"], one["share"]) for one in shown["causes"]] == [("uneven loads", 0.75), ("late hosts", 0.25)]
    assert shown["maps"][0]["lines"][1].startswith("rank 5: load 1.000, others wait")


def test_equal_values_are_one_empty_shade_and_equal_ranks_no_section() -> None:
    even = RankWaits(
        ranks=(0,), layers=(1,), load=np.ones((1, 1)), waited=np.zeros((1, 1)), caused=np.zeros((1, 1)), by_cause={}
    )
    shown = waits_context(even, MS)
    assert shown is not None
    assert [one["shades"] for one in shown["maps"]] == [[], [], []]
    assert shown["causes"] == []
    assert waits_context(None, MS) is None


def test_the_page_draws_them_where_ranks_differ(tmp_path: Path) -> None:
    scenario = load_scenario("tiny-1f1b", ["stragglers.gpus=1", "stragglers.slowdown=1.2"])
    write_simulation(simulate(scenario, engine="longest-path"), tmp_path / "step.html")
    page = (tmp_path / "step.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="waits">') :].partition("</section>")[0]
    assert section.count("<svg") == 3
    assert "slow hardware" in section
    opacities = {float(one) for one in re.findall(r'fill-opacity="([\d.]+)"', section)}
    assert opacities <= {round(shade / (SHADES - 1), 2) for shade in range(SHADES)}
    assert '<a href="#waits">' in page
