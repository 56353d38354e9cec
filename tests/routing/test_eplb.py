"""Placement of experts: published examples and properties of the balancer, by brute force where that is possible."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.routing.eplb import balanced, copies_of, packed, with_copies_in_order
from simulator.routing.slot_loads import mean_slot_imbalance, placements, policy_of, slot_loads

LOADS = (
    (90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86),
    (20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27),
)
PUBLISHED = (
    (5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1),
    (7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1),
)
"""The example of github.com/deepseek-ai/EPLB, README, 2025-02: 12 experts in 4 groups, 16 slots, 8 GPUs of 2 nodes."""
weights = st.lists(st.floats(0.01, 100.0), min_size=2, max_size=5)


def highest(loads: tuple[int, ...], slots: tuple[tuple[int, ...], ...]) -> float:
    copies = Counter(expert for rank in slots for expert in rank)
    return max(sum(loads[expert] / copies[expert] for expert in rank) for rank in slots)


@pytest.mark.parametrize(("loads", "published"), list(zip(LOADS, PUBLISHED, strict=True)))
def test_the_published_example(loads: tuple[int, ...], published: tuple[int, ...]) -> None:
    """The same copies, the same groups on each node, and a most loaded GPU that is no fuller."""
    found = balanced(loads, slots=16, ranks=8, nodes=2, groups=4).slots
    theirs = tuple(published[2 * gpu : 2 * gpu + 2] for gpu in range(8))
    assert Counter(sum(found, ())) == Counter(published)
    assert {frozenset(sum(found[:4], ())), frozenset(sum(found[4:], ()))} == {
        frozenset(published[:8]),
        frozenset(published[8:]),
    }
    assert highest(loads, found) <= highest(loads, theirs) + 1e-9


@given(weights, st.integers(0, 4))
def test_no_other_copies_have_a_lower_highest_load(loads: list[float], spare: int) -> None:
    slots = len(loads) + spare
    found = copies_of(loads, slots)
    assert sum(found) == slots
    assert min(found) >= 1
    others = [each for each in product(range(1, spare + 2), repeat=len(loads)) if sum(each) == slots]
    best = min(max(load / count for load, count in zip(loads, each, strict=True)) for each in others)
    assert max(load / count for load, count in zip(loads, found, strict=True)) == pytest.approx(best)


@given(st.integers(1, 6), st.integers(1, 5), st.data())
def test_bins_hold_as_many_and_the_heaviest_are_apart(bins: int, each: int, data: st.DataObject) -> None:
    items = data.draw(st.lists(st.floats(0.1, 10.0), min_size=bins * each, max_size=bins * each))
    found = packed(items, bins)
    assert sorted(item for one in found for item in one) == list(range(bins * each))
    assert {len(one) for one in found} == {each}
    heaviest = sorted(range(len(items)), key=lambda at: (-items[at], at))[:bins]
    assert len({next(at for at, one in enumerate(found) if item in one) for item in heaviest}) == bins
    assert max(sum(items[item] for item in one) for one in found) <= sum(items) / bins + max(items) + 1e-9


@given(st.integers(0, 1000), st.sampled_from([(1, 1), (2, 4), (4, 8)]))
def test_the_most_loaded_rank_exceeds_its_node_by_less_than_one_slot(seed: int, shape: tuple[int, int]) -> None:
    """The heaviest first: the most loaded rank has at most one slot more than the mean of its node."""
    nodes, groups = shape
    loads = np.random.default_rng(seed).lognormal(0.0, 1.0, 64)
    for slots in (64, 96):
        found = balanced(list(loads), slots=slots, ranks=16, nodes=nodes, groups=groups)
        rows = found.rows(loads)
        assert rows.sum() == pytest.approx(loads.sum())
        for node in rows.reshape(nodes, 16 // nodes, -1):
            assert node.sum(axis=1).max() <= node.sum(axis=1).mean() + node.max() + 1e-9
    plain = with_copies_in_order(64, slots=64, ranks=16).rows(loads).sum(axis=1).max()
    if nodes == 1:
        assert found.rows(loads).sum(axis=1).max() <= plain + 1e-9


def test_hierarchical_keeps_groups_on_one_node() -> None:
    loads = list(np.random.default_rng(3).lognormal(0.0, 1.0, 256))
    found = balanced(loads, slots=288, ranks=32, nodes=4, groups=8)
    for node in range(4):
        here = {expert // 32 for rank in found.slots[8 * node : 8 * node + 8] for expert in rank}
        assert len(here) == 2  # 8 groups on 4 nodes


def test_a_shared_expert_keeps_its_copies() -> None:
    loads = [*np.random.default_rng(0).lognormal(0.0, 0.5, 256) * 8 / 256, 1.0]
    found = balanced(loads, slots=320, ranks=320, fixed=(32,))
    held = Counter(sum(found.slots, ()))
    assert held[256] == 32
    assert sum(held[expert] for expert in range(256)) == 288


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slots": 17, "ranks": 8}, "17 slots do not spread evenly over 8 ranks"),
        ({"slots": 8, "ranks": 8}, "8 slots for 12 experts"),
        ({"slots": 16, "ranks": 8, "nodes": 2, "groups": 3}, "3 groups of 12 experts do not spread evenly over 2"),
    ],
)
def test_what_does_not_divide_is_one_line(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        balanced(LOADS[0], **arguments)


SAMPLED = ("routing.kind=sampled", "routing.cv=0.6")


@pytest.mark.parametrize(
    ("job", "changes", "policy"),
    [
        ("deepseek-v3-prefill-online", (), "hierarchical"),  # 8 groups on 4 nodes
        ("deepseek-v3-decode-ep144", (), "global"),  # 8 groups on 18 nodes
        ("deepseek-v3-decode-ep128", (), "off"),  # no copies
        ("deepseek-v3-decode-ep128", ("serving.eplb=on",), "global"),  # 8 groups on 16 nodes
        ("deepseek-v3-prefill-ep32", ("serving.eplb=on",), "hierarchical"),
    ],
)
def test_the_policy_follows_from_groups_and_nodes(job: str, changes: tuple[str, ...], policy: str) -> None:
    assert policy_of(load_scenario(job, changes)) == policy


def test_balancing_evens_out_what_lasts_and_not_what_passes() -> None:
    """Popularity that lasts is balanced away; what each step draws anew is not, since nobody can count it before."""
    off, on, passing = (
        mean_slot_imbalance(load_scenario("deepseek-v3-decode-ep144", changes), 88 * 144)
        for changes in (
            (*SAMPLED, "serving.eplb=off"),
            SAMPLED,
            ("routing.kind=sampled", "routing.microbatch_cv=0.6"),
        )
    )
    assert on < 0.7 * off
    assert passing > 1.5 * on


def test_tokens_of_all_slots_are_those_that_the_gate_chose() -> None:
    scenario = load_scenario("deepseek-v3-decode", SAMPLED)
    rows = slot_loads(scenario, 7680)(5, 0).rows
    assert rows.shape == (320, 1)
    assert rows.sum() == pytest.approx(7680 * 9)  # eight routed ones and the shared one
    held = Counter(sum(placements(scenario)(5).slots, ()))
    assert held[256] == 32
