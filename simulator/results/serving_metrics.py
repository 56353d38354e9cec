"""Headline numbers of a serving step."""

from __future__ import annotations

from collections import Counter, defaultdict

from simulator.cost.memory_bytes import memory_bytes
from simulator.engine.kernel_sequence import ALONE
from simulator.engine.tasks import COMPUTE, LANES, Timeline
from simulator.graph.serving.shapes import serving_of
from simulator.memory.serving import fits_with, kv_bytes_per_token, kv_cache_tokens, peak_with
from simulator.results.intervals import Interval, length, merged, minus
from simulator.spec.mixer import Mixer
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
    macs = 0.0
    for kind, layers in Counter(model.layer_kinds()).items():
        own = model.of_kind(kind)
        if not kind.mixer.attends:
            macs += layers * model.layer_macs_per_token(kind, 1)
            continue
        pair = 2 * (own.kv_lora_rank or 0) + own.qk_rope_head_dim if own.is_mla else own.qk_head_dim + own.v_dim
        seen = own.keys_of_newest(round(keys))
        index = own.index_macs(round(keys) // (own.compress_rate or 1))
        state = own.state_macs() if kind.mixer.has_state else 0.0
        macs += layers * (model.layer_matrix_macs(kind) + own.num_attention_heads * pair * seen + index + state)
    return 2.0 * (macs + model.vocab_size * model.hidden_size + model.collapse_macs)


def _prompt_flops(scenario: Scenario, new: int, cached: float) -> float:
    """FLOP of `new` tokens of a prompt behind `cached` ones, and of the logits of the last."""
    model = scenario.model
    kinds = Counter(model.layer_kinds())
    matrices = new * sum(many * model.layer_macs_per_token(kind, 0) for kind, many in kinds.items())
    if model.is_mla:  # keys and values of cached latents are expanded again
        expand = (model.kv_lora_rank or 0) * model.num_attention_heads * (model.qk_nope_head_dim + model.v_head_dim)
        matrices += model.num_hidden_layers * expand * cached
    attention = sum(many * _prompt_macs(model.of_kind(kind), new, cached) for kind, many in kinds.items())
    return 2.0 * (matrices + attention + model.vocab_size * model.hidden_size + model.collapse_macs)


def _prompt_macs(layer: ModelSpec, new: int, cached: float) -> float:
    """Multiply-adds of a prompt's attention in one layer of a model whose layers are all like it; of a recurrent layer
    those with its state."""
    mixer = layer.mixer_of(0)
    if not mixer.attends:
        kind = layer.layer_kind(0)
        return new * (layer.layer_macs_per_token(kind, 1) - layer.layer_macs_per_token(kind, 0))
    seen, first = cached + (new + 1) / 2.0, round(cached)
    if layer.sliding_window or layer.attention_chunk_size or mixer is Mixer.SPARSE:
        seen = layer.keys_per_query(first, first + new)
    index = layer.index_macs(layer.scored_keys(first, first + new))
    state = layer.state_macs() if mixer.has_state else 0.0
    return (layer.num_attention_heads * (layer.qk_head_dim + layer.v_dim) * seen + index + state) * new


def serving_rates(step: float, scenario: Scenario) -> dict[str, float]:
    """Throughput, latency, MFU and price of a serving step that lasts `step` [s].

    A step of decode makes output tokens, one of prefill takes input tokens: the price per million is that of these.
    """
    job, serving, cluster = scenario.job, serving_of(scenario), scenario.cluster
    decodes = job.workload == "decode"
    each = serving.accepted if decodes else serving.tokens
    busy = job.dp - serving.idle_ranks
    tokens = busy * serving.sequences * each
    rate = tokens / step / job.gpus
    price = cluster.price_per_gpu_hour if job.run.price_per_gpu_hour is None else job.run.price_per_gpu_hour
    million = price / HOUR / rate * 1e6
    found = {
        "step_time_s": step,
        "tokens_per_step": float(tokens),
        "tokens_per_s_per_gpu": rate,
        "tokens_per_s_per_node": rate * min(cluster.node.gpus, job.gpus),
        "mfu": model_flops(scenario) * busy / job.gpus / step / cluster.gpu.peak.bf16,
        "usd_per_million_tokens": million,
        "price_per_gpu_hour_usd": price,
    }
    if not decodes:
        return found | {"ttft_s": step, "usd_per_million_input_tokens": million}
    found |= {"tpot_s": step / each, "tokens_per_s_per_user": each / step, "usd_per_million_output_tokens": million}
    if serving.mtp_depth:
        found["accepted_tokens_per_step"] = each
    if serving.prefill_tokens:
        found["prefill_tokens_per_s_per_gpu"] = serving.prefill_tokens * busy / job.gpus / step
    return found


def serving_metrics(timeline: Timeline, scenario: Scenario, exposed_comm: float) -> dict[str, float]:
    """Step time, throughput, latency, price, what limits the step, and memory, of a step of prefill or decode."""
    serving, cluster = serving_of(scenario), scenario.cluster
    step = timeline.makespan
    moved = bytes_moved(timeline)
    return {
        **serving_rates(step, scenario),
        "exposed_comm_s": exposed_comm,
        **_apart(timeline),
        "memory_bytes_moved": moved,
        "memory_bandwidth_used": moved / step / cluster.gpu.hbm_bandwidth,
        **{f"bound_by_{bound}_s": seconds for bound, seconds in bound_times(timeline).items()},
        "kv_bytes_per_token": kv_bytes_per_token(scenario),
        "peak_memory_bytes": peak_with(scenario, serving.sequences),
        "largest_batch": float(largest_batch(scenario)),
        "kv_cache_tokens": kv_cache_tokens(scenario),
        "model_parameters": float(scenario.model.parameters()),
        "activated_parameters": float(scenario.model.activated_parameters()),
    }


def _apart(timeline: Timeline) -> dict[str, float]:
    """What was found of all ranks, where they were simulated apart."""
    found = timeline.tasks.apart
    if found is None:
        return {}
    return {
        "expert_load_max_over_mean": found.imbalance,
        "rank_compute_mean_s": found.compute[0],
        "rank_compute_max_s": found.compute[1],
        "rank_wait_mean_s": found.waited[1],
        "rank_wait_max_s": found.waited[2],
        "busiest_rank": float(found.busiest),
        "shown_rank": float(found.rank),
    }


def bytes_moved(timeline: Timeline) -> float:
    """Bytes that the kernels of a mean rank's step move through its memory [B]; all-to-alls are not counted."""
    tasks = timeline.tasks
    count = Counter(map(id, tasks.sequence))
    distinct = {id(sequence): sequence for sequence in tasks.sequence}
    each = {key: sum(memory_bytes(priced.op) for priced in sequence.ops) for key, sequence in distinct.items()}
    return sum(count[key] * size for key, size in each.items()) / tasks.ranks


def bound_times(timeline: Timeline) -> dict[str, float]:
    """What limits the step of a mean rank, longest first: resource -> time of compute kernels that it limits [s], with
    `communication` that nothing hides, and `idle`. They add up to the step time."""
    tasks = timeline.tasks
    limits: dict[str, float] = defaultdict(float)
    idle = communicating = 0.0
    for rank in range(tasks.ranks):
        lanes: tuple[list[Interval], list[Interval]] = ([], [])
        for lane, sequence, start, end in zip(tasks.lane, tasks.sequence, timeline.start, timeline.end, strict=True):
            if lane // LANES != rank:
                continue
            compute = lane % LANES == COMPUTE
            lanes[not compute].append((start, end))
            if compute and sequence.alone:
                for priced in sequence.ops:
                    part = priced.durations[ALONE] / sequence.alone
                    limits[priced.cost.bound_by] += part * (end - start) / tasks.ranks
        busy, moving = merged(lanes[0]), merged(lanes[1])
        hidden = length(minus(moving, busy))
        communicating += hidden / tasks.ranks
        idle += (timeline.makespan - length(busy) - hidden) / tasks.ranks
    shown = {**limits, "communication": communicating, "idle": max(0.0, idle)}
    return {name: shown[name] for name in sorted(shown, key=lambda name: -shown[name]) if shown[name] > 0.0}


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
