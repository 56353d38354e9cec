"""The numbers that serving blocks are built from."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.graph.shapes import Shapes
from simulator.routing.gate import reach
from simulator.routing.loads import PADDING, imbalance
from simulator.spec.recompute import NOTHING
from simulator.spec.scenario import Scenario
from simulator.spec.serving import Serving, ServingStack


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingShapes(Shapes):
    """One rank's view of one step, or of one of its two microbatches.

    `batch` [sequences] of `seq` new tokens each over `seq_kv` - `seq` cached ones. `rows` are those of the `active`
    local experts: the ones that at least one token chose. `all_to_all`: whether tokens travel to their experts.
    """

    serving: Serving
    software: ServingStack
    active: int
    all_to_all: bool

    @property
    def decodes(self) -> bool:
        """Whether the newest tokens are few, and attention reads the cache as it lies there."""
        return self.job.workload == "decode"


def microbatches_of(serving: Serving) -> int:
    """Microbatches that a step is cut into."""
    return 2 if serving.two_batch_overlap else 1


def serving_shapes(scenario: Scenario) -> ServingShapes:
    """The shapes of a serving scenario's mean rank."""
    job, model, serving, software = scenario.job, scenario.model, scenario.job.serving, scenario.stack.serving
    assert serving is not None  # `simulator.inputs` refuses a job without
    assert software is not None
    batch = serving.sequences // microbatches_of(serving)
    tokens = batch * serving.tokens
    all_to_all = model.is_moe and scenario.stack.dispatcher != "nccl" and job.layout.ep > 1
    rows, received, active = _expert_rows(scenario, tokens, all_to_all) if model.is_moe else (0, 0, 0)
    return ServingShapes(
        model=model,
        job=job,
        stack=scenario.stack,
        tokens=tokens,
        batch=batch,
        seq=serving.tokens,
        seq_kv=serving.context + serving.tokens,
        rows=rows,
        received=received,
        local_experts=model.n_routed_experts // job.layout.ep if model.is_moe else 0,
        recipe=job.precision.recipe,
        sms=scenario.cluster.gpu.sms,
        recompute=NOTHING,
        workload=scenario.workload,
        node_gpus=scenario.cluster.node.gpus,
        imbalance=imbalance(scenario, _group_tokens(scenario, tokens, all_to_all)) if model.is_moe else 1.0,
        states=scenario.states,
        serving=serving,
        software=software,
        active=active,
        all_to_all=all_to_all,
    )


def _group_tokens(scenario: Scenario, tokens: int, all_to_all: bool) -> int:
    """Tokens that the ranks of an expert-parallel group route together in one step (or microbatch)."""
    layout = scenario.job.layout
    return -(-tokens // layout.tp) * layout.ep if all_to_all else tokens


def chosen_experts(tokens: float, experts: int, top_k: int) -> float:
    """Expected number of `experts` that at least one of `tokens` tokens chooses, each `top_k` at random."""
    missed: float = (1.0 - top_k / experts) ** tokens
    return experts * (1.0 - missed)


def _expert_rows(scenario: Scenario, tokens: int, all_to_all: bool) -> tuple[int, int, int]:
    """Rows of the mean rank's experts, the distinct tokens that it receives, and how many experts have rows.

    With all-to-alls every rank brings tokens of its own (with tensor parallelism a part of its group's); else all
    ranks hold the same ones, and each works on what goes to its experts.
    """
    job, model = scenario.job, scenario.model
    ep, experts, top_k = job.layout.ep, model.n_routed_experts, model.num_experts_per_tok
    own = -(-tokens // job.layout.tp) if all_to_all else tokens
    together = _group_tokens(scenario, tokens, all_to_all)
    active = max(1, round(chosen_experts(together, experts, top_k) / ep))
    rows = max(1, round(together * top_k / ep))
    if scenario.job.workload == "prefill" and job.precision.recipe == "fp8":
        rows += active * (PADDING - 1) // 2  # groups are padded to whole blocks of scales
    if not all_to_all:
        return rows, min(rows, tokens), active
    if job.workload == "decode":
        return rows, rows, active  # low-latency kernels send every copy by itself
    ranks = reach(model.gate, ep, min(ep, scenario.cluster.node.gpus)).ranks
    return rows, round(own * ranks), active
