"""The workload of a job: what is asked of it changes with it, and an unknown one is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from simulator.engine.longest_path import longest_path
from simulator.engine.lower import lower, price_model
from simulator.errors import InputError
from simulator.inputs import load_job, load_scenario
from simulator.memory import memory_of_rows
from simulator.results.metrics import mean_phases, rank_times
from simulator.results.simulate import simulate
from simulator.schedule import Action, Schedule
from simulator.spec import scenario as scenarios
from simulator.spec.scenario import Scenario
from simulator.spec.workload import WORKLOADS, Training

ONLY_FORWARD = Training(directions=("F",), resident=frozenset(("weights",)), phases=("forward", "bubble", "other"))


@pytest.fixture
def forward(monkeypatch: pytest.MonkeyPatch) -> Scenario:
    """A job that only runs forward: what a workload may say that training does not."""
    monkeypatch.setattr(scenarios, "WORKLOADS", {**WORKLOADS, "training": ONLY_FORWARD})
    return load_scenario("tiny-1f1b")


def rows(scenario: Scenario) -> Schedule:
    """Every microbatch forward through every stage, nothing else."""
    pp, many = scenario.job.layout.pp, scenario.job.microbatches
    each = [tuple(Action("F", stage, microbatch) for microbatch in range(many)) for stage in range(pp)]
    return Schedule(name="forward", stages=pp, microbatches=many, rows=tuple(each))


def test_a_job_trains_unless_it_says_otherwise() -> None:
    scenario = load_scenario("tiny-1f1b")
    assert scenario.job.workload == "training"
    assert scenario.workload == Training()
    assert load_scenario("tiny-1f1b", ["workload=training"]) == scenario


def test_a_job_file_may_name_it(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text('extends = "tiny-1f1b"\nworkload = "training"\n', encoding="utf-8")
    assert load_job(str(path)).workload == "training"


def test_an_unknown_workload_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='workload: "dreaming": must be "training"') as error:
        load_scenario("tiny-1f1b", ["workload=dreaming"])
    assert "\n" not in str(error.value)
    path = tmp_path / "job.toml"
    path.write_text('extends = "tiny-1f1b"\nworkload = "trainin"\n', encoding="utf-8")
    with pytest.raises(InputError, match=r'job.toml: workload: "trainin": must be "training"'):
        load_job(str(path))


def test_phases_of_a_result_are_those_of_the_workload() -> None:
    result = simulate(load_scenario("tiny-dualpipe"))
    assert tuple(result.breakdown_s) == Training().phases
    assert {action.phase for action in result.timeline.tasks.actions} <= set(Training().phases)


def test_blocks_have_only_the_directions_that_run(forward: Scenario) -> None:
    built = price_model(forward, forward.job.layout.pp)
    for block in built.blocks.values():
        assert {segment.direction for segment in block.forward} == {"F"}
        assert block.backward == ()
        assert block.saved_bytes == 0.0


def test_without_an_optimizer_nothing_is_synced_or_updated(forward: Scenario) -> None:
    schedule = rows(forward)
    tasks = lower(price_model(forward, schedule.stages), schedule)
    assert [action.phase for action in tasks.actions] == ["forward"] * (schedule.stages * schedule.microbatches)
    assert all(priced.op.part == "F" for sequence in tasks.sequence for priced in sequence.ops)
    timeline = longest_path(tasks)
    phases = mean_phases(rank_times(timeline, forward.workload))
    assert set(phases) >= {"forward", "bubble"}
    assert phases["forward"] > 0.0


def test_memory_holds_what_must_be_resident(forward: Scenario) -> None:
    schedule = rows(forward)
    report = memory_of_rows(price_model(forward, schedule.stages), schedule)
    for rank in report.ranks:
        assert rank.group("weights") > 0.0
        assert rank.group("gradients") == rank.group("optimizer") == rank.group("activations") == 0.0
    sharded = replace(forward, job=replace(forward.job, layout=replace(forward.job.layout, zero=2)))
    items = [item.name for item in memory_of_rows(price_model(sharded, schedule.stages), schedule).worst.items]
    assert not any("gradient" in name for name in items)
