"""Bytes that crossed borders while tokens really travelled, against the traffic model of the same gate.

What is counted: `nic` and `nvlink` are copies that crossed such a link, the token's own node (or the forwarding rank)
left out; `sent` and `delivered` count every (token, node) and (token, rank), own ones included.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.graph.shapes import shapes_of
from simulator.inputs import load_scenario
from simulator.ops import Gate
from simulator.routing.gate import reach
from simulator.routing.placement import in_order
from simulator.routing.rank_loads import rank_loads
from simulator.routing.traffic import direct_traffic
from simulator.routing.traffic import traffic as forecast
from simulator.spec.job import Routing
from simulator.spec.uneven import ExpertCounts
from workloads.reference.balance import gate_config
from workloads.reference.config import RefConfig
from workloads.reference.count import Array, Run, Weights
from workloads.reference.layers.gate import route
from workloads.reference.parallel import expert_parallel
from workloads.reference.parallel.expert_parallel import Packet, Wires, expert_parallel_routed
from workloads.reference.parallel.traffic import Layout, traffic

SMALL = Layout(experts=32, ranks=16, nodes=8)
V3 = Layout(experts=256, ranks=64, nodes=8)
ROW_BYTES = 7168 * 1.03125  # a token of V3 in FP8 with its scales


def gate(layout: Layout, top_k: int, limit: int) -> RefConfig:
    """A model whose tokens are their own affinities: hidden size = experts, so that the gate's matrix is one."""
    cfg = gate_config(layout.experts, top_k, layout.nodes, limit)
    return replace(cfg, hidden_size=layout.experts, n_shared_experts=0)


def weights(cfg: RefConfig) -> Weights:
    n, h, f = cfg.experts, cfg.hidden_size, cfg.moe_intermediate_size
    return {"router.gate": np.eye(h), "moe.up_gate": np.ones((n, h, 2 * f)), "moe.down": np.ones((n, f, h))}


def executed(cfg: RefConfig, layout: Layout, affinities: Array) -> Wires:
    """Tokens [ranks, T, experts] with these affinities in (0, 1), sent through gate, dispatch, experts and combine."""
    logits = np.log(affinities) - np.log1p(-affinities)
    _, wires = expert_parallel_routed(Run(cfg=cfg), weights(cfg), list(logits), layout)
    return wires


def uniform(layout: Layout, tokens: int, seed: int) -> Array:
    return np.random.default_rng(seed).random((layout.ranks, tokens, layout.experts))


def model(cfg: RefConfig, layout: Layout, tokens: int, scored: int = 2) -> dict[str, float]:
    asked = Gate(
        experts=layout.experts,
        top_k=cfg.num_experts_per_tok,
        groups=cfg.n_group,
        node_limit=cfg.topk_group if cfg.topk_group < cfg.n_group else 0,
        scored=scored,
    )
    moved = forecast(
        asked,
        tokens=tokens,
        bytes_per_token=ROW_BYTES,
        ranks=layout.ranks,
        ranks_per_node=layout.ranks_per_node,
    )
    return {"ib": moved.nic, "nvlink": moved.nvlink, "sent": moved.sent, "delivered": moved.delivered}


def assert_bytes(wires: Wires, expected: dict[str, float], layout: Layout, rel: float) -> None:
    """Both directions of both links, per rank on average."""
    for what in ("dispatch", "combine"):
        for link in ("ib", "nvlink"):
            moved = wires.bytes(what, link, ROW_BYTES) / layout.ranks
            assert moved == pytest.approx(expected[link], rel=rel), (what, link)


@pytest.mark.parametrize(
    ("top_k", "limit"), [(k, limit) for k in (1, 2, 4, 8) for limit in range(1, 9) if k <= 4 * limit]
)
def test_random_tokens_move_what_is_expected(top_k: int, limit: int) -> None:
    """16 384 tokens: their mean has a standard error of at most 0.8 % (one copy, on NVLink or not); 3 % are allowed."""
    cfg = gate(SMALL, top_k, limit)
    wires = executed(cfg, SMALL, uniform(SMALL, 1024, seed=10 * limit + top_k))
    assert_bytes(wires, model(cfg, SMALL, 1024), SMALL, rel=0.03)


def test_deepseek_v3_on_eight_nodes() -> None:
    cfg = gate(V3, 8, 4)
    wires = executed(cfg, V3, uniform(V3, 24, seed=1))
    expected = model(cfg, V3, 24)
    assert_bytes(wires, expected, V3, rel=0.015)
    copies = {link: expected[link] / (24 * ROW_BYTES) for link in expected}
    assert copies["sent"] == pytest.approx(3.97, abs=0.03)
    assert copies["delivered"] == pytest.approx(7.49, abs=0.01)
    assert copies["ib"] == pytest.approx(3.46, abs=0.01)
    assert copies["nvlink"] == pytest.approx(6.55, abs=0.01)


@pytest.mark.parametrize("limit", [2, 4, 7])
def test_groups_chosen_by_their_single_best(limit: int) -> None:
    """DeepSeek-V2's gate (arXiv 2405.04434, section 2.2.2)."""
    cfg = replace(gate(SMALL, 4, limit), topk_method="group_limited_greedy")
    wires = executed(cfg, SMALL, uniform(SMALL, 1024, seed=limit))
    assert_bytes(wires, model(cfg, SMALL, 1024, scored=1), SMALL, rel=0.03)


def rotating(layout: Layout, limit: int, tokens: int) -> Array:
    """Affinities with which token t prefers all experts of the nodes t, t + 1 ... t + limit - 1, round the cluster."""
    node = np.arange(layout.experts) * layout.nodes // layout.experts
    place = (node[None, :] - np.arange(tokens)[:, None]) % layout.nodes
    one = np.where(place < limit, 0.9, 0.1) - np.arange(layout.experts) * 1e-4
    return np.broadcast_to(one, (layout.ranks, *one.shape))


@pytest.mark.parametrize("limit", range(1, 9))
def test_exact_where_nothing_is_left_to_chance(limit: int) -> None:
    """All experts of `limit` nodes that take turns: the same bytes, to rounding."""
    cfg = gate(SMALL, 4 * limit, limit)
    wires = executed(cfg, SMALL, rotating(SMALL, limit, 16))
    assert_bytes(wires, model(cfg, SMALL, 16), SMALL, rel=1e-9)


def test_exact_for_one_expert_that_takes_turns() -> None:
    cfg = gate(SMALL, 1, 1)
    turns = np.where(np.arange(32)[:, None] == np.arange(32)[None, :], 0.9, 0.1)
    wires = executed(cfg, SMALL, np.broadcast_to(turns, (SMALL.ranks, 32, 32)))
    expected = model(cfg, SMALL, 32)
    assert expected["sent"] == expected["delivered"] == pytest.approx(32 * ROW_BYTES)
    assert_bytes(wires, expected, SMALL, rel=1e-9)


@pytest.mark.parametrize(("top_k", "limit"), [(2, 4), (4, 2), (8, 8)])
def test_counts_with_the_own_node_and_rank(top_k: int, limit: int) -> None:
    """`sent` and `delivered`, as DeepEP reports its bandwidths, and copies that are not shared on the way."""
    cfg, tokens = gate(SMALL, top_k, limit), 256
    u = uniform(SMALL, tokens, seed=3).reshape(-1, SMALL.experts)
    source = np.repeat(np.arange(SMALL.ranks), tokens)
    experts = route(cfg, np.log(u) - np.log1p(-u)).experts
    counted, expected = traffic(experts, source, SMALL), model(cfg, SMALL, tokens)
    per_rank = ROW_BYTES / SMALL.ranks
    assert counted.to_node.sum() * per_rank == pytest.approx(expected["sent"], rel=0.02)
    assert counted.to_rank.sum() * per_rank == pytest.approx(expected["delivered"], rel=0.02)
    plain = direct_traffic(tokens=tokens, bytes_per_token=ROW_BYTES, ranks=16, ranks_per_node=2, top_k=top_k)
    target = SMALL.rank_of(experts)
    away = SMALL.node_of(target) != SMALL.node_of(source)[:, None]
    within_node = (target != source[:, None]) & ~away
    assert away.sum() * per_rank == pytest.approx(plain.nic, rel=0.02)
    assert within_node.sum() * per_rank == pytest.approx(plain.nvlink, rel=0.1)  # one copy in sixteen: few


def test_the_executed_gate_reaches_what_the_model_says_over_all_limits() -> None:
    """More nodes allowed, more reached; the model stays within 1 % of 20 000 tokens each."""
    u = np.random.default_rng(5).random((20_000, V3.experts))
    source = np.arange(len(u)) % V3.ranks
    for limit in range(1, 9):
        cfg = gate(V3, 8, limit)
        counted = traffic(route(cfg, np.log(u) - np.log1p(-u)).experts, source, V3)
        hit = reach(Gate(experts=256, top_k=8, groups=8, node_limit=limit if limit < 8 else 0), 64, 8)
        assert counted.nodes_per_token == pytest.approx(hit.nodes, rel=0.01)
        assert counted.ranks_per_token == pytest.approx(hit.ranks, rel=0.01)


@pytest.mark.parametrize("job", ["deepseek-v2-pretrain", "deepseek-v3-pretrain"])
def test_a_rank_receives_the_tokens_that_the_gate_of_its_model_sends(job: str) -> None:
    """The reference gate of each model, on 40 000 tokens with uniform affinities."""
    scenario = load_scenario(job)
    model, ep = scenario.model, scenario.job.layout.ep
    place = Layout(experts=model.n_routed_experts, ranks=ep, nodes=ep // scenario.cluster.node.gpus)
    plain = gate_config(model.n_routed_experts, model.num_experts_per_tok, model.n_group, model.topk_group)
    u = np.random.default_rng(11).random((40_000, model.n_routed_experts))
    logits, source = np.log(u) - np.log1p(-u), np.arange(len(u)) % ep
    reached = {
        method: traffic(route(replace(plain, topk_method=method), logits).experts, source, place).ranks_per_token
        for method in ("noaux_tc", "group_limited_greedy")
    }
    own = reached.pop(model.topk_method)
    received = shapes_of(scenario).received / (scenario.job.tokens_per_rank // scenario.job.layout.tp)
    assert received == pytest.approx(own, rel=1.5e-3)
    assert received != pytest.approx(reached.popitem()[1], rel=2e-3)  # another model's gate is reported from it


def test_rows_of_every_expert_are_those_of_the_executed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that a gate with popular experts sends: what each rank's experts really got is what the ranks of a step
    have when the same choice is given as a recording."""
    cfg, tokens = gate(SMALL, 4, 4), 64
    popular = np.random.default_rng(5).lognormal(0.0, 0.7, SMALL.experts)
    affinities = uniform(SMALL, tokens, seed=6) ** (1.0 / popular)
    got = np.zeros((SMALL.ranks, SMALL.experts_per_rank))
    inside = expert_parallel._local_experts

    def counted(run: Run, p: Weights, layout: Layout, rank: int, packet: Packet) -> Array:
        chosen = packet.experts[packet.experts >= 0] - rank * layout.experts_per_rank
        got[rank] += np.bincount(chosen, minlength=layout.experts_per_rank)
        return inside(run, p, layout, rank, packet)

    monkeypatch.setattr(expert_parallel, "_local_experts", counted)
    logits = np.log(affinities) - np.log1p(-affinities)
    expert_parallel_routed(Run(cfg=cfg), weights(cfg), list(logits), SMALL)
    chosen = np.concatenate([route(cfg, each, None).experts.ravel() for each in logits])
    recorded = np.bincount(chosen, minlength=SMALL.experts).astype(float)[None, :]
    loads = rank_loads(
        Routing(kind="measured", file="recorded"),
        Gate(experts=SMALL.experts, top_k=4, groups=SMALL.nodes, node_limit=4, scored=2),
        in_order(SMALL.experts, SMALL.ranks),
        tokens=tokens * SMALL.ranks,
        layer=3,
        microbatch=0,
        counts=ExpertCounts(source="recorded", digest="", microbatches=1, tokens={3: recorded}),
    )
    assert loads.rows == pytest.approx(got, rel=1e-12)
    assert loads.imbalance == pytest.approx(float(got.sum(axis=1).max() / got.sum(axis=1).mean()))
    assert loads.imbalance > 1.2
