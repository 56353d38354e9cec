"""Selection of experts, its traffic, and expert parallelism executed."""

from dataclasses import replace

import numpy as np
import pytest

from workloads.reference.count import Run
from workloads.reference.init import init_params
from workloads.reference.layers.gate import affinities, balance_loss, route, select
from workloads.reference.layers.moe import moe
from workloads.reference.parallel.expert_parallel import expert_parallel_routed
from workloads.reference.parallel.traffic import Layout, sampled_traffic, traffic
from workloads.reference.presets import tiny_v3

V3 = Layout(experts=256, ranks=64, nodes=8)


def test_selection_by_hand() -> None:
    """Groups (0,1) (2,3) (4,5): two best sums are 0.9 + 0.1 and 0.6 + 0.5; 0.8 alone is passed over."""
    choice = np.array([[0.9, 0.1, 0.8, 0.05, 0.6, 0.5]])
    assert select(choice, top_k=3, n_group=3, topk_group=2).tolist() == [[0, 4, 5]]
    assert select(choice, top_k=3, n_group=3, topk_group=2, best_of_group=1).tolist() == [[0, 2, 1]]
    assert select(choice, top_k=3).tolist() == [[0, 2, 4]]
    assert select(np.zeros((1, 4)), top_k=2).tolist() == [[0, 1]]  # ties: lower index


def test_bias_steers_selection_but_not_weights() -> None:
    cfg = replace(tiny_v3(), n_group=1, topk_group=1)
    logits = np.random.default_rng(0).standard_normal((5, 8))
    bias = np.array([10.0, 0, 0, 0, 0, 0, 0, -10.0])
    r = route(cfg, logits, bias)
    assert (r.experts == 0).any(axis=1).all()
    assert not (r.experts == 7).any()
    s = np.take_along_axis(affinities(logits, "sigmoid"), r.experts, axis=1)
    np.testing.assert_allclose(r.weights, 2.5 * s / s.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("limit", range(1, 9))
@pytest.mark.parametrize("top_k", [1, 2, 4, 8])
def test_node_limit_and_top_k_bound_what_a_token_reaches(limit: int, top_k: int) -> None:
    t = sampled_traffic(V3, tokens=512, top_k=top_k, topk_group=limit, seed=limit)
    assert 1.0 <= t.nodes_per_token <= min(limit, top_k)
    assert t.nodes_per_token <= t.ranks_per_token <= top_k
    assert t.rows.sum() == 512 * top_k
    if limit == 8:  # no limit: distinct nodes of top_k draws without replacement, 32 experts each
        absent = np.prod([(224 - i) / (256 - i) for i in range(top_k)])
        assert t.nodes_per_token == pytest.approx(8 * (1 - absent), rel=0.03)


def test_deepseek_v3_reaches_four_nodes() -> None:
    t = sampled_traffic(V3, tokens=20_000, top_k=8, topk_group=4, seed=0)
    assert t.nodes_per_token == pytest.approx(3.97, abs=0.01)
    assert t.ranks_per_token == pytest.approx(7.49, abs=0.01)
    assert t.across_nodes / t.tokens == pytest.approx(3.97 * 7 / 8, abs=0.02)
    assert t.across_nvlink / t.tokens == pytest.approx(7.49 * 7 / 8, abs=0.02)


@pytest.mark.parametrize(("ranks", "nodes"), [(1, 1), (4, 1), (4, 4), (8, 4), (8, 2)])
@pytest.mark.parametrize("limit", [1, 2, 4])
def test_expert_parallelism_equals_one_process_and_its_traffic_the_count(ranks: int, nodes: int, limit: int) -> None:
    cfg = replace(tiny_v3(), n_shared_experts=0, topk_group=limit, num_experts_per_tok=2, n_group=4)
    p = init_params(cfg, 3)["layers.1"]
    rng = np.random.default_rng(4)
    shards = [rng.standard_normal((n, cfg.hidden_size)) for n in ([5, 0, 1, 7, 3, 2, 6, 4] * 2)[:ranks]]
    layout = Layout(experts=8, ranks=ranks, nodes=nodes)
    run = Run(cfg=cfg, layer=1)
    outputs, wires = expert_parallel_routed(run, p, shards, layout)
    together = np.concatenate(shards)
    expected, _, saved = moe(run, p, together[None])
    np.testing.assert_allclose(np.concatenate(outputs), expected[0], rtol=1e-10, atol=1e-12)
    source = np.repeat(np.arange(ranks), [len(x) for x in shards])
    t = traffic(saved["router.gate/ids"], source, layout)
    for what in ("dispatch", "combine"):
        assert wires.bytes(what, "ib", 2.0) == 2 * t.across_nodes
        assert wires.bytes(what, "nvlink", 2.0) == 2 * t.across_nvlink
    if nodes == limit == 1:
        assert t.across_nodes == 0
    elif ranks == 8:
        assert t.across_nodes > 0
        assert t.across_nvlink > 0


def test_traffic_by_hand() -> None:
    """4 ranks on 2 nodes, one expert each; a token on rank 0 chooses experts 1 and 3."""
    t = traffic(np.array([[1, 3]]), np.array([0]), Layout(experts=4, ranks=4, nodes=2))
    assert t.to_node[0].tolist() == [1, 1]
    assert t.to_rank[0].tolist() == [0, 1, 0, 1]
    assert t.across_nodes == 1  # to node 1, entering at rank 2
    assert t.via_relay.tolist() == [1, 0, 1, 0]  # 0 -> 1 at home, 2 -> 3 away
    assert t.rows.tolist() == [0, 1, 0, 1]


def test_balance_loss_of_perfect_balance_is_alpha() -> None:
    """Uniform affinities and even choices: sum of f P = N * (1 * 1/N) = 1 (equations 17 to 20)."""
    cfg = replace(tiny_v3(), aux_loss_alpha=0.5)
    experts = np.arange(16).reshape(8, 2) % 8
    loss, gradient = balance_loss(cfg, experts, np.full((8, 8), 0.3), sequences=2)
    assert loss == pytest.approx(0.5)
    np.testing.assert_allclose(gradient.sum(axis=1), 0.0, atol=1e-15)  # shares do not change under scaling


def test_empty_experts_and_one_token() -> None:
    cfg = tiny_v3()
    p = init_params(cfg, 0)["layers.1"]
    p["router.bias"] = np.array([9.0, 9.0, 9.0, 9.0, 0, 0, 0, 0])
    out, _, saved = moe(Run(cfg=cfg, layer=1), p, np.ones((1, 1, cfg.hidden_size)))
    assert out.shape == (1, 1, cfg.hidden_size)
    assert np.isfinite(out).all()
    assert set(saved["router.gate/ids"].ravel()) <= {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"top_k": 5, "n_group": 4, "topk_group": 2}, r"top-k 5 must lie in 1\.\.4: 2 of 4 groups hold 4 experts"),
        ({"top_k": 0}, r"top-k 0 must lie in 1\.\.8"),
        ({"top_k": 1, "n_group": 3}, "8 experts do not divide into 3 groups"),
        ({"top_k": 1, "n_group": 4, "topk_group": 5}, r"topk_group 5 must lie in 1\.\.4"),
    ],
)
def test_impossible_selections(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(np.zeros((2, 8)), **kwargs)


def test_nan_affinities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"affinities .* not finite at index \[1, 3\]"):
        select(np.where(np.arange(16).reshape(2, 8) == 11, np.nan, 0.0), top_k=1)


def test_uneven_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="each must be a multiple"):
        Layout(experts=256, ranks=48, nodes=8)
    with pytest.raises(ValueError, match="1 token shards given for 2 ranks"):
        expert_parallel_routed(
            Run(cfg=tiny_v3(), layer=1), {}, [np.zeros((1, 24))], Layout(experts=8, ranks=2, nodes=1)
        )
