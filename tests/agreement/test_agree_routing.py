"""Imbalance becomes step time: loads of a gate that really chose, written as a job, simulated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reports.terminal.numerics_tables import gate_of
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.results.simulate import simulate
from simulator.routing.eplb import balanced
from simulator.routing.placement import in_order
from workloads.reference.claims.loads import Method, RankLoads, as_toml, loads_of_ranks
from workloads.reference.layers.gate import route
from workloads.reference.presets import tiny_v3

JOB, STEPS = "tiny-1f1b", 500


@pytest.fixture(scope="module")
def loads() -> dict[Method, RankLoads]:
    scenario = load_scenario(JOB)
    gate, ranks = gate_of(scenario.model), scenario.job.layout.ep
    methods: tuple[Method, ...] = ("none", "auxiliary-loss", "bias")
    return {method: loads_of_ranks(gate, ranks, method, steps=STEPS) for method in methods}


def step_time(job: str, *overrides: str) -> float:
    return simulate(load_scenario(job, overrides), engine="longest-path").metrics["step_time_s"]


def test_balanced_gates_give_shorter_steps(loads: dict[Method, RankLoads], tmp_path: Path) -> None:
    """Nothing at all, an auxiliary loss, the bias, perfect balance: ever less imbalance, ever less time."""
    times = {"perfect": step_time(JOB)}
    for method, found in loads.items():
        job = tmp_path / f"{method}.toml"
        job.write_text(as_toml(found, model="a tiny gate", extends=JOB), encoding="utf-8")
        times[method] = step_time(str(job))
    assert times["perfect"] < times["bias"] < times["none"]
    assert times["auxiliary-loss"] < times["none"]
    assert loads["none"].max_over_mean > 2.0
    assert loads["bias"].max_over_mean < 1.1


def test_what_is_written_is_what_is_simulated(loads: dict[Method, RankLoads], tmp_path: Path) -> None:
    job = tmp_path / "loads.toml"
    job.write_text(as_toml(loads["none"], model="a tiny gate", extends=JOB), encoding="utf-8")
    scenario = load_scenario(str(job))
    assert check(scenario) == check(load_scenario(JOB))
    assert scenario.job.routing.kind == "given"
    np.testing.assert_allclose(scenario.job.routing.loads, loads["none"].loads, atol=5e-5)
    assert step_time(str(job)) == pytest.approx(
        step_time(JOB, "routing.kind=skewed", f"routing.max_over_mean={loads['none'].max_over_mean}"), rel=1e-3
    )


def test_step_time_grows_with_the_most_loaded_rank_only(loads: dict[Method, RankLoads]) -> None:
    times = []
    for top in (1.0, 1.2, 1.6, 2.4, 4.0):
        given = [top] + [(16 - top) / 15] * 15
        times.append(step_time(JOB, "routing.kind=given", f"routing.loads={given}"))
    assert times == sorted(times)
    assert len(set(times)) == len(times)
    flat = step_time(JOB, "routing.kind=given", f"routing.loads={[1.0] * 16}")
    assert flat == pytest.approx(step_time(JOB), rel=1e-12)


def test_loads_for_another_number_of_ranks_break_a_rule() -> None:
    scenario = load_scenario(JOB, ["routing.kind=given", "routing.loads=[1.0, 1.0]"])
    shown = [str(problem) for problem in check(scenario)]
    assert any("each of the 16 expert-parallel ranks needs one" in line for line in shown)


def test_loads_repeat_and_keep_their_mean() -> None:
    gate = gate_of(load_scenario(JOB).model)
    one, two = (loads_of_ranks(gate, 8, "bias", steps=20, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.loads, two.loads)
    assert one.loads.mean() == pytest.approx(1.0)
    assert (one.loads != loads_of_ranks(gate, 8, "bias", steps=20, seed=4).loads).any()


def test_tokens_that_the_reference_routes_reach_the_slots_of_a_balanced_placement() -> None:
    """Each token goes to one copy of each expert that the reference's gate chose, copies in turn: the loads of the
    ranks are those of the placement, up to the tokens that do not divide."""
    cfg, ranks = replace(tiny_v3(), n_routed_experts=16, n_group=4, num_experts_per_tok=3), 4
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4000, 16)) + rng.standard_normal(16)  # some experts are popular
    chosen = route(cfg, logits, None).experts
    counts = np.bincount(chosen.reshape(-1), minlength=16).astype(float)
    placement = balanced(list(counts), slots=24, ranks=ranks, nodes=2, groups=4)
    homes: dict[int, list[int]] = {expert: [] for expert in range(16)}
    for rank, held in enumerate(placement.slots):
        for expert in held:
            homes[expert].append(rank)
    arrived, turn = np.zeros(ranks), dict.fromkeys(range(16), 0)
    for expert in chosen.reshape(-1).tolist():
        arrived[homes[expert][turn[expert] % len(homes[expert])]] += 1
        turn[expert] += 1
    expected = placement.rows(counts).sum(axis=1)
    assert np.abs(arrived - expected).max() <= 24
    assert arrived.sum() == chosen.size
    plain = in_order(16, ranks).rows(counts).sum(axis=1)
    assert expected.max() / expected.mean() < plain.max() / plain.mean()
