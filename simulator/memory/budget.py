"""What serving engines give the KV cache when they start: their own rules, which decide how many sequences run at once.

With M the memory that CUDA reports, C the context and libraries, W the weights, A what a step needs besides (buffers,
activations), s the share that the engine is configured with, the cache gets

- static: s (M - C) - W. SGLang, `mem_fraction_static`: a share of what is free before the weights are loaded, with no
  term of activations (docs.sglang.io, server arguments; sgl-project/sglang, model_runner.py, 2025);
- total: s M - W - A - C. vLLM, `gpu_memory_utilization`, after a profiled step (docs.vllm.ai; vllm-project/vllm pull
  request 10511 prints each term);
- free: s (M - C - W - A). TensorRT-LLM, `free_gpu_memory_fraction` of KvCacheConfig (nvidia.github.io/TensorRT-LLM).
"""

from __future__ import annotations

from simulator.memory.memory_report import RankMemory
from simulator.spec.scenario import Scenario
from simulator.units import GB

KV = "kv_cache"


def kv_budget_bytes(scenario: Scenario, rank: RankMemory) -> float:
    """Memory that the engine's rule gives the KV cache of a rank [B]; 0 where nothing is left.

    Without a rule, what the other items leave of the memory after the job's headroom.
    """
    software = scenario.stack.serving
    assert software is not None
    whole, used = scenario.cluster.gpu.hbm_bytes, rank.peak - rank.group(KV)
    weights, context, share = rank.group("weights"), rank.group("context"), software.kv_share
    left = {
        "none": whole * (1.0 - scenario.job.memory.headroom) - scenario.job.memory.headroom_bytes - used,
        "static": share * (whole - context) - weights,
        "total": share * whole - used,
        "free": share * (whole - used),
    }
    return max(0.0, left[software.kv_budget])


def beyond_budget(scenario: Scenario, rank: RankMemory) -> str:
    """What is wrong where the cache needs more than the engine gives it; empty where it does not."""
    software, given = scenario.stack.serving, kv_budget_bytes(scenario, rank)
    if software is None or software.kv_budget == "none" or rank.group(KV) <= given:
        return ""
    need, name = rank.group(KV) / GB, scenario.stack.name
    return f"the KV cache needs {need:.1f} GB; {name} gives it {given / GB:.1f} GB (kv_share {software.kv_share:g})"
