"""Gemma 4: keys of earlier layers, values made of keys, norms of branches, values that enter each layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.graph.block import Block, problems
from simulator.graph.serving.shapes import serving_shapes
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import block_kinds, build_blocks
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.ops import Gemm, Op
from simulator.results.simulate import simulate
from simulator.spec.mixer import BlockKind
from simulator.spec.scenario import Scenario
from simulator.validation.public_models import public_model

SLIDING, FULL = "sliding_attention", "full_attention"
SMALL = {
    **{"model_type": "gemma4_text", "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512},
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "global_head_dim": 64},
    **{"sliding_window": 128, "num_hidden_layers": 4, "layer_types": [SLIDING, FULL, SLIDING, FULL]},
}
REUSE = {"num_kv_shared_layers": 2, "use_double_wide_mlp": True}
INPUTS = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 1000}
EXPERTS = {
    **{"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64},
    **{"attention_k_eq_v": True, "num_global_key_value_heads": 2, "hidden_size_per_layer_input": 0},
}
JOB = ("gpus=1", "layout.tp=1", "layout.pp=1", "layout.ep=1", "batch.global_batch_size=2", "batch.sequence_length=1024")
REUSED, SLIDING_REUSED, MOE = BlockKind("reused+dense"), BlockKind("sliding_reused+dense"), BlockKind("moe")


def config(folder: Path, **changes: object) -> str:
    (folder / "config.json").write_text(json.dumps(SMALL | changes))
    return f"model={folder}"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return config(tmp_path_factory.mktemp("small"), **REUSE, **INPUTS)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return config(tmp_path_factory.mktemp("experts"), **EXPERTS)


def training(model: str, *changes: str) -> Scenario:
    return load_scenario("llama-3-8b", [model, *JOB, *changes])


def ops(block: Block) -> dict[str, Op]:
    assert problems(block) == []
    return {op.name: op for op in block.ops()}


def test_the_last_layers_reuse_the_keys_of_their_kind(small: str) -> None:
    job = training(small)
    assert block_kinds(job.model) == ("embed", "sliding+dense", "dense", SLIDING_REUSED, REUSED, "head")
    blocks = build_blocks(shapes_of(job))
    own, reused = ops(blocks[BlockKind.DENSE]), ops(blocks[REUSED])
    sizes = {name: op.work.n for name, op in reused.items() if isinstance(op.work, Gemm)}
    assert sizes["attn.qkv.fwd"] == 8 * 64
    assert sizes["dense.up_gate.fwd"] == 2 * 2 * 512
    assert isinstance(own["attn.qkv.fwd"].work, Gemm)
    assert own["attn.qkv.fwd"].work.n == (8 + 4 + 4) * 64
    assert own["attn.core.fwd"].work == reused["attn.core.fwd"].work
    assert set(own) - set(reused) >= {"norm.k.fwd", "norm.v.fwd"}
    assert reused["attn.kv.sum.bwd"].work.bytes == 3 * 2 * 1024 * 2 * 4 * 64  # type: ignore[union-attr]
    assert "attn.kv.sum.bwd" not in own


def test_flops_are_those_of_the_model(small: str, experts: str) -> None:
    for model in (small, experts):
        job = training(model)
        blocks, kinds = build_blocks(shapes_of(job)), block_kinds(job.model)
        graph = sum(blocks[kind].flops("F") for kind in kinds) / 1024
        assert 3 * graph == pytest.approx(job.model.flops_per_token(1024), rel=1e-12)
        again = sum(blocks[kind].flops("W") for kind in kinds) / 1024
        scores = sum(blocks[kind].flops("F") for kind in kinds if not kind.is_layer)
        assert again < graph
        assert scores > 0


def test_values_enter_every_layer(small: str) -> None:
    """By hand: 2 x 256 x 16 weights and a norm of 256 in each layer; 256 x 64 and a norm of 16 for all together."""
    job = training(small)
    tree = job.model.parameter_tree()
    assert tree.per_layer == 4 * (2 * 256 * 16 + 256) + 256 * 64 + 16
    assert tree.embedding == 1024 * 256 + 1000 * 4 * 16
    blocks = build_blocks(shapes_of(job))
    table, layer = ops(blocks[BlockKind.EMBED]), ops(blocks[REUSED])
    assert table["per_layer.table.fwd"].work.bytes == 1024 * 64 * 4  # type: ignore[union-attr]
    kept = sum(op.saved for name, op in layer.items() if "per_layer" in name)
    # the stream, what the projection down makes, that times the layer's values; the norm's input and statistics
    assert kept == 1024 * (256 * 2 + 16 * 2 + 16 * 2 + 256 * 2 + 4)
    assert {"per_layer.up.wgrad", "per_layer.down.wgrad", "per_layer.up.dgrad"} <= set(layer)


def test_values_are_made_of_keys(experts: str) -> None:
    job = training(experts)
    full, windowed = job.model.of_kind(MOE), job.model.of_kind(BlockKind("sliding+moe"))
    assert "v" not in full.attention_matrices()
    assert windowed.attention_matrices()["v"] == (256, 4 * 32)
    assert job.model.cached_values(MOE, 1000) == 1000 * 2 * 2 * 64  # both are cached: their norms differ
    found = ops(build_blocks(shapes_of(job))[MOE])
    assert found["attn.k.sum.bwd"].work.bytes == 3 * 2 * 1024 * 2 * 64  # type: ignore[union-attr]
    assert "norm.v.wgrad_acc" not in found  # it has no weights
    assert "norm.k.wgrad_acc" in found


def test_branches_of_experts_have_norms(experts: str) -> None:
    job = training(experts)
    layer = job.model.layer_parameters(MOE)
    assert layer.norms == 7 * 256
    assert layer.router == 8 * 256 + 256 + 8
    found = ops(build_blocks(shapes_of(job))[MOE])
    around = ("norm.router", "norm.experts", "norm.shared.out", "norm.experts.out", "norm.moe.out", "norm.ffn")
    assert {f"{name}.fwd" for name in around} | {f"{name}.bwd" for name in around} <= set(found)
    order = list(found)
    assert order.index("norm.experts.out.fwd") < order.index("moe.shared.sum") < order.index("norm.moe.out.fwd")
    assert "router.grad.add" not in found


def test_caches_hold_what_layers_make(small: str) -> None:
    model = training(small).model
    assert [model.cached_values(kind, 1000) for kind in model.layer_kinds()] == [128 * 8 * 32, 1000 * 8 * 64, 0, 0]
    e2b = public_model("Gemma-4-E2B")
    assert e2b is not None
    # 12 windows of 512 tokens with one head of 256, 3 layers of one head of 512
    assert e2b.cache_bytes(131072) == 2 * 2 * (12 * 512 * 256 + 3 * 131072 * 512)


@pytest.mark.parametrize("job", ["llama-3-8b-decode", "llama-3-8b-prefill"])
def test_serving_writes_keys_where_they_are_made(job: str, small: str, experts: str) -> None:
    found = load_scenario(job, [small])
    blocks = build_blocks(serving_shapes(found))
    assert "attn.kv.write" in ops(blocks[BlockKind.DENSE])
    reused = ops(blocks[REUSED])
    assert "attn.kv.write" not in reused
    assert {"attn.core", "per_layer.down.fwd", "norm.per_layer"} <= set(reused)
    assert "norm.experts.out" in ops(build_blocks(serving_shapes(load_scenario(job, [experts])))[MOE])
    assert simulate(found, engine="longest-path").metrics["step_time_s"] > 0


def test_tensor_parallel_ranks_sum_each_branch_before_its_norm(experts: str) -> None:
    split = load_scenario("llama-3-8b-decode", [experts, "gpus=2", "layout.tp=2", "layout.ep=2"])
    found = list(ops(build_blocks(serving_shapes(split))[MOE]))
    before = found.index("norm.shared.out")
    assert {"moe.shared.all_reduce", "moe.experts.all_reduce"} <= set(found[:before])


@pytest.mark.parametrize("change", ["layout.recompute=full", "precision.recipe=fp8", 'layout.recompute=["norm"]'])
def test_steps_run_under_every_policy(change: str, small: str, experts: str) -> None:
    for model in (small, experts):
        job = training(model, change)
        assert all(problems(block) == [] for block in build_blocks(shapes_of(job)).values())
        assert simulate(job, engine="longest-path").metrics["step_time_s"] > 0


def test_stages_do_not_send_what_layers_reuse(small: str, experts: str) -> None:
    found = [p for p in check(training(small, "gpus=2", "layout.pp=2")) if p.rule == "stages"]
    assert [(p.key, p.severity) for p in found] == [("layout.pp", "error")]
    assert [p for p in check(training(experts, "gpus=2", "layout.pp=2")) if p.rule == "stages"] == []


def test_heads_wider_than_the_kernels_are_a_warning(small: str) -> None:
    model = public_model("Gemma-4-31B")
    assert model is not None
    wide = replace(training(small), model=model)
    found = [p for p in check(wide) if p.rule == "attention heads"]
    assert [(p.key, p.severity) for p in found] == [("model", "warning")]
    assert "512 values" in found[0].message
    assert [p for p in check(training(small)) if p.rule == "attention heads"] == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_kv_shared_layers": 3}, "layer_types"),  # no layer with full attention makes keys
        ({"num_kv_shared_layers": 4}, "num_kv_shared_layers"),
        ({"enable_moe_block": True}, "num_experts"),
        ({"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64}, "hidden_size"),
        ({"per_layer_config": {"1": {"head_dim": 64}}}, "per_layer_config"),
        ({"per_layer_config": {"1": 64, "3": 64}}, "per_layer_config"),
        ({"per_layer_config": [64]}, "per_layer_config"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    ],
)
def test_files_that_cannot_be(changes: dict[str, object], key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=key) as error:
        training(config(tmp_path, **changes))
    assert "\n" not in str(error.value)
