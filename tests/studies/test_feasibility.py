"""Memory with ways to mend it, balance of stages, and batch ramps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.terminal.console import rendered
from reports.terminal.memory_tables import report as memory_report
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.memory import memory_of_rows
from simulator.results.simulate import prepare, simulate
from simulator.studies.feasibility import _changes, fixes, problems, ramp, ramp_sizes, substitutes


def rules_of(found):
    return [problem.rule for problem in found]


def peak(scenario):
    return memory_of_rows(*prepare(scenario)).peak


@pytest.fixture(scope="module")
def tight():
    """A job that misses its memory by a little."""
    roomy = load_scenario("tiny-1f1b", ["layout.recompute=none"])
    short = 0.97 * peak(roomy)
    return load_scenario("tiny-1f1b", ["layout.recompute=none", f"hardware.gpu.hbm_bytes={short}"])


def test_a_job_that_fits_has_no_problem():
    assert "memory" not in rules_of(problems(load_scenario("tiny-1f1b")))


def test_a_step_that_nobody_can_run_says_so(tight):
    said = simulate(tight, engine="longest-path").warnings[0]
    assert said.startswith("does not fit")
    assert f"needs {peak(tight) / 1e9:.1f} of {tight.cluster.gpu.hbm_bytes / 1e9:.1f} GB" in said
    roomy = simulate(load_scenario("tiny-1f1b"), engine="longest-path")
    assert not any("does not fit" in line for line in roomy.warnings)


def test_broken_rules_come_alone():
    found = problems(load_scenario("tiny-1f1b", ["layout.ep=3", "hardware.gpu.hbm_bytes=1e9"]))
    assert "memory" not in rules_of(found)
    assert found[0].severity == "error"


def test_what_does_not_fit_is_reported_with_its_largest_items_and_fixes(tight):
    found = next(problem for problem in problems(tight) if problem.rule == "memory")
    assert found.severity == "error"
    assert "GB; largest: " in found.message
    assert " fits in " in found.suggestion


def test_every_degree_of_expert_parallelism_is_tried():
    job = load_scenario("deepseek-v3-pretrain", ["layout.ep=8", "layout.zero=0"])
    tried = [int(change.removeprefix("layout.ep=")) for change, _ in _changes(job) if change.startswith("layout.ep=")]
    assert tried == [1, 2, 4, 16, 32, 64, 128]
    for change, _ in _changes(job):
        if change.startswith("layout.ep="):
            broken = check(load_scenario("deepseek-v3-pretrain", ["layout.zero=0", change]))
            assert not [problem for problem in broken if problem.rule == "experts on ranks"]


def test_no_expert_parallelism_is_tried_without_experts():
    assert not [change for change, _ in _changes(load_scenario("llama-3-8b")) if change.startswith("layout.ep")]


@pytest.mark.slow
def test_an_expert_parallel_degree_beyond_four_times_is_found():
    """Twice and four times the expert parallelism are not enough here; all that fit are shown, the quickest first."""
    found = fixes(load_scenario("deepseek-v3-1f1b", ["layout.ep=1", "hardware.gpu.hbm_bytes=90e9"]))
    assert {"layout.ep=8", "layout.ep=16", "layout.ep=32", "layout.ep=64"} <= {fix.change for fix in found}
    assert not {"layout.ep=2", "layout.ep=4"} & {fix.change for fix in found}
    assert [fix.candidate.per_token for fix in found] == sorted(fix.candidate.per_token for fix in found)


def test_memory_says_what_would_make_it_fit(tight):
    told = [fix.change for fix in fixes(tight)][:3]
    text = rendered(
        *memory_report("tight", memory_of_rows(*prepare(tight)), (), fixes(tight)[:3]), columns=100, colour=False
    )
    section = text.partition("What would make it fit")[2]
    assert [change for change in told if change in section] == told


def test_every_fix_really_fits_and_the_quickest_leads(tight):
    found = fixes(tight)
    assert found
    times = [fix.candidate.per_token for fix in found]
    assert times == sorted(times)
    for fix in found:
        short = f"hardware.gpu.hbm_bytes={tight.cluster.gpu.hbm_bytes}"
        mended = load_scenario("tiny-1f1b", ["layout.recompute=none", short, fix.change])
        assert peak(mended) <= tight.cluster.gpu.hbm_bytes
        assert "memory" not in rules_of(problems(mended))


def test_where_nothing_helps_it_says_so():
    found = problems(load_scenario("tiny-1f1b", ["hardware.gpu.hbm_bytes=1e9"]))
    assert next(p for p in found if p.rule == "memory").suggestion == "no single change tried makes it fit"


def test_uneven_stages_are_reported(v3):
    uneven = replace(v3, job=replace(v3.job, layout=replace(v3.job.layout, stages="even")))
    found = next(p for p in problems(uneven) if p.rule == "stage balance")
    assert found.severity == "warning"
    assert "balanced" in found.suggestion
    assert "stage balance" not in rules_of(problems(v3))


@pytest.mark.slow
def test_more_sharding_is_among_the_fixes():
    """ZeRO-1 to -3 fit ever better, and last ever longer."""
    scenario = load_scenario("deepseek-v3-pretrain", ["layout.zero=0"])
    shown = next(p for p in problems(scenario) if p.rule == "memory")
    assert shown.value == "84.93e9"
    assert "layout.zero=1 fits" in shown.suggestion
    found = {fix.change: fix.candidate for fix in fixes(scenario)}
    tried = [found[f"layout.zero={zero}"] for zero in (1, 2, 3)]
    assert [c.memory for c in tried] == sorted((c.memory for c in tried), reverse=True)
    assert [c.step for c in tried] == sorted(c.step for c in tried)


def test_v3s_ramp_leaves_dualpipe_too_few_microbatches(v3):
    found = list(ramp(v3, ramp_sizes(3072, 15360)))
    assert [problem.value for problem in found] == [3072]
    assert "24 microbatches" in found[0].message
    assert "2 x pp" in found[0].message
    assert "runs it at" in found[0].suggestion


def test_substitutes_run_and_the_cheapest_leads(v3):
    small = replace(v3, job=replace(v3.job, batch=replace(v3.job.batch, global_batch_size=3072)))
    found = substitutes(small)
    assert {fix.change for fix in found} >= {"layout.schedule=1f1b", "gpus=1024"}
    costs = [fix.candidate.cost for fix in found]
    assert costs == sorted(costs)


@pytest.mark.parametrize(
    ("first", "last", "sizes"), [(3072, 15360, [3072, 6144, 12288, 15360]), (8, 8, [8]), (5, 40, [5, 10, 20, 40])]
)
def test_sizes_of_a_ramp(first, last, sizes):
    assert ramp_sizes(first, last) == sizes
