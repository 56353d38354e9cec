"""What a rank holds from the first to the last moment of a step: weights, gradients, optimizer states.

Parameters come from `graph.state`, the groups they are sharded over from `engine.sync`: what the forecast of the
traffic uses, memory uses too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.dtypes import FP8_TILE, WIDTH
from simulator.engine.sync import groups
from simulator.graph.state import GRADIENT_BYTES, Held, held_by_block, held_by_stage
from simulator.layout import Job
from simulator.memory.assumptions import Assumptions
from simulator.memory.report import Item
from simulator.model import ModelSpec
from simulator.scenario import Scenario

BF16 = WIDTH["bf16"]
FP8_MATRIX = WIDTH["fp8"] + WIDTH["fp32"] / FP8_TILE**2
"""Bytes of one weight in FP8 with an FP32 scale per 128 x 128 block (arXiv 2412.19437, section 3.3.2) [B]."""
FP8_LAYOUTS = 2.0
"""Bytes of one weight in FP8 and transposed FP8, beside BF16 (Transformer Engine's per-tensor recipes) [B]."""
PREFETCHED = 2
"""Layers whose weights are gathered at once under ZeRO-3: the one that runs and the next (PyTorch FSDP2, prefetch)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Ranks that dense parameters, and experts, are spread over where ZeRO shards something."""

    dense: int
    experts: int

    def of(self, held: Held) -> float:
        """Parameters of one rank's shard."""
        return held.dense / self.dense + held.experts / self.experts


def shards_of(scenario: Scenario, copies: int) -> Shards:
    """The groups of a scenario whose stages stand on `copies` ranks of a pipeline."""
    (dense, _), (experts, _) = groups(scenario, copies)
    return Shards(dense=dense, experts=experts)


def matrices(kind: str, model: ModelSpec, job: Job) -> int:
    """Parameters of a block on one rank that are matrices of FP8 GEMMs; embedding, head, gate and norms stay in BF16
    (arXiv 2412.19437, section 3.3.1)."""
    if kind == "mtp":
        return 2 * model.hidden_size**2
    if kind not in ("dense", "moe"):
        return 0
    p, layout = model.layer_parameters("dense" if kind == "dense" else "moe"), job.layout
    attention = sum(k * n for k, n in model.attention_matrices().values())
    split = (attention + p.shared_expert + p.dense_ffn) // layout.tp
    return split + p.routed_expert // (layout.ep * layout.etp)


def copied_ends(blocks: Sequence[str], model: ModelSpec, job: Job, share: bool) -> Held:
    """Embedding and head a rank must hold once more: for an MTP module that cannot share them (or does not, `share`),
    and for a head tied to an embedding that stands elsewhere."""
    table = held_by_block("embed", model, job).dense
    extra = 0
    if "mtp" in blocks:
        extra += table * (0 if share and "embed" in blocks else 1)
        extra += 0 if share or model.tie_word_embeddings else table
    if "head" in blocks and model.tie_word_embeddings and "embed" not in blocks:
        extra += table
    return Held(dense=extra)


def held_by_rank(stages: Sequence[Sequence[str]], scenario: Scenario, share_mtp: bool) -> Held:
    """Parameters of all stages of a rank."""
    model, job = scenario.model, scenario.job
    total = copied_ends([kind for blocks in stages for kind in blocks], model, job, share_mtp)
    for blocks in stages:
        total = total + held_by_stage(blocks, model, job)
    return total


def state_items(
    stages: Sequence[Sequence[str]], scenario: Scenario, shards: Shards, assumed: Assumptions
) -> list[Item]:
    """Weights, gradients and optimizer states of one rank."""
    held = held_by_rank(stages, scenario, assumed.share_mtp)
    zero = scenario.job.layout.zero
    shard = shards.of(held)
    shard_of_state = shard if zero >= 1 else float(held.total)
    # Gradients of several microbatches add up whole, since they are reduced once, behind the last one.
    reduced_at_once = zero >= 2 and scenario.job.microbatches == 1
    items = [
        *_weights(stages, scenario, shards, assumed, held),
        Item(
            group="gradients",
            name="gradients, FP32",
            bytes=GRADIENT_BYTES * (shard if reduced_at_once else held.total),
        ),
        Item(group="optimizer", name="master weights", bytes=assumed.master * shard_of_state),
        Item(group="optimizer", name="two moments", bytes=2 * assumed.moment * shard_of_state),
    ]
    if reduced_at_once:
        whole = _largest(stages, scenario) * GRADIENT_BYTES
        items.append(Item(group="buffers", name="gradients before they are sharded", bytes=whole))
    if assumed.ema_on_gpu:
        items.append(Item(group="optimizer", name="moving average of the weights", bytes=4.0 * shard_of_state))
    return items


def _weights(
    stages: Sequence[Sequence[str]], scenario: Scenario, shards: Shards, assumed: Assumptions, held: Held
) -> list[Item]:
    """Weights the GEMMs read: whole, or under ZeRO-3 a shard and the gathered layers."""
    model, job = scenario.model, scenario.job
    narrow = sum(matrices(kind, model, job) for blocks in stages for kind in blocks)
    only = narrow if job.precision.recipe == "fp8" and assumed.fp8_weights else 0
    part = shards.of(held) / held.total if job.layout.zero >= 3 and held.total else 1.0
    items = []
    if job.precision.recipe == "fp8":
        items.append(Item(group="weights", name="weights, FP8 with scales", bytes=narrow * FP8_MATRIX * part))
    elif job.precision.recipe == "fp8_tensor":
        items.append(Item(group="weights", name="weights, FP8 in both layouts", bytes=narrow * FP8_LAYOUTS))
    items.append(Item(group="weights", name="weights, BF16", bytes=(held.total - only) * BF16 * part))
    if job.layout.zero >= 3:
        gathered = PREFETCHED * _largest(stages, scenario) * BF16
        items.append(Item(group="buffers", name="gathered weights", bytes=gathered))
    return items


def _largest(stages: Sequence[Sequence[str]], scenario: Scenario) -> int:
    """Parameters of the largest block of a rank."""
    return max(held_by_block(kind, scenario.model, scenario.job).total for blocks in stages for kind in blocks)
