"""Uneven experts make ranks wait before all-to-alls and lengthen these, however loads are given; no other kernel."""

from __future__ import annotations

import pytest

from simulator.cost.cost import Share
from simulator.cost.price import launches_of, price
from simulator.engine.kernel_sequence import ALONE
from simulator.inputs import load_scenario
from simulator.ops import Wait
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


def test_a_fuller_rank_is_waited_for_longer_and_loads_count_however_they_are_given() -> None:
    mild, severe = (step("routing.kind=skewed", f"routing.max_over_mean={top}") for top in (1.25, 1.5))
    assert waited(severe) > 1.5 * waited(mild)
    assert waited(step(*KINDS["given"])) == pytest.approx(waited(severe))


@pytest.mark.parametrize("kind", KINDS)
def test_no_kernel_of_a_mean_rank_but_an_all_to_all_has_another_price_for_it(kind: str) -> None:
    even, uneven = (prepare(load_scenario(JOB, overrides))[0] for overrides in ((), KINDS[kind]))
    for name, block in even.blocks.items():
        for op, other in zip(block.ops(), uneven.blocks[name].ops(), strict=True):
            if op.cls not in ("comm.dispatch", "comm.combine"):
                assert even.price(op).durations == uneven.price(other).durations


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
