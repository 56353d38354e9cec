"""Loads of ranks as data: popularity through the gate against every affinity drawn, placements, recordings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.ops import Gate
from simulator.routing.loads import imbalance, moe_layers
from simulator.routing.placement import Placement, in_order
from simulator.routing.popularity import chosen_shares, popularity
from simulator.routing.rank_loads import rank_loads, tokens_of
from simulator.spec.job import Routing
from simulator.spec.uneven import ExpertCounts

V3 = Gate(experts=256, top_k=8, groups=8, node_limit=4)
V2 = Gate(experts=160, top_k=6, groups=8, node_limit=3, scored=1)
FREE = Gate(experts=256, top_k=8)


def drawn_shares(popular: np.ndarray, gate: Gate, tokens: int = 40_000) -> np.ndarray:
    """The gate itself: an affinity u^(1/popularity) for every token and expert."""
    affinity = np.random.default_rng(1).random((tokens, gate.experts)) ** (1.0 / popular)
    if gate.is_limited:
        grouped = affinity.reshape(tokens, gate.groups, gate.group_size)
        score = np.sort(grouped, axis=2)[:, :, -gate.scored :].sum(axis=2)
        kept = score >= np.sort(score, axis=1)[:, -gate.node_limit][:, None]
        affinity = np.where(np.repeat(kept, gate.group_size, axis=1), affinity, -1.0)
    chosen = np.argpartition(-affinity, gate.top_k - 1, axis=1)[:, : gate.top_k]
    return np.bincount(chosen.ravel(), minlength=gate.experts) / tokens


@pytest.mark.parametrize("gate", [V3, V2, FREE])
@pytest.mark.parametrize("cv", [0.2, 0.8])
def test_shares_are_those_of_a_gate_that_draws_every_affinity(gate: Gate, cv: float) -> None:
    popular = popularity(gate.experts, cv, seed=3, layer=5)
    expected, drawn = chosen_shares(popular, gate), drawn_shares(popular, gate)
    assert expected.sum() == pytest.approx(gate.top_k, rel=1e-6)
    noise = np.sqrt(gate.top_k / gate.experts / 40_000)
    assert np.abs(expected - drawn).max() < 6 * noise + 0.06 * drawn.max()
    ranks = [each.reshape(32, -1).sum(axis=1) for each in (expected, drawn)]
    assert np.corrcoef(*ranks)[0, 1] > 0.95
    assert ranks[0].max() == pytest.approx(ranks[1].max(), rel=0.05)


@given(
    cv=st.floats(0.0, 2.0),
    seed=st.integers(0, 2**31),
    gate=st.sampled_from([V3, V2, FREE, Gate(experts=8, top_k=8), Gate(experts=16, top_k=4, groups=4, node_limit=1)]),
)
@settings(max_examples=40, deadline=None)
def test_shares_add_up_and_keep_the_order_without_limits(cv: float, seed: int, gate: Gate) -> None:
    popular = popularity(gate.experts, cv, seed=seed, layer=0)
    shares = chosen_shares(popular, gate)
    assert (shares >= 0.0).all()
    assert (shares <= 1.0 + 1e-9).all()
    assert shares.sum() == pytest.approx(gate.top_k, rel=1e-5)
    if not gate.is_limited:
        assert (np.diff(shares[np.argsort(popular)]) >= -1e-12).all()


def test_popularity_has_the_spread_and_lasts() -> None:
    drawn = np.concatenate([popularity(256, 0.3, seed=1, layer=layer) for layer in range(200)])
    assert drawn.std() == pytest.approx(0.3, rel=0.05)
    assert (popularity(256, 0.3, seed=1, layer=4) == popularity(256, 0.3, seed=1, layer=4)).all()
    assert (popularity(256, 0.3, seed=1, layer=4) != popularity(256, 0.3, seed=2, layer=4)).all()


def test_what_a_microbatch_changes_does_not_last() -> None:
    def load(cv: float, microbatch_cv: float) -> np.ndarray:
        routing = Routing(kind="sampled", cv=cv, microbatch_cv=microbatch_cv)
        of = tokens_of(routing, V3, tokens=4096 * 64)
        return np.array([of(7, microbatch) for microbatch in range(50)])

    lasting, passing = load(0.3, 0.0), load(0.0, 0.3)
    assert (lasting.sum(axis=1) == 4096 * 64 * 8).all()
    assert lasting.mean(axis=0).std() > 5 * passing.mean(axis=0).std()
    assert passing.std(axis=0).mean() > 5 * lasting.std(axis=0).mean()


def test_rows_of_the_published_trace_lie_within_a_small_spread() -> None:
    seen = [31104, 34688, 30976, 32512]  # padded rows of four layers, deepseek-ai/profile-data
    loads = rank_loads(Routing(kind="sampled", cv=0.1), V3, in_order(256, 64), tokens=4096 * 64, layer=3, microbatch=0)
    assert loads.per_rank.mean() == 32768
    assert loads.per_rank.max() + 4 * 127 / 2 > max(seen)


def test_copies_of_an_expert_share_its_tokens() -> None:
    """Four experts, two ranks of three slots; expert 0, with half of all tokens, has three copies."""
    placement = Placement(experts=4, slots=((0, 0, 1), (0, 2, 3)))
    counts = ExpertCounts(source="", digest="", microbatches=1, tokens={0: np.array([[60.0, 20.0, 30.0, 10.0]])})
    loads = rank_loads(
        Routing(kind="measured"), Gate(experts=4, top_k=2), placement, tokens=60, layer=0, microbatch=5, counts=counts
    )
    assert loads.rows.tolist() == [[20.0, 20.0, 20.0], [20.0, 30.0, 10.0]]
    assert loads.imbalance == 1.0
    alone = rank_loads(
        Routing(kind="measured"),
        Gate(experts=4, top_k=2),
        in_order(4, 2),
        tokens=60,
        layer=0,
        microbatch=0,
        counts=counts,
    )
    assert alone.relative.tolist() == [80 / 60, 40 / 60]


@pytest.mark.parametrize("kind", ["uniform", "skewed", "given"])
def test_kinds_that_are_about_ranks_are_the_same_in_all_layers(kind: str) -> None:
    routing = Routing(
        kind=kind,  # type: ignore[arg-type]
        max_over_mean=1.5 if kind == "skewed" else 1.0,
        loads=(1.5, 0.5, 1.0, 1.0) if kind == "given" else (),
    )
    loads = rank_loads(routing, FREE, in_order(256, 4), tokens=1000, layer=9, microbatch=3)
    assert loads.rows.shape == (4, 64)
    assert loads.rows.sum() == pytest.approx(8000)
    assert loads.imbalance == pytest.approx(1.0 if kind == "uniform" else 1.5)


@pytest.mark.parametrize(
    ("slots", "says"),
    [
        (((0, 1), (2, 4)), "there is no expert 4; they are 0 to 3"),
        (((0, 1), (2, 2)), "no rank holds expert 3"),
        (((0, 1, 2), (3, 1)), "different numbers of slots"),
    ],
)
def test_placements_that_cannot_be_are_refused(slots: tuple[tuple[int, ...], ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Placement(experts=4, slots=slots)


def test_a_seed_is_another_draw_of_the_same_spread() -> None:
    def top(seed: int) -> float:
        scenario = load_scenario(
            "deepseek-v3-pretrain", ["routing.kind=sampled", "routing.cv=0.2", f"routing.seed={seed}"]
        )
        return imbalance(scenario, 4096 * 64)

    assert top(0) == top(0)
    assert top(0) != top(1)
    assert top(0) == pytest.approx(top(1), rel=0.02)
    assert 1.2 < top(0) < 1.32  # 64 ranks of 4 experts: 1 + 2.4 x 0.2 / 2 and the skew of a log-normal


def test_layers_of_v3_are_counted_with_the_dense_ones_and_mtp() -> None:
    assert moe_layers(load_scenario("deepseek-v3-pretrain").model) == list(range(3, 62))
