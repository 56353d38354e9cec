"""Overlap of all-to-alls inside 1F1B and interleaved: the rows, that they can run, and what they gain."""

from __future__ import annotations

from itertools import pairwise

import pytest

from simulator.estimate.estimate import estimate
from simulator.estimate.shared_prices import SharedPrices
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.memory.deltas import Usages
from simulator.results.result import Result
from simulator.results.simulate import prepare, simulate
from simulator.schedule import Action, Pair, build, peak_in_flight, validate
from simulator.schedule.pairing import filled, paired

JOB = ["stack=megatron-core", "precision.recipe=bf16", "layout.recompute=none", "batch.global_batch_size=256"]
JOB += ["hardware.node.host_pace=0"]  # such small ops: the host would set the pace
OVER = ["layout.schedule=interleaved", "layout.vpp=2", "layout.stages=balanced", "stack.expert_overlap=true"]


def test_one_rank_by_hand() -> None:
    rows = paired(build("1f1b", pp=1, microbatches=4)).rows
    assert [str(step) for step in rows[0]] == ["0F0", "(0F1;0B0)", "(0F2;0B1)", "(0F3;0B2)", "0B3"]


@pytest.mark.parametrize(("pp", "vpp", "microbatches"), [(1, 2, 3), (2, 2, 4), (4, 2, 8), (4, 3, 12), (8, 4, 16)])
def test_interleaved_pairs_can_run(pp: int, vpp: int, microbatches: int) -> None:
    plain = build("interleaved", pp=pp, microbatches=microbatches, vpp=vpp)
    made = paired(plain)
    validate(made)
    assert any(isinstance(step, Pair) for step in made.rows[0])
    for before, after in zip(peak_in_flight(plain), peak_in_flight(made), strict=True):
        assert before <= after <= before + 1


def run(*changes: str, engine: str = "events") -> Result:
    return simulate(load_scenario("tiny-1f1b", [*JOB, *changes]), engine=engine)  # type: ignore[arg-type]


def test_all_to_alls_hide_under_the_other_microbatch() -> None:
    plain, over = run(*OVER[:3]), run(*OVER)
    assert over.metrics["step_time_s"] < plain.metrics["step_time_s"]
    exposed = [sum(rank.exposed_comm for rank in result.ranks) for result in (plain, over)]
    assert exposed[1] < 0.8 * exposed[0]
    assert over.memory.peak > plain.memory.peak


def test_the_order_of_ops_is_megatrons() -> None:
    """attn F | mlp B, mlp W, mlp F | attn B, attn W on the compute stream; combine B | dispatch F, dispatch B |
    combine F on the other (NVIDIA/Megatron-LM, megatron/core/models/common/model_chunk_schedule_plan.py, 2025)."""
    result = run(*OVER, engine="longest-path")
    tasks = result.timeline.tasks
    action = next(
        a for a in tasks.actions if isinstance(a.step, Pair) and result.stages[a.step.forward.stage] == "1 moe"
    )
    names = [tasks.sequence[task].name for task in range(action.first, action.last)]
    order = list(dict.fromkeys(names))
    assert order[:8] == ["out.B", "combine.B", "attn.F", "dispatch.F", "mlp.B", "dispatch.B", "mlp.W", "mlp.F"]
    assert order[8:] == ["combine.F", "attn.B", "attn.W", "out.F"]


def test_the_quick_estimate_pairs_too() -> None:
    scenario = load_scenario("tiny-1f1b", [*JOB, *OVER])
    found = estimate(scenario, SharedPrices(scenario, "longest-path"))
    result = run(*OVER, engine="longest-path")
    assert found.step == pytest.approx(result.metrics["step_time_s"], rel=1e-9)
    assert found.memory == pytest.approx(result.memory.peak)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (["stack.expert_overlap=true"], "excludes 1F1B on several ranks"),
        ([*OVER, "layout.recompute=full"], "excludes recomputed layers"),
        ([*OVER, "stack.shared_expert_overlap=true"], "excludes shared experts"),
    ],
)
def test_what_megatron_refuses_is_refused(changes: list[str], error: str) -> None:
    found = [str(one) for one in check(load_scenario("tiny-1f1b", [*JOB, *changes]))]
    assert any(error in one for one in found), found


def test_one_rank_overlaps_its_microbatches() -> None:
    one = ["layout.pp=1", "gpus=16", "layout.ep=16", "batch.global_batch_size=64", "layout.stages=even"]
    steps = [run(*one, f"stack.expert_overlap={how}").metrics["step_time_s"] for how in ("false", "true")]
    assert steps[1] < steps[0]
    assert prepare(load_scenario("tiny-1f1b", [*JOB, *one, "stack.expert_overlap=true"]))[1].ranks == 1


def test_input_gradients_take_what_fills_their_waits() -> None:
    plain = build("zb1p", pp=4, microbatches=8)
    made = filled(plain)
    for before, after in zip(plain.rows, made.rows, strict=True):
        assert [action[:3] for action in before] == [action[:3] for action in after]  # type: ignore[index]
    row = [action for action in made.rows[1] if isinstance(action, Action)]
    for one, other in pairwise(row):
        if one.kind == "I" and one.filled:
            assert (other.kind, other.filled) == ("W", True)
    assert not [action for action in row if action.kind == "W"][-1].filled
    assert sum(action.filled for action in row) > 0


SPLIT = ["layout.schedule=zb1p", "stack.p2p_overlap=always"]


def test_filled_waits_take_less_time_and_the_same_work() -> None:
    apart, inside = (run(*SPLIT, f"stack.wgrad_fills_waits={how}") for how in ("false", "true"))
    assert inside.metrics["step_time_s"] < apart.metrics["step_time_s"]
    times = [sum(c.launches for c in result.classes) for result in (apart, inside)]
    assert times[0] == pytest.approx(times[1])


def test_memory_of_filled_waits_comes_back_to_nothing() -> None:
    built, schedule = prepare(load_scenario("tiny-1f1b", [*JOB, *SPLIT, "stack.wgrad_fills_waits=true"]))
    usages = Usages(built)
    for row in schedule.rows:
        kept = sum(change.delta for step in row for change in usages.of(step).changes)
        assert kept == pytest.approx(0.0, abs=1.0)


def test_the_quick_estimate_fills_them_too() -> None:
    scenario = load_scenario("tiny-1f1b", [*JOB, *SPLIT, "stack.wgrad_fills_waits=true"])
    found = estimate(scenario, SharedPrices(scenario, "longest-path"))
    result = run(*SPLIT, "stack.wgrad_fills_waits=true", engine="longest-path")
    assert found.step == pytest.approx(result.metrics["step_time_s"], rel=1e-9)
    assert found.memory == pytest.approx(result.memory.peak)
