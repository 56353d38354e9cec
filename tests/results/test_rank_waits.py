"""Who waits for whom: sums, the slow rank, causes, and the figure and tables that show them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from cli import foretrain
from reports.figures.ranks_figure import ranks_figure
from reports.views.actions import action_list
from reports.views.idle import idle_by_cause
from simulator.inputs import load_scenario
from simulator.results.simulate import simulate

BOTH = ("routing.kind=skewed", "routing.max_over_mean=1.3", "stragglers.gpus=2", "stragglers.slowdown=1.2")


@pytest.mark.parametrize("job", ["tiny-1f1b", "tiny-dualpipe"])
def test_others_wait_for_the_full_rank_in_every_layer(job: str) -> None:
    found = simulate(load_scenario(job, BOTH[:2])).waits
    assert found is not None
    assert found.ranks[found.slowest()[0]] == 0
    assert found.ranks == (0, 1, 8)  # the full one, one of its node, one of another node
    assert found.mean_load[0] == pytest.approx(1.3)
    routed = [at for at, layer in enumerate(found.layers) if layer >= 0]
    assert (found.caused[0, routed] > 0.0).all()
    assert found.waited[0, routed].sum() < 0.01 * found.waited[1, routed].sum()
    assert list(found.by_cause) == ["load"]


def test_causes_add_up_and_idle_time_is_split_by_them() -> None:
    result = simulate(load_scenario("tiny-dualpipe", BOTH))
    assert result.waits is not None
    assert result.uneven is not None
    waits = result.waits.by_cause
    assert waits["load"] > 0.0
    assert waits["hardware"] > 0.0
    in_all = sum(float(wait[-1]) for wait in result.uneven.timeline.wait.values())
    assert sum(waits.values()) == pytest.approx(in_all)
    idle = idle_by_cause(result, action_list(result.timeline))
    assert idle.causes["slow_hardware"] / idle.causes["slowest"] == pytest.approx(waits["hardware"] / waits["load"])
    step, busy = result.metrics["step_time_s"], sum(rank.compute_busy for rank in result.ranks) / len(result.ranks)
    assert idle.total == pytest.approx(step - busy)


def test_the_map_has_every_rank_and_layer() -> None:
    waits = simulate(load_scenario("tiny-1f1b", ["routing.kind=sampled", "routing.cv=0.3"])).waits
    assert waits is not None
    images = [axes.images[0].get_array() for axes in ranks_figure(waits).axes if axes.images]
    assert [image.shape for image in images[:3]] == [(16, len(waits.layers))] * 3


def test_ranks_are_named_in_the_report_and_in_json() -> None:
    command = ["simulate", "tiny-1f1b", "-q", *(part for one in BOTH[:2] for part in ("--set", one))]
    text = CliRunner().invoke(foretrain, command).stdout
    assert "Ranks that others wait for" in text
    assert "uneven loads 100.0 %" in text
    said = json.loads(CliRunner().invoke(foretrain, [*command, "--json"]).stdout)["uneven"]
    assert said["ranks"][0]["others_wait_s"] > 0.0
    assert "uneven" not in json.loads(CliRunner().invoke(foretrain, ["simulate", "tiny-1f1b", "--json", "-q"]).stdout)
