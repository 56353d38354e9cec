"""A rank that gets more tokens than the others keeps more, and runs out of memory where the mean rank does not."""

from __future__ import annotations

import pytest

from simulator.graph.shapes import group_tokens
from simulator.inputs import load_scenario
from simulator.memory import memory_of_rows
from simulator.memory.memory_report import MemoryReport
from simulator.memory.overload import overload_of
from simulator.results.simulate import prepare
from simulator.routing.rank_loads import mean_imbalance

JOB = ["stack=megatron-core", "precision.recipe=bf16", "layout.recompute=none"]


def report(*changes: str) -> MemoryReport:
    return memory_of_rows(*prepare(load_scenario("tiny-1f1b", [*JOB, *changes])))


def test_activations_of_experts_follow_the_most_loaded_rank() -> None:
    even, full = report(), report("routing.kind=skewed", "routing.max_over_mean=2")
    shapes = prepare(load_scenario("tiny-1f1b", JOB))[0].shapes
    inner, h = shapes.model.moe_intermediate_size, shapes.model.hidden_size
    row = 2 * (h + 2 * inner + inner)  # its token, gate and up, what they multiply to in BF16; one expert needs no map
    blocks = sum(float(item.name.split()[0]) for item in even.ranks[0].items if item.name.endswith("x moe"))
    more = full.ranks[0].group("activations") - even.ranks[0].group("activations")
    assert blocks > 0
    assert more == pytest.approx(blocks * shapes.rows * row)


def test_given_loads_count_by_their_largest() -> None:
    loads = [1.5, 0.5] + [1.0] * 14
    scenario = load_scenario("tiny-1f1b", [*JOB, "routing.kind=given", f"routing.loads={loads}"])
    assert overload_of(scenario) == pytest.approx(1.5)
    assert overload_of(load_scenario("tiny-1f1b", JOB)) == 1.0


def test_loads_that_change_from_layer_to_layer_average_out() -> None:
    scenario = load_scenario("tiny-1f1b", [*JOB, "routing.kind=sampled", "routing.cv=0.5"])
    assert 1.0 < overload_of(scenario) < mean_imbalance(scenario, group_tokens(scenario))


def test_an_overloaded_rank_runs_out_of_memory() -> None:
    even = report()
    room = f"hardware.gpu.hbm_bytes={even.most * 1.01}"
    assert report(room).answer == "fits"
    assert report(room, "routing.kind=skewed", "routing.max_over_mean=4").answer == "does not fit"
