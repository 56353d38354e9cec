"""What engines give the KV cache: each rule by hand, and against published logs."""

from __future__ import annotations

import pytest

from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.memory import memory_of_serving
from simulator.memory.budget import beyond_budget, kv_budget_bytes
from simulator.memory.memory_report import Item, RankMemory
from simulator.memory.serving import fits_with, kv_cache_tokens
from simulator.results.serving_metrics import largest_batch
from simulator.results.simulate import simulate
from simulator.studies.feasibility import problems

GB = 1e9
SIZES = {"weights": 20.0, "kv_cache": 30.0, "temporary": 3.0, "buffers": 2.0, "context": 1.0}
RANK = RankMemory(
    rank=0,
    stages=(0,),
    at=None,
    during="F0",
    items=tuple(Item(group=group, name=group, bytes=size * GB) for group, size in SIZES.items()),
)
"""56 GB, 26 of them without the cache."""


@pytest.mark.parametrize(
    ("rule", "share", "expected"),
    [
        ("none", 1.0, 80 - 26),
        ("static", 0.9, 0.9 * (80 - 1) - 20),  # no term of activations
        ("total", 0.9, 0.9 * 80 - 26),
        ("free", 0.9, 0.9 * (80 - 26)),
        ("total", 0.3, 0.0),  # less than what is there already
    ],
)
def test_each_rule_by_hand(rule: str, share: float, expected: float) -> None:
    settings = [f"stack.serving.kv_budget={rule}", "hardware.gpu.hbm_bytes=80e9"]
    settings += [f"stack.serving.kv_share={share}"] if rule != "none" else []
    assert kv_budget_bytes(load_scenario("llama-3-8b-decode", settings), RANK) == pytest.approx(expected * GB)


def test_the_largest_batch_fills_the_cache_that_the_engine_gives() -> None:
    scenario = load_scenario("qwen3-32b-decode", ["stack.serving.kv_share=0.7"])
    most = largest_batch(scenario)
    assert 0 < most < largest_batch(load_scenario("qwen3-32b-decode"))
    assert fits_with(scenario, most)
    assert not fits_with(scenario, most + 1)
    assert most * 2049 <= kv_cache_tokens(scenario) * 1.001


def test_more_than_the_engine_gives_is_one_line() -> None:
    scenario = load_scenario("qwen3-32b-decode", ["stack.serving.kv_share=0.5", "serving.sequences=100"])
    assert memory_of_serving(scenario).answer == "fits"
    found = [one for one in problems(scenario) if one.rule == "memory"]
    assert len(found) == 1
    assert "the KV cache needs 26.9 GB; vllm gives it" in str(found[0])
    assert any("vllm gives it" in line for line in simulate(scenario).warnings)
    assert beyond_budget(load_scenario("qwen3-32b-decode"), memory_of_serving(scenario).worst) == ""


def test_tokens_in_the_cache_against_a_published_log() -> None:
    """SGLang 0.5.12 on 8 H200 with --mem-fraction-static 0.82 logs 509,285 tokens for DeepSeek-V3 (ai-dynamo/
    aisimulate, 2026-09), and loads 85.7 GB of weights. Compared with, never fitted."""
    found = kv_cache_tokens(load_scenario("deepseek-v3-decode-h200", ["stack.serving.kv_share=0.82"]))
    assert found == pytest.approx(509_285, rel=0.10)


def test_a_budget_without_a_rule_is_refused() -> None:
    with pytest.raises(InputError, match=r"set stack\.serving\.kv_budget"):
        load_scenario("llama-3-8b-decode", ["stack.serving.kv_share=0.5"])
