"""Imbalance of experts is a wait before all-to-alls and lengthens these, whatever describes it; no other kernel."""

from __future__ import annotations

from math import hypot

import pytest

from simulator.cost.cost import Share
from simulator.cost.price import launches_of, price
from simulator.engine.kernel_sequence import ALONE
from simulator.engine.program import pair_program
from simulator.inputs import load_scenario
from simulator.ops import AllToAll, Wait
from simulator.results.result import Result
from simulator.results.simulate import prepare, simulate

JOB = "tiny-dualpipe"
RANKS = load_scenario(JOB).job.layout.ep
TOP = 1.5
GIVEN = [TOP, *[(RANKS - TOP) / (RANKS - 1)] * (RANKS - 1)]
KINDS = {
    "skewed": ("routing.kind=skewed", f"routing.max_over_mean={TOP}"),
    "sampled": ("routing.kind=sampled", "routing.cv=0.4"),
    "given": ("routing.kind=given", f"routing.loads={GIVEN}"),
}


def step(*overrides: str) -> Result:
    return simulate(load_scenario(JOB, overrides), engine="longest-path")


def waited(result: Result) -> float:
    """Time a mean rank waits for the slowest one [s]."""
    return sum(one.seconds for one in result.classes if one.cls == "wait.slowest")


def test_balanced_ranks_do_not_wait() -> None:
    assert waited(step("routing.kind=uniform")) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_routing_drives_the_wait(kind: str) -> None:
    even, uneven = step(), step(*KINDS[kind])
    assert waited(uneven) > 0.0
    assert uneven.metrics["step_time_s"] > even.metrics["step_time_s"]


def test_the_wait_is_the_extra_time_of_the_experts_on_the_slowest_rank() -> None:
    """Twice the excess over the mean, twice the wait; equal excess, equal wait."""
    mild, severe = (step("routing.kind=skewed", f"routing.max_over_mean={top}") for top in (1.25, 1.5))
    assert waited(severe) == pytest.approx(2 * waited(mild))
    assert waited(step(*KINDS["given"])) == pytest.approx(waited(severe))


@pytest.mark.parametrize("kind", ["skewed", "sampled"])
def test_two_layers_between_barriers_add_up_unless_each_draws_its_loads(kind: str) -> None:
    """Before combine(F) a pair has run one layer's weight gradients and another's experts."""
    built = prepare(load_scenario(JOB, KINDS[kind]))[0]
    block = built.blocks["moe"]

    def experts(name: str) -> float:
        found = next(s for s in (*block.forward, *block.backward) if s.name == name)
        return sum(built.price(op).durations[ALONE] for op in found.ops if op.scales_with_load)

    program = pair_program([block], [block], built.price, built.imbalance, built.resampled_per_layer)
    ops = [priced for step in program.steps for priced in step.sequence.ops]
    wait = next(p.durations[ALONE] for p in ops if p.op.name == "moe.combine.fwd.notify.wait")
    both = (hypot if kind == "sampled" else float.__add__)(experts("mlp.W"), experts("mlp.F"))
    assert wait == pytest.approx((built.imbalance - 1.0) * both)


def test_sampled_loads_make_the_most_loaded_of_all_ranks_wait() -> None:
    """Between what one always full rank costs and what two layers that never agree do."""
    severe, top = step(*KINDS["skewed"]), prepare(load_scenario(JOB, KINDS["sampled"]))[0].imbalance
    steady = waited(severe) * (top - 1) / 0.5
    assert steady / 2**0.5 < waited(step(*KINDS["sampled"])) < steady


@pytest.mark.parametrize("kind", KINDS)
def test_no_kernel_but_an_all_to_all_has_another_price_for_it(kind: str) -> None:
    """An all-to-all lasts as long as around the most loaded rank."""
    even, uneven = (prepare(load_scenario(JOB, overrides))[0] for overrides in ((), KINDS[kind]))
    for name, block in even.blocks.items():
        for op, other in zip(block.ops(), uneven.blocks[name].ops(), strict=True):
            before, after = even.price(op).durations, uneven.price(other).durations
            assert after > before if isinstance(op.work, AllToAll) else after == before


def test_a_wait_is_no_kernel() -> None:
    """No launch, no FLOP, no work but the time itself; and the cost model prices it as that."""
    severe = step(*KINDS["skewed"])
    ops = {priced.op.name: priced for sequence in severe.timeline.tasks.sequence for priced in sequence.ops}
    waits = [priced for priced in ops.values() if isinstance(priced.op.work, Wait)]
    assert any(priced.durations[ALONE] > 0.0 for priced in waits)
    for priced in waits:
        assert isinstance(priced.op.work, Wait)
        assert launches_of(priced.op) == 0
        assert priced.cost.duration == priced.durations[ALONE] == priced.op.work.seconds
        again = price(priced.op, severe.scenario.cluster, Share(sms=1), comm_sms=0, concurrent=False, dispatcher="nccl")
        assert again == priced.cost
