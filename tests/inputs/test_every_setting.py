"""Nothing that can be set is silently ignored: every path changes a result of some job, or is refused, or stands on a
list with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

import pytest

from simulator.cost.cost import Share
from simulator.cost.price import price
from simulator.errors import InputError, ScheduleError
from simulator.inputs import load_hardware, load_scenario, settable_paths
from simulator.inputs.hf_config import settable
from simulator.inputs.idle import SHOWN_ONLY
from simulator.inputs.plain import hints
from simulator.ops import AllToAll, Attention, DecodeAttention, Fixed, Gate, Gemm, Op, Scan, Streaming, Work
from simulator.results.simulate import Engine, simulate
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.scenario import Scenario
from simulator.studies.kernel import Question, answer
from simulator.studies.whatif import WHAT_IFS

BIASED_EXPERTS = (
    "model=gpt-oss-120b",
    "hardware=h200",
    "stack=megatron-core",
    "gpus=8",
    "layout.tp=1",
    "layout.pp=1",
    "layout.ep=8",
    "batch.sequence_length=1024",
    "batch.global_batch_size=8",
)
JOBS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fp8": ("tiny-dualpipe", ()),
    "moe": ("tiny-1f1b", ("precision.recipe=bf16", "stack=megatron-core", "routing.kind=sampled", "routing.cv=0.2")),
    "skewed": ("tiny-1f1b", ("routing.kind=skewed", "routing.max_over_mean=1.3", "layout.recompute=none")),
    "hot": ("tiny-1f1b", ("routing.kind=hot", "routing.hot_expert=2")),
    "slow": (
        "tiny-dualpipe",
        ("stragglers.gpus=1", "stragglers.slowdown=1.2", "stragglers.nic=0.5", "stragglers.jitter=1e-4"),
    ),
    "groups": (
        "tiny-1f1b",
        ("gpus=128", "layout.ep=8", "batch.global_batch_size=256", "routing.kind=sampled", "routing.microbatch_cv=0.5"),
    ),
    "given": ("tiny-1f1b", (f"routing.loads={[1.5, 0.5] + [1] * 14}", "routing.kind=given", "stack=torch")),
    "etp": ("tiny-1f1b", ("layout.tp=2", "layout.etp=2", "layout.ep=8", "stack=megatron-core")),
    "experts-over-cp": (
        "llama-3-8b",
        (
            "model=mixtral-8x7b",
            "model.num_hidden_layers=2",
            "hardware=h200",
            "stack=megatron-core",
            "gpus=32",
            "layout.tp=1",
            "layout.pp=1",
            "layout.cp=4",
            "layout.ep=4",
        ),
    ),
    "shared-uplinks": (
        "tiny-1f1b",
        tuple(f"hardware.fabric.network.{x}" for x in ("pod=0", "ports=8", "planes=1", "oversubscription=2.0")),
    ),
    "hybrid": ("tiny-dualpipe", ("hardware=h100", "stack.dispatcher=hybrid_ep")),
    "deepep-v2": ("tiny-dualpipe", ("hardware=h100", "stack.dispatcher=deepep_v2")),
    "eager-experts": (
        "llama-3-8b",
        (
            "model=mixtral-8x7b",
            "model.num_hidden_layers=2",
            "hardware=h200",
            "stack=torch",
            "gpus=1",
            "layout.tp=1",
            "layout.pp=1",
            "layout.ep=1",
            "layout.zero=0",
            "layout.recompute=none",
            "batch.sequence_length=4096",
            "batch.microbatch_size=2",
            "batch.global_batch_size=2",
        ),
    ),
    "biased-experts": ("llama-3-8b", BIASED_EXPERTS),
    "fp8-experts": ("llama-3-8b", (*BIASED_EXPERTS, "precision.recipe=fp8_tensor")),
    "delayed": ("tiny-1f1b", ("hardware=h100", "stack=megatron-core", "precision.recipe=fp8_tensor")),
    "drained": (
        "llama-3-8b",
        (
            "hardware=h100",
            "stack=nemo-24",
            "gpus=8",
            "precision.recipe=fp8_tensor",
            "layout.tp=8",
            "layout.pp=1",
            "batch.global_batch_size=2",
            "batch.sequence_length=8192",
        ),
    ),
    "slow-fp32": ("tiny-1f1b", ("hardware.gpu.peak.fp32=2e12",)),
    "interleaved": ("tiny-interleaved", ("stack.p2p_overlap=chunks",)),
    "host": ("tiny-1f1b", ("stack.host_kernel=1e-4",)),
    "graphs": ("tiny-1f1b", ("stack=torch", "precision.recipe=bf16", "stack.cuda_graphs=layers")),
    "dense": (
        "llama-3-8b",
        ("hardware=h800", "layout.tp=8", "layout.pp=1", "batch.global_batch_size=4", "batch.sequence_length=2048"),
    ),
    "parallel": (
        "llama-3-8b",
        (
            "model.parallel_block=true",
            "gpus=8",
            "layout.tp=8",
            "layout.pp=1",
            "batch.global_batch_size=4",
            "batch.sequence_length=2048",
        ),
    ),
    "ddp": (
        "llama-3-8b",
        (
            "gpus=8",
            "layout.tp=1",
            "layout.pp=1",
            "layout.zero=0",
            "batch.global_batch_size=8",
            "batch.sequence_length=4096",
            "hardware.node.nvlink_sharp=true",
        ),
    ),
    "zero3": (
        "llama-3-8b",
        (
            "stack=torch",
            "precision.recipe=fp8_tensor",
            "layout.tp=1",
            "layout.pp=1",
            "layout.zero=3",
            "batch.global_batch_size=16",
            "batch.sequence_length=1024",
        ),
    ),
    "context": (
        "llama-3-8b",
        (
            "hardware=h800",
            "stack=torch-compile",
            "layout.tp=2",
            "layout.pp=1",
            "layout.cp=2",
            "layout.zero=2",
            "batch.global_batch_size=8",
            "batch.sequence_length=4096",
            "layout.recompute=none",
        ),
    ),
    "again": (
        "llama-3-8b",
        (
            "hardware=h800",
            "gpus=2",
            "layout.tp=1",
            "layout.pp=2",
            "batch.global_batch_size=4",
            "batch.sequence_length=1024",
            "layout.recompute=full",
        ),
    ),
    "later": (
        "llama-3-8b",
        (
            "hardware=h800",
            "stack=megatron-lm",
            "gpus=4",
            "layout.tp=1",
            "layout.pp=4",
            "layout.zero=0",
            "layout.schedule=zbv",
            "layout.recompute=none",
            "precision.recipe=bf16",
            "batch.global_batch_size=8",
            "batch.sequence_length=1024",
        ),
    ),
    "windows": (
        "llama-3-8b",
        (
            "model.num_hidden_layers=4",
            'model.layer_types=["sliding","full","sliding","full"]',
            "model.sliding_window=512",
            "gpus=8",
            "layout.tp=1",
            "batch.global_batch_size=8",
            "batch.sequence_length=2048",
        ),
    ),
    "delta": (
        "llama-3-8b",
        (
            "model.num_hidden_layers=2",
            'model.layer_types=["delta","full"]',
            "model.linear_num_key_heads=4",
            "model.linear_num_value_heads=8",
            "model.linear_key_head_dim=64",
            "model.linear_value_head_dim=64",
            "gpus=8",
            "layout.tp=1",
            "batch.global_batch_size=8",
            "batch.sequence_length=2048",
        ),
    ),
    "kda": (
        "llama-3-8b",
        (
            "model.num_hidden_layers=2",
            'model.layer_types=["kda","full"]',
            "model.linear_num_key_heads=8",
            "model.linear_num_value_heads=8",
            "model.linear_key_head_dim=64",
            "model.linear_value_head_dim=64",
            "model.linear_gate_rank=64",
            "gpus=8",
            "layout.tp=1",
            "batch.global_batch_size=8",
            "batch.sequence_length=2048",
        ),
    ),
    "mamba": (
        "llama-3-8b",
        (
            "model.num_hidden_layers=2",
            'model.layer_types=["mamba2","full"]',
            "model.mamba_num_heads=16",
            "model.mamba_head_dim=64",
            "model.ssm_state_size=64",
            "gpus=8",
            "layout.tp=1",
            "batch.global_batch_size=8",
            "batch.sequence_length=2048",
        ),
    ),
    "conv": (
        "llama-3-8b",
        (
            "model.num_hidden_layers=2",
            'model.layer_types=["conv","full"]',
            "model.short_conv_size=1024",
            "gpus=8",
            "layout.tp=1",
            "batch.global_batch_size=8",
            "batch.sequence_length=2048",
        ),
    ),
    "mamba1": (
        "llama-3-8b",
        (
            "model.num_hidden_layers=2",
            'model.layer_types=["mamba1","full"]',
            "model.mamba_inner_size=1024",
            "model.mamba_dt_rank=64",
            "model.ssm_state_size=16",
            "gpus=8",
            "layout.tp=1",
            "batch.global_batch_size=8",
            "batch.sequence_length=2048",
        ),
    ),
    "sparse": (
        "tiny-1f1b",
        (
            'model.layer_types=["sparse","sparse","sparse","sparse","sparse","sparse"]',
            "model.index_n_heads=4",
            "model.index_head_dim=64",
            "model.index_topk=256",
        ),
    ),
    "streams": (
        "tiny-1f1b",
        (
            "model=deepseek-v4-flash",
            "model.num_hidden_layers=6",
            'model.layer_types=["sliding","csa","hca","csa","hca","csa"]',
            "model.num_hash_layers=1",
        ),
    ),
    "blocks": (
        "llama-3-8b",
        (
            "model.num_hidden_layers=2",
            'model.layer_types=["blocks","full"]',
            "model.index_n_heads=8",
            "model.index_head_dim=64",
            "model.index_topk=4",
            "model.index_block_size=128",
            "gpus=8",
            "layout.tp=1",
            "batch.global_batch_size=8",
            "batch.sequence_length=2048",
        ),
    ),
    "reused": (
        "llama-3-8b",
        (
            "model.num_hidden_layers=2",
            'model.layer_types=["full","reused"]',
            "model.hidden_size_per_layer_input=64",
            "model.vocab_size_per_layer_input=1000",
            "gpus=8",
            "layout.tp=1",
            "layout.pp=1",
            "batch.global_batch_size=8",
            "batch.sequence_length=2048",
        ),
    ),
    "branches": (
        "llama-3-8b",
        (
            "model=gemma-4-26b-a4b",
            "model.num_hidden_layers=2",
            'model.layer_types=["sliding","full"]',
            "gpus=8",
            "layout.tp=1",
            "layout.pp=1",
            "layout.ep=8",
            "batch.global_batch_size=8",
            "batch.sequence_length=2048",
        ),
    ),
    "depth": (
        "llama-3-8b",
        (
            "model=kimi-k3",
            "model.num_hidden_layers=2",
            'model.layer_types=["kda","full"]',
            "model.attn_res_block_size=2",
            "gpus=8",
            "layout.tp=1",
            "layout.pp=1",
            "layout.ep=8",
            "batch.global_batch_size=8",
            "batch.sequence_length=2048",
        ),
    ),
    "chunks": (
        "llama-3-8b",
        (
            "model.num_hidden_layers=2",
            "model.attention_chunk_size=512",
            "gpus=8",
            "layout.tp=1",
            "batch.global_batch_size=8",
            "batch.sequence_length=2048",
        ),
    ),
    "offload": (
        "llama-3-8b",
        (
            "hardware=h800",
            "gpus=2",
            "layout.tp=1",
            "layout.pp=2",
            "batch.global_batch_size=4",
            "batch.sequence_length=1024",
            "offload.optimizer=0.5",
            "offload.activations=0.5",
        ),
    ),
    "overlap": (
        "tiny-1f1b",
        (
            "precision.recipe=bf16",
            "stack=megatron-core",
            "layout.recompute=none",
            "layout.schedule=interleaved",
            "layout.vpp=2",
            "layout.stages=balanced",
            "batch.global_batch_size=256",
        ),
    ),
    "mxfp8": (
        "llama-3-8b",
        (
            "model.num_hidden_layers=2",
            "hardware=b200",
            "precision.recipe=mxfp8",
            "gpus=8",
            "layout.tp=1",
            "batch.global_batch_size=8",
            "batch.sequence_length=2048",
        ),
    ),
    "nvfp4": (
        "llama-3-8b",
        (
            "model.num_hidden_layers=2",
            "hardware=b200",
            "precision.recipe=nvfp4",
            "gpus=8",
            "layout.tp=1",
            "batch.global_batch_size=8",
            "batch.sequence_length=2048",
        ),
    ),
    "split": ("tiny-1f1b", ("layout.schedule=zb1p",)),
    "ranks": (
        "llama-3-8b",
        (
            "hardware=h800",
            "gpus=4",
            "layout.tp=1",
            "layout.pp=4",
            "layout.stages=even",
            "layout.decoder_first_pipeline_num_layers=8",
            "layout.decoder_last_pipeline_num_layers=8",
            "batch.global_batch_size=4",
            "batch.sequence_length=1024",
        ),
    ),
    "pipeline": ("llama-3-8b", ("hardware=h800", "gpus=8", "layout.tp=1", "layout.pp=8", "batch.global_batch_size=8")),
    "staged": (
        "llama-3-8b",
        (
            "hardware=h800",
            "gpus=16",
            "layout.tp=1",
            "layout.pp=4",
            "layout.zero=1",
            "batch.global_batch_size=16",
            "stack.grad_sync_overlap=true",
        ),
    ),
    "messages": ("llama-3-8b", ("hardware=h200", "gpus=8", "layout.tp=1", "layout.pp=8", "batch.global_batch_size=8")),
    "short": (
        "llama-3-8b",
        (
            "hardware=h200",
            "gpus=8",
            "layout.tp=1",
            "layout.pp=8",
            "batch.global_batch_size=8",
            "batch.sequence_length=16",
        ),
    ),
    "nccl": ("tiny-1f1b", ("hardware=h200", "stack=megatron-core", "precision.recipe=bf16", "layout.ep=8")),
    "square": (
        "llama-3-8b",
        ("model.hidden_act=relu2", "model.gated_mlp=false", "model.num_hidden_layers=2", "layout.pp=1"),
    ),
    "gpt": (
        "llama-3-8b",
        (
            "model=gpt3-175b",
            "model.num_hidden_layers=8",
            "stack=megatron-lm",
            "layout.tp=8",
            "layout.pp=2",
            "batch.global_batch_size=4",
            "batch.sequence_length=2048",
        ),
    ),
    "qwen": (
        "llama-3-8b",
        (
            "model=qwen3-235b-a22b",
            "model.num_hidden_layers=4",
            "layout.ep=8",
            "layout.tp=1",
            "batch.global_batch_size=16",
            "batch.sequence_length=2048",
        ),
    ),
}
"""Small jobs that between them have a use for everything that can be set."""

ENGINES: tuple[Engine, ...] = ("longest-path", "events")


def _listed(path: str) -> str:
    """Why a path need not change a result; empty where it must."""
    last = path.rpartition(".")[2]
    if last in ("source", "sms_source", "range", "gap_source"):
        return "says where a number comes from"
    if last == "assumed":
        return "says that nobody measured a number: a mark in reports"
    if path in ("hardware", "model", "stack"):
        return "the name of a file"
    if path.startswith("hardware.fabric.low_latency."):
        return "kernels for decoding, which no training job runs: asked with foretrain kernel, below"
    if path.startswith("hardware.fabric.all_reduce."):
        return "all-reduces of serving engines, which no training job runs: asked with foretrain kernel, below"
    if path.startswith("hardware.fabric.ep.deepep_tuned."):
        return "releases of DeepEP that no stack names: asked with foretrain kernel, below"
    if path.startswith(KERNELS):
        return "kernel classes one by one, below"
    return _LISTED.get(path, "")


_LISTED = {
    "workload": "training is the only one",
    "model.shared_key_value": "what other sizes of DeepSeek-V4 belong to: refused where they are without it, or it is "
    "without them (tests/inputs/test_consistent_models.py)",
    "model.num_expert_group": "Kimi's name of n_group",
    "model.model_max_length": "Kimi's name of max_position_embeddings",
    "hardware.fabric.p2p_nvlink.channels": "a table that a profile lacks: where one has it, number by number",
    "hardware.fabric.p2p_nic.channels": "a table that a profile lacks",
    "hardware.gpu.power": "a table that a profile lacks: where one has it, number by number",
    "hardware.fabric.p2p_nvlink.channels.both_alpha": "messages both ways: asked with foretrain kernel p2p, below",
    "routing.file": "a recording: tests/inputs/test_load_file.py simulates one",
    "hardware.node.host.disk_bandwidth": "only replays read it: tests/serving/test_kv_tiers.py",
    "hardware.node.host.disk_bytes": "a limit of replays: tests/serving/test_kv_tiers.py",
    "hardware.node.nvlink.peak": "the displayed figure: what-if nvlink-900 scales by it, below",
}
KERNELS = tuple(
    f"hardware.kernels.{table}." for table in ("gemm", "attention", "decode", "scan", "stream", "fixed", "releases")
)

_OTHERS: dict[str, tuple[str, ...]] = {
    "layout.schedule": ("zb1p",),
    "layout.stages": ('"even"', "[1, 2, 1, 1]", "[3, 1, 1, 0]"),
    "precision.bf16": ('["head", "attention"]',),
    "routing.loads": (f"{[1.2, 0.8] + [1] * 14}",),
    "memory.reserve": ("[0.05, 0.2]",),
    "layout.decoder_first_pipeline_num_layers": ("6",),
    "layout.decoder_last_pipeline_num_layers": ("6",),
    "model.mlp_only_layers": ("[1]",),
    "model.swiglu_limit": ("0.0",),
    "model.layer_types": ('["sliding","sliding","sliding","full"]',),
    "model.full_rotary_factor": ("0.5",),
    "model.sliding_head_dim": ("64",),
    "model.sliding_v_head_dim": ("64",),
    "model.v_head_dim": ("64",),
    "model.mixer_only_layers": ("[1]",),
    "model.sliding_num_attention_heads": ("64",),
    "model.sliding_num_key_value_heads": ("2",),
    "stack.block_casts": ("joined",),
    "stack.host_kernel": ("1e-3",),
    "stack.host_gemm": ("5e-3",),
    "stack.host_collective": ("5e-3",),
}
"""Other values where the general rule finds none that matters."""


_FIRST: dict[str, tuple[str, Engine]] = {
    "layout.cp_kind": ("context", "longest-path"),
    "layout.etp": ("etp", "longest-path"),
    "layout.replicas": ("zero3", "longest-path"),
    **{
        f"{table}.{name}": ("zero3", "longest-path")
        for table, names in (
            ("precision", ("bf16", "bf16_first_layers", "bf16_last_layers", "scaling", "weights", "kept")),
            ("stack.precision", ("scaling", "weights", "kept")),
        )
        for name in names
    },
    "hardware.gpu.peak.fp4": ("nvfp4", "longest-path"),
    "precision.attention": ("mxfp8", "longest-path"),
    "layout.recompute_layers": ("again", "longest-path"),
    "layout.recompute_method": ("again", "longest-path"),
    "layout.decoder_first_pipeline_num_layers": ("ranks", "longest-path"),
    "layout.decoder_last_pipeline_num_layers": ("ranks", "longest-path"),
    "stack.wgrad_fills_waits": ("split", "longest-path"),
    "stack.post_validation": ("later", "longest-path"),
    "stack.context": ("context", "longest-path"),
    "stack.mamba2": ("mamba", "longest-path"),
    "stack.expert_groups": ("experts-over-cp", "longest-path"),
    "stack.expert_overlap": ("overlap", "longest-path"),
    "stack.pipeline_buffers": ("pipeline", "longest-path"),
    "stack.gate_weights": ("moe", "longest-path"),
    "stack.host_update_overlap": ("offload", "longest-path"),
    "hardware.node.host.bandwidth": ("offload", "longest-path"),
    "hardware.node.host.memory_bandwidth": ("offload", "longest-path"),
    "hardware.node.host.memory_bytes": ("offload", "longest-path"),
    "stack.checkpoint_early_stop": ("again", "longest-path"),
    "layout.sp": ("dense", "longest-path"),
    "layout.vpp": ("interleaved", "longest-path"),
    "model.head_dim": ("dense", "longest-path"),
    "model.max_position_embeddings": ("gpt", "longest-path"),
    "model.num_key_value_heads": ("dense", "longest-path"),
    "model.qk_norm": ("dense", "longest-path"),
    "model.qk_norm_over": ("qwen", "longest-path"),
    "model.shared_norm": ("parallel", "longest-path"),
    "model.layer_types": ("windows", "longest-path"),
    "model.full_rotary_factor": ("windows", "longest-path"),
    "model.sliding_head_dim": ("windows", "longest-path"),
    "model.sliding_num_attention_heads": ("windows", "longest-path"),
    "model.sliding_num_key_value_heads": ("windows", "longest-path"),
    "model.sliding_v_head_dim": ("windows", "longest-path"),
    "model.sliding_window": ("windows", "longest-path"),
    "model.attention_chunk_size": ("chunks", "longest-path"),
    "model.index_n_heads": ("sparse", "longest-path"),
    "model.index_head_dim": ("sparse", "longest-path"),
    "model.index_topk": ("sparse", "longest-path"),
    "model.mixer_only_layers": ("windows", "longest-path"),
    "model.index_block_size": ("blocks", "longest-path"),
    "model.linear_gate_rank": ("kda", "longest-path"),
    **{
        f"model.{name}": ("streams", "longest-path")
        for name in (
            "o_groups",
            "o_lora_rank",
            "compress_rate_csa",
            "compress_rate_hca",
            "hc_mult",
            "num_hash_layers",
        )
    },
    **{
        f"model.{name}": ("delta", "longest-path")
        for name in (
            "linear_num_key_heads",
            "linear_num_value_heads",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "linear_conv_kernel_dim",
            "linear_chunk_size",
        )
    },
    **{
        f"model.{name}": ("mamba", "longest-path")
        for name in (
            "mamba_num_heads",
            "mamba_head_dim",
            "mamba_n_groups",
            "ssm_state_size",
            "mamba_conv_kernel",
            "mamba_chunk_size",
        )
    },
    "model.mamba_rms_norm": ("mamba", "longest-path"),
    **{f"model.{name}": ("conv", "longest-path") for name in ("short_conv_size", "short_conv_kernel")},
    **{
        f"model.{name}": ("mamba1", "longest-path")
        for name in ("mamba_inner_size", "mamba_dt_rank", "mamba_state_norms", "mamba_norm_gains")
    },
    "model.attention_gate": ("windows", "longest-path"),
    "routing.max_over_mean": ("skewed", "longest-path"),
    "stragglers.clocks": ("ddp", "longest-path"),
    "stragglers.groups": ("groups", "longest-path"),
    "model.swiglu_limit": ("biased-experts", "longest-path"),
    "stack.expert_biases": ("biased-experts", "longest-path"),
    "stack.block_casts": ("nvfp4", "longest-path"),
    "stack.host_parameter": ("biased-experts", "longest-path"),
    "stack.host_expert_fp8": ("fp8-experts", "longest-path"),
    "stack.attention_fused": ("dense", "longest-path"),
    "stack.amax_group": ("delayed", "longest-path"),
    "stack.tp_buffer": ("dense", "longest-path"),
    **{f"stack.tp_{name}": ("drained", "longest-path") for name in ("sms_attention", "sms_ffn", "reduced")},
    "stack.batch_first": ("drained", "longest-path"),
    "stack.rope_fused": ("dense", "longest-path"),
    "stack.selective": ("dense", "longest-path"),
    "stack.shard_copies": ("zero3", "longest-path"),
    "stack.flat_shards": ("zero3", "longest-path"),
    "stack.loss_metrics": ("dense", "longest-path"),
    "stack.padding_removed": ("dense", "longest-path"),
    "stack.heads_copied": ("dense", "longest-path"),
    "stack.bias_apart": ("gpt", "longest-path"),
    "stack.relu2_fused": ("square", "longest-path"),
    "stack.p2p_headers": ("pipeline", "longest-path"),
    "stack.p2p_reads": ("pipeline", "longest-path"),
    "stack.ddp_buckets": ("ddp", "longest-path"),
    "stack.clips_whole": ("dense", "longest-path"),
    "stack.stage_reduced": ("staged", "longest-path"),
    "stack.split_copies": ("dense", "longest-path"),
    **{
        f"stack.{name}": ("dense", "longest-path")
        for name in (
            "cublas",
            "cudnn",
            "projections",
            "keys_repeated",
            "rope_complex",
            "sequence_copies",
            "norm_kernels",
            "update",
        )
    },
    "hardware.fabric.ep.deepep.concurrent_combine_factor": ("fp8", "events"),
    "hardware.fabric.ep.deepep.concurrent_dispatch_factor": ("fp8", "events"),
    "hardware.fabric.ep.hybrid_ep.concurrent_combine_factor": ("hybrid", "events"),
    "hardware.fabric.ep.hybrid_ep.concurrent_dispatch_factor": ("hybrid", "events"),
    "hardware.fabric.network.collisions": ("shared-uplinks", "longest-path"),
    "hardware.fabric.network.oversubscription": ("shared-uplinks", "longest-path"),
    "hardware.fabric.network.planes": ("shared-uplinks", "longest-path"),
    "hardware.fabric.network.ports": ("shared-uplinks", "longest-path"),
    "hardware.fabric.nic.sms": ("zero3", "events"),
    "hardware.fabric.nvlink.sms": ("zero3", "events"),
    "hardware.fabric.p2p_nvlink.alpha": ("pipeline", "longest-path"),
    "hardware.gpu.architecture": ("slow-fp32", "longest-path"),
    "hardware.gpu.power.exponent": ("ddp", "longest-path"),
    "hardware.kernels.comm_traffic": ("fp8", "events"),
}
"""Where a setting shows that few jobs have a use for: only there it is looked for, which is quicker."""


def _others(path: str, value: Any, hint: Any) -> list[str]:
    """Other values for a path, as `--set` takes them."""
    if path in _OTHERS:
        return list(_OTHERS[path])
    choices = [
        choice for option in (hint, *get_args(hint)) if get_origin(option) is Literal for choice in get_args(option)
    ]
    if isinstance(value, bool):
        return ["false" if value else "true"]
    if choices:
        return [str(choice) for choice in choices if choice != value]
    if isinstance(value, int):
        found: list[float] = [2 * value, value // 2, value + 1, value - 1, 4 * value, value + 8]
        return [str(other) for other in dict.fromkeys(found) if other >= 0 and other != value]
    if isinstance(value, float):
        found = [value * 1.5, value * 0.5, value * 30, value / 30, value + 1e-5, value + 0.5, value + 1e9]
        return [repr(other) for other in dict.fromkeys(found) if other != value]
    return ["4", "64", "512", "1.5"] if value is None else []


def _at(scenario: Scenario, path: str) -> tuple[Any, Any]:
    """Value and type at a settable path."""
    root, _, rest = path.partition(".")
    if root == "model" and rest:
        name = settable(scenario.model.model_type)[rest]
        return getattr(scenario.model, name), hints(ModelSpec)[name]
    if rest and root in ("hardware", "stack"):
        return _below(scenario.cluster if root == "hardware" else scenario.stack, rest)
    return _below(scenario.job, path)


def _below(value: Any, path: str) -> tuple[Any, Any]:
    first, _, rest = path.partition(".")
    if isinstance(value, dict):
        key = max((k for k in value if path == k or path.startswith(f"{k}.")), key=len)
        part, hint, rest = value[key], type(value[key]), path[len(key) + 1 :]
    else:
        part, hint = getattr(value, first), hints(type(value))[first]
    return _below(part, rest) if rest else (part, hint)


def _result(job: str, engine: Engine, *overrides: str) -> str:
    """Everything a job's result says in numbers."""
    name, own = JOBS[job]
    found = simulate(load_scenario(name, (*own, *overrides)), engine=engine).as_dict()
    return json.dumps([found[part] for part in ("metrics", "breakdown_s", "ranks", "classes", "stages", "memory")])


@lru_cache(maxsize=64)
def _before(job: str, engine: Engine) -> str:
    return _result(job, engine)


def _changes(path: str, jobs: list[str]) -> bool:
    """Whether some other value of a path changes a job's result; where it does is tried first."""
    job, engine = _FIRST.get(path, ("", "longest-path"))
    return _changes_in(path, [job], engine) if job else any(_changes_in(path, jobs, engine) for engine in ENGINES)


def _changes_in(path: str, jobs: list[str], engine: Engine) -> bool:
    """Whether some other value of a path changes the result of one of these jobs."""
    for job in jobs:
        for other in _others(path, *_at(_scenario(job), path)):
            try:
                if _result(job, engine, f"{path}={other}") != _before(job, engine):
                    return True
            except (InputError, ScheduleError):
                continue
    return False


@lru_cache(maxsize=64)
def _scenario(job: str) -> Scenario:
    return load_scenario(*JOBS[job])


def _paths() -> dict[str, list[str]]:
    """Every settable path -> the jobs that have it."""
    found: dict[str, list[str]] = {}
    for job in JOBS:
        for path in settable_paths(_scenario(job)):
            found.setdefault(path, []).append(job)
    return found


ROOTS = ("job", "model", "stack", "hardware")


def _root(path: str) -> str:
    first = path.partition(".")[0]
    return first if first in ROOTS and "." in path else "job"


@pytest.mark.slow
@pytest.mark.parametrize("root", ROOTS)
def test_every_setting_changes_some_result(root: str) -> None:
    mine = {path: jobs for path, jobs in _paths().items() if _root(path) == root and path not in SHOWN_ONLY}
    dead = [path for path, jobs in mine.items() if not _listed(path) and not _changes(path, jobs)]
    assert len(mine) > 10
    assert dead == []


def test_messages_both_ways_are_asked_with_foretrain_kernel() -> None:
    question = Question(op="p2p", hardware="h200", bytes=1e6, both_ways=True)
    before, after = (
        answer(question, load_hardware("h200", [f"hardware.fabric.p2p_nvlink.channels.both_alpha={value}"])).time_us
        for value in (1e-6, 1e-4)
    )
    assert after == pytest.approx(before + 99.0)


@pytest.mark.parametrize("path", SHOWN_ONLY)
def test_what_a_profile_only_shows_cannot_be_set(path: str) -> None:
    with pytest.raises(InputError, match=f"^--set: {path}: .*changes nothing: "):
        load_scenario("tiny-dualpipe", [f"{path}={_others(path, *_at(_scenario('fp8'), path))[0]}"])


@pytest.mark.parametrize(
    ("job", "setting", "right"),
    [
        ("llama-3-8b", "stack.overlapped_pair=true", "the schedule 1f1b overlaps no forward with a backward"),
        ("tiny-interleaved", "stack.overlapped_pair=false", "the schedule interleaved overlaps no forward"),
        ("llama-3-8b", "stack.shared_expert_overlap=true", "llama-3-8b has no shared experts"),
        ("llama-3-8b", "stack.mamba2=parts", "llama-3-8b has no Mamba-2 layers"),
    ],
)
def test_a_setting_that_a_job_has_no_use_for_is_refused(job: str, setting: str, right: str) -> None:
    with pytest.raises(InputError, match=right):
        load_scenario(job, [setting])


@pytest.mark.parametrize("setting", ["stack.wgrad_streams=2", "model.scoring_func=softmax"])
def test_what_changed_nothing_is_gone(setting: str) -> None:
    with pytest.raises(InputError, match="unknown key"):
        load_scenario("tiny-1f1b", [setting])


def test_the_displayed_peak_of_nvlink_scales_its_what_if() -> None:
    before, after = (
        WHAT_IFS["nvlink-900"].change(load_scenario("tiny-1f1b", [f"hardware.node.nvlink.peak={peak}"]))
        for peak in ("200e9", "250e9")
    )
    assert before.cluster.node.nvlink.bandwidth > after.cluster.node.nvlink.bandwidth


# Parameters of kernel classes: whether each changes what some kernel takes, asked of the cost model itself.

_GEMMS: tuple[Work, ...] = (
    Gemm(m=4096, n=7168, k=2048, precision="fp8_block"),
    Gemm(m=4096, n=24576, k=1536, precision="bf16"),
    Gemm(m=64, n=7168, k=16384, precision="bf16"),
    Gemm(m=128, n=128, k=128, precision="bf16"),
    Gemm(m=64, n=128, k=65536, precision="bf16"),
    Gemm(m=64, n=65536, k=512, precision="bf16"),
    Gemm(m=65536, n=16384, k=16384, precision="bf16"),
    Gemm(m=256, n=256, k=65536, precision="bf16", form="grouped_wgrad", groups=2, out_bytes=4.0),
    Gemm(m=7168, n=2048, k=4096, precision="bf16", form="wgrad", out_bytes=4.0),
    Gemm(m=33000, n=4096, k=7168, precision="fp8_block", form="grouped", groups=4, rows=(8100, 8300, 8200, 8400)),
    Gemm(m=96, n=4096, k=7168, precision="fp8_block", form="masked", groups=32, rows=(7, 300) * 16),
    Gemm(m=2048, n=7168, k=32768, precision="bf16", form="grouped_wgrad", groups=8, out_bytes=4.0),
)
_CORES: tuple[Work, ...] = tuple(
    Attention(batch=1, seq_q=seq, seq_kv=seq, heads=heads, kv_heads=8, d_qk=d, d_v=128, backward=backward)
    for seq, heads, d, backward in (
        (4096, 128, 192, False),
        (4096, 128, 192, True),
        (200, 8, 128, False),
        (8192, 32, 128, False),
        (8192, 32, 128, True),
    )
)
_DECODES: tuple[Work, ...] = tuple(
    DecodeAttention(batch=batch, heads=heads, kv_heads=kv, d_qk=d, d_v=v, kv_len=length, latent=kv == 1)
    for batch, heads, kv, d, v, length in (
        (1, 32, 8, 128, 128, 131072),
        (4, 32, 8, 128, 128, 3000),
        (3, 32, 8, 128, 128, 1000),
        (64, 32, 8, 128, 128, 4096),
        (33, 128, 1, 576, 512, 777),
        (128, 128, 1, 576, 512, 4096),
        (600, 8, 8, 128, 128, 130),
    )
)
_SCANS = tuple(
    Scan(flops=flops, read=size, written=size, ctas=ctas, steps=steps, values=values)
    for flops, size, ctas, steps in (
        (1e11, 1e6, 4096, 1),
        (1e8, 3e8, 4096, 1),
        (1e8, 1e6, 64, 256),
        (1e8, 1e6, 4096, 256),
        (1e6, 1e4, 1, 1),
    )
    for values in (0.0, 1e10)
)
TABLES = ("gemm", "attention", "decode", "scan", "stream", "fixed")


def _works(table: str, sms: int) -> tuple[Work, ...]:
    """Kernels of many shapes; `sms`: grids that fill the GPU exactly are among them."""
    streams = tuple(
        Streaming(read=size, written=size, blocks=blocks, values=values)
        for size, blocks in ((1e3, 0), (1e6, sms), (2e7, 2 * sms), (3e8, 0), (3e8, sms), (3e8, 4 * sms), (3e8, 100_000))
        for values in (0.0, size)
    )
    return {
        "gemm": _GEMMS,
        "attention": _CORES,
        "decode": _DECODES,
        "scan": _SCANS,
        "stream": streams,
        "fixed": (Fixed(launches=1),),
    }[table]


def _prices(cluster: Cluster, table: str, cls: str) -> list[float]:
    """What kernels of a class take, alone and overlapped with others [s]."""
    sms = cluster.gpu.sms
    shares = (Share(sms=sms), Share(sms=sms - 24), Share(sms=sms - 20, partner_traffic=3e11))
    ops = [Op(name="asked", cls=cls, part="F", segment="asked", work=work) for work in _works(table, sms)]
    return [
        price(op, cluster, share, comm_sms=20, concurrent=False, dispatcher="deepep").duration
        for op in ops
        for share in shares
    ]


def _kernel_paths(cluster: Cluster, table: str) -> Iterator[tuple[str, str]]:
    for cls, params in getattr(cluster.kernels, table).items():
        for field in fields(params):
            if field.name not in ("source", "range", "assumed"):
                yield cls, field.name


_TILES = ((64, 128), (128, 128), (128, 256))
_NEEDS: dict[str, dict[str, Any]] = {
    "power_rate": {"loop_rate": 0.0},
    "split": {"tiles": ((128, 128),), "split": 1},
    "row_align": {"tiles": ((16, 128),)},
    "few": {"tiles": _TILES},
    "large": {"tiles": _TILES, "few": 1},
    "one_wave": {"tiles": _TILES, "few": 0, "one_wave": 0, "block_time": 0.0, "tile_time": 0.0, "streams": 0},
    "grid_from_expected_m": {"tiles": ((64, 128),)},
    "cta_most": {"cta_time": 1e-3},
    "resident": {"cta_time": 1e-3},
    "wave_time": {"resident": 0},
    "full": {"even": False},
    "keep": {"even": False, "full": 0.8, "keep": 0.85},
    "most": {"even": False, "full": 0.8, "keep": 0.85, "most": 2},
    "whole_q": {"even": False, "full": 0.1},
    "whole_kv": {"even": False, "full": 0.1, "whole_q": 64},
    "overhead": {"even": True},
    "merge": {"even": False, "full": 0.8, "keep": 0.85, "most": 128},
    "merge_step": {"even": False, "full": 0.8, "keep": 0.85, "most": 128},
}
"""Other parameters of a class without which one has no say: a library with one tile does not choose among tiles."""


def _other_parameters(name: str, value: Any) -> list[Any]:
    """Other values of a kernel parameter."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [
            other
            for other in (2 * value, value + 1, max(1, value // 2), value + 4, value + 1000, 10**6)
            if other != value
        ]
    if isinstance(value, float):
        return [1.5 * value + 1e-7, 0.5 * value, value + 0.1, value + 1e9]
    if name == "rates":
        return [tuple(replace(rate, rate=rate.rate / 2) for rate in value)]
    return [((128, 64),)] if name == "tiles" else [(2, 1), (1, 2)]


def _acts(cluster: Cluster, table: str, cls: str, name: str) -> bool:
    """Whether some other value of a parameter changes what some kernel of its class takes."""

    params = getattr(cluster.kernels, table)[cls]

    def prices(**changes: Any) -> list[float]:
        classes = getattr(cluster.kernels, table)
        kernels = replace(cluster.kernels, **{table: classes | {cls: replace(params, **changes)}})
        return _prices(replace(cluster, kernels=kernels), table, cls)

    given = {key: other for key, other in _NEEDS.get(name, {}).items() if hasattr(params, key)}
    value = given.get(name, getattr(params, name))
    before = prices(**given)
    return any(prices(**given | {name: other}) != before for other in _other_parameters(name, value))


@pytest.mark.parametrize("hardware", ["h800", "h100", "b200"])
@pytest.mark.parametrize("table", TABLES)
def test_every_kernel_parameter_changes_some_price(hardware: str, table: str) -> None:
    cluster = load_hardware(hardware)
    every = list(_kernel_paths(cluster, table))
    assert every
    assert [f"{cls}.{name}" for cls, name in every if not _acts(cluster, table, cls, name)] == []


# Kernels of all-to-alls that only foretrain kernel asks for.


@pytest.mark.parametrize("hardware", ["h800", "h100"])
def test_every_parameter_of_all_to_alls_changes_some_price(hardware: str) -> None:
    cluster = load_hardware(hardware)
    dead = [
        f"{table}.{kernels}.{field.name}"
        for table in ("ep", "low_latency")
        for kernels, params in getattr(cluster.fabric, table).items()
        for field in fields(params)
        if field.name not in ("source", "assumed") and not _all_to_all_acts(cluster, table, kernels, field.name)
    ]
    assert dead == []


def _all_to_all_acts(cluster: Cluster, table: str, kernels: str, name: str) -> bool:
    """Whether another value of a parameter changes what a dispatch or combine takes."""
    classes = getattr(cluster.fabric, table)
    value = getattr(classes[kernels], name)
    other = not value if isinstance(value, bool) else 1.5 * value + 1e-7
    fabric = replace(cluster.fabric, **{table: classes | {kernels: replace(classes[kernels], **{name: other})}})
    low = table == "low_latency"
    return _all_to_alls(replace(cluster, fabric=fabric), kernels, low) != _all_to_alls(cluster, kernels, low)


def _all_to_alls(cluster: Cluster, kernels: str, low_latency: bool) -> list[float]:
    """Time of all-to-alls of 128 or 4,096 tokens, first and again, alone and overlapped with compute [s]."""
    works = [
        AllToAll(
            direction=direction,
            tokens=128 if low_latency else 4096,
            hidden=7168,
            bytes_per_token=7392.0,
            ranks=64,
            gate=Gate(experts=256, top_k=8, groups=8, node_limit=0 if low_latency else 4),
            cached=again,
            weighted=again,
            low_latency=low_latency,
        )
        for direction in get_args(Literal["dispatch", "combine"])
        for again in (False, True)
    ]
    ops = [Op(name="asked", cls=f"comm.{w.direction}", part="F", segment="asked", work=w, stream="comm") for w in works]
    return [
        price(op, cluster, Share(sms=132), comm_sms=20, concurrent=concurrent, dispatcher=kernels).duration
        for op in ops
        for concurrent in (False, True)
    ]


def test_an_activation_without_a_measured_kernel_is_said_to_be_priced_as_another() -> None:
    silu, gelu = (
        simulate(
            load_scenario("llama-3-8b", [f"model.hidden_act={act}", "stack.norm_kernels=training"]),
            engine="longest-path",
        )
        for act in ("silu", "gelu")
    )
    assert {c.cls for c in silu.classes} - {c.cls for c in gelu.classes} == {"swiglu"}
    assert [c.calibrated for c in gelu.classes if c.cls == "geglu"] == [False]
    assert gelu.metrics["step_time_s"] == silu.metrics["step_time_s"]  # the same bytes
