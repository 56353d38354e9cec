"""Chosen GPUs of a stage in the trace: their kernels and waits are those of the simulated ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reports.export.trace import Selection, process, write_trace
from reports.export.trace_members import parse_members
from reports.figures import figures_of
from simulator.engine.tasks import COMM, LANES
from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.results.simulate import simulate

UNEVEN = load_scenario("tiny-1f1b", ["routing.kind=sampled", "routing.cv=0.4"])
SLOW = load_scenario("tiny-1f1b", ["stragglers.gpus=2", "stragglers.slowdown=1.3"])


def test_each_chosen_gpu_has_rows_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    chosen = Selection.parse("0,1.3,2.0-1", None, UNEVEN)
    assert chosen.ranks == (0,)
    assert chosen.members == ((1, 3), (2, 0), (2, 1))
    result = simulate(UNEVEN)
    write_trace(result, path, chosen)
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    first = process(4)
    assert names[first] == "rank 1, GPU 3 of its stage"
    assert {pid for pid in names if pid >= first} == {process(4 + at) for at in range(3)}
    assert result.uneven is not None
    ran = result.uneven.timeline
    mine = [task for task, lane in enumerate(ran.tasks.lane) if lane == 1 * LANES + COMM]
    waited = sum(float(ran.wait[task][3]) for task in mine if task in ran.wait)
    drawn = [event for event in events if event.get("cat") == "wait" and event["pid"] == first]
    assert sum(event["dur"] for event in drawn if event["tid"] == first + 1) == pytest.approx(1e6 * waited, rel=1e-3)
    ends = [event["ts"] + event["dur"] for event in events if event["ph"] == "X" and event["pid"] == first]
    assert max(ends) <= 1e6 * ran.makespan + 1e-3


def test_gpus_alone_are_a_trace_too(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    chosen = Selection.parse("3.0", ":0.01", UNEVEN)
    assert chosen.ranks == ()
    assert write_trace(simulate(UNEVEN), path, chosen) > 0
    assert {event["pid"] for event in json.loads(path.read_text())["traceEvents"]} == {process(4)}


def test_gpus_that_are_alike_are_one() -> None:
    assert parse_members("0.0-15", SLOW) == ((0, 0), (0, 2))


@pytest.mark.parametrize(
    ("text", "scenario", "why"),
    [
        ("1.x", UNEVEN, "are written as in 8.0-3"),
        ("1.", UNEVEN, "are written as in 8.0-3"),
        ("4.0", UNEVEN, "the pipeline has ranks 0 to 3"),
        ("1.16", UNEVEN, "are 0 to 15"),
        ("1.3-2", UNEVEN, "are 0 to 15"),
        ("0.1", SLOW, "are 0, 2"),
        ("1.0", load_scenario("tiny-1f1b"), "no GPUs of a stage are simulated, all are alike"),
    ],
)
def test_gpus_that_were_not_simulated_are_refused_by_one_line(text: str, scenario: object, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        Selection.parse(text, None, scenario)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_chosen_ranks_are_those_of_the_heat_maps_and_the_timeline() -> None:
    result = simulate(UNEVEN)
    chosen = Selection.parse("1-2,1.3,2.0-1", None, UNEVEN)
    waits, all_of_them = chosen.narrowed(result).waits, result.waits
    assert waits is not None
    assert all_of_them is not None
    assert waits.ranks == (0, 1, 3)
    assert (waits.waited == all_of_them.waited[[0, 1, 3]]).all()
    assert waits.by_cause == all_of_them.by_cause
    assert Selection.parse("1-2", None, UNEVEN).narrowed(result) is result
    figure = next(figure for name, figure in figures_of(result, chosen.ranks) if name == "timeline")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["1", "2"]


def test_where_a_mean_rank_stands_for_all_gpus_cannot_be_chosen() -> None:
    with pytest.raises(InputError, match=r"a mean rank stands for all; set routing\.ranks=apart"):
        parse_members("0.1", load_scenario("tiny-1f1b", ["routing.kind=published"]))
