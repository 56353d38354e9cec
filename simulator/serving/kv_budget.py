"""How many blocks of the KV cache an engine has: what its software leaves of a GPU's memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.errors import PlanError
from simulator.graph.serving.shapes import serving_shapes
from simulator.memory.serving import kv_cache_bytes, memory_of_serving
from simulator.spec.scenario import Scenario
from simulator.spec.scheduler import Scheduler
from simulator.spec.workload import WorkloadName
from simulator.units import GB


@dataclass(frozen=True, slots=True, kw_only=True)
class KvBudget:
    """Memory of one GPU of an engine.

    Parameters
    ----------
    weights : weights [B].
    activations : peak of activations, buffers and temporary memory [B].
    context : CUDA context and libraries [B].
    kv : what is left to the KV cache [B].
    per_token : KV cache of a token on this GPU [B].
    blocks : whole blocks in it.
    """

    weights: float
    activations: float
    context: float
    kv: float
    per_token: float
    blocks: int


def _items(scenario: Scenario, workload: WorkloadName, sequences: int, tokens: int) -> dict[str, float]:
    """Bytes of one GPU by group in a step of this shape, nothing cached before."""
    assert scenario.job.serving is not None
    serving = replace(scenario.job.serving, sequences=sequences, tokens=tokens, context=0)
    worst = memory_of_serving(replace(scenario, job=replace(scenario.job, workload=workload, serving=serving))).worst
    groups = ("weights", "temporary", "buffers", "context", "slack")
    return {group: worst.group(group) for group in groups}


def kv_budget(scenario: Scenario, scheduler: Scheduler) -> KvBudget:
    """The KV cache by the engine's own rule of memory (`Scheduler.memory_rule`).

    Raises
    ------
    PlanError : nothing is left.
    """
    serving = scenario.job.serving
    assert serving is not None
    unit = 2 if serving.two_batch_overlap else 1
    batch = -(-min(scheduler.sequences, max(scheduler.captured, default=scheduler.sequences)) // unit) * unit
    decode = _items(scenario, "decode", batch, 1)
    prefill = _items(scenario, "prefill", unit, -(-scheduler.step_tokens // unit))
    moving = max(one["temporary"] + one["slack"] for one in (decode, prefill)) + decode["buffers"] + prefill["buffers"]
    weights, context, whole = decode["weights"], decode["context"], scenario.cluster.gpu.hbm_bytes
    share = scheduler.memory_fraction
    left = {
        "total": share * whole - weights - moving - context,
        "static": share * (whole - context) - weights,
        "free": share * (whole - weights - moving - context),
    }[scheduler.memory_rule]
    single = replace(scenario.job, serving=replace(serving, sequences=unit, tokens=1, context=0))
    shapes = serving_shapes(replace(scenario, job=single))
    per_token = kv_cache_bytes(replace(scenario, job=single), shapes) / unit
    blocks = int(left / (per_token * scheduler.block))
    if blocks < 1:
        raise PlanError(
            f"{scenario.name}: does not fit: weights {weights / GB:.1f} GB and activations {moving / GB:.1f} GB leave"
            f" nothing of {whole / GB:.1f} GB for the KV cache; use more GPUs for a replica (layout.tp, layout.ep)"
        )
    return KvBudget(
        weights=weights, activations=moving, context=context, kv=left, per_token=per_token, blocks=blocks
    )
