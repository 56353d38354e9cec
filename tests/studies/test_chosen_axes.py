"""Axes that a search chooses itself, confirming over processes, and unequal stages that it names."""

from __future__ import annotations

import pytest

from reports.terminal.console import rendered
from reports.terminal.search_tables import as_dict, report
from reports.views.words import unequal
from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.studies.search import confirm, question, search
from simulator.studies.search.axes import Question, Scenarios
from simulator.studies.search.chosen import MOST, chosen_axes


def axes_of(asked: Question) -> dict[str, tuple[str, ...]]:
    return {axis.path: axis.values for axis in asked.axes}


def test_values_divide_what_they_cut() -> None:
    asked = question("deepseek-v3-pretrain", (), ())
    axes, base = axes_of(asked), load_scenario("deepseek-v3-pretrain")
    assert asked.chosen
    assert asked.size <= MOST
    for path, what in (("layout.tp", 128), ("layout.ep", 256)):
        assert all(what % int(value) == base.job.gpus % int(value) == 0 for value in axes[path])
    assert {"16"} <= set(axes["layout.pp"])
    assert {"dualpipe", "dualpipev", "1f1b"} <= set(axes["layout.schedule"])
    assert str(base.job.layout.recompute) in axes["layout.recompute"]


def test_the_jobs_own_combination_is_among_them() -> None:
    asked, base = question("tiny-1f1b", (), ()), load_scenario("tiny-1f1b")
    scenarios = Scenarios(asked)
    assert any(scenarios.of(number) == base for number in range(asked.size))


def test_every_value_keeps_all_rules_with_some_others() -> None:
    asked = question("tiny-1f1b", (), ())
    scenarios, used = Scenarios(asked), set[tuple[int, str]]()
    for number in range(asked.size):
        if not any(problem.severity == "error" for problem in check(scenarios.of(number))):
            used |= set(enumerate(asked.values(number)))
    assert used == {(at, value) for at, axis in enumerate(asked.axes) for value in axis.values}


@pytest.mark.parametrize(
    ("job", "more", "there", "not_there"),
    [
        ("llama-3-8b", (), "layout.tp", "layout.ep"),
        ("llama-3-8b", ("batch.sequence_length=32768",), "layout.cp", "layout.ep"),
        ("llama-3-8b", ("layout.vpp=2", "layout.schedule=interleaved", "layout.pp=2"), "layout.vpp", "layout.cp"),
        ("deepseek-v3-decode-ep128", (), "serving.sequences", "layout.schedule"),
    ],
)
def test_what_is_varied_follows_the_job(job: str, more: tuple[str, ...], there: str, not_there: str) -> None:
    paths = {axis.path for axis in chosen_axes(load_scenario(job, more))}
    assert there in paths
    assert not_there not in paths


def test_a_long_list_loses_what_is_farthest_from_the_job() -> None:
    wide = {axis.path: axis.values for axis in chosen_axes(load_scenario("deepseek-v3-pretrain"))}
    assert "64" in wide["layout.ep"]
    assert "1" not in wide["layout.ep"]  # six steps from 64


def test_where_nothing_can_be_varied_the_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.studies.search.chosen.chosen_axes", lambda scenario: ())
    with pytest.raises(InputError, match=r"^--over: tiny-1f1b: nothing to vary was found"):
        question("tiny-1f1b", (), ())


@pytest.fixture(scope="module")
def asked() -> Question:
    return question("tiny-1f1b", (), ["layout.pp=2,4", "layout.schedule=1f1b,zb1p"])


def test_unequal_stages_of_the_best_are_named(asked: Question) -> None:
    found = search(asked, jobs=1)
    sure = confirm(asked, found.best, jobs=1)
    page = rendered(*report(found, sure, 1.0), columns=300, colour=False)
    assert "Without --over" not in page
    uneven = [one for one in sure if one.excess > 0.02]
    assert uneven
    for one in uneven:
        assert unequal(one.stages, one.excess) in page
    assert as_dict(found, sure)["best"][0]["events"]["busiest_over_mean"] > 1.0


def test_stages_are_counted_in_layers() -> None:
    assert unequal(("1 dense", "2 moe"), 0.051).startswith("2 stages of 1 to 2 layers, the busiest rank computes 5%")
    assert unequal(("3 dense", "3 moe"), 0.1).startswith("2 stages of 3 layers")


def test_chosen_axes_are_said(asked: Question) -> None:
    chosen = Question(job=asked.job, overrides=asked.overrides, axes=asked.axes, chosen=True)
    found = search(chosen, jobs=1)
    page = rendered(*report(found, (), 1.0), columns=300, colour=False)
    assert (
        "Without --over, what usually matters for such a job is varied: layout.pp=2,4; layout.schedule=1f1b,zb1p."
        in page
    )
    assert as_dict(found, ())["axes_chosen"] is True


@pytest.mark.slow
def test_two_processes_confirm_the_same(asked: Question) -> None:
    found = search(asked, jobs=1)
    assert confirm(asked, found.best, jobs=2) == confirm(asked, found.best, jobs=1)
