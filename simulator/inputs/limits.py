"""Plausible ranges of numbers, with errors that teach the unit.

Only what cannot be meant is refused: what-ifs far from today's hardware pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from simulator.inputs.problems import problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Plausible values of a number.

    Parameters
    ----------
    low, high : ends, in `unit`.
    unit : unit in files.
    factors : powers of ten that people forget (160 GB/s written as 160).
    or_zero : whether 0 is allowed, too.
    """

    low: float
    high: float = float("inf")
    unit: str = ""
    factors: tuple[str, ...] = ()
    or_zero: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside."""
        return self.low <= value <= self.high or (self.or_zero and value == 0)


_POSITIVE = Range(low=1, high=1e15)
_NOT_NEGATIVE = Range(low=0, high=1e15)
_PRICE = Range(low=0, high=1e4, unit="USD")
_BANDWIDTH = Range(low=1e8, high=1e15, unit="B/s", factors=("e9", "e12"))
_RATE = Range(low=1e11, high=1e18, unit="FLOP/s", factors=("e12", "e15"))
_LATENCY = Range(low=0, high=1e-2, unit="s", factors=("e-6", "e-9"))

CLUSTER: Mapping[str, Range] = {
    "price_per_gpu_hour": _PRICE,
    "gpu.sms": Range(low=1, high=4096),
    "gpu.boost_clock": Range(low=1e8, high=1e11, unit="Hz", factors=("e9", "e6")),
    "gpu.peak.bf16": _RATE,
    "gpu.peak.fp8": Range(low=1e11, high=1e18, unit="FLOP/s", factors=("e12", "e15"), or_zero=True),
    "gpu.peak.fp4": Range(low=1e11, high=1e18, unit="FLOP/s", factors=("e12", "e15"), or_zero=True),
    "gpu.peak.fp32": Range(low=1e11, high=1e18, unit="FLOP/s", factors=("e12", "e15"), or_zero=True),
    "gpu.hbm_bytes": Range(low=1e8, high=1e14, unit="B", factors=("e9", "e12")),
    "gpu.hbm_bandwidth": _BANDWIDTH,
    "gpu.l2_bytes": Range(low=1e5, high=1e11, unit="B", factors=("e6",)),
    "gpu.tdp": Range(low=10, high=1e5, unit="W", factors=("e3",)),
    "node.gpus": Range(low=1, high=4096),
    "node.nvlink.bandwidth": _BANDWIDTH,
    "node.nvlink.peak": _BANDWIDTH,
    "node.nvlink.latency": _LATENCY,
    "node.nic.bandwidth": _BANDWIDTH,
    "node.nic.peak": _BANDWIDTH,
    "node.nic.latency": _LATENCY,
    "node.host_pace": Range(low=0, high=20),
    "node.host.bandwidth": _BANDWIDTH,
    "node.host.peak": _BANDWIDTH,
    "node.host.memory_bandwidth": _BANDWIDTH,
    "node.host.disk_bandwidth": Range(low=0, high=1e14, unit="B/s", factors=("e9", "e12")),
    "node.host.disk_bytes": Range(low=0, high=1e16, unit="B", factors=("e9", "e12")),
    "node.host.memory_bytes": Range(low=1e9, high=1e15, unit="B", factors=("e9", "e12")),
}

STACK: Mapping[str, Range] = {
    "loss_metrics": Range(low=0, high=16),
    "p2p_headers": Range(low=0, high=64),
    "p2p_reads": Range(low=1, high=1000),
    "kernel_gap": Range(low=0, high=1e-2, unit="s", factors=("e-6", "e-9")),
    "serving.graph_gap": Range(low=0, high=1e-2, unit="s", factors=("e-6", "e-9")),
    "serving.kv_share": Range(low=0.05, high=1),
    # a thousand times what is shipped: a what-if that must be possible
    "host_kernel": Range(low=0, high=0.1, unit="s", factors=("e-6", "e-9")),
    "host_call": Range(low=0, high=0.1, unit="s", factors=("e-6", "e-9")),
    "host_gemm": Range(low=0, high=0.1, unit="s", factors=("e-6", "e-9")),
    "host_attention": Range(low=0, high=0.1, unit="s", factors=("e-6", "e-9")),
    "host_expert_fp8": Range(low=0, high=0.1, unit="s", factors=("e-6", "e-9")),
    "host_expert": Range(low=0, high=0.1, unit="s", factors=("e-6", "e-9")),
    "host_parameter": Range(low=0, high=0.1, unit="s", factors=("e-6", "e-9")),
    "host_collective": Range(low=0, high=0.1, unit="s", factors=("e-6", "e-9")),
    "host_loss": Range(low=0, high=0.1, unit="s", factors=("e-3", "e-6")),
    "host_read": Range(low=0, high=0.1, unit="s", factors=("e-6", "e-9")),
    "host_graph": Range(low=0, high=0.1, unit="s", factors=("e-6", "e-9")),
    "host_backward": Range(low=0.1, high=10),
    "scheduler.reserved_output": Range(low=0, high=1),
    "scheduler.host_cache": Range(low=0, high=1e15, unit="B", factors=("e9", "e12")),
    "scheduler.disk_cache": Range(low=0, high=1e15, unit="B", factors=("e9", "e12")),
    "scheduler.captured_prefill": _NOT_NEGATIVE,
    "scheduler.host_step": Range(low=0, high=1, unit="s", factors=("e-3", "e-6")),
    "scheduler.host_sequence": Range(low=0, high=1e-2, unit="s", factors=("e-6", "e-9")),
    "scheduler.stream_interval": Range(low=1, high=1_000_000),
    "scheduler.frontend": Range(low=0, high=60, unit="s", factors=("e-3", "e-6")),
}

JOB: Mapping[str, Range] = {
    "serving.context": _NOT_NEGATIVE,
    "serving.context.mean": _NOT_NEGATIVE,
    "serving.context.cv": Range(low=0, high=2),
    "serving.redundant_experts": _NOT_NEGATIVE,
    "serving.shared_slots": _NOT_NEGATIVE,
    "serving.mtp_depth": Range(low=0, high=16),
    "serving.mtp_acceptance": Range(low=0, high=1),
    "serving.idle_ranks": _NOT_NEGATIVE,
    "serving.tokens_cv": Range(low=0, high=2),
    "serving.seed": _NOT_NEGATIVE,
    "serving.prefill_tokens": _NOT_NEGATIVE,
    "serving.prefill_context": _NOT_NEGATIVE,
    "layout.zero": Range(low=0, high=3),
    "layout.stages": _NOT_NEGATIVE,
    "precision.bf16_first_layers": _NOT_NEGATIVE,
    "precision.bf16_last_layers": _NOT_NEGATIVE,
    "layout.decoder_first_pipeline_num_layers": _NOT_NEGATIVE,
    "layout.decoder_last_pipeline_num_layers": _NOT_NEGATIVE,
    "memory.headroom": Range(low=0, high=0.9),
    "memory.headroom_bytes": Range(low=1e6, high=1e13, unit="B", factors=("e9", "e6"), or_zero=True),
    "memory.reserve": Range(low=0, high=1),
    "offload.optimizer": Range(low=0, high=1),
    "offload.activations": Range(low=0, high=1),
    "overlap.comm_sms": _NOT_NEGATIVE,
    "routing.max_over_mean": _POSITIVE,
    "routing.hot_expert": Range(low=1, high=1e4),
    "routing.cv": Range(low=0, high=4),  # beyond it most experts idle
    "routing.microbatch_cv": Range(low=0, high=4),
    "routing.seed": _NOT_NEGATIVE,
    "routing.loads": _NOT_NEGATIVE,
    "stragglers.gpus": _NOT_NEGATIVE,
    "stragglers.stage": _NOT_NEGATIVE,
    "stragglers.seed": _NOT_NEGATIVE,
    "stragglers.slowdown": Range(low=1, high=100),
    "stragglers.nic": Range(low=0.01, high=1),
    "stragglers.jitter": Range(low=0, high=10, unit="s", factors=("e-6", "e-3")),
    "run.tokens": Range(low=0, high=1e20),
    "run.price_per_gpu_hour": _PRICE,
}

MODEL: Mapping[str, Range] = dict.fromkeys(
    (
        "max_position_embeddings",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "n_routed_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "moe_latent_size",
        "n_shared_experts",
        "shared_expert_intermediate_size",
        "first_k_dense_replace",
        "mlp_only_layers",
        "nope_layers",
        "attention_chunk_size",
        "index_n_heads",
        "index_head_dim",
        "index_topk",
        "index_block_size",
        "o_groups",
        "o_lora_rank",
        "num_hash_layers",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_gate_rank",
        "mamba_num_heads",
        "mamba_head_dim",
        "mamba_inner_size",
        "short_conv_size",
        "mamba_dt_rank",
        "ssm_state_size",
        "mixer_only_layers",
        "sliding_num_attention_heads",
        "sliding_num_key_value_heads",
        "sliding_head_dim",
        "sliding_v_head_dim",
        "hidden_size_per_layer_input",
        "attn_res_block_size",
        "vocab_size_per_layer_input",
    ),
    _NOT_NEGATIVE,
) | {
    "num_hidden_layers": Range(low=1, high=1024),
    "num_nextn_predict_layers": Range(low=0, high=256),
    "hc_mult": Range(low=1, high=64),
    "partial_rotary_factor": Range(low=0, high=1),
    "swiglu_limit": Range(low=0),
    "full_rotary_factor": Range(low=0, high=1),
}


def check_ranges(
    value: Any, ranges: Mapping[str, Range], source: str, prefix: str = "", skip: tuple[str, ...] = ()
) -> None:
    """Raise for the first number of the dataclass `value` that is out of its range.

    Integers without a range must be at least 1. Fields named in `skip` are left out.
    """
    for path, number in _numbers(value):
        if path.partition(".")[0] in skip:
            continue
        default = _POSITIVE if isinstance(number, int) else None
        limit = ranges.get(path, default)
        if limit is not None and not limit.holds(number):
            raise problem(source, prefix + path, number, advice(limit, number))


def advice(limit: Range, number: float) -> str:
    """What to write; numbers in the notation that profiles use."""
    for factor in limit.factors:
        if number > 0 and limit.holds(number * float(f"1{factor}")):
            return f"{_plain(number)} {limit.unit} is implausible: write {_plain(number)}{factor}"
    unit = f" {limit.unit}" if limit.unit else ""
    if limit.or_zero:
        return f"must be 0, or from {_plain(limit.low)} to {_plain(limit.high)}{unit}"
    if number < limit.low and limit.high >= _POSITIVE.high and not limit.unit:
        return f"must be at least {_plain(limit.low)}{unit}"
    return f"must be from {_plain(limit.low)} to {_plain(limit.high)}{unit}"


def _plain(number: float) -> str:
    return f"{number:g}"


def _numbers(value: Any, prefix: str = "") -> list[tuple[str, float]]:
    """Dotted path and value of every number in a tree of dataclasses, tuples and dicts."""
    if isinstance(value, bool):
        return []
    if isinstance(value, (int, float)):
        return [(prefix, value)]
    if isinstance(value, tuple):
        return [found for item in value for found in _numbers(item, prefix)]
    if isinstance(value, dict):
        parts = list(value.items())
    elif is_dataclass(value):
        parts = [(f.name, getattr(value, f.name)) for f in fields(value)]
    else:
        return []
    return [found for name, part in parts for found in _numbers(part, f"{prefix}.{name}" if prefix else name)]
