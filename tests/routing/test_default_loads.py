"""Loads of a training job that says nothing of them, as a mean rank sees them or each rank apart."""

from __future__ import annotations

import pytest

from reports.views import words
from reports.views.variants import variants
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.results.simulate import members_of, simulate
from simulator.routing.published_loads import default_loads_of, is_published, with_equal_loads, with_ranks_apart
from simulator.spec.job import Routing

TINY = "tiny-1f1b"
PUBLISHED = ["routing.kind=published"]
SHORT = "batch.global_batch_size=64"
QWEN = ["model=qwen3-30b-a3b", "layout.ep=8", "layout.tp=1", "layout.pp=1", "gpus=8"]


@pytest.mark.parametrize(
    ("job", "overrides", "gate"),
    [
        ("deepseek-v3-pretrain", (), "bias"),
        ("deepseek-v3-zb1p", (), "bias"),
        ("deepseek-v4-flash-pretrain", (), "bias"),
        ("llama-3-8b", QWEN, "loss"),
    ],
)
def test_a_job_that_says_nothing_takes_what_others_measured(job: str, overrides: list[str], gate: str) -> None:
    scenario = load_scenario(job, overrides)
    taken = default_loads_of(scenario.model)
    assert taken is not None
    assert taken.gate == gate
    assert is_published(scenario.job.routing, taken)
    assert scenario.job.routing.ranks == "mean"
    assert "as others measured gates that are balanced alike" in words.of_training_loads(scenario)


@pytest.mark.parametrize(
    ("job", "overrides"),
    [
        ("deepseek-v2-pretrain", ()),  # drops what exceeds the mean
        ("llama-3-8b", ()),  # no experts
        (TINY, ()),  # says so
        ("deepseek-v3-pretrain", ("routing.kind=uniform",)),
        ("deepseek-v3-decode", ()),
    ],
)
def test_without_evidence_or_where_it_says_so_ranks_are_equal(job: str, overrides: tuple[str, ...]) -> None:
    scenario = load_scenario(job, overrides)
    assert scenario.job.routing == Routing()
    assert with_equal_loads(scenario) == with_ranks_apart(scenario) == scenario


def test_a_number_of_another_kind_is_no_request_for_published_loads() -> None:
    scenario = load_scenario("deepseek-v3-pretrain", ["routing.cv=0.2"])
    assert scenario.job.routing.kind == "uniform"
    assert [problem.key for problem in check(scenario) if problem.rule == "routing"] == ["routing.cv"]


@pytest.mark.parametrize(
    ("job", "overrides", "suggests"),
    [
        (TINY, ["routing.ranks=apart"], "set routing.kind"),
        ("deepseek-v3-decode", ["routing.ranks=mean"], "set serving.ranks"),
        (TINY, [*PUBLISHED, "routing.ranks=mean", "stragglers.gpus=1", "stragglers.slowdown=1.1"], "leave it out"),
    ],
)
def test_how_ranks_are_seen_must_have_a_use(job: str, overrides: list[str], suggests: str) -> None:
    found = [one for one in check(load_scenario(job, overrides)) if one.key == "routing.ranks"]
    assert [one.severity for one in found] == ["warning"]
    assert found[0].suggestion.startswith(suggests)


def test_a_mean_rank_waits_about_as_long_as_among_ranks_apart() -> None:
    equal, mean, apart = (
        simulate(load_scenario(TINY, [SHORT, *overrides]))
        for overrides in ([], PUBLISHED, [*PUBLISHED, "routing.ranks=apart"])
    )
    step = [one.metrics["step_time_s"] for one in (equal, mean, apart)]
    assert step[0] < step[1]
    assert step[1] == pytest.approx(step[2], rel=0.02)
    assert mean.waits is None
    assert apart.waits is not None
    assert len(apart.waits.ranks) == 16


def test_with_slow_gpus_ranks_are_apart() -> None:
    slow = ["stragglers.gpus=1", "stragglers.slowdown=1.1"]
    assert members_of(load_scenario(TINY, PUBLISHED)) == ()
    assert len(members_of(load_scenario(TINY, [*PUBLISHED, *slow]))) == 16


def test_compared_with_a_slow_gpu_the_job_as_it_is_has_its_ranks_apart() -> None:
    assert all(one.apart for one in variants([TINY], [], [], ["straggler"]))
    assert not any(one.apart for one in variants([TINY], [], [], ["coprocessor"]))
    scenario = load_scenario(TINY, PUBLISHED)
    assert with_ranks_apart(scenario).job.routing.ranks == "apart"
    assert with_equal_loads(scenario).job.routing == Routing()
