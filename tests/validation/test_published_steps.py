"""Published serving steps: where their numbers come from, how they are computed, and how well they are met."""

from __future__ import annotations

import pytest

from simulator.inputs import load_scenario
from simulator.results.simulate import simulate
from simulator.validation import grouped, validate
from simulator.validation.cannot import CannotCompute
from simulator.validation.computations import rule_for
from simulator.validation.serving.published_steps import SIZES, serving_rows, serving_step
from simulator.validation.validate import outcome_of, use_of


@pytest.fixture(scope="module")
def outcomes():
    return validate(["S"])


def test_every_row_is_a_figure_with_its_source_that_is_only_compared_with():
    figures = serving_rows()
    assert len({figure.id for figure in figures}) == len(figures) > 130
    for figure in figures:
        assert figure.source
        assert figure.system
        assert figure.end_to_end
        assert use_of(figure, rule_for(figure)) == "comparison"
        assert float(figure.config["sequences"]) >= 1


def test_what_is_not_computed_says_why(outcomes):
    left = [one for one in outcomes if one.predicted is None]
    assert len(left) < 0.1 * len(outcomes)
    assert all(one.reason for one in left)


def figure_of(name: str):
    return next(figure for figure in serving_rows() if figure.id == name)


def test_a_token_of_a_closed_loop_takes_a_decode_step_and_its_share_of_the_prompts():
    figure = figure_of("S.trtllm.3.1-70b.467-256.8rps")
    sequences = int(figure.config["sequences"])
    own = ["model=llama-3-70b", "hardware=h100", "stack=trtllm", "gpus=4", "layout.tp=4"]
    decode = simulate(
        load_scenario("llama-3-8b-decode", [*own, f"serving.sequences={sequences}", "serving.context=595"])
    )
    together = min(sequences, 8192 // 467)
    prompts = simulate(
        load_scenario("llama-3-8b-prefill", [*own, f"serving.sequences={together}", "serving.tokens=467"])
    )
    share = sequences / 256 / together * prompts.metrics["step_time_s"]
    assert serving_step(figure) == pytest.approx(1e3 * (decode.metrics["step_time_s"] + share), rel=1e-6)


def test_prompts_that_other_gpus_compute_take_no_time():
    figure = figure_of("S.tt.qwen2.5-72b.h100.1024-128")
    own = ["model=qwen2.5-72b", "hardware=h100", "stack=vllm", "gpus=2", "layout.tp=2"]
    step = simulate(load_scenario("llama-3-8b-decode", [*own, "serving.sequences=1", "serving.context=1088"]))
    assert serving_step(figure) == pytest.approx(1e3 * step.metrics["step_time_s"], rel=1e-6)


def test_one_sequence_at_a_time_is_prefill_and_then_every_token():
    figure = figure_of("S.dstack.llama-3.1-405b.2048-2048.n4")
    tokens = serving_step(figure)
    assert tokens > 2048 * 1e3 * 405e9 / 8 / 3.35e12  # weights are read for every token
    assert outcome_of(figure).error == pytest.approx(tokens / figure.number - 1.0)


@pytest.mark.parametrize("name", SIZES)
def test_models_given_by_their_sizes_have_the_parameters_of_their_names(name):
    model = load_scenario("llama-3-8b-decode", SIZES[name]).model
    assert model.parameters() == pytest.approx(float(name.split("-")[1].removesuffix("B")) * 1e9, rel=0.06)


def test_a_layout_that_cannot_be_is_no_figure():
    figure = next(f for f in serving_rows() if f.config["tp"] == "16")
    with pytest.raises(CannotCompute, match=r"layout\.tp"):
        serving_step(figure)


def test_dense_models_are_met_no_worse_than_today(outcomes):
    groups = {group.name: group for group in grouped(outcomes)}
    assert groups["S.trtllm"].mape < 0.18
    assert abs(groups["S.trtllm"].bias) < 0.10
    assert groups["S.tt"].mape < 0.25
