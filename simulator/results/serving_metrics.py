"""Headline numbers of a serving step."""

from __future__ import annotations

from simulator.dtypes import WIDTH
from simulator.engine.tasks import Timeline
from simulator.memory.serving import fits_with, peak_with
from simulator.spec.scenario import Scenario
from simulator.units import HOUR


def model_flops(scenario: Scenario) -> float:
    """FLOP of the model in a step of one attention-data-parallel rank: GEMMs, causal attention, no padding.

    Decode with latent attention counts the absorbed form, which is what runs.
    """
    model, serving = scenario.model, scenario.job.serving
    assert serving is not None
    new, cached = serving.tokens, serving.context
    sampled = new if scenario.job.workload == "decode" else 1
    mean = cached + (new + 1) / 2.0 if scenario.job.workload == "prefill" else float(cached + new)
    pair = model.qk_head_dim + model.v_dim
    if model.is_mla and scenario.job.workload == "decode":
        pair = 2 * (model.kv_lora_rank or 0) + model.qk_rope_head_dim
    matrices = sum(model.layer_macs_per_token(kind, 0) for kind in model.layer_kinds())
    if model.is_mla and scenario.job.workload == "prefill":
        expand = (model.kv_lora_rank or 0) * model.num_attention_heads * (model.qk_nope_head_dim + model.v_head_dim)
        matrices += model.num_hidden_layers * expand * cached / new
    attention = model.num_hidden_layers * model.num_attention_heads * pair * mean
    head = model.vocab_size * model.hidden_size * sampled / new
    return 2.0 * serving.sequences * new * (matrices + attention + head)


def serving_metrics(timeline: Timeline, scenario: Scenario, exposed_comm: float) -> dict[str, float]:
    """Step time, throughput, latency, price and memory of a step of prefill or decode."""
    job, serving, cluster = scenario.job, scenario.job.serving, scenario.cluster
    assert serving is not None
    step, decodes = timeline.makespan, job.workload == "decode"
    tokens = job.dp * serving.sequences * serving.tokens
    rate = tokens / step / job.gpus
    price = cluster.price_per_gpu_hour if job.run.price_per_gpu_hour is None else job.run.price_per_gpu_hour
    flops = model_flops(scenario) * job.dp / job.gpus
    found = {
        "step_time_s": step,
        "tokens_per_step": float(tokens),
        "tokens_per_s_per_gpu": rate,
        "tokens_per_s_per_node": rate * min(cluster.node.gpus, job.gpus),
        "mfu": flops / step / cluster.gpu.peak.bf16,
        "usd_per_million_tokens": price / HOUR / rate * 1e6,
        "price_per_gpu_hour_usd": price,
        "exposed_comm_s": exposed_comm,
        "kv_bytes_per_token": scenario.model.kv_cache_bytes_per_token(WIDTH[serving.kv_dtype]),
        "peak_memory_bytes": peak_with(scenario, serving.sequences),
        "largest_batch": float(largest_batch(scenario)),
        "model_parameters": float(scenario.model.parameters()),
        "activated_parameters": float(scenario.model.activated_parameters()),
    }
    if decodes:
        return found | {"tpot_s": step / serving.tokens, "tokens_per_s_per_user": serving.tokens / step}
    return found | {"ttft_s": step}


_MOST = 1 << 20


def largest_batch(scenario: Scenario) -> int:
    """Most sequences of this length that fit into the memory of a GPU, by bisection; 0 if not even one does."""
    serving = scenario.job.serving
    assert serving is not None
    unit = 2 if serving.two_batch_overlap else 1
    low, high = 0, 1
    while high < _MOST and fits_with(scenario, high * unit):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits_with(scenario, middle * unit) else (low, middle)
    return low * unit
