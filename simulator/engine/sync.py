"""The end of a step: gradient reduce-scatter, optimizer update, parameter all-gather.

Dense parameters are reduced over data parallelism, experts over the ranks that hold the same experts. In a
bidirectional pipeline each stage stands on two ranks, whose copies reduce together. ZeRO-1 and up shard the update.
What software does to a rank's own gradients before they are reduced once a step (`stack.gradient_check`,
`gradient_mean`), it does to all of them, however the update is sharded.

With `layout.replicas` (HSDP) neighbouring ranks form a group that shards everything, as PyTorch's meshes and
Megatron-Core's optimizer instances lay them out; each rank then all-reduces its shard of the gradients over the groups.
FSDP2 does that on a stream of its own (torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py, 2025); here all
collectives of a rank share one stream.

FP32 parameters under ZeRO-3 are cast and copied into the buffer before each gather, on that stream, too (the same file,
_get_param_all_gather_inputs and all_gather_copy_in).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.dtypes import FP32
from simulator.engine.kernel_sequence import KernelSequence, sequence_of
from simulator.engine.program import Pricer, Program
from simulator.engine.sync_order import sync_order
from simulator.engine.tasks import COMPUTE, LANES, SYNC, ActionOf, Tasks
from simulator.engine.update import muon_shard_bytes, own_gradient_ops, update_ops
from simulator.graph.parameters import Held, held_by_blocks, held_by_stage
from simulator.ops import Collective, CollectiveKind, Op, Streaming
from simulator.schedule import Schedule, Step, stages_on
from simulator.spec.model import BlockKind
from simulator.spec.scenario import Scenario


def _collective(
    price: Pricer, name: str, kind: CollectiveKind, size: float, ranks: int, per_node: int
) -> KernelSequence | None:
    """One collective, or None for a group of one rank."""
    if ranks <= 1 or size <= 0:
        return None
    work = Collective(kind=kind, bytes=size, ranks=ranks, per_node=min(per_node, ranks))
    op = Op(name=name, cls=f"comm.{kind}", part="W", segment="optimizer", stream="comm", work=work)
    return sequence_of("collective", name, [price(op)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks that shard parameters together, `per_node` of them in a node; as many groups as `replicas` hold the same,
    `replicas_per_node` of them in a node."""

    ranks: int
    per_node: int
    replicas: int = 1
    replicas_per_node: int = 1


def groups(scenario: Scenario, copies: int) -> tuple[Group, Group]:
    """The group that shares dense parameters, and the one that shares experts."""
    job, node = scenario.job, scenario.cluster.node.gpus
    filled = max(1, min(job.dp * job.layout.cp, node // job.layout.tp))
    expert_span = job.layout.ep * job.layout.etp
    dense = _group(job.dp * job.layout.cp * copies, filled, job.layout.replicas)
    return dense, _group(job.edp * copies, max(1, node // expert_span), job.layout.replicas)


def _group(ranks: int, in_node: int, replicas: int) -> Group:
    """Of so many ranks, `in_node` of them in a node, that form `replicas` groups of neighbours."""
    near = _divisor(ranks, in_node)
    sharing = max(1, ranks // replicas)
    return Group(
        ranks=sharing,
        per_node=_divisor(sharing, near),
        replicas=replicas,
        replicas_per_node=_divisor(replicas, max(1, near // sharing)),
    )


def _divisor(ranks: int, at_most: int) -> int:
    """Largest divisor of `ranks` not above `at_most`: nodes are filled evenly."""
    return max(d for d in range(1, at_most + 1) if ranks % d == 0)


class Sync:
    """Collectives of one scenario's parameters."""

    def __init__(self, scenario: Scenario, price: Pricer, copies: int) -> None:
        self.scenario, self.price, self.order = scenario, price, sync_order(scenario)
        self.dense, self.experts = groups(scenario, copies)

    def reduce(self, name: str, kind: CollectiveKind, held: Held) -> list[KernelSequence]:
        """The collectives that sum the gradients of `held`: within the groups that shard them, and over these."""
        size = self.scenario.states.reduced_bytes
        out = self._runs(name, kind, (held.dense * size, held.experts * size))
        for part, group, many in (("dense", self.dense, held.dense), ("experts", self.experts, held.experts)):
            mine, near = many * size / group.ranks, group.replicas_per_node
            over = _collective(self.price, f"{name}.{part}.replicas", "all_reduce", mine, group.replicas, near)
            out += [over] if over is not None else []
        return out

    def gather(self, held: Held) -> list[KernelSequence]:
        """The collectives that bring the weights of `held` to all its ranks, and what comes before them."""
        gathers = self._runs("param", "all_gather", held.weight_bytes(self.scenario.formats))
        return [*self._copies_in(held), *gathers] if gathers else []

    def _copies_in(self, held: Held) -> list[KernelSequence]:
        """FP32 shards cast to what is gathered, and copied to their place in the buffer."""
        if self.scenario.states.parameters != "fp32" or not self.order.gathers_in_actions:
            return []
        mine = held.dense / self.dense.ranks + held.experts / self.experts.ranks
        sent = sum(held.weight_bytes(self.scenario.formats)) / max(1, held.total)
        works = {"cast": (FP32, sent), "copy": (sent, sent)}
        ops = [
            Op(
                name=f"param.shard.{name}",
                cls="elem",
                part="W",
                segment="optimizer",
                stream="comm",
                work=Streaming(read=mine * read, written=mine * written),
            )
            for name, (read, written) in works.items()
        ]
        return [sequence_of("work", "param.shard", [self.price(op) for op in ops])]

    def orthogonalised(self, held: Held) -> list[KernelSequence]:
        """The collectives that make Muon's matrices whole where ZeRO has sharded their moments."""
        return self._runs("muon", "all_gather", muon_shard_bytes(held, self.scenario))

    def _runs(self, name: str, kind: CollectiveKind, sizes: tuple[float, float]) -> list[KernelSequence]:
        """The collectives over the dense parameters and over the experts, of these sizes [B]."""
        dense, experts = (
            _collective(self.price, f"{name}.{part}", kind, size, group.ranks, group.per_node)
            for part, size, group in zip(("dense", "experts"), sizes, (self.dense, self.experts), strict=True)
        )
        return [sequence for sequence in (dense, experts) if sequence is not None]


def copies_of(schedule: Schedule) -> int:
    """Ranks of a pipeline that hold each stage: two where microbatches enter from both ends."""
    return sum(len(held) for held in stages_on(schedule)) // schedule.stages


class Sharding:
    """ZeRO-2 and -3 inside the step (arXiv 1910.02054, section 5): gradients are reduce-scattered after the backward of
    every microbatch; with ZeRO-3 the parameters of each block are gathered before its forward and its backward, while
    the blocks before it compute (PyTorch FSDP's prefetch)."""

    def __init__(self, scenario: Scenario, stages: Sequence[Sequence[BlockKind]], price: Pricer, copies: int) -> None:
        sync = Sync(scenario, price, copies)
        self.order = sync.order
        sharded = map(tuple, stages) if scenario.workload.updates else ()
        kinds = {blocks: held_by_blocks(blocks, scenario.model, scenario.job) for blocks in sharded}
        self.gathers = {k: [sync.gather(h) for h in v] for k, v in kinds.items()}
        self.reduces = {k: [sync.reduce("grad", "reduce_scatter", h) for h in v] for k, v in kinds.items()}
        self.stages = [tuple(blocks) for blocks in stages]

    def gather(self, tasks: Tasks, rank: int, step: Step, program: Program, entry: tuple[int, ...]) -> dict[int, int]:
        """ZeRO-3: gathers of the blocks of a step in the order they are needed; step of the program -> its gather."""
        return {
            at: tasks.add(rank * LANES + SYNC, sequence, entry)
            for stage, block, at in self.order.gathers(step, program.forward_start, program.backward_start)
            for sequence in self.gathers[self.stages[stage]][block]
        }

    def reduce(self, tasks: Tasks, rank: int, step: Step, program: Program, base: int) -> tuple[int, ...]:
        """Reduce-scatter of each block's gradients once they are there; the program's tasks begin at `base`."""
        return tuple(
            tasks.add(rank * LANES + SYNC, sequence, (base + at,))
            for stage, block, at in self.order.reduces(step, program.wgrad_end)
            for sequence in self.reduces[self.stages[stage]][block]
        )


def gather_parameters(
    scenario: Scenario, stages: Sequence[Sequence[BlockKind]], price: Pricer, tasks: Tasks, schedule: Schedule
) -> dict[tuple[int, int], tuple[int | None, ...]]:
    """With `param_gather_overlap`, the updated parameters arrive block by block, overlapped with the first forward.

    In a steady run the gather that ends one step is the one that begins the next, so it stands at the beginning.
    Returns, for each (rank, stage), the last gather of each block.
    """
    if not sync_order(scenario).gathers_before:
        return {}
    held_on = stages_on(schedule)
    sync = Sync(scenario, price, copies_of(schedule))
    arrived: dict[tuple[int, int], tuple[int | None, ...]] = {}
    for rank, mine in enumerate(held_on):
        for stage in mine:
            last: list[int | None] = []
            for held in held_by_blocks(stages[stage], scenario.model, scenario.job):
                made = [tasks.add(rank * LANES + SYNC, sequence, ()) for sequence in sync.gather(held)]
                last.append(made[-1] if made else None)
            arrived[rank, stage] = tuple(last)
    return arrived


def append_optimizer(
    scenario: Scenario,
    stages: Sequence[Sequence[BlockKind]],
    price: Pricer,
    tasks: Tasks,
    wgrad_end: dict[tuple[int, int], tuple[int, ...]],
    tails: list[tuple[int, ...]],
    scattered: dict[tuple[int, int], tuple[int, ...]],
) -> None:
    """Append the tasks of gradient sync and update on every rank.

    `wgrad_end` holds, for each (rank, stage), the task after which each block's gradients are complete. With
    `grad_sync_overlap` a block's gradients leave then, on all copies of the stage; else when all compute is over.
    `scattered` holds the reductions that ZeRO-2 and -3 have already made.
    """
    holders: dict[int, list[int]] = {}
    for rank, stage in wgrad_end:
        holders.setdefault(stage, []).append(rank)
    sync = Sync(scenario, price, max(len(ranks) for ranks in holders.values()))
    if not sync.order.reduces_in_actions:
        tails = _own_gradients(scenario, stages, price, tasks, wgrad_end, tails)
    for rank in range(tasks.ranks):
        mine = sorted((stage for on, stage in wgrad_end if on == rank), key=lambda stage: max(wgrad_end[rank, stage]))
        first = len(tasks.lane)
        reduced = [
            task
            for stage in mine
            for task in scattered.get((rank, stage))
            or _reduce(scenario, sync, stage, stages[stage], tasks, rank, holders, wgrad_end, tails, stage == mine[-1])
        ]
        total = Held()
        for stage in mine:
            total = total + held_by_stage(stages[stage], scenario.model, scenario.job)
        reduced += [tasks.add(rank * LANES + SYNC, one, tuple(reduced)) for one in sync.orthogonalised(total)]
        blocks = [kind for stage in mine for kind in stages[stage]]
        ops = update_ops(total, blocks, (sync.dense.ranks, sync.experts.ranks), scenario)
        update = sequence_of("compute", "optimizer", [price(op) for op in ops])
        done = tasks.add(rank * LANES + COMPUTE, update, (*tails[rank], *reduced))
        if sync.order.gathers_behind:
            for sequence in sync.gather(total):
                tasks.add(rank * LANES + SYNC, sequence, (done,))
        tasks.actions.append(ActionOf(rank, None, "optimizer", first, len(tasks.lane)))


def _own_gradients(
    scenario: Scenario,
    stages: Sequence[Sequence[BlockKind]],
    price: Pricer,
    tasks: Tasks,
    wgrad_end: dict[tuple[int, int], tuple[int, ...]],
    tails: list[tuple[int, ...]],
) -> list[tuple[int, ...]]:
    """Append what each rank does to its own gradients before they are reduced; returns the new tails.

    Software that reduces block by block does it block by block, too, on the stream of compute; here it stands behind
    all compute, which takes as long, and before the last reduction.
    """
    out: list[tuple[int, ...]] = []
    for rank, tail in enumerate(tails):
        mine = [held_by_stage(stages[stage], scenario.model, scenario.job) for on, stage in wgrad_end if on == rank]
        ops = own_gradient_ops(sum(mine, Held()), scenario)
        if ops:
            first = len(tasks.lane)
            sequence = sequence_of("compute", "gradients", [price(op) for op in ops])
            out.append((tasks.add(rank * LANES + COMPUTE, sequence, tail),))
            tasks.actions.append(ActionOf(rank, None, "optimizer", first, len(tasks.lane)))
        else:
            out.append(tail)
    return out


def _reduce(
    scenario: Scenario,
    sync: Sync,
    stage: int,
    blocks: Sequence[BlockKind],
    tasks: Tasks,
    rank: int,
    holders: dict[int, list[int]],
    wgrad_end: dict[tuple[int, int], tuple[int, ...]],
    tails: list[tuple[int, ...]],
    last: bool,
) -> list[int]:
    """Append the reductions of one stage's gradients on one rank, the block that is ready first leading; the very last
    waits for all that the rank has to do before."""
    held = held_by_blocks(blocks, scenario.model, scenario.job)
    out: list[int] = []
    for _, block in sync.order.reductions({stage: len(blocks)}):
        if block is None:
            size, done = sum(held, Held()), {task for holder in holders[stage] for task in tails[holder]}
        else:
            size, done = (
                held[block],
                {sync.order.complete(block, wgrad_end[holder, stage]) for holder in holders[stage]},
            )
            if last and block == 0:
                done.update(task for holder in holders[stage] for task in tails[holder])
        sequences = sync.reduce(f"grad.s{stage}", sync.order.reduction, size)
        out += [tasks.add(rank * LANES + SYNC, sequence, tuple(sorted(done))) for sequence in sequences]
    return out
