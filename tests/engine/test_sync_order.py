"""The order of gradient sync, which both engines and the estimate follow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.engine.sync_order import SyncOrder, sync_order
from simulator.inputs import load_scenario
from simulator.schedule import Action, Pair

F, B, W = (Action(kind, stage, 0) for kind, stage in (("F", 0), ("B", 1), ("W", 1)))


def order(zero: int, *, by_block: bool = True, overlapped: bool = True) -> SyncOrder:
    return SyncOrder(zero=zero, updates=True, by_block=by_block, gathers_overlapped=overlapped)


def test_zero_3_gathers_before_each_half_of_a_pair() -> None:
    found = order(3).gathers(Pair(F, B), [0, 5], [-1, 9, 7])
    assert found == [(0, 0, 0), (0, 1, 5), (1, 2, 7), (1, 1, 9)]  # backward begins with the last block
    assert order(2).gathers(Pair(F, B), [0, 5], [-1, 9, 7]) == []


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_gradients_leave_with_every_backward_from_zero_2_on(zero: int) -> None:
    expected = [(1, 1, 8.5), (1, 0, 9.0)] if zero >= 2 else []
    assert order(zero).reduces(W, [9.0, 8.5]) == expected
    assert order(zero).reduces(F, [9.0, 8.5]) == []


def test_at_the_end_the_block_that_is_ready_first_leads() -> None:
    assert list(order(1).reductions({4: 2, 1: 1})) == [
        (4, 1),
        (4, 0),
        (1, 0),
    ]  # stage 4's backward ends before stage 1's
    assert list(order(1, by_block=False).reductions({4: 2, 1: 1})) == [(4, None), (1, None)]


def test_reductions_of_a_stage_may_wait_for_its_last_backward() -> None:
    inside, behind = order(1), replace(order(1), behind_stage=True)
    assert [inside.complete(block, [9.0, 8.5]) for block in (0, 1)] == [9.0, 8.5]
    assert [behind.complete(block, [9.0, 8.5]) for block in (0, 1)] == [9.0, 9.0]
    assert list(behind.reductions({4: 2})) == list(inside.reductions({4: 2}))


@pytest.mark.parametrize(
    ("zero", "before", "behind", "reduction"),
    [
        (0, False, False, "all_reduce"),
        (1, True, False, "reduce_scatter"),
        (2, True, False, "reduce_scatter"),
        (3, False, False, "reduce_scatter"),
    ],
)
def test_parameters_are_gathered_once_where_the_update_is_sharded(
    zero: int, before: bool, behind: bool, reduction: str
) -> None:
    during, after = order(zero), order(zero, overlapped=False)
    assert (during.gathers_before, during.gathers_behind) == (before, behind)
    assert (after.gathers_before, after.gathers_behind) == (behind, before)
    assert during.reduction == reduction


def test_it_follows_from_layout_and_software() -> None:
    said = ["layout.zero=2", "stack.grad_sync_overlap=false", "stack.param_gather_overlap=true"]
    assert sync_order(load_scenario("llama-3-8b", said)) == order(2, by_block=False)
    staged = ["stack=torch", "layout.pp=2", "layout.zero=1", "batch.global_batch_size=512"]
    assert sync_order(load_scenario("llama-3-8b", staged)).behind_stage
    assert not sync_order(load_scenario("llama-3-8b", [*staged, "layout.pp=1"])).behind_stage
