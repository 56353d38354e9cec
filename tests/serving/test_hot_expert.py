"""A hot expert: its share, the ranks that get more, copies that take it over, and what users see."""

from __future__ import annotations

import re

import numpy as np
import pytest
from click.testing import CliRunner

from cli import foretrain
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.results.simulate import simulate
from simulator.routing.loads import hot_shares
from simulator.routing.slot_loads import slot_loads
from simulator.spec.job import Routing

JOB = (
    "model=qwen3-30b-a3b",
    "model.num_hidden_layers=2",
    "stack=sglang-deepep",
    "hardware=h100",
    "gpus=8",
    "layout.ep=8",
)
HOT = ("routing.kind=hot", "routing.hot_expert=5")


def _loads(*more: str) -> np.ndarray:
    scenario = load_scenario("llama-3-8b-decode", [*JOB, *HOT, *more])
    return slot_loads(scenario, 8000)(0, 0).relative


def test_the_others_share_the_rest() -> None:
    gate = load_scenario("llama-3-8b-decode", JOB).model.gate
    shares = hot_shares(Routing(kind="hot", hot_expert=5.0), gate)
    assert sum(shares) == pytest.approx(gate.top_k)
    assert shares[0] == pytest.approx(5 * gate.top_k / gate.experts)
    assert set(shares[1:]) == {(8 - shares[0]) / 127}
    assert hot_shares(Routing(kind="hot"), gate) == pytest.approx([8 / 128] * 128)


def test_who_holds_it_gets_more_and_copies_take_it_over() -> None:
    loads = _loads()
    assert loads[0] == pytest.approx((5 + 15 * (128 - 5) / 127) / 16)  # 16 experts of 128 on each of 8 ranks
    assert loads[1:] == pytest.approx(16 * (128 - 5) / 127 / 16)
    assert _loads("serving.redundant_experts=8").max() < 1.05


def test_every_token_chooses_it_once_at_most() -> None:
    problems = check(load_scenario("llama-3-8b-decode", [*JOB, "routing.kind=hot", "routing.hot_expert=17"]))
    assert ["routing.hot_expert", "use at most 16"] in [[one.key, one.suggestion] for one in problems]


def test_a_training_step_waits_for_its_rank() -> None:
    own = ["gpus=8", "layout.pp=1", "layout.ep=8", "batch.global_batch_size=64", "model.num_hidden_layers=2"]
    plain, hot = (
        simulate(load_scenario("tiny-1f1b", [*own, *more])).metrics["step_time_s"]
        for more in ((), ("routing.kind=hot", "routing.hot_expert=4"))
    )
    assert hot > 1.02 * plain


def test_serve_shows_what_it_changes() -> None:
    asked = ["serve", "llama-3-8b-decode", *(part for one in JOB for part in ("--set", one))]
    asked += ["--requests", "poisson:300", "--input-tokens", "512", "--output-tokens", "4", "--count", "24"]
    shown = CliRunner().invoke(foretrain, [*asked, "--hot-expert", "8", "-q"]).stdout
    words, load = " ".join(shown.split()), (8 + 15 * 120 / 127) / 16
    assert "It stands on 1 rank of the expert-parallel group (0, first layer)" in words
    assert f"the most loaded rank gets {load:.3g} times the mean" in words
    row = next(line for line in shown.splitlines() if "time to first token, mean" in line)
    assert float(re.findall(r"[+-][\d.]+", row)[0]) > 1.0
    refused = CliRunner().invoke(foretrain, [*asked, "--hot-expert", "8", "--set", "layout.ep=1"])
    assert refused.exit_code == 2
    assert "--hot-expert: layout.ep = 1" in refused.stderr
