"""Closed forms of the gate against Monte Carlo, and the loads of the ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.ops import Gate
from simulator.routing.gate import reach
from simulator.routing.loads import check_routing, mean_rows, rank_shares
from simulator.routing.traffic import direct_traffic, traffic
from simulator.spec.job import Routing

V3 = Gate(experts=256, top_k=8, groups=8, node_limit=4)
FREE = Gate(experts=256, top_k=8)


def sampled_reach(
    ranks: int, ranks_per_node: int, experts: int, top_k: int, groups: int, node_limit: int, scored: int
) -> tuple[float, float]:
    """The gate itself, on 30 000 tokens with uniform affinities."""
    tokens = 30_000
    affinity = np.random.default_rng(7).random((tokens, experts))
    if 0 < node_limit < groups:
        grouped = affinity.reshape(tokens, groups, experts // groups)
        score = np.sort(grouped, axis=2)[:, :, -scored:].sum(axis=2)
        kept = score >= np.sort(score, axis=1)[:, -node_limit][:, None]
        affinity = np.where(kept[:, :, None], grouped, -1.0).reshape(tokens, experts)
    chosen = np.argpartition(-affinity, top_k - 1, axis=1)[:, :top_k]
    counts = []
    for places in (max(1, ranks // ranks_per_node), ranks):
        hit = np.zeros((tokens, places), dtype=bool)
        hit[np.arange(tokens)[:, None], chosen // (experts // places)] = True
        counts.append(float(hit.sum(axis=1).mean()))
    return counts[0], counts[1]


@pytest.mark.parametrize(
    ("ranks", "ranks_per_node", "experts", "top_k", "groups", "node_limit", "scored"),
    [
        (64, 8, 256, 8, 8, 4, 2),  # DeepSeek-V3: groups are nodes
        (64, 8, 256, 8, 8, 4, 1),
        (16, 8, 256, 8, 8, 4, 2),  # four groups a node
        (32, 8, 256, 8, 8, 4, 2),
        (128, 8, 256, 8, 8, 4, 2),  # two nodes a group
        (128, 8, 256, 8, 16, 4, 1),
        (8, 8, 256, 8, 8, 4, 2),  # one node
        (64, 8, 256, 8, 0, 0, 2),  # no limit
        (64, 8, 256, 13, 8, 4, 2),
        (32, 8, 160, 6, 8, 3, 1),  # DeepSeek-V2
        (16, 8, 64, 6, 8, 3, 2),
        (32, 8, 32, 8, 8, 4, 2),  # one expert a rank, groups of four
    ],
)
def test_reach_agrees_with_the_sampled_gate(
    ranks: int, ranks_per_node: int, experts: int, top_k: int, groups: int, node_limit: int, scored: int
) -> None:
    gate = Gate(experts=experts, top_k=top_k, groups=groups, node_limit=node_limit, scored=scored)
    hit = reach(gate, ranks, ranks_per_node)
    nodes, rank_count = sampled_reach(ranks, ranks_per_node, experts, top_k, groups, node_limit, scored)
    assert hit.nodes == pytest.approx(nodes, rel=5e-3)
    assert hit.ranks == pytest.approx(rank_count, rel=5e-3)


def test_deepseek_v3_on_eight_nodes() -> None:
    hit = reach(V3, 64, 8)
    assert hit.nodes == pytest.approx(3.97, abs=0.03)
    assert hit.ranks == pytest.approx(7.49, abs=0.01)


def test_without_a_limit_reach_is_hypergeometric() -> None:
    missed = 1.0
    for i in range(8):
        missed *= (256 - 32 - i) / (256 - i)
    assert reach(FREE, 64, 8).nodes == pytest.approx(8 * (1 - missed), rel=1e-12)


def test_limit_as_large_as_the_groups_is_no_limit() -> None:
    assert reach(replace(V3, node_limit=8), 64, 8) == reach(FREE, 64, 8)


def test_one_expert_per_token_reaches_one_rank() -> None:
    hit = reach(replace(V3, top_k=1), 64, 8)
    assert (hit.nodes, hit.ranks) == (1.0, 1.0)


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.sampled_from([1, 2, 4, 8, 16]),
    top_k=st.integers(1, 12),
    node_limit=st.integers(0, 8),
)
def test_reach_stays_within_its_bounds(nodes: int, top_k: int, node_limit: int) -> None:
    hit = reach(replace(V3, top_k=top_k, node_limit=node_limit), 8 * nodes, 8)
    assert 1.0 - 1e-9 <= hit.nodes <= min(nodes, top_k) + 1e-9
    assert hit.nodes <= hit.ranks + 1e-9
    assert hit.ranks <= min(8 * nodes, top_k) + 1e-9
    if nodes == 8 and node_limit:
        assert hit.nodes <= node_limit + 1e-9


def test_traffic_counts_every_copy_once() -> None:
    moved = traffic(V3, tokens=4096, bytes_per_token=7392.0, ranks=64, ranks_per_node=8)
    hit = reach(V3, 64, 8)
    copy = 4096 * 7392.0
    assert moved.sent == pytest.approx(copy * hit.nodes)
    assert moved.nic == pytest.approx(moved.sent * 7 / 8)  # the own node needs no NIC
    assert moved.delivered == pytest.approx(copy * hit.ranks)
    assert moved.nvlink == pytest.approx(moved.delivered * 7 / 8)  # nor the forwarding rank NVLink


def test_within_one_node_nothing_touches_the_nic() -> None:
    assert traffic(V3, tokens=1, bytes_per_token=1.0, ranks=8, ranks_per_node=8).nic == 0.0
    assert direct_traffic(tokens=1, bytes_per_token=1.0, ranks=8, ranks_per_node=8, top_k=8).nic == 0.0


def test_sharing_copies_never_moves_more_over_the_nic() -> None:
    shared = traffic(V3, tokens=4096, bytes_per_token=7392.0, ranks=64, ranks_per_node=8)
    direct = direct_traffic(tokens=4096, bytes_per_token=7392.0, ranks=64, ranks_per_node=8, top_k=8)
    assert shared.nic < 0.55 * direct.nic


def test_rows_are_padded_by_half_a_block() -> None:
    assert mean_rows(ep=64, tokens=4096, top_k=8, experts=256) == 32768 + 4 * 127 / 2
    assert mean_rows(ep=64, tokens=4096, top_k=8, experts=256, padding=1) == 32768


def test_skewed_loads_keep_the_total() -> None:
    shares = rank_shares(Routing(kind="skewed", max_over_mean=1.5), 16)
    assert shares[0] == max(shares) == 1.5
    assert sum(shares) == pytest.approx(16)


def test_skew_cannot_exceed_the_number_of_ranks() -> None:
    assert rank_shares(Routing(kind="skewed", max_over_mean=4.0), 4) == [4.0, 0.0, 0.0, 0.0]
    with pytest.raises(InputError, match="above ep = 4: a rank with all tokens has 4 times the mean"):
        rank_shares(Routing(kind="skewed", max_over_mean=99.0), 4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: reach(V3, 12, 8), "does not fill nodes of 8"),
        (lambda: reach(Gate(experts=100, top_k=8), 64, 8), "100 experts do not spread evenly over 64 ranks"),
        (lambda: reach(replace(V3, top_k=80, node_limit=2), 64, 8), "2 groups of 32 experts hold no top 80"),
        (lambda: reach(replace(V3, top_k=0), 8, 8), "top_k=0"),
        (lambda: reach(replace(V3, groups=7, node_limit=2), 8, 8), "do not split into 7 groups"),
        (lambda: reach(replace(V3, scored=3), 8, 8), "not 3"),
        (lambda: rank_shares(Routing(kind="skewed", max_over_mean=0.5), 8), "below 1"),
        (lambda: check_routing(Routing(kind="sampled", cv=-1.0), 8), "negative"),
        (lambda: mean_rows(ep=3, tokens=1, top_k=1, experts=8), "ep = 3"),
    ],
)
def test_bad_input_is_one_line(call: object, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        call()  # type: ignore[operator]
    assert "\n" not in str(error.value)


def test_given_loads_are_taken_as_they_are() -> None:
    routing = Routing(kind="given", loads=(0.5, 1.0, 1.7, 0.8))
    assert rank_shares(routing, 4) == [0.5, 1.0, 1.7, 0.8]


@pytest.mark.parametrize(
    ("routing", "says"),
    [
        (Routing(kind="given", loads=(1.0, 1.0)), "there are 2 of them; each of the 4 expert-parallel ranks needs one"),
        (Routing(kind="given"), "there are 0 of them"),
        (Routing(kind="given", loads=(2.0, 2.0, 3.0, 1.0)), "their mean is 2; .* divide each by 2"),
        (Routing(kind="given", loads=(2.0, 2.0, 1.0, -1.0)), "none may be negative"),
        (Routing(kind="given", loads=(0.0, 0.0, 0.0, 0.0)), "not all may be 0"),
        (Routing(loads=(1.0, 1.0, 1.0, 1.0)), 'loads go with kind = "given" only'),
    ],
)
def test_bad_loads_are_refused(routing: Routing, says: str) -> None:
    with pytest.raises(InputError, match=rf"^routing\.loads: .*{says}"):
        rank_shares(routing, 4)
