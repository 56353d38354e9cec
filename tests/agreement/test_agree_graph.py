"""What the graph says each op computes and keeps, against a model that really ran."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from both import (
    E5M6,
    FP8,
    MODELS,
    SET,
    blocks_of,
    counted,
    graph_flops,
    parts,
    recomputed,
    reference_flops,
    reference_kept,
    scenario_of,
    unpadded,
)

from simulator.graph.shapes import shapes_of
from simulator.graph.stage import block_kinds
from simulator.spec.precision import Recipe
from workloads.reference.hf_config import config_from_dict
from workloads.reference.init import init_params

RECIPES: tuple[Recipe, ...] = ("bf16", "fp8")
POLICIES = ("none", "deepseek")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_flops_of_every_op_and_kept_bytes_of_every_block(
    name: str, recipe: Recipe, policy: str, tmp_path: Path
) -> None:
    """Exactly, forward, input gradient, weight gradient and recomputation, layer by layer."""
    graph = blocks_of(scenario_of(name, tmp_path, recipe=recipe, recompute=policy))
    counter = counted(name, recipe=recipe, recompute=policy)
    seen = []
    for part in parts(MODELS[name][0]):
        assert graph_flops(graph[part.kind]) == reference_flops(counter, part), part
        assert graph[part.kind].saved_bytes == sum(reference_kept(counter, part).values()), part
        seen.append(part.kind)
    assert set(seen) == set(graph)


STOPS_EARLY = {"layer", "mlp", "moe", "shared_experts"}
AS_OTHERS = ("relu2", "mamba1")
"""Models of which the same modules run again as of others here: two policies are enough for them, above."""
MLA, MOE, SHARED, DENSE = ("mla_up", "mla_up_proj"), ("moe", "moe_act"), ("shared_experts",), ("mlp",)


def _sets(name: str) -> list[tuple[str, ...]]:
    """The modules that a model has, one by one; pairs that meet; and, in one, all that can be named together."""
    cfg = MODELS[name][0]
    latent = cfg.is_mla or cfg.shared_key_value
    has = ["core_attn", "norm", "layernorm", "swiglu", "layer", *(MLA if latent else ())]
    if cfg.n_routed_experts is not None:
        has += [*MOE, *(SHARED if cfg.n_shared_experts else ())]
    if any(not cfg.is_moe(layer) for layer in range(cfg.num_hidden_layers)):
        has += DENSE
    alone = [(module,) for module in has]
    if cfg.n_routed_experts is None:
        return [*alone, ("core_attn", "layernorm", "mlp"), ("swiglu", "mlp")]
    pairs: list[tuple[str, ...]] = [("layernorm", "moe"), ("swiglu", "moe"), ("norm", "moe_act")]
    if cfg.n_shared_experts:
        pairs += [("moe_act", "shared_experts"), ("swiglu", "shared_experts")]
    return [*alone, *pairs, ("core_attn", "norm", "moe", *(("mlp", "mla_up") if cfg.is_mla else ()))]


def _ends_early(modules: tuple[str, ...]) -> tuple[bool, ...]:
    """Whether recomputation ends early matters to whole layers and modules only."""
    return (False,) if STOPS_EARLY.isdisjoint(modules) else (False, True)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("name", "modules", "early_stop"),
    [
        (name, each, early)
        for name in MODELS
        if name not in AS_OTHERS
        for each in _sets(name)
        for early in _ends_early(each)
    ],
)
def test_each_set_of_recomputed_modules(
    name: str, modules: tuple[str, ...], early_stop: bool, recipe: Recipe, tmp_path: Path
) -> None:
    """FLOP of every op, recomputation included, and kept bytes of every block, exactly."""
    software = ["stack.shared_expert_overlap=false"] if MODELS[name][0].n_shared_experts else []
    if not STOPS_EARLY.isdisjoint(modules):
        software.append(f"stack.checkpoint_early_stop={str(early_stop).lower()}")
    graph = blocks_of(scenario_of(name, tmp_path, *software, recipe=recipe, recompute=modules))
    counter = counted(name, recipe=recipe, recompute=modules, early_stop=early_stop)
    for part in parts(MODELS[name][0]):
        assert graph_flops(graph[part.kind]) == reference_flops(counter, part), part
        assert graph[part.kind].saved_bytes == sum(reference_kept(counter, part).values()), part


@pytest.mark.parametrize("name", MODELS)
def test_both_read_the_same_blocks_out_of_one_file(name: str, tmp_path: Path) -> None:
    cfg, family = MODELS[name]
    scenario = scenario_of(name, tmp_path)
    assert unpadded(scenario) == shapes_of(scenario)  # in BF16 nothing is padded: the graph is taken as it is
    assert sorted(part.kind for part in parts(cfg)) == sorted(block_kinds(scenario.model))
    if name not in SET:
        read = config_from_dict(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
        assert replace(read, aux_loss_alpha=0.0) == replace(cfg, aux_loss_alpha=0.0), family


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_every_layer(name: str, tmp_path: Path) -> None:
    cfg, _ = MODELS[name]
    model, params = scenario_of(name, tmp_path).model, init_params(cfg, 0)
    for layer, kind in enumerate(model.layer_kinds()):
        mine = sum(weight.size for weight in params[f"layers.{layer}"].values())
        assert model.layer_parameters(kind).total == mine, kind


def test_flops_do_not_depend_on_the_recipe_or_on_grouped_weight_gradients(tmp_path: Path) -> None:
    """Equal FLOP whether the experts' weight gradients are one kernel or one each."""
    one = blocks_of(scenario_of("v3", tmp_path))["moe"]
    grouped = blocks_of(scenario_of("v3", tmp_path, "stack=megatron-core"))["moe"]
    assert graph_flops(one) == graph_flops(grouped)
    assert {op.name for op in one.ops()} != {op.name for op in grouped.ops()}


KEPT = {
    # tensor of the reference -> op of the graph that makes it, and its width [B]
    "attn.o/x": ("attn.core.fwd", E5M6),
    "dense.down/u": ("dense.up_gate.fwd", FP8),
    "shared.down/u": ("shared.up_gate.fwd", FP8),
    "moe.down/u": ("moe.up_gate.fwd", FP8),
    "moe.dispatch/x": ("moe.permute.fwd", FP8),
    "moe.dispatch/order": ("moe.map.build", 4.0),
}


@pytest.mark.parametrize("tensor", KEPT)
def test_kept_tensors_have_the_published_widths(tensor: str, tmp_path: Path) -> None:
    """DeepSeek-V3 section 3.3.3: inputs of SwiGLU and of the experts in FP8, the attention output in E5M6."""
    op, width = KEPT[tensor]
    graph = blocks_of(scenario_of("v3", tmp_path, recipe="fp8", recompute="deepseek"))
    kind = "dense" if op.startswith("dense") else "moe"
    mine = {o.name: o.saved for o in graph[kind].ops()}[op]
    part = next(p for p in parts(MODELS["v3"][0]) if p.kind == kind)
    kept = reference_kept(counted("v3", recipe="fp8", recompute="deepseek"), part)
    statistics = kept["attn.core/lse"] if tensor == "attn.o/x" else 0.0
    assert mine == kept[tensor] + statistics
    elements = reference_kept(counted("v3", recompute="deepseek"), part)
    if tensor in elements:
        usual = 4.0 if tensor.endswith("order") else 2.0
        assert kept[tensor] / elements[tensor] == width / usual


def test_recomputation_of_the_published_kinds_only(tmp_path: Path) -> None:
    """RMSNorms, MLA's up-projections and SwiGLU (sections 3.2.3 and 3.3.3): these and nothing else run again."""
    graph = blocks_of(scenario_of("v3", tmp_path, recompute="deepseek"))
    again = {op.name for block in graph.values() for op in block.ops() if op.part == "R"}
    stems = {name.partition(".recompute")[0] for name in again if ".recompute" in name}
    norms = {"norm.q_lora", "norm.kv_lora", "norm.attn", "norm.ffn", "norm.final", "mtp.norm_h", "mtp.norm_e"}
    assert stems == norms | {"attn.q_b", "attn.kv_b", "rope.q", "rope.k"}
    assert recomputed("bf16", "deepseek") == {"norm", "mla_up", "swiglu"}


def test_what_is_kept_is_twice_for_twice_the_tokens(tmp_path: Path) -> None:
    kept = [
        blocks_of(scenario_of("v3", tmp_path, f"batch.microbatch_size={batch}", "batch.global_batch_size=4"))
        for batch in (2, 4)
    ]
    for kind, block in kept[0].items():
        assert kept[1][kind].saved_bytes == 2 * block.saved_bytes
