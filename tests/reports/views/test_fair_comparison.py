"""What may be compared: runs that fit, by the work they do, each at the price of its own hardware."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from reports.html.comparison_page import Shown, comparison_context
from reports.terminal.comparison_tables import comparison
from reports.terminal.console import rendered
from reports.verbs.compare import compare
from reports.verbs.simulate import simulate as simulate_verb
from reports.views.answer import answer_of
from reports.views.sidebyside import prices, sentence, table, work_differs
from reports.views.variants import Variant, run
from simulator.inputs import load_scenario
from simulator.results.metrics import price_of
from simulator.results.simulate import simulate

SMALL = "hardware.gpu.hbm_bytes=1e9"
"""Memory that the tiny job does not fit into, though its step is as fast as with more."""


def outcomes(path, *values, job="tiny-1f1b"):
    return [run(Variant(job=job, varied=((path, value),)), "longest-path") for value in values]


@pytest.fixture(scope="module")
def tight():
    """Of two variants the faster does not fit."""
    return [
        run(
            Variant(job="tiny-1f1b", varied=(("stack.kernel_gap", gap), ("hardware.gpu.hbm_bytes", size))),
            "longest-path",
        )
        for gap, size in (("0", "1e9"), ("1e-4", "8e10"))
    ]


def test_what_does_not_fit_is_never_the_fastest(tight):
    small, large = (one.result for one in tight)
    assert small["metrics"]["step_time_s"] < large["metrics"]["step_time_s"]
    said = sentence(["small", "large"], [small, large])
    assert said.startswith("large is the fastest of 1")
    assert "1 of 2 do not fit into memory" in said
    assert sentence(["small", "small too"], [small, small]) == "None of the 2 fits into memory."


def test_what_does_not_fit_is_marked_in_the_headline_the_table_and_the_page(tight):
    text = rendered(*comparison(tight, 120), columns=120, colour=False)
    assert "1 of 2 that ran DO NOT FIT" in text.splitlines()[1]
    assert [line.split()[2] for line in text.splitlines() if line.startswith(("0 ", "1e-4 "))] == ["NO", "yes"]
    page = comparison_context([Shown(title=name, result=one.result) for name, one in zip("ab", tight, strict=True)])
    assert page["titles"] == ["a (DOES NOT FIT)", "b"]
    assert [one.title for one in page["shown"]] == page["titles"]


def test_simulating_what_does_not_fit_ends_with_three_and_says_so_first(tmp_path):
    file = tmp_path / "page.html"
    asked = ["tiny-1f1b", "--engine", "longest-path", "-q"]
    done = CliRunner().invoke(simulate_verb, [*asked, "--set", SMALL, "--html", str(file)], standalone_mode=False)
    assert done.return_value == 3
    assert "DOES NOT FIT, rank 0 needs" in done.stdout.splitlines()[0]
    assert "DOES NOT FIT into memory: rank 0 needs" in file.read_text(encoding="utf-8")
    assert CliRunner().invoke(simulate_verb, asked, standalone_mode=False).return_value == 0


def test_comparing_ends_with_three_only_where_nothing_fits():
    asked = ["tiny-1f1b", "--engine", "longest-path", "-q", "--vary"]
    assert CliRunner().invoke(
        compare, [*asked, "hardware.gpu.hbm_bytes=1e9,8e10"], standalone_mode=False
    ).return_value in (
        None,
        0,
    )
    done = CliRunner().invoke(compare, [*asked, "hardware.gpu.hbm_bytes=1e9,1.1e9"], standalone_mode=False)
    assert done.return_value == 3


def test_runs_of_different_work_are_compared_by_tokens_and_it_is_said():
    short, long = (one.result for one in outcomes("batch.sequence_length", "1024", "2048"))
    assert work_differs([short, long]) == ["tokens per step", "sequence length"]
    assert short["metrics"]["step_time_s"] < long["metrics"]["step_time_s"]
    said = sentence(["short", "long"], [short, long])
    assert said.startswith(
        "The work differs (tokens per step, sequence length): long has the most tokens a second of 2"
    )
    assert "long the lowest price" in said
    rows = {metric.key: cells for metric, cells in table([short, long])}
    assert rows["step_time_s"][1].verdict == ""
    assert rows["cost_per_trillion_tokens_usd"][1].verdict == "better"
    text = rendered(*comparison(outcomes("batch.sequence_length", "1024", "2048"), 100), columns=100, colour=False)
    assert "the work differs" in text
    assert "tokens/s" in text


def test_equal_work_is_compared_by_the_step():
    first, second = (one.result for one in outcomes("layout.recompute", "none", "full"))
    assert work_differs([first, second]) == []
    assert "is the fastest of 2" in sentence(["none", "full"], [first, second])


@pytest.mark.parametrize("job", ["deepseek-v3-pretrain", "deepseek-v2-pretrain", "tiny-1f1b"])
@pytest.mark.parametrize("hardware", ["h800", "h100", "b200", "gb300"])
def test_every_gpu_has_the_price_of_its_own_profile(job, hardware):
    scenario = load_scenario(job, [f"hardware={hardware}"])
    price, whose = price_of(scenario)
    assert price == scenario.cluster.price_per_gpu_hour
    assert f"of the hardware profile {hardware} (" in whose
    assert "202" in whose  # a year: prices change


def test_a_price_of_the_job_is_taken_and_said():
    own = load_scenario("tiny-1f1b", ["hardware=b200", "run.price_per_gpu_hour=3"])
    assert price_of(own) == (3.0, "of the job")
    assert "$3.00 a GPU-hour, the price of the job" in prices([simulate(own, engine="longest-path").as_dict()])


def test_compared_hardware_shows_each_price_with_its_date():
    told = outcomes("hardware", "h800", "b200")
    ran = [one.result for one in told]
    assert [result["metrics"]["price_per_gpu_hour_usd"] for result in ran] == [2.0, 4.6]
    text = " ".join(rendered(*comparison(told, 100), columns=100, colour=False).split())
    assert "$2.00 a GPU-hour, the price of the hardware profile h800 (arXiv 2412.19437v2" in text
    assert "$4.60 a GPU-hour, the price of the hardware profile b200 (" in text
    assert json.dumps(ran[1]["provenance"]["price_per_gpu_hour"])


def test_the_answer_of_a_page_starts_with_what_does_not_fit():
    result = simulate(load_scenario("tiny-1f1b", [SMALL]), engine="longest-path")
    assert answer_of(result).startswith("DOES NOT FIT into memory: rank 0 needs")
