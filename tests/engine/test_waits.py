"""Imbalance of experts is a wait before exchanges, whatever describes it, and no price of any kernel."""

from __future__ import annotations

import pytest

from simulator.inputs import load_scenario
from simulator.result import Result
from simulator.routing import imbalance
from simulator.run import prepare, simulate

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
    sampled = load_scenario(JOB, KINDS["sampled"])
    top = imbalance(sampled.job.routing, RANKS, sampled.model.n_routed_experts // RANKS)
    assert waited(step(*KINDS["sampled"])) == pytest.approx(waited(severe) * (top - 1) / 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_kernel_has_another_price_for_it(kind: str) -> None:
    even, uneven = (prepare(load_scenario(JOB, overrides))[0] for overrides in ((), KINDS[kind]))
    for name, block in even.blocks.items():
        for op, other in zip(block.ops(), uneven.blocks[name].ops(), strict=True):
            assert even.price(op).durations == uneven.price(other).durations
