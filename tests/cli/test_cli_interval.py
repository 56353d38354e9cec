"""`--interval` of the verbs: what is printed, as JSON and for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

JOB = "tiny-dualpipe"
FEW = ("--interval", "--draws", "6")


def of(run: Any, *words: str) -> Any:
    result = run(*words, "--json", "-q")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_simulate_puts_it_around_its_own_step_time(run: Any) -> None:
    plain, found = of(run, "simulate", JOB), of(run, "simulate", JOB, *FEW)
    around = found.pop("interval")
    assert found == plain  # nothing else changes
    assert around["forecast_s"] == plain["metrics"]["step_time_s"]
    assert around["p10_s"] < around["p50_s"] < around["p90_s"]
    assert sum(one["share"] for one in around["contributions"]) + around["interactions"] == pytest.approx(1.0)
    assert {"source", "group", "share", "text"} == set(around["contributions"][0])


@pytest.mark.slow
def test_simulate_takes_draws_and_a_seed(run: Any) -> None:
    first = of(run, "simulate", JOB, *FEW)["interval"]
    assert of(run, "simulate", JOB, *FEW, "--seed", "0")["interval"] == first
    other = of(run, "simulate", JOB, *FEW, "--seed", "7")["interval"]
    assert (other["seed"], other["draws"]) == (7, 6)
    assert other["p90_s"] != first["p90_s"]


def test_the_report_and_the_page_say_what_contributes(run: Any, tmp_path: Path) -> None:
    page = tmp_path / "step.html"
    shown = run("simulate", JOB, *FEW, "--html", str(page)).stdout
    assert "How sure the step time is" in shown
    assert "in 8 of 10 cases" in shown
    assert 'id="contributions"' in page.read_text(encoding="utf-8")
    assert run("simulate", JOB, "--html", str(page)).stdout.count("How sure") == 0
    assert 'id="contributions"' not in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_compare_has_one_for_each_variant(run: Any) -> None:
    words = ("compare", JOB, "--vary", "layout.schedule=1f1b,zb1p", *FEW)
    for variant in of(run, *words)["variants"]:
        result = variant["result"]
        assert result["interval"]["forecast_s"] == result["metrics"]["step_time_s"]
    shown = run(*words).stdout
    assert "8 of 10 [ms]" in shown
    assert "8 of 10" not in run(*words[:4]).stdout


@pytest.mark.slow
def test_search_has_one_for_each_of_the_best(run: Any) -> None:
    words = ("search", JOB, "--over", "layout.schedule=1f1b,zb1p,dualpipe", "--top", "2", "--confirm", "1", *FEW)
    first, second = of(run, *words)["best"]
    assert first["interval"]["forecast_s"] == first["events"]["step_time_s"]
    assert second["interval"]["forecast_s"] == second["step_time_s"]
    assert "8 of 10 [s]" in run(*words).stdout


@pytest.mark.slow
@pytest.mark.slow
def test_plan_sums_the_ends_of_its_phases(run: Any) -> None:
    found = of(run, "plan", JOB, *FEW)
    around, phase = found["interval"], found["phases"][0]
    step = around["phases"][0]
    assert step["forecast_s"] == phase["step"]
    for end in ("p10", "p50", "p90"):
        assert around["run_s"][end] == pytest.approx(phase["steps"] * step[f"{end}_s"])
        assert around["gpu_hours"][end] == pytest.approx(phase["gpu_hours"] * step[f"{end}_s"] / phase["step"])
        assert around["cost_usd"][end] == pytest.approx(phase["dollars"] * step[f"{end}_s"] / phase["step"])
    assert "How sure that is" in run("plan", JOB, *FEW).stdout


@pytest.mark.slow
def test_validate_counts_published_steps_in_their_intervals(run: Any) -> None:
    found = of(run, "validate", "--only", "E.narayanan.t1.1.7b", "--interval", "--jobs", "1")
    around, figures = found["intervals"], {one["id"]: one for one in found["figures"]}
    assert around["steps"] == len(around["figures"]) > 0
    assert around["inside"] == sum(one["inside"] for one in around["figures"])
    for one in around["figures"]:
        assert one["p10_over_forecast"] < one["p90_over_forecast"]
        assert one["published_over_forecast"] == pytest.approx(1.0 + figures[one["id"]]["error"])  # a rate
        within = one["p10_over_forecast"] <= one["published_over_forecast"] <= one["p90_over_forecast"]
        assert one["inside"] == within


@pytest.mark.parametrize("option", ["--draws", "--seed"])
def test_draws_and_seed_alone_are_a_mistake(run: Any, option: str) -> None:
    result = run("simulate", JOB, option, "3")
    assert result.exit_code == 2
    assert result.stderr.strip() == (
        "foretrain: --draws and --seed belong to --interval (see foretrain simulate --help)"
    )


def test_one_draw_is_too_few(run: Any) -> None:
    result = run("simulate", JOB, "--interval", "--draws", "1")
    assert result.exit_code == 2
    assert "--draws" in result.stderr
    assert "Traceback" not in result.stderr
