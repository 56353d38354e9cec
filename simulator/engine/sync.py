"""The end of a step: gradient reduce-scatter, optimizer update, parameter all-gather.

Dense parameters are reduced over data parallelism, experts over the ranks that hold the same experts. In a
bidirectional pipeline each stage stands on two ranks, whose copies reduce together. ZeRO-1 and up shard the update.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.engine.program import Pricer
from simulator.engine.runs import Run, run_of
from simulator.engine.tasks import COMPUTE, LANES, SYNC, ActionOf, Tasks
from simulator.graph.state import GRADIENT_BYTES, WEIGHT_BYTES, Held, held_by_stage
from simulator.ops import Collective, CollectiveKind, Op, Streaming, Work
from simulator.scenario import Scenario

MASTER, MOMENT = 4.0, 2.0
"""FP32 master weights, BF16 moments (DeepSeek-V3 report, section 3.3.3) [B]."""


def _op(name: str, cls: str, work: Work, stream: str = "compute") -> Op:
    return Op(
        name=name, cls=cls, part="W", segment="optimizer", stream="comm" if stream == "comm" else "compute", work=work
    )


def _collective(price: Pricer, name: str, kind: CollectiveKind, size: float, ranks: int, per_node: int) -> Run | None:
    """One collective, or None where there is nobody to talk to."""
    if ranks <= 1 or size <= 0:
        return None
    work = Collective(kind=kind, bytes=size, ranks=ranks, per_node=min(per_node, ranks))
    return run_of("collective", name, [price(_op(name, f"comm.{kind}", work, "comm"))])


def groups(scenario: Scenario, copies: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(ranks, ranks per node) of the group that shares dense parameters, and of the one that shares experts."""
    job, node = scenario.job, scenario.cluster.node.gpus
    dense = job.dp * job.layout.cp * copies
    experts = job.edp * copies
    beside = max(1, min(job.dp * job.layout.cp, node // job.layout.tp))
    expert_span = job.layout.ep * job.layout.etp
    return (dense, _divisor(dense, beside)), (experts, _divisor(experts, max(1, node // expert_span)))


def _divisor(ranks: int, at_most: int) -> int:
    """Largest divisor of `ranks` not above `at_most`: nodes are filled evenly."""
    return max(d for d in range(1, at_most + 1) if ranks % d == 0)


def update_ops(held: Held, shards: tuple[int, int], zero: int, fp8: bool) -> list[Op]:
    """Kernels of the update on one rank: gradient norm, Adam, the FP8 copy of the weights, clearing the gradients."""
    dense, experts = (held.dense / shards[0], held.experts / shards[1]) if zero else (held.dense, held.experts)
    mine = dense + experts
    read, written = GRADIENT_BYTES + MASTER + 2 * MOMENT, MASTER + 2 * MOMENT + WEIGHT_BYTES
    ops = [
        _op("optimizer.grad_norm", "elem", Streaming(read=mine * GRADIENT_BYTES, written=0.0)),
        _op("optimizer.adam", "optimizer", Streaming(read=mine * read, written=mine * written)),
        _op("optimizer.zero_grad", "elem", Streaming(read=0.0, written=held.total * GRADIENT_BYTES)),
    ]
    if fp8:
        ops.append(
            _op("optimizer.quant_w", "quant.token", Streaming(read=held.total * WEIGHT_BYTES, written=held.total * 1.0))
        )
    return ops


def append_optimizer(
    scenario: Scenario,
    stages: Sequence[Sequence[str]],
    price: Pricer,
    tasks: Tasks,
    last_backward: dict[tuple[int, int], tuple[int, ...]],
    tails: list[tuple[int, ...]],
) -> None:
    """Append the tasks of gradient sync and update on every rank.

    With `grad_sync_overlap` the gradients of a stage leave as soon as its last weight gradient is done on all copies;
    else when all compute of the rank is over.
    """
    holders: dict[int, list[int]] = {}
    for rank, stage in last_backward:
        holders.setdefault(stage, []).append(rank)
    copies = max(len(ranks) for ranks in holders.values())
    (dense, dense_node), (expert, expert_node) = groups(scenario, copies)
    zero, fp8 = scenario.job.layout.zero, scenario.job.precision.recipe == "fp8"
    kind: CollectiveKind = "reduce_scatter" if zero else "all_reduce"
    for rank in range(tasks.ranks):
        mine = [stage for (holder, stage) in last_backward if holder == rank]
        first = len(tasks.lane)
        reduced: list[int] = []
        total = Held()
        for stage in sorted(mine):
            held = held_by_stage(stages[stage], scenario.model, scenario.job)
            total = total + held
            ready = {task for holder in holders[stage] for task in last_backward[holder, stage]}
            if not scenario.stack.grad_sync_overlap:
                ready |= {task for holder in holders[stage] for task in tails[holder]}
            for name, count, ranks, per_node in (
                (f"grad.dense.s{stage}", held.dense, dense, dense_node),
                (f"grad.experts.s{stage}", held.experts, expert, expert_node),
            ):
                run = _collective(price, name, kind, count * GRADIENT_BYTES, ranks, per_node)
                if run is not None:
                    reduced.append(tasks.add(rank * LANES + SYNC, run, tuple(sorted(ready))))
        update = run_of("compute", "optimizer", [price(op) for op in update_ops(total, (dense, expert), zero, fp8)])
        done = tasks.add(rank * LANES + COMPUTE, update, (*tails[rank], *reduced))
        if zero:
            for name, count, ranks, per_node in (
                ("param.dense", total.dense, dense, dense_node),
                ("param.experts", total.experts, expert, expert_node),
            ):
                run = _collective(price, name, "all_gather", count * WEIGHT_BYTES, ranks, per_node)
                if run is not None:
                    tasks.add(rank * LANES + SYNC, run, (done,))
        tasks.actions.append(ActionOf(rank, None, "optimizer", first, len(tasks.lane)))
