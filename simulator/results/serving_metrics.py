"""Headline numbers of a serving step."""

from __future__ import annotations

from collections import Counter

from simulator.dtypes import WIDTH
from simulator.engine.tasks import Timeline
from simulator.memory.serving import fits_with, peak_with
from simulator.ops import seen_keys
from simulator.spec.model import ModelSpec
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
    kinds = Counter(model.layer_kinds())
    matrices = sum(many * model.layer_macs_per_token(kind, 0) for kind, many in kinds.items())
    if model.is_mla and scenario.job.workload == "prefill":
        expand = (model.kv_lora_rank or 0) * model.num_attention_heads * (model.qk_nope_head_dim + model.v_head_dim)
        matrices += model.num_hidden_layers * expand * cached / new
    attention = sum(many * _core_macs(scenario, model.of_kind(kind)) for kind, many in kinds.items())
    head = model.vocab_size * model.hidden_size * sampled / new
    return 2.0 * serving.sequences * new * (matrices + attention + head)


def _core_macs(scenario: Scenario, layer: ModelSpec) -> float:
    """Multiply-adds of one new token with its keys and values, in one layer of a model whose layers are all like it."""
    serving, decodes = scenario.job.serving, scenario.job.workload == "decode"
    assert serving is not None
    new, cached = serving.tokens, serving.context
    pair = layer.qk_head_dim + layer.v_dim
    if layer.is_mla and decodes:
        pair = 2 * (layer.kv_lora_rank or 0) + layer.qk_rope_head_dim
    window, chunk = layer.sliding_window or 0, layer.attention_chunk_size
    if decodes:
        seen = float((cached + new - 1) % chunk + 1 if chunk else min(cached + new, window or cached + new))
    else:
        seen = seen_keys(cached, cached + new, window, chunk) + (0.0 if window or chunk else 0.5)
    return layer.num_attention_heads * pair * seen


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
        "kv_bytes_per_token": scenario.model.kv_cache_bytes_per_token(
            WIDTH[serving.kv_dtype], serving.context + serving.tokens
        ),
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
