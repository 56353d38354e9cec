"""Memory of a serving step: weights by placement, the KV cache, buffers, and what the largest op needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from simulator.dtypes import BF16, FP8_MATRIX, FP32, MXFP4, WIDTH, fp8_bytes
from simulator.graph.mixers.recurrent import state_of
from simulator.graph.parallel import kv_heads_per_rank
from simulator.graph.serving.shapes import ServingShapes, microbatches_of, serving_of, serving_shapes
from simulator.graph.stage import block_kinds, build_blocks
from simulator.memory.assumptions import Assumptions
from simulator.memory.budget import KV, beyond_budget, kv_budget_bytes
from simulator.memory.buffers import queue_bytes
from simulator.memory.capacity import headroom
from simulator.memory.memory_report import Item, MemoryReport, RankMemory
from simulator.memory.optimizer_states import held_by_rank, shards_of, state_items
from simulator.memory.temporary import footprints
from simulator.spec.model import BlockKind, ModelSpec
from simulator.spec.scenario import Scenario
from simulator.spec.serving import contexts

ROUNDS = 2
"""Sets of low-latency buffers, used in turn (github.com/deepseek-ai/DeepEP, csrc/config.hpp, LowLatencyLayout)."""


def memory_of_serving(scenario: Scenario, assumed: Assumptions | None = None) -> MemoryReport:
    """Peak memory of a rank in a step; all ranks hold the same.

    The KV cache holds the context and the new tokens of every sequence, drafted ones included: their places are kept
    until they are verified.
    """
    assumed = assumed or Assumptions()
    shapes = serving_shapes(scenario, loads=False)
    items = tuple(_items(scenario, shapes, assumed))
    rank = RankMemory(rank=0, stages=(0,), at=None, during="F0", items=items)
    return MemoryReport(
        ranks=(rank,),
        capacity=scenario.cluster.gpu.hbm_bytes,
        headroom=headroom(scenario),
        reserve=scenario.job.memory.reserve,
        assumptions=assumed,
    )


def memory_with(scenario: Scenario, sequences: int) -> MemoryReport:
    """Memory of a rank with so many sequences of the job's length."""
    serving = replace(serving_of(scenario), sequences=sequences)
    return memory_of_serving(replace(scenario, job=replace(scenario.job, serving=serving)))


def peak_with(scenario: Scenario, sequences: int) -> float:
    """Peak memory of a rank with so many sequences of the job's length [B]."""
    return memory_with(scenario, sequences).peak


def fits_with(scenario: Scenario, sequences: int) -> bool:
    """Whether so many sequences fit, also with the most that the allocator reserves, and into the engine's cache."""
    memory = memory_with(scenario, sequences)
    return memory.answer == "fits" and not beyond_budget(scenario, memory.worst)


def kv_cache_tokens(scenario: Scenario) -> float:
    """Tokens that the KV cache of a rank has room for, by the engine's rule, while it runs this step."""
    shapes = serving_shapes(scenario, loads=False)
    return kv_budget_bytes(scenario, memory_of_serving(scenario).worst) / _kv_bytes(scenario, shapes)


def kv_cache_bytes(scenario: Scenario, shapes: ServingShapes) -> float:
    """KV cache of one rank, that of MTP modules that run included [B]."""
    serving = shapes.serving
    lengths = Counter(cached + shapes.seq for cached in contexts(serving))
    if not lengths:
        lengths[shapes.seq_kv] = serving.sequences
    if shapes.chunk:
        lengths[shapes.chunk + shapes.chunk_context] += 1
    return sum(many * _sequence_bytes(scenario, shapes, length) for length, many in lengths.items())


def _sequence_bytes(scenario: Scenario, shapes: ServingShapes, length: int) -> float:
    """Cache of a sequence of `length` tokens on one tensor-parallel rank [B]: its heads' part; latents are whole on
    every one. Of layers with a window or chunks no more than these is held: the others' blocks are given back. A
    recurrent layer holds its state and the last tokens that its convolution reads, however long the sequence."""
    model, total = scenario.model, 0.0
    for kind, layers in cached_layers(model).items():
        own = replace(shapes, model=model.of_kind(kind))
        share = 1.0 if own.model.is_mla else kv_heads_per_rank(own) / own.model.num_key_value_heads
        total += layers * model.cached_values(kind, length) * share * WIDTH[shapes.serving.kv_dtype]
        total += layers * (model.indexed_bytes(kind, length) + model.open_entry_bytes(kind))
        if kind.mixer.has_state:
            state = state_of(own)
            behind = shapes.seq if shapes.decodes else 1  # one behind each token that a step verifies
            total += layers * (behind * state.state_values * FP32 + state.conv_values * BF16)
    return total


def cached_layers(model: ModelSpec) -> Counter[BlockKind]:
    """Layers by kind, those of MTP modules included."""
    return Counter(model.layer_kind(i) for i in range(model.num_hidden_layers + model.num_nextn_predict_layers))


def _kv_bytes(scenario: Scenario, shapes: ServingShapes) -> float:
    """Cache that one token leaves on one tensor-parallel rank, mean over a sequence of the job's length [B]."""
    length = _length(scenario)
    return _sequence_bytes(scenario, shapes, length) / length


def _length(scenario: Scenario) -> int:
    """Tokens of a sequence at the end of the step, the mean."""
    serving = serving_of(scenario)
    return max(1, round(serving.mean_context) + serving.tokens)


def kv_bytes_per_token(scenario: Scenario) -> float:
    """Cache that one token leaves in all layers, those of MTP modules that run included, mean over a sequence of the
    job's length [B]."""
    model, serving = scenario.model, serving_of(scenario)
    length = _length(scenario)
    width, kinds = WIDTH[serving.kv_dtype], cached_layers(model)
    each = {kind: width * model.cached_values(kind, length) + model.indexed_bytes(kind, length) for kind in kinds}
    return sum(many * each[kind] for kind, many in kinds.items()) / length


def _items(scenario: Scenario, s: ServingShapes, assumed: Assumptions) -> Iterable[Item]:
    stage = [block_kinds(scenario.model)]
    weights, *states = state_items(stage, scenario, shards_of(scenario, 1), assumed)
    narrow = held_by_rank(stage, scenario, assumed.share_mtp).experts if _stored_narrow(s) else 0
    yield replace(weights, bytes=weights.bytes + _shared_elsewhere(s) - narrow * _recipe_width(s))
    if narrow:
        yield Item(group="weights", name="experts, MXFP4", bytes=narrow * MXFP4)
    yield from states
    yield from _copies(s)
    yield Item(group=KV, name=f"KV cache, {s.serving.kv_dtype.upper()}", bytes=kv_cache_bytes(scenario, s))
    largest = max(one.temporary["F"] for one in footprints(s, build_blocks(s)).values())
    residual = s.tokens * s.model.sent_width * BF16
    moving = [
        Item(group="temporary", name="residual stream", bytes=residual * microbatches_of(s.serving)),
        Item(group="temporary", name="largest op", bytes=largest * microbatches_of(s.serving)),
    ]
    yield from moving
    yield from _buffers(scenario, s, assumed)
    yield Item(group="context", name="CUDA context and libraries", bytes=assumed.context)
    yield Item(group="slack", name="allocator", bytes=assumed.slack * sum(item.bytes for item in moving))


def _shared_elsewhere(s: ServingShapes) -> float:
    """What a rank holds more of shared experts than a tensor-parallel share: whole ones where tokens travel whole, none
    where slots of their own hold them [B]."""
    model, layout = s.model, s.job.layout
    if not model.is_moe:
        return 0.0
    held = 0.0 if s.serving.shared_slots else 1.0 if s.brings_own else 1.0 / layout.tp
    shared = model.layer_parameters(BlockKind.MOE).shared_expert * (held - 1.0 / layout.tp)
    return _moe_layers(model) * round(shared) * _recipe_width(s)


def _copies(s: ServingShapes) -> Iterable[Item]:
    """Copies of experts beyond one of each, slots of the shared expert among them."""
    model, serving, ep = s.model, s.serving, s.job.layout.ep
    if not model.is_moe:
        return
    one = model.layer_parameters(BlockKind.MOE).routed_expert // model.n_routed_experts
    extra = one * (serving.redundant_experts + serving.shared_slots) // ep
    if extra:
        yield Item(group="weights", name="copies of experts", bytes=_moe_layers(model) * extra * _expert_width(s))


def _moe_layers(model: ModelSpec) -> int:
    return sum(kind.is_moe for kind in block_kinds(model))


def _stored_narrow(s: ServingShapes) -> bool:
    return s.serving.expert_weights == "mxfp4"


def _recipe_width(s: ServingShapes) -> float:
    return FP8_MATRIX if s.fp8 else BF16


def _expert_width(s: ServingShapes) -> float:
    return MXFP4 if _stored_narrow(s) else _recipe_width(s)


def _buffers(scenario: Scenario, s: ServingShapes, assumed: Assumptions) -> Iterable[Item]:
    """Queues of the all-to-all kernels."""
    if not s.all_to_all:
        return
    h, ranks = s.model.expert_hidden, s.job.layout.ep
    if s.decodes:
        name = "expert all-to-all, low-latency buffers"
        yield Item(group="buffers", name=name, bytes=low_latency_bytes(h, s.tokens, s.gate.experts))
        return
    sms = s.job.overlap.comm_sms
    nvlink, rdma = queue_bytes(h * BF16, ranks, sms, assumed.nvl_tokens, assumed.rdma_tokens)
    yield Item(group="buffers", name="expert all-to-all, NVLink queues", bytes=nvlink)
    yield Item(group="buffers", name="expert all-to-all, RDMA queues", bytes=rdma)


def low_latency_bytes(hidden: int, tokens: int, experts: int) -> float:
    """Send and receive buffers of DeepEP's low-latency kernels for up to `tokens` tokens a rank [B].

    Room for every token at every expert, in FP8 with scales or BF16 there and in BF16 back
    (github.com/deepseek-ai/DeepEP, csrc/config.hpp, LowLatencyLayout; counters of a few bytes left out).
    """
    there, back = 16 + max(hidden * BF16, fp8_bytes(hidden)), hidden * BF16
    send = max(tokens * there, experts * tokens * back)
    receive = experts * tokens * max(there, back)
    return ROUNDS * (send + receive)
