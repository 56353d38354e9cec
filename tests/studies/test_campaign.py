"""Whole runs: phases, ramp, fallbacks, failures, energy."""

from __future__ import annotations

import json
from dataclasses import replace
from math import exp, expm1

import numpy as np
import pytest
from click import UsageError
from click.testing import CliRunner

from reports.verbs.plan import plan
from simulator.errors import InputError, PlanError
from simulator.inputs import load_scenario
from simulator.results.simulate import simulate
from simulator.studies.campaign import (
    Campaign,
    Failures,
    Phase,
    Supply,
    energy_of,
    expected,
    forecast,
    load_campaign,
    optimum_interval,
    sampled,
)
from simulator.studies.campaign.forecast import plateaus, runnable
from simulator.studies.campaign.goodput import _wasted

FAILURES = Failures(mtbf_gpu_hours=50_000, checkpoint_s=60, restart_s=900)


def tiny_campaign(**changes):
    phases = (
        Phase(name="ramp", part="pre", tokens=1e8, ramp_from=32, ramp_steps=4),
        Phase(name="rest", part="pre", tokens=9e8),
        Phase(name="long", part="post", steps=10, set=("batch.sequence_length=2048", "layout.cp=2")),
    )
    return replace(Campaign(name="tiny", job="tiny-dualpipe", phases=phases), **changes)


@pytest.fixture(scope="module")
def tiny_run():
    return forecast(tiny_campaign(), engine="longest-path")


def test_a_phase_costs_its_steps_times_the_step(tiny_run):
    rest = next(phase for phase in tiny_run.phases if phase.name == "rest")
    step = simulate(load_scenario("tiny-dualpipe"), engine="longest-path").metrics["step_time_s"]
    assert rest.step == pytest.approx(step)
    assert rest.steps == pytest.approx(9e8 / (160 * 1024))
    assert rest.gpu_hours == pytest.approx(rest.steps * step * 64 / 3600)
    assert rest.dollars == pytest.approx(2.0 * rest.gpu_hours)


def test_parts_add_up(tiny_run):
    assert tiny_run.parts == ("pre", "post")
    hours = sum(tiny_run.part(name)[0] for name in tiny_run.parts)
    assert hours == pytest.approx(sum(phase.gpu_hours for phase in tiny_run.phases))
    assert tiny_run.seconds * 64 / 3600 == pytest.approx(hours)


def test_tokens_of_a_ramp_are_those_of_its_phase():
    scenario = load_scenario("deepseek-v3-pretrain")
    phase = Phase(name="ramp", tokens=469e9, ramp_from=3072, ramp_steps=5)
    found = plateaus(phase, scenario)
    sizes = [one.job.batch.global_batch_size for one, _ in found]
    assert sum(tokens for _, tokens in found) == pytest.approx(469e9)
    assert sizes[0] == 3072
    assert sizes == sorted(sizes)
    assert all(one.job.microbatches % 2 == 0 for one, _ in found)


def test_a_batch_too_small_for_dualpipe_falls_back_and_says_so():
    small = load_scenario("deepseek-v3-pretrain", ["batch.global_batch_size=3072"])
    scenario, remarks = runnable(small, ("zb1p", "1f1b"))
    assert scenario.job.layout.schedule == "1f1b"  # zb1p runs it but does not fit
    assert "24 microbatches" in remarks[0]
    with pytest.raises(PlanError, match="no fallback"):
        runnable(small, ("dualpipev",))


def test_a_phase_that_does_not_fit_says_so():
    found = forecast(tiny_campaign(), ["hardware.gpu.hbm_bytes=1.0e9"], engine="longest-path")
    assert any("does not fit" in remark for phase in found.phases for remark in phase.remarks)


def test_the_shipped_campaign_holds_the_published_run():
    campaign = load_campaign("deepseek-v3")
    assert sum(phase.tokens for phase in campaign.phases if phase.part == "pre-training") == pytest.approx(14.8e12)
    assert sum(campaign.published.values()) == 2788e3
    assert {phase.steps for phase in campaign.phases if phase.part == "context extension"} == {1000}


def test_published_figures_change_no_number(tiny_run):
    other = forecast(tiny_campaign(published={"pre": 1.0, "post": 1e9}), engine="longest-path")
    assert other.phases == tiny_run.phases


@pytest.mark.parametrize(
    "phase",
    [
        Phase(name="x"),
        Phase(name="x", tokens=1.0, steps=1),
        Phase(name="x", tokens=-1.0),
        Phase(name="x", steps=3, ramp_from=2),
    ],
)
def test_bad_phases_are_errors_that_name_them(phase, tmp_path):
    lines = [f'name = "{phase.name}"']
    lines += [f"{k} = {v}" for k in ("tokens", "steps", "ramp_from") if (v := getattr(phase, k)) is not None]
    file = tmp_path / "c.toml"
    file.write_text('job = "tiny-dualpipe"\n[[phases]]\n' + "\n".join(lines))
    with pytest.raises(InputError, match=r"phases\[0\] \(x\)"):
        load_campaign(str(file))


def test_goodput_by_hand():
    lost = 1000 / (50_000 * 3600)
    by_hand = 600 / ((1 / lost + 900) * expm1(lost * (600 + 60)))
    assert expected(FAILURES, 1000, 600.0) == pytest.approx(by_hand)
    assert optimum_interval(FAILURES, 1000) == pytest.approx((2 * 60 / lost) ** 0.5)
    assert optimum_interval(replace(FAILURES, interval_s=123.0), 1000) == 123.0


def test_sampled_runs_agree_with_the_closed_form():
    with pytest.raises(PlanError, match="shorter than a step of 20 s"):
        sampled(replace(FAILURES, interval_s=19.0), 2048, 50 * 86400.0, step=20.0)
    found = sampled(FAILURES, 2048, 50 * 86400.0)
    assert found.mean == pytest.approx(found.expected, rel=0.01)
    assert found.low <= found.mean <= found.high
    assert sampled(FAILURES, 2048, 50 * 86400.0) == found
    assert sampled(replace(FAILURES, seed=1), 2048, 50 * 86400.0) != found


def test_goodput_moves_the_right_way():
    base = sampled(FAILURES, 2048, 1e6).expected
    assert sampled(FAILURES, 16384, 1e6).expected < base
    assert sampled(replace(FAILURES, restart_s=9000), 2048, 1e6).expected < base
    assert sampled(replace(FAILURES, mtbf_gpu_hours=1e9), 2048, 1e6).expected == pytest.approx(1.0, abs=5e-3)
    best = optimum_interval(FAILURES, 2048)
    share = {k: expected(FAILURES, 2048, k * best) for k in (0.5, 1.0, 2.0)}
    assert share[1.0] == max(share.values())
    assert exp(0) > base > 0


def test_checkpoints_that_do_not_stop_training_are_taken_after_every_step():
    free = replace(FAILURES, checkpoint_s=0)
    assert optimum_interval(free, 2048, 4.0) == 4.0
    lost = 2048 / (50_000 * 3600)
    assert sampled(free, 2048, 1e6, 4.0).expected == pytest.approx(1 / (1 + lost * (900 + 2)), rel=1e-4)
    assert optimum_interval(FAILURES, 2048, 4.0) == optimum_interval(FAILURES, 2048)


def test_runs_too_long_to_draw_failure_by_failure_have_the_same_mean_and_spread():
    often = Failures(mtbf_gpu_hours=500, checkpoint_s=60, restart_s=900, runs=300)
    lost, span = 1024 / (500 * 3600), optimum_interval(often, 1024) + 60
    random = np.random.default_rng(3)
    rare = replace(often, runs=10**8)  # leaves less than one draw to each
    drawn, summed = ([_wasted(random, which, lost, span, 400) for _ in range(600)] for which in (often, rare))
    assert np.mean(summed) == pytest.approx(np.mean(drawn), rel=0.02)
    assert np.std(summed) == pytest.approx(np.std(drawn), rel=0.15)


def test_a_run_of_a_billion_steps_is_sampled():
    found = sampled(FAILURES, 2048, 1e16, 4.0)
    assert found.mean == pytest.approx(found.expected, rel=1e-4)
    assert found.low < found.mean < found.high


@pytest.mark.parametrize("mtbf", [1.0, 1e-6])
def test_failures_that_let_no_segment_through_are_said(mtbf):
    with pytest.raises(PlanError, match="never ends"):
        sampled(replace(FAILURES, mtbf_gpu_hours=mtbf), 100_000, 1e6)


BAD = [
    ("failures", "mtbf_gpu_hours", "-5"),
    ("failures", "mtbf_gpu_hours", "0"),
    ("failures", "checkpoint_s", "-60"),
    ("failures", "restart_s", "-9e6"),
    ("failures", "interval_s", "-5"),
    ("failures", "runs", "0"),
    ("failures", "runs", "1000000000000"),
    ("failures", "seed", "-1"),
    ("power", "pue", "-1.2"),
    ("power", "pue", "0.5"),
    ("power", "gpu_share", "-8e9"),
    ("power", "gpu_share", "1.5"),
    ("power", "rest_watts", "-1"),
    ("published", "training", "-1.0"),
]


@pytest.mark.parametrize(("table", "key", "value"), BAD)
def test_numbers_out_of_range_are_one_line_with_file_key_and_value(table, key, value, tmp_path):
    values = {"mtbf_gpu_hours": "50700"} if table == "failures" else {}
    lines = [f"{name} = {text}" for name, text in (values | {key: value}).items()]
    file = tmp_path / "c.toml"
    file.write_text(
        f'job = "tiny-1f1b"\n[[phases]]\nname = "a"\ntokens = 1e9\n[{table}]\n' + "\n".join(lines), encoding="utf-8"
    )
    with pytest.raises(InputError, match=rf"c\.toml: {table}\.{key}: .*must be") as told:
        load_campaign(str(file))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "line", ["steps = 1000000000000000000", "tokens = 1e30", "tokens = 1e9\nramp_from = 32\nramp_steps = 1000000"]
)
def test_phases_beyond_what_can_be_meant_are_refused(line, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(f'job = "tiny-1f1b"\n[[phases]]\nname = "a"\n{line}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"c\.toml: phases\[0\] \(a\): \w+: .*must be from 1 to"):
        load_campaign(str(file))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--mtbf", "nan"], InputError),
        (["--mtbf", "1e-9"], InputError),
        (["--mtbf", "inf"], InputError),
        (["--mtbf", "50000", "--seed", "-1"], InputError),
        (["--seed", "3"], UsageError),  # a job has no failures of its own: nothing to sample
    ],
)
def test_options_out_of_range_are_refused(options, error):
    done = CliRunner().invoke(plan, ["tiny-1f1b", *options, "-q"], standalone_mode=False)
    assert isinstance(done.exception, error)
    assert options[-2] in str(done.exception)


def test_energy_by_hand():
    h800, h200 = load_scenario("tiny-dualpipe"), load_scenario("tiny-dualpipe", ["hardware=h200"])
    supply = Supply(gpu_share=0.5, rest_watts=100.0, pue=2.0)
    without = replace(h800.cluster, gpu=replace(h800.cluster.gpu, power=None))
    assert energy_of(replace(h800, cluster=without), None, 10.0, supply).kwh == pytest.approx(
        10 * (350 + 100) * 2 / 1e3
    )
    cap = h200.cluster.gpu.power_cap
    assert energy_of(h200, 1e4, 1.0, supply).gpu_watts == cap
    assert energy_of(h200, 300.0, 1.0, supply).gpu_watts == 300.0


def test_the_verb_forecasts_a_job_as_one_phase():
    done = CliRunner().invoke(
        plan, ["tiny-dualpipe", "--engine", "longest-path", "--json", "--mtbf", "50000", "-q"], standalone_mode=False
    )
    shown = json.loads(done.stdout)
    assert shown["schema"] == "foretrain.campaign/1"
    assert len(shown["phases"]) == 1
    assert 0 < shown["goodput"]["expected"] < 1


@pytest.mark.slow
def test_the_verb_prints_parts_next_to_what_was_published():
    done = CliRunner().invoke(plan, ["deepseek-v3", "--engine", "longest-path", "-q"], standalone_mode=False)
    assert done.exit_code == 0
    for word in ("pre-training", "context extension", "2,664,000", "goodput", "GWh", "1f1b instead of dualpipe"):
        assert word in done.stdout
    text = " ".join(done.stdout.split())
    shown = (
        "Reinforcement learning is left out",
        "$2.00: the price of the hardware profile h800 (arXiv 2412.19437v2 table 1: assumed rental price, 2024-12)",
        "the power model of H800 SXM 80GB says",
    )
    for word in shown:
        assert word in text
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_power_is_that_of_the_profile_where_it_has_a_model():
    done = CliRunner().invoke(plan, ["tiny-1f1b", "--set", "hardware=h200", "-q"], standalone_mode=False)
    assert "what the power model of H200" in " ".join(done.stdout.split())
    assert "Published" not in done.stdout
