"""How many blocks of the KV cache an engine has: what its software leaves of a GPU's memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.errors import PlanError
from simulator.graph.serving.shapes import serving_of
from simulator.memory.budget import kv_budget_bytes
from simulator.memory.memory_report import RankMemory
from simulator.memory.serving import kv_cache_tokens, memory_of_serving
from simulator.spec.scenario import Scenario
from simulator.spec.scheduler import Scheduler
from simulator.spec.workload import WorkloadName
from simulator.units import GB


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRoom:
    """The KV cache of one GPU of an engine.

    Parameters
    ----------
    bytes : what it may take [B].
    tokens : tokens that it holds.
    blocks : whole blocks in it.
    """

    bytes: float
    tokens: float
    blocks: int

    @property
    def per_token(self) -> float:
        """What a token takes [B]."""
        return self.bytes / self.tokens


def _in_step(scenario: Scenario, workload: WorkloadName, sequences: int, tokens: int) -> tuple[Scenario, RankMemory]:
    """The job in a step of this shape with nothing cached before, and the memory of a rank in it."""
    serving = replace(
        serving_of(scenario), sequences=sequences, tokens=tokens, context=0, prefill_tokens=0, prefill_context=0
    )
    asked = replace(scenario, job=replace(scenario.job, workload=workload, serving=serving))
    return asked, memory_of_serving(asked).worst


def kv_room(scenario: Scenario, scheduler: Scheduler) -> KvRoom:
    """The KV cache by the stack's rule, in the step that leaves least: the largest batch, or a step full of prompts.

    Raises
    ------
    PlanError : nothing is left.
    """
    unit = 2 if serving_of(scenario).two_batch_overlap else 1
    batch = min(scheduler.sequences, max(scheduler.captured, default=scheduler.sequences))
    steps = (
        _in_step(scenario, "decode", -(-batch // unit) * unit, 1),
        _in_step(scenario, "prefill", unit, -(-scheduler.step_tokens // unit)),
    )
    asked, rank = min(steps, key=lambda step: kv_budget_bytes(*step))
    left = kv_budget_bytes(asked, rank)
    tokens = kv_cache_tokens(asked)
    blocks = int(tokens / scheduler.block)
    if blocks < 1:
        weights = rank.group("weights")
        raise PlanError(
            f"{scenario.name}: does not fit: {weights / GB:.1f} GB of weights leave nothing of"
            f" {scenario.cluster.gpu.hbm_bytes / GB:.1f} GB for the KV cache; spread a replica over more GPUs"
            " (layout.tp, layout.ep)"
        )
    return KvRoom(bytes=left, tokens=tokens, blocks=blocks)
