"""The fast path of a serving step against the full engines."""

from __future__ import annotations

import pytest

from simulator.engine.longest_path import longest_path
from simulator.engine.lower import lower, price_model
from simulator.estimate.serving_step import MOST, estimate_serving, limited, lines_of, shortened, step_of
from simulator.inputs import load_scenario
from simulator.results.simulate import powered_plan, schedule_of, simulate
from simulator.spec.model import BlockKind
from tests.serving_jobs import SERVING

EMBED, DENSE, MOE, HEAD = BlockKind.EMBED, BlockKind.DENSE, BlockKind.MOE, BlockKind.HEAD


@pytest.mark.parametrize("job", SERVING)
@pytest.mark.parametrize("changes", [(), ("serving.cuda_graphs=false",), ("serving.sequences=2",)])
def test_it_is_the_full_engine_to_the_last_digits(job: str, changes: tuple[str, ...]) -> None:
    scenario = load_scenario(job, changes)
    whole = simulate(scenario)
    found = estimate_serving(scenario)
    assert found.step == pytest.approx(whole.metrics["step_time_s"], rel=1e-9)
    assert found.memory == pytest.approx(whole.memory.peak)


@pytest.mark.parametrize("layers", [1, 2, 3, MOST, MOST + 1, 9])
def test_any_number_of_layers(layers: int) -> None:
    scenario = load_scenario("deepseek-v3-decode-ep128", [f"model.num_hidden_layers={3 + layers}"])
    assert estimate_serving(scenario).step == pytest.approx(simulate(scenario).metrics["step_time_s"], rel=1e-9)


@pytest.mark.parametrize("host", ["1e-6", "3e-6", "5e-6", "8e-6", "2e-5", "1e-4"])
def test_where_the_host_and_the_gpu_take_turns_at_being_late(host: str) -> None:
    """Few sequences: a layer's kernels are about as long as the host needs to issue them."""
    changes = ["serving.cuda_graphs=false", "serving.sequences=4", "serving.two_batch_overlap=false"]
    changes += [f"stack.host_kernel={host}", f"stack.host_gemm={host}"]
    scenario = load_scenario("deepseek-v3-decode-ep128", changes)
    assert estimate_serving(scenario).step == pytest.approx(simulate(scenario).metrics["step_time_s"], rel=1e-9)


def test_the_power_it_demands_is_that_of_the_whole_step() -> None:
    scenario = load_scenario("llama-3-8b-prefill")
    built = price_model(scenario, 1)
    factor, watts = limited(lines_of(built))
    whole = powered_plan(scenario, schedule_of(scenario), scenario.job.gpus)
    assert factor > 1.0
    assert (factor, watts) == pytest.approx(whole[1:])


def test_rows_of_blocks_by_hand() -> None:
    kinds = (EMBED, *[DENSE] * 3, *[MOE] * 58, HEAD)
    found = shortened(kinds)
    assert [(weight, len(row)) for weight, row in found] == [(55.0, 1 + 3 + 4 + 1), (-54.0, 1 + 3 + 3 + 1)]
    few = (EMBED, DENSE, MOE, DENSE, MOE, HEAD)
    assert shortened(few) == [(1.0, few)]


@pytest.mark.parametrize("kinds", [(EMBED, *[DENSE] * 9, *[MOE] * 7, HEAD), (*[MOE] * 5, *[DENSE] * 2, *[MOE] * 30)])
def test_weights_reproduce_a_time_that_is_linear_in_every_run(kinds: tuple[BlockKind, ...]) -> None:
    """Whatever a block of each run adds."""
    seconds = {EMBED: 0.7, DENSE: 2.0, MOE: 3.5, HEAD: 1.1}

    def linear(row: tuple[BlockKind, ...]) -> float:
        return 0.3 + sum(seconds[kind] for kind in row)

    assert sum(weight * linear(row) for weight, row in shortened(kinds)) == pytest.approx(linear(kinds))


def test_by_the_longest_path_it_is_the_longest_path() -> None:
    scenario = load_scenario("deepseek-v3-prefill-ep32")
    built = price_model(scenario, 1)
    whole = longest_path(lower(built, schedule_of(scenario))).makespan
    assert step_of(lines_of(built), longest_path) == pytest.approx(whole, rel=1e-9)


def test_what_does_not_fit_gets_no_time() -> None:
    found = estimate_serving(load_scenario("llama-3-8b-decode", ["serving.sequences=4000"]))
    assert found.step is None
    assert found.memory > 80e9


def test_nor_does_what_the_engine_gives_its_cache_no_room_for() -> None:
    """By its own rule SGLang's cache is smaller than what is left of the memory."""
    scenario = load_scenario("deepseek-v3-decode-h200")
    most = int(simulate(scenario).metrics["largest_batch"])
    for sequences, fits in ((most, True), (most + 1, False)):
        found = estimate_serving(load_scenario("deepseek-v3-decode-h200", [f"serving.sequences={sequences}"]))
        assert (found.step is not None) == fits
        assert found.memory < scenario.cluster.gpu.hbm_bytes


def test_ranks_apart_are_simulated_whole() -> None:
    """Every layer loads other ranks most, so that none stands for another."""
    changes = ["serving.ranks=apart", "routing.kind=sampled", "routing.cv=0.5", "gpus=32", "layout.ep=32"]
    scenario = load_scenario("deepseek-v3-decode-ep128", changes)
    assert estimate_serving(scenario).step == simulate(scenario).metrics["step_time_s"]
