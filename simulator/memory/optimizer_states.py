"""What a rank holds during a whole step: weights, gradients, optimizer states.

Parameters come from `graph.state`, the groups they are sharded over from `engine.sync`: what the forecast of the
traffic uses, memory uses too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from simulator.dtypes import BF16, FP8_MATRIX, FP32
from simulator.engine.lower import overlaps
from simulator.engine.sync import groups
from simulator.graph.parameters import Held, held_by_block, held_by_stage
from simulator.memory.assumptions import Assumptions
from simulator.memory.memory_report import Item
from simulator.spec.job import Job
from simulator.spec.model import BlockKind, ModelSpec
from simulator.spec.precision import Formats
from simulator.spec.scenario import Scenario
from simulator.spec.states import States

IN_FLIGHT = 2
"""Blocks that are whole at once under ZeRO-2 and -3, of weights and of gradients: the one that computes, and the one
that is gathered for it next or whose gradients are being reduced (PyTorch FSDP2's prefetch and its wait for the
reduction before)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Ranks that dense parameters, and experts, are spread over where ZeRO shards something."""

    dense: int
    experts: int

    def of(self, held: Held) -> float:
        """Parameters of one rank's shard."""
        return held.dense / self.dense + held.experts / self.experts

    def matrices(self, held: Held) -> float:
        """Parameters of one rank's shard that stand in matrices of layers."""
        return held.matrices / self.dense + held.experts / self.experts


def shards_of(scenario: Scenario, copies: int) -> Shards:
    """The groups of a scenario whose stages stand on `copies` ranks of a pipeline."""
    dense, experts = groups(scenario, copies)
    return Shards(dense=dense.ranks, experts=experts.ranks)


def made_in_backward(kinds: Iterable[BlockKind], scenario: Scenario, shards: Shards) -> dict[BlockKind, float]:
    """Gradients of these kinds of block that are not there before its backward [B]: where the software frees them after
    the update (`gradients_zeroed` false), and a step has one microbatch. Empty otherwise: they are held all the time.

    With more microbatches the first backward leaves them for the forwards that follow, when activations peak. Models
    with MTP modules, which share a head, are left out.
    """
    model, job = scenario.model, scenario.job
    kept = scenario.stack.gradients_zeroed or job.microbatches > 1 or model.num_nextn_predict_layers > 0
    if kept or "gradients" not in scenario.workload.resident:
        return {}
    size, whole = scenario.states.gradient_bytes, job.layout.zero < 2
    held = {kind: held_by_block(kind, model, job) for kind in kinds}
    return {kind: size * (one.total if whole else shards.of(one)) for kind, one in held.items()}


def copied_ends(blocks: Sequence[BlockKind], model: ModelSpec, job: Job, share: bool) -> Held:
    """Embedding and head a rank must hold once more: for an MTP module that cannot share them (or does not, `share`),
    and for a head tied to an embedding that stands elsewhere."""
    table = held_by_block(BlockKind.EMBED, model, job).dense - model.learned_positions
    extra = 0
    if BlockKind.MTP in blocks:
        extra += table * (0 if share and BlockKind.EMBED in blocks else 1)
        extra += 0 if share or model.tie_word_embeddings else table
    if BlockKind.HEAD in blocks and model.tie_word_embeddings and BlockKind.EMBED not in blocks:
        extra += table
    return Held(dense=extra)


def held_by_rank(stages: Sequence[Sequence[BlockKind]], scenario: Scenario, share_mtp: bool) -> Held:
    """Parameters of all stages of a rank."""
    model, job = scenario.model, scenario.job
    total = copied_ends([kind for blocks in stages for kind in blocks], model, job, share_mtp)
    for blocks in stages:
        total = total + held_by_stage(blocks, model, job)
    return total


def state_items(
    stages: Sequence[Sequence[BlockKind]], scenario: Scenario, shards: Shards, assumed: Assumptions
) -> list[Item]:
    """Weights, gradients and optimizer states of one rank, as far as the workload needs them."""
    resident = scenario.workload.resident
    held = held_by_rank(stages, scenario, assumed.share_mtp)
    zero = scenario.job.layout.zero
    shard = shards.of(held)
    shard_of_state = shard if zero >= 1 else float(held.total)
    items = _weights(stages, scenario, shards, assumed, held)
    states = scenario.states
    if states.parameters == "fp32" and "optimizer" in resident:
        items.append(Item(group="weights", name="parameters, FP32", bytes=FP32 * shard_of_state))
    if "gradients" in resident:
        size = states.gradient_bytes * (shard if zero >= 2 else held.total)
        all_blocks = [kind for blocks in stages for kind in blocks]
        late = made_in_backward(set(all_blocks), scenario, shards)
        size -= sum(late.get(kind, 0.0) for kind in all_blocks)
        items.append(Item(group="gradients", name=f"gradients, {states.gradients.upper()}", bytes=size))
    if "optimizer" in resident:
        here = 1.0 - scenario.job.offload.optimizer
        if states.masters != "none":
            items.append(Item(group="optimizer", name="master weights, FP32", bytes=here * FP32 * shard_of_state))
        size = here * moment_bytes(states, held, shards if zero >= 1 else Shards(dense=1, experts=1))
        items.append(Item(group="optimizer", name=_moments(states), bytes=size))
    if zero >= 2 and "gradients" in resident:
        whole = in_flight(stages, scenario, lambda block: block.total * states.reduced_bytes)
        items.append(Item(group="buffers", name="gradients before they are sharded", bytes=whole))
    if assumed.ema_on_gpu and "optimizer" in resident:
        items.append(Item(group="optimizer", name="moving average of the weights", bytes=FP32 * shard_of_state))
    return items


def state_bytes_on_host(
    stages: Sequence[Sequence[BlockKind]], scenario: Scenario, shards: Shards, assumed: Assumptions
) -> float:
    """Masters and moments that a rank keeps in the memory of its host [B].

    Where parameters are FP32 themselves, the CPU updates a copy of them (torchao, CPUOffloadOptimizer).
    """
    away, states = scenario.job.offload.optimizer, scenario.states
    if not away or "optimizer" not in scenario.workload.resident:
        return 0.0
    held = held_by_rank(stages, scenario, assumed.share_mtp)
    parts = shards if scenario.job.layout.zero >= 1 else Shards(dense=1, experts=1)
    return away * (states.master_bytes * parts.of(held) + moment_bytes(states, held, parts))


def widened_bytes(
    stages: Sequence[Sequence[BlockKind]], scenario: Scenario, shards: Shards, assumed: Assumptions
) -> float:
    """FP32 copies of narrower gradients, from their norm until the update is through, when no activation is kept [B]
    (NVIDIA/Megatron-LM, megatron/core/optimizer/distrib_optimizer.py, 2025: _copy_model_grads_to_main_grads)."""
    states, narrow = scenario.states, scenario.states.gradient_bytes < scenario.states.master_bytes
    if "optimizer" not in scenario.workload.resident or not (scenario.stack.weights_copied and narrow):
        return 0.0
    held = held_by_rank(stages, scenario, assumed.share_mtp)
    return states.master_bytes * (shards.of(held) if scenario.job.layout.zero else held.total)


def moment_bytes(states: States, held: Held, shards: Shards) -> float:
    """Bytes of the optimizer's moments on one rank; Muon's matrices have the first only [B]."""
    mine = shards.of(held)
    if states.kind != "muon":
        return states.moment_bytes * mine
    return states.moment_bytes * mine - (states.moment_bytes - states.first_bytes) * shards.matrices(held)


def _moments(states: States) -> str:
    """What the item of the moments is called."""
    first, second = states.first_moment.upper(), states.second_moment.upper()
    if states.kind == "muon":
        return f"first moment, {first}; second of all but matrices, {second}"
    if "NONE" in (first, second):
        return f"first moment, {first}" if second == "NONE" else f"second moment, {second}"
    return f"two moments, {first}" if first == second else f"first moment, {first}, and second, {second}"


def _weights(
    stages: Sequence[Sequence[BlockKind]], scenario: Scenario, shards: Shards, assumed: Assumptions, held: Held
) -> list[Item]:
    """Weights the GEMMs read: whole, or under ZeRO-3 a shard and the gathered blocks."""
    formats, zero = scenario.formats, scenario.job.layout.zero
    dense, experts = (shards.dense, shards.experts) if zero >= 3 else (1, 1)
    narrow = held.narrow / dense + held.narrow_experts / experts
    alone = assumed.fp8_weights if formats.recipe == "fp8" else formats.weights == "recipe" and formats.record.by_layer
    wide = held.dense / dense + held.experts / experts - (narrow if alone else 0.0)
    items = []
    fp32 = scenario.states.parameters == "fp32" and "optimizer" in scenario.workload.resident
    if fp32 and zero >= 3:  # what GEMMs read is there while it is gathered only
        narrow = wide = 0.0
    if formats.recipe == "fp8":
        items.append(Item(group="weights", name="weights, FP8 with scales", bytes=narrow * FP8_MATRIX))
    elif formats.cached_bytes:
        form = "in both layouts" if formats.layouts == 2 and zero < 3 else "in one layout"
        each = formats.cached_bytes if zero < 3 else formats.record.weight
        name = f"weights, {formats.record.gemm.partition('_')[0].upper()} {form}"
        items.append(Item(group="weights", name=name, bytes=narrow * each))
    items.append(Item(group="weights", name="weights, BF16", bytes=wide * BF16))
    if zero >= 3:
        whole = in_flight(stages, scenario, lambda block: _gathered(block, formats))
        items.append(Item(group="buffers", name="gathered weights", bytes=whole * (2 if overlaps(scenario) else 1)))
    return items


def _gathered(block: Held, formats: Formats) -> float:
    """Bytes of a gathered block, and of what its GEMMs read of it: a cast is there while its GEMM runs, all of them
    where the forms are made of what arrives [B]."""
    made = (formats.layouts - 1) * formats.record.weight if formats.weights == "recipe" else 0.0
    return sum(block.weight_bytes(formats)) + (block.narrow + block.narrow_experts) * made


def in_flight(stages: Sequence[Sequence[BlockKind]], scenario: Scenario, size: Callable[[Held], float]) -> float:
    """Bytes of the largest neighbouring blocks of a stage that are whole at once [B]."""
    sizes = [[size(held_by_block(kind, scenario.model, scenario.job)) for kind in blocks] for blocks in stages]
    return max(sum(some[at : at + IN_FLIGHT]) for some in sizes for at in range(len(some)))
