"""The fast path against the engines that it stands for."""

from __future__ import annotations

import pytest

from simulator.estimate.compiled import compiled, compiled_of
from simulator.estimate.estimate import alone, estimate, placed
from simulator.estimate.shared_prices import SharedPrices, SharedPricesMemo, shared_job
from simulator.inputs import load_scenario
from simulator.memory import memory_of_rows
from simulator.results.simulate import prepare, timeline_of
from simulator.studies.search import confirm, question, search
from simulator.studies.search.axes import Scenarios

NO_HOST = ("hardware.node.host_pace=0",)
"""Kernels are there when they can start: where they wait for the host the fast path is only near."""
CASES = [
    ("tiny-dualpipe",),
    ("tiny-1f1b",),
    ("tiny-zb1p",),
    ("tiny-gpipe",),
    ("tiny-interleaved",),
    ("tiny-dualpipev",),
    ("tiny-dualpipe", "layout.zero=0"),
    ("tiny-dualpipe", "stack.param_gather_overlap=false", "stack.grad_sync_overlap=false"),
    ("tiny-1f1b", "stack.p2p_overlap=never"),
    ("tiny-dualpipe", "stack=megatron-core", "layout.tp=2", *NO_HOST),
    ("tiny-1f1b", "layout.stages=even", "layout.recompute=full"),
    ("llama-3-8b", *NO_HOST),
    ("tiny-zb1p", "layout.schedule=zb2p-auto"),
    ("tiny-zb1p", "layout.schedule=zbv", "layout.zero=0", "stack.post_validation=true"),
]
SHARDED = [
    (job, f"layout.zero={zero}", *more)
    for zero in (2, 3)
    for job, *more in (
        ("tiny-dualpipe",),
        ("tiny-1f1b",),
        ("tiny-zb1p",),
        ("tiny-gpipe",),
        ("tiny-interleaved",),
        ("tiny-1f1b", "stack=megatron-core", "layout.pp=1", "batch.global_batch_size=256", *NO_HOST),
        ("tiny-1f1b", "stack.param_gather_overlap=true"),
        ("llama-3-8b", *NO_HOST),
        ("llama-3-8b", "layout.pp=1", "layout.tp=1", "stack=torch", *NO_HOST),
        ("llama-3-8b", "layout.pp=4", "layout.tp=1", *NO_HOST),
    )
]
STARVED = [(*case, "hardware.node.nic.bandwidth=1e9") for case in SHARDED]
"""Collectives that nothing hides. The event engine lets them share the NIC with all-to-alls, the fast path does not."""
BENT = [("llama-3-8b", "layout.zero=2", *NO_HOST, "hardware.node.nic.bandwidth=1e9")]
"""Between two slowdowns of the grid, in one of which a collective shows and in the other not, a step is not linear."""


@pytest.mark.parametrize(
    "case",
    [("llama-3-8b",), ("llama-3-8b", "layout.zero=3", "layout.pp=1", "layout.tp=1", "stack=torch")],
    ids=" ".join,
)
def test_with_a_host_it_is_near_the_longest_path(case):
    job, *overrides = case
    scenario = load_scenario(job, overrides)
    found = estimate(scenario, SharedPrices(scenario, "longest-path"))
    assert found.step == pytest.approx(timeline_of(*prepare(scenario), "longest-path").step_time, rel=5e-3)


@pytest.mark.parametrize("case", CASES + SHARDED + STARVED, ids=" ".join)
def test_timed_by_the_longest_path_it_is_the_longest_path(case):
    job, *overrides = case
    scenario = load_scenario(job, overrides)
    built, schedule = prepare(scenario)
    found = estimate(scenario, SharedPrices(scenario, "longest-path"))
    step = timeline_of(built, schedule, "longest-path").step_time
    assert found.step == pytest.approx(step, rel=1e-5 if case in BENT else 1e-6)
    assert placed(scenario, SharedPrices(scenario, "longest-path")).watts == pytest.approx(built.watts, rel=1e-6)
    assert found.memory == pytest.approx(memory_of_rows(built, schedule).peak, rel=1e-9)


@pytest.mark.parametrize(
    "case",
    [*CASES, *SHARDED, ("deepseek-v3-pretrain", "routing.kind=uniform"), ("tiny-dualpipe", "hardware=h200")],
    ids=" ".join,
)
def test_alone_is_the_longest_path_also_with_stages_that_are_given(case):
    job, *overrides = case
    built, schedule = prepare(load_scenario(job, overrides))
    longest = timeline_of(built, schedule, "longest-path").step_time
    assert alone(load_scenario(job, overrides)) == pytest.approx(longest, rel=1e-9)
    main = [stage[: stage.index("head")] if "head" in stage else stage for stage in built.stages]
    layers = [sum(kind in ("dense", "moe") for kind in stage) for stage in main]
    held = load_scenario(job, [*overrides, f"layout.stages={layers}"])
    assert alone(held) == pytest.approx(timeline_of(*prepare(held), "longest-path").step_time, rel=1e-9)


@pytest.mark.parametrize("setting", ["stack.host_kernel=6e-6", "stragglers.jitter=1e-6"])
def test_alone_says_where_it_would_not_be_exact(setting):
    assert alone(load_scenario("tiny-1f1b", [setting])) is None


@pytest.mark.parametrize("job", ["tiny-1f1b", "tiny-dualpipe", "tiny-zb1p"])
@pytest.mark.parametrize(
    "loads", [("skewed", "max_over_mean=1.5"), ("sampled", "cv=0.3"), ("sampled", "microbatch_cv=0.3")]
)
def test_uneven_loads_cost_in_the_estimate_what_they_cost_in_a_whole_step(job, loads):
    """Actions behind themselves with some layers' loads stand for all; less well where others come between (ZB1P)."""
    uneven = load_scenario(job, [f"routing.kind={loads[0]}", f"routing.{loads[1]}"])
    quick, slow = (
        [estimate(one, SharedPrices(one, "events")).step for one in (load_scenario(job), uneven)],
        [timeline_of(*prepare(one), "events").makespan for one in (load_scenario(job), uneven)],
    )
    assert quick[1] - quick[0] == pytest.approx(slow[1] - slow[0], rel=0.35 if "zb" in job else 0.25)


OUT_OF_TURN = """\
# name=swapped stages=2 microbatches=4
0: 0F0 0F1 0F2 0F3 0B1 0B0 0B3 0B2
1: 1F1 1B1 1F0 1B0 1F2 1F3 1B3 1B2
"""
"""The second rank does not take the microbatches in the order in which they come."""


def test_a_schedule_that_takes_microbatches_out_of_turn(tmp_path):
    file = tmp_path / "swapped.txt"
    file.write_text(OUT_OF_TURN)
    changes = [f"layout.schedule={file}", "layout.pp=2", "gpus=32", "batch.global_batch_size=64"]
    scenario = load_scenario("tiny-1f1b", changes)
    built, schedule = prepare(scenario)
    assert compiled_of(schedule).queues > compiled("1f1b", 2, 4, 1).queues
    found = estimate(scenario, SharedPrices(scenario, "longest-path"))
    assert found.step == pytest.approx(timeline_of(built, schedule, "longest-path").step_time, rel=1e-9)


@pytest.mark.parametrize("case", CASES[:6] + SHARDED, ids=" ".join)
def test_timed_by_events_it_is_close_to_the_event_engine(case):
    job, *overrides = case
    scenario = load_scenario(job, overrides)
    built, schedule = prepare(scenario)
    found = estimate(scenario, SharedPrices(scenario, "events"))
    assert found.step == pytest.approx(timeline_of(built, schedule, "events").makespan, rel=0.03)


def test_a_kit_that_served_another_layout_gives_the_same():
    first, second = load_scenario("tiny-1f1b"), load_scenario("tiny-1f1b", ["layout.schedule=zb1p", "layout.zero=0"])
    shared = SharedPrices(first, "events")
    estimate(first, shared)
    assert estimate(second, shared) == estimate(second, SharedPrices(second, "events"))


def test_a_kit_balances_stages_as_its_layout_does():
    """Where pairs hide the all-to-alls, stages are balanced without them: shared prices must not carry that over."""
    paired, alone = load_scenario("deepseek-v3-pretrain"), load_scenario("deepseek-v3-1f1b")
    for first, second in ((paired, alone), (alone, paired)):
        shared = SharedPrices(first, "longest-path")
        assert shared.stages(second, 16, 1.0) == prepare(second)[0].stages


def test_kits_are_shared_where_only_the_order_changes():
    base = load_scenario("tiny-1f1b")
    memo = SharedPricesMemo("longest-path")
    same = load_scenario("tiny-1f1b", ["layout.schedule=gpipe", "layout.zero=0", "batch.global_batch_size=320"])
    assert shared_job(base.job) == shared_job(same.job)
    assert shared_job(base.job) != shared_job(load_scenario("tiny-1f1b", ["layout.ep=8"]).job)
    assert memo.of(base) is memo.of(base)


def test_a_search_keeps_stages_that_are_given():
    found = search(question("tiny-1f1b", ["layout.stages=[1,2,2,1]"], ["layout.zero=0,1"]), jobs=1, top=2)
    assert len(found.best) == 2


def test_few_kits_are_kept():
    memo = SharedPricesMemo("longest-path", keep=2)
    for ep in (2, 4, 8, 16):
        memo.of(load_scenario("tiny-1f1b", [f"layout.ep={ep}"]))
    assert len(memo.made) == 2


def test_what_does_not_fit_is_not_timed():
    scenario = load_scenario("tiny-1f1b")
    assert estimate(scenario, SharedPrices(scenario, "events"), within=1.0).step is None


@pytest.mark.long
def test_layouts_that_shard_within_the_step_are_ranked_as_the_engine_ranks_them():
    """The best first, all others but those that the engine itself sets apart by less than 1 %."""
    asked = question("llama-3-8b", (), ["layout.pp=1,2,4", "layout.zero=0,1,2,3", "layout.tp=1,2"])
    found = search(asked, jobs=1, top=24)
    scenarios = Scenarios(asked)
    assert {scenarios.of(one.number).job.layout.zero for one in found.best} == {0, 1, 2, 3}
    sure = confirm(asked, found.best, jobs=1)
    assert sure[0].place == 1
    assert all(abs(one.difference) < 0.006 for one in sure)
    assert not [(one, other) for at, one in enumerate(sure) for other in sure[at:] if one.step > 1.01 * other.step]
