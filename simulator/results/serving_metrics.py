"""Headline numbers of a serving step."""

from __future__ import annotations

from simulator.engine.tasks import Timeline
from simulator.graph.serving.shapes import serving_of
from simulator.memory.serving import fits_with, kv_bytes_per_token, kv_cache_tokens, peak_with
from simulator.spec.model import ModelSpec
from simulator.spec.scenario import Scenario
from simulator.units import HOUR


def model_flops(scenario: Scenario) -> float:
    """FLOP of the model in a step of one attention-data-parallel rank: GEMMs, causal attention, no padding.

    Decode with latent attention counts the absorbed form, which is what runs; of drafted tokens only those count that
    are accepted, and the module that drafts does not.
    """
    serving = serving_of(scenario)
    cached, count = serving.mean_context, serving.sequences
    if scenario.job.workload == "prefill":
        return count * _prompt_flops(scenario, serving.tokens, cached)
    found = count * serving.accepted * _decode_flops(scenario.model, cached + serving.tokens)
    if serving.prefill_tokens:
        found += _prompt_flops(scenario, serving.prefill_tokens, serving.prefill_context)
    return found


def _decode_flops(model: ModelSpec, keys: float) -> float:
    """FLOP of one new token over `keys` cached ones, itself included."""
    pair = model.qk_head_dim + model.v_dim
    if model.is_mla:
        pair = 2 * (model.kv_lora_rank or 0) + model.qk_rope_head_dim
    matrices = sum(model.layer_macs_per_token(kind, 0) for kind in model.layer_kinds())
    attention = model.num_hidden_layers * model.num_attention_heads * pair * keys
    return 2.0 * (matrices + attention + model.vocab_size * model.hidden_size)


def _prompt_flops(scenario: Scenario, new: int, cached: float) -> float:
    """FLOP of `new` tokens of a prompt behind `cached` ones, and of the logits of the last."""
    model = scenario.model
    matrices = new * sum(model.layer_macs_per_token(kind, 0) for kind in model.layer_kinds())
    if model.is_mla:  # keys and values of cached latents are expanded again
        expand = (model.kv_lora_rank or 0) * model.num_attention_heads * (model.qk_nope_head_dim + model.v_head_dim)
        matrices += model.num_hidden_layers * expand * cached
    pairs = new * (cached + (new + 1) / 2.0)
    attention = model.num_hidden_layers * model.num_attention_heads * (model.qk_head_dim + model.v_dim) * pairs
    return 2.0 * (matrices + attention + model.vocab_size * model.hidden_size)


def serving_metrics(timeline: Timeline, scenario: Scenario, exposed_comm: float) -> dict[str, float]:
    """Step time, throughput, latency, price and memory of a step of prefill or decode."""
    job, serving, cluster = scenario.job, serving_of(scenario), scenario.cluster
    step, decodes = timeline.makespan, job.workload == "decode"
    each = serving.accepted if decodes else serving.tokens
    tokens = job.dp * serving.sequences * each
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
        "kv_bytes_per_token": kv_bytes_per_token(scenario),
        "peak_memory_bytes": peak_with(scenario, serving.sequences),
        "largest_batch": float(largest_batch(scenario)),
        "kv_cache_tokens": kv_cache_tokens(scenario),
        "model_parameters": float(scenario.model.parameters()),
        "activated_parameters": float(scenario.model.activated_parameters()),
    }
    if not decodes:
        return found | {"ttft_s": step}
    found |= {"tpot_s": step / each, "tokens_per_s_per_user": each / step}
    if serving.mtp_depth:
        found["accepted_tokens_per_step"] = each
    if serving.prefill_tokens:
        found["prefill_tokens_per_s_per_gpu"] = serving.prefill_tokens * job.dp / job.gpus / step
    return found


_MOST = 1 << 20


def largest_batch(scenario: Scenario) -> int:
    """Most sequences of this length that fit into the memory of a GPU, by bisection; 0 if not even one does."""
    serving = serving_of(scenario)
    unit = 2 if serving.two_batch_overlap else 1
    low, high = 0, 1
    while high < _MOST and fits_with(scenario, high * unit):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits_with(scenario, middle * unit) else (low, middle)
    return low * unit
