"""Ranks of a prefill step apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.engine.lockstep.prefill import token_shares
from simulator.inputs import load_scenario
from simulator.results.simulate import simulate
from simulator.spec.scenario import Scenario
from simulator.spec.serving import Serving, sampled_shares

APART = ("serving.ranks=apart",)


def few(*overrides: str) -> Scenario:
    """A prefill step of six layers on 16 GPUs."""
    scenario = load_scenario("deepseek-v3-prefill-ep32", ["gpus=16", "layout.ep=16", *overrides])
    return replace(scenario, model=replace(scenario.model, num_hidden_layers=6))


def metrics(*overrides: str) -> dict[str, float]:
    return dict(simulate(few(*overrides)).metrics)


@pytest.mark.parametrize("overlap", ["true", "false"])
def test_equal_ranks_take_a_mean_rank_s_step_to_the_last_digit(overlap: str) -> None:
    two = f"serving.two_batch_overlap={overlap}"
    mean, apart = metrics(two), metrics(two, *APART)
    assert apart["step_time_s"] == mean["step_time_s"]
    assert apart["rank_wait_max_s"] == 0.0


def test_every_rank_waits_for_the_one_with_most_tokens_of_its_own() -> None:
    """Without overlap all that a rank computes before an all-to-all delays all others: the step is longer by at least
    what the rank with most tokens computes beyond the mean, and less than if all ranks were as loaded."""
    one = "serving.two_batch_overlap=false"
    even, uneven = metrics(one, *APART), metrics(one, *APART, "serving.tokens_cv=0.2")
    more = max(token_shares(few(one, *APART, "serving.tokens_cv=0.2")))
    assert more > 1.2
    beyond = uneven["rank_compute_max_s"] - even["rank_compute_max_s"]
    assert uneven["step_time_s"] - even["step_time_s"] > 0.9 * beyond
    full = metrics(one, f"serving.tokens={round(4096 * more)}")
    assert even["step_time_s"] < uneven["step_time_s"] < 1.02 * full["step_time_s"]
    assert uneven["rank_wait_max_s"] > uneven["rank_wait_mean_s"] > 0.0


def test_loads_of_experts_make_a_step_longer_and_another_seed_another_step() -> None:
    sampled = (*APART, "routing.kind=sampled", "routing.cv=0.5", "serving.eplb=off")
    loaded, even = metrics(*sampled), metrics(*APART)
    assert loaded["expert_load_max_over_mean"] > 1.1
    assert loaded["step_time_s"] > even["step_time_s"]
    seeds = [metrics(*APART, "serving.tokens_cv=0.1", f"serving.seed={seed}")["step_time_s"] for seed in (1, 2)]
    assert seeds[0] != seeds[1]


def test_ranks_without_prompts_wait_for_the_others() -> None:
    idle = metrics(*APART, "serving.idle_ranks=4")
    assert idle["rank_wait_max_s"] > idle["rank_wait_mean_s"] > 0.0
    assert list(token_shares(few(*APART, "serving.idle_ranks=4"))[-4:]) == [1 / (4 * 4096)] * 4


def test_shares_of_tokens_have_the_spread_asked_for() -> None:
    serving = Serving(sequences=1, tokens=1, tokens_cv=0.3)
    shares = sampled_shares(serving, 4000)
    assert sum(shares) == pytest.approx(4000)
    assert (sum((x - 1) ** 2 for x in shares) / 4000) ** 0.5 == pytest.approx(0.3, rel=0.05)
    assert sampled_shares(Serving(sequences=1, tokens=1), 3) == [1.0, 1.0, 1.0]
