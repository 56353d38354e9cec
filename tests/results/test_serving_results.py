"""A serving step against what bounds it, both engines, and measured steps."""

from __future__ import annotations

import pytest

from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.memory import memory_of_serving
from simulator.memory.serving import low_latency_bytes
from simulator.results.serving_metrics import largest_batch
from simulator.results.simulate import simulate
from simulator.validation.compared import summary
from simulator.validation.serving.measured_steps import measured_steps, rows
from tests.serving_jobs import SERVING


@pytest.mark.parametrize("job", SERVING)
def test_both_engines_agree_and_the_phases_add_up(job: str) -> None:
    events, path = (simulate(load_scenario(job), engine=engine) for engine in ("events", "longest-path"))
    assert sum(events.breakdown_s.values()) == pytest.approx(events.metrics["step_time_s"])
    shared = load_scenario(job).job.overlap.comm_sms and job.startswith("deepseek-v3-prefill")
    if not shared:  # there kernels that hold SMs slow the others, which the longest path does not see
        assert path.metrics["step_time_s"] == pytest.approx(events.metrics["step_time_s"], rel=1e-9)
    assert path.metrics["step_time_s"] <= events.metrics["step_time_s"] * (1 + 1e-9)


def test_a_small_batch_cannot_be_faster_than_reading_weights_and_cache() -> None:
    result = simulate(load_scenario("llama-3-8b-decode", ["serving.sequences=1", "serving.context=8000"]))
    items = {item.group: item.bytes for item in result.memory.worst.items}
    embedding = 128256 * 4096 * 2  # looked up, not read
    least = (items["weights"] - embedding + items["kv_cache"]) / result.scenario.cluster.gpu.hbm_bandwidth
    assert least < result.metrics["step_time_s"] < 3 * least


def test_throughput_latency_and_price_follow_from_the_step() -> None:
    m = simulate(load_scenario("deepseek-v3-decode-ep128")).metrics
    assert m["tokens_per_s_per_gpu"] == pytest.approx(128 / m["step_time_s"])
    assert m["tokens_per_s_per_node"] == pytest.approx(8 * 128 / m["step_time_s"])
    assert m["tokens_per_s_per_user"] == pytest.approx(1 / m["tpot_s"])
    assert m["kv_bytes_per_token"] == 61 * 576 * 2
    assert "ttft_s" not in m
    assert "tpot_s" not in simulate(load_scenario("llama-3-8b-prefill")).metrics


@pytest.mark.parametrize("job", ["llama-3-8b-decode", "deepseek-v3-decode-ep128", "llama-3-70b-decode"])
def test_the_largest_batch_fits_and_one_more_does_not(job: str) -> None:
    scenario = load_scenario(job)
    most = int(simulate(scenario).metrics["largest_batch"])
    unit = 2 if scenario.job.serving and scenario.job.serving.two_batch_overlap else 1
    assert memory_of_serving(load_scenario(job, [f"serving.sequences={most}"])).answer == "fits"
    assert memory_of_serving(load_scenario(job, [f"serving.sequences={most + unit}"])).answer != "fits"


def test_memory_of_a_rank_by_hand() -> None:
    items = {item.name: item.bytes for item in memory_of_serving(load_scenario("llama-3-70b-decode")).worst.items}
    assert items["KV cache, BF16"] == 64 * 2049 * 80 * 2 * 128 * 2  # one of 8 key-value heads
    assert items["weights, BF16"] == pytest.approx(2 * 70.55e9 / 8, rel=1e-3)
    assert low_latency_bytes(7168, 128, 256) == 2 * (256 * 128 * 14336 + 256 * 128 * (14336 + 16))


def test_two_microbatches_hide_communication_and_read_weights_twice() -> None:
    lone, two = (
        simulate(load_scenario("deepseek-v3-decode-ep128", [f"serving.two_batch_overlap={how}"])).metrics
        for how in ("false", "true")
    )
    assert two["exposed_comm_s"] < 0.1 * lone["exposed_comm_s"]
    assert two["step_time_s"] < lone["step_time_s"]
    few = ["serving.sequences=8"]
    lone, two = (
        simulate(load_scenario("deepseek-v3-decode-ep128", [*few, f"serving.two_batch_overlap={how}"])).metrics
        for how in ("false", "true")
    )
    assert two["step_time_s"] > lone["step_time_s"]  # at small batches it loses


def test_an_uneven_gate_makes_a_decode_step_longer() -> None:
    skewed = ["routing.kind=skewed", "routing.max_over_mean=2.0", "serving.two_batch_overlap=false"]
    even, uneven = (
        simulate(load_scenario("deepseek-v3-decode-ep128", some))
        for some in (["serving.two_batch_overlap=false"], skewed)
    )
    experts = sum(
        priced.durations[0]
        for sequence in even.timeline.tasks.sequence
        for priced in sequence.ops
        if priced.op.scales_with_load
    )
    assert uneven.metrics["step_time_s"] > even.metrics["step_time_s"] + experts


def test_measured_steps_are_met_as_well_as_the_documentation_says() -> None:
    """Plain PyTorch on one H200; what is compared here was never fitted. Long steps are met better than short ones."""
    dense = [row for row in rows() if row["model"] == "llama-3-70b" and row.get("run") == "1"]
    found = summary(measured_steps(dense))
    assert found["decode, graph, llama-3-70b, tp 1"][2] < 0.20
    assert found["prefill, eager, llama-3-70b, tp 1"][2] < 0.08


def test_nothing_of_an_optimizer_is_held() -> None:
    """The stack trains with FP32 parameters; who serves holds the weights as GEMMs read them."""
    scenario = load_scenario("llama-3-8b-decode")
    assert scenario.stack.optimizer.parameters == "fp32"
    rank = memory_of_serving(scenario).worst
    assert rank.group("weights") == 2 * scenario.model.parameters()
    assert rank.group("gradients") == rank.group("optimizer") == 0


def test_headroom_takes_sequences_away() -> None:
    whole, less = (load_scenario("llama-3-8b-decode", changes) for changes in ([], ["memory.headroom=0.2"]))
    left = whole.cluster.gpu.hbm_bytes * 0.8
    assert memory_of_serving(less).usable == pytest.approx(left)
    assert largest_batch(less) < largest_batch(whole)
    assert memory_of_serving(less).peak == memory_of_serving(whole).peak


def test_settings_of_an_optimizer_are_refused() -> None:
    found = check(load_scenario("llama-3-8b-decode", ["optimizer.kind=sgd"]))
    assert [(one.key, one.severity) for one in found] == [("optimizer.kind", "error")]
