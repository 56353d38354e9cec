"""Layers that differ in how they mix tokens: kinds of block, stages, memory, serving."""

from __future__ import annotations

import pytest

from simulator.engine.lower import price_model
from simulator.graph.block import Block, problems
from simulator.graph.serving.shapes import serving_shapes
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import block_kinds, build_blocks
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.memory.serving import kv_cache_bytes, memory_of_serving
from simulator.ops import Attention, DecodeAttention
from simulator.results.simulate import simulate
from simulator.spec.mixer import BlockKind, Mixer
from simulator.spec.scenario import Scenario

ALTERNATE = 'model.layer_types=["sliding","full","sliding","full"]'
SMALL = ("model.num_hidden_layers=4", "gpus=8", "layout.tp=1", "batch.global_batch_size=8")


def scenario(*overrides: str) -> Scenario:
    return load_scenario("llama-3-8b", [*SMALL, "batch.sequence_length=4096", *overrides])


def windowed(*overrides: str) -> Scenario:
    return scenario(ALTERNATE, "model.sliding_window=512", *overrides)


def test_kinds_of_layers_are_named_after_their_parts() -> None:
    kind = BlockKind.layer(Mixer.SLIDING, "moe")
    assert (kind, kind.mixer, kind.ffn, kind.is_layer, kind.is_moe) == ("sliding+moe", Mixer.SLIDING, "moe", True, True)
    assert BlockKind.layer(Mixer.FULL, "dense") == BlockKind.DENSE
    assert (kind.kept, kind.inner, kind.kept.base, kind.inner.mixer) == (
        "sliding+moe-kept",
        "sliding+moe-inner",
        kind,
        Mixer.SLIDING,
    )
    assert not BlockKind.HEAD.is_layer
    assert not BlockKind.DRAFT.is_layer


def test_a_model_has_a_block_for_each_kind_of_layer() -> None:
    job = windowed()
    assert block_kinds(job.model) == ("embed", "sliding+dense", "dense", "sliding+dense", "dense", "head")
    blocks = build_blocks(shapes_of(job))
    cores = {kind: _core(blocks[kind]) for kind in ("sliding+dense", "dense")}
    assert (cores["sliding+dense"].window, cores["dense"].window) == (512, 0)
    assert all(problems(block) == [] for block in blocks.values())
    assert {kind: block.kind for kind, block in blocks.items()} == {kind: kind for kind in blocks}


def _core(block: Block) -> Attention:
    ops = {op.name: op.work for op in block.ops()}
    work = ops["attn.core.fwd"]
    assert isinstance(work, Attention)
    return work


def test_a_step_lies_between_those_of_all_and_of_no_windows() -> None:
    times = [
        simulate(job, engine="longest-path").metrics["step_time_s"]
        for job in (scenario("model.sliding_window=512"), windowed(), scenario())
    ]
    assert times == sorted(times)
    assert times[1] == pytest.approx((times[0] + times[2]) / 2, rel=0.02)


def test_flops_per_token_are_those_of_the_graph() -> None:
    job = windowed()
    blocks = build_blocks(shapes_of(job))
    graph = sum(blocks[kind].flops("F") for kind in block_kinds(job.model)) / 4096
    assert 3 * graph == pytest.approx(job.model.flops_per_token(4096))


def test_stages_of_unlike_layers_are_balanced_by_their_time() -> None:
    """131,072 tokens, a window of 128 in three of four layers: they take so much less that they share a stage."""
    types = 'model.layer_types=["sliding","sliding","sliding","full"]'
    long = ("batch.sequence_length=131072", "layout.pp=2", "layout.cp=4", "layout.cp_kind=all_gather")
    built = price_model(scenario(types, "model.sliding_window=128", "batch.global_batch_size=2", *long), 2)
    seconds = built.block_seconds
    assert 3 * seconds[BlockKind("sliding+dense")] < seconds[BlockKind.DENSE]
    assert built.stages[0] == ("embed", *["sliding+dense"] * 3)


def test_heads_of_layers_with_a_window_may_differ() -> None:
    wide = windowed("model.sliding_num_key_value_heads=16", "model.sliding_head_dim=64")
    plain, own = (wide.model.of_kind(BlockKind(kind)) for kind in ("dense", "sliding+dense"))
    assert (plain.num_key_value_heads, plain.qk_head_dim, plain.v_dim) == (8, 128, 128)
    assert (own.num_key_value_heads, own.qk_head_dim, own.v_dim) == (16, 64, 64)
    sizes = {kind: wide.model.layer_parameters(BlockKind(kind)).attention for kind in ("dense", "sliding+dense")}
    h = 4096
    assert sizes == {"dense": h * 128 * (32 + 16 + 32), "sliding+dense": h * 64 * (32 + 32 + 32)}


def test_rings_are_refused_and_windows_that_never_count_are_reported() -> None:
    ring = windowed("layout.cp=2", "layout.cp_kind=ring")
    found = [p for p in check(ring) if p.rule == "attention window"]
    assert [(p.key, p.severity) for p in found] == [("layout.cp_kind", "error")]
    wide = windowed("model.sliding_window=8192")
    found = [p for p in check(wide) if p.rule == "attention window"]
    assert [(p.key, p.severity) for p in found] == [("batch.sequence_length", "warning")]


# ---- serving ---------------------------------------------------------------------------------------------------


WINDOWS = 'model.layer_types=["sliding","sliding","sliding","full"]'
DECODE = ("model.num_hidden_layers=4", "model.max_position_embeddings=131072")


def decoding(job: str, *overrides: str) -> Scenario:
    return load_scenario(job, [*DECODE, WINDOWS, "model.sliding_window=1024", *overrides])


def test_a_decode_step_reads_no_more_than_the_window() -> None:
    job = decoding("llama-3-8b-decode", "serving.context=16384")
    blocks = build_blocks(serving_shapes(job))
    keys = {kind: _decode_core(block).kv_len for kind, block in blocks.items() if kind.is_layer}
    assert keys == {"sliding+dense": 1024, "dense": 16385}


def _decode_core(block: Block) -> DecodeAttention:
    work = next(op.work for op in block.ops() if isinstance(op.work, DecodeAttention))
    assert isinstance(work, DecodeAttention)
    return work


def test_a_prefill_of_windows_is_one_op_over_what_is_cached_and_new() -> None:
    job = decoding("llama-3-8b-prefill", "serving.context=16384", "serving.tokens=512")
    block = build_blocks(serving_shapes(job))[BlockKind("sliding+dense")]
    works = [op.work for op in block.ops() if isinstance(op.work, Attention)]
    assert [(w.cached, w.seq_kv, w.window) for w in works] == [(1024, 1536, 1024)]
    assert works[0].flops == 2.0 * works[0].batch * 32 * 512 * 1024 * 256


def test_the_cache_of_a_layer_with_a_window_is_bounded_by_it() -> None:
    """8 heads of 128 in BF16: 4,096 bytes a token and layer."""
    sizes = []
    for context in (8191, 16383):
        job = decoding("llama-3-8b-decode", f"serving.context={context}", "serving.kv_dtype=bf16")
        serving, shapes = job.job.serving, serving_shapes(job)
        assert serving is not None
        each = 4096 / job.job.layout.tp
        found = kv_cache_bytes(job, shapes)
        assert found == serving.sequences * each * (3 * 1024 + context + 1)
        sizes.append(memory_of_serving(job).peak)
    assert sizes[1] > sizes[0]


def test_a_step_of_decode_with_windows_takes_less_time_and_memory() -> None:
    full = load_scenario("llama-3-8b-decode", [*DECODE, "serving.context=16384"])
    job = decoding("llama-3-8b-decode", "serving.context=16384")
    mine, whole = (simulate(one, engine="longest-path").metrics for one in (job, full))
    for number in ("step_time_s", "peak_memory_bytes", "kv_bytes_per_token"):
        assert mine[number] < whole[number]
    assert mine["largest_batch"] > whole["largest_batch"]


@pytest.mark.parametrize("placement", ["post", "both"])
def test_norms_behind_the_branches_run_in_serving_too(placement: str) -> None:
    job = load_scenario("llama-3-8b-decode", [f"model.norm_placement={placement}"])
    names = [op.name for op in build_blocks(serving_shapes(job))[BlockKind.DENSE].ops()]
    assert [name for name in names if name.startswith("norm.") and name.endswith(".out")] == [
        "norm.attn.out",
        "norm.ffn.out",
    ]
    assert ("norm.ffn" in names) == (placement == "both")
