"""The table of step times: its nodes are forecasts of `simulate`, and what lies between is near them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from simulator.inputs import load_scenario
from simulator.results.simulate import simulate
from simulator.serving.deployment import deploy
from simulator.serving.step_times import StepTable, prompt_nodes
from simulator.spec.scenario import Scenario


def _scenario(job: str, *overrides: str) -> Scenario:
    return load_scenario(job, overrides, replayed=True)


@pytest.fixture(scope="module")
def table() -> StepTable:
    return deploy(_scenario("llama-3-8b-decode", "stack=vllm")).table


def test_a_node_of_decode_is_what_simulate_says(table: StepTable) -> None:
    said = simulate(load_scenario("llama-3-8b-decode", ["stack=vllm", "serving.context=4096"]), engine="longest-path")
    assert table.decode(64, 4096).seconds == pytest.approx(said.metrics["step_time_s"])
    # 60 sequences are padded to the captured 64, and 4 places have nothing cached.
    assert table.decode(60, 4096 * 64 / 60).seconds == pytest.approx(table.decode(64, 4096).seconds)


def test_a_node_of_prefill_is_what_simulate_says(table: StepTable) -> None:
    said = simulate(load_scenario("llama-3-8b-prefill", ["stack=vllm"]), engine="longest-path")
    assert table.prefill(8192, 4096) == pytest.approx(said.metrics["step_time_s"])


@pytest.mark.parametrize(("batch", "context"), [(1, 300), (64, 1500), (200, 700), (512, 900), (700, 1000)])
def test_between_nodes_decode_is_near_its_forecast(table: StepTable, batch: int, context: int) -> None:
    padded = table.padded(batch)
    direct = table.forecasts.decode(padded, context, graph=batch <= table.largest)
    assert table.decode(batch, context).seconds == pytest.approx(direct, rel=0.05)


@pytest.mark.parametrize(
    ("prompts", "tokens", "cached"),
    [(1, 1000, 0), (1, 6000, 0), (3, 2000, 0), (8, 512, 0), (1, 5000, 3000), (1, 700, 30_000), (2, 3500, 1000)],
)
def test_between_nodes_prompts_are_near_their_forecast(
    table: StepTable, prompts: int, tokens: int, cached: int
) -> None:
    direct = table.forecasts.prefill(prompts, tokens, cached, graph=False)
    assert table.prefill(prompts * tokens, cached + tokens / 2) == pytest.approx(direct, rel=0.06)


def test_the_pace_of_decode_is_what_later_steps_take(table: StepTable) -> None:
    pace = table.decode(32, 600.0)
    for ahead in (1, 20, pace.steps - 1):
        assert table.decode(32, 600.0 + ahead).seconds == pytest.approx(pace.seconds + ahead * pace.slope)
    beyond = table.decode(32, 600.0 + pace.steps + 1)
    assert beyond.slope != pace.slope


def test_a_mixed_step_is_no_shorter_than_its_parts(table: StepTable) -> None:
    mixed = table.mixed(64, 2000, 1024, 512)
    assert mixed > table.prefill(1024, 512)
    assert mixed > table.decode(64, 2000).seconds
    assert mixed < table.prefill(1024, 512) + table.decode(64, 2000).seconds
    assert table.mixed(0, 0.0, 1024, 512) == table.prefill(1024, 512)


def test_one_rank_may_get_more_tokens_than_a_step_of_all_is_meant_to_have(table: StepTable) -> None:
    most = 2 * table.scheduler.step_tokens
    assert table.prefill(3 * most, 1.5 * most) > table.prefill(most, most / 2) > 0.0


def test_nodes_of_prompts_are_dense_and_rise() -> None:
    nodes = prompt_nodes(5000)
    assert nodes == sorted(set(nodes))
    assert nodes[:10] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert nodes[-1] >= 5000
    assert max(b / a for a, b in pairwise(nodes[8:])) <= 1.25


def test_two_microbatches_halve_a_prompt_and_pad_a_batch() -> None:
    scenario = _scenario("deepseek-v3-decode-ep128")
    small = replace(scenario, model=replace(scenario.model, num_hidden_layers=4))
    forecasts = deploy(small).table.forecasts
    assert forecasts.decode(63, 1000, graph=True) == forecasts.decode(64, 1000, graph=True)
    whole, half = forecasts.prefill(1, 4096, 0, graph=False), forecasts.prefill(2, 2048, 0, graph=False)
    assert whole == pytest.approx(half, rel=0.15)
    assert whole > half  # the second half of a prompt attends to the first
