"""Absorbed decoding: the reference counts the FLOP that the graph says."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.engine.lower import PricedModel
from simulator.graph.serving.mla import core, prepare
from simulator.graph.serving.shapes import ServingShapes
from simulator.inputs import load_scenario
from simulator.ops import DecodeAttention, Gemm, Op
from simulator.results.simulate import prepare as built
from simulator.spec.model import BlockKind
from workloads.reference.cached import draft, empty_caches, forward
from workloads.reference.config import RefConfig
from workloads.reference.count import Counter, Run
from workloads.reference.init import init_params
from workloads.reference.layers.mla_decode import decode_absorbed, empty_cache
from workloads.reference.model import as_tokens
from workloads.reference.presets import tiny_v2_lite, tiny_v3

BATCH, CACHED = 3, 16
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "intermediate_size",
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
    "first_k_dense_replace",
)
"""Sizes that both sides name alike."""
PROJECTIONS = ("attn.qkv_a", "attn.q_b", "attn.q", "attn.kv_a", "attn.o")


def graph_ops(cfg: RefConfig, new: int) -> dict[str, Op]:
    """Attention of a decode step of the same shape as the reference's."""
    overrides = [
        f"model.{key}={getattr(cfg, key)}"
        for key in (
            "hidden_size",
            "num_attention_heads",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
        )
    ]
    overrides += [f"model.num_key_value_heads={cfg.num_attention_heads}", "precision.recipe=bf16"]
    overrides += [f"model.q_lora_rank={cfg.q_lora_rank or 'none'}", "serving.two_batch_overlap=false"]
    overrides += [f"serving.sequences={BATCH}", f"serving.context={CACHED}", f"serving.tokens={new}"]
    shapes = built(load_scenario("deepseek-v3-decode-ep128", overrides))[0].shapes
    assert isinstance(shapes, ServingShapes)
    return {op.name: op for op in (*prepare(shapes).ops, *core(shapes).done().ops)}


@pytest.mark.parametrize("new", [1, 2])
@pytest.mark.parametrize("cfg", [tiny_v3(), tiny_v2_lite()], ids=["q_lora", "no_q_lora"])
def test_a_decode_step_has_the_flop_that_the_reference_counts(cfg: RefConfig, new: int) -> None:
    rng, p = np.random.default_rng(0), init_params(cfg, 0)["layers.0"]
    _, cache = decode_absorbed(
        Run(cfg=cfg), p, rng.standard_normal((BATCH, CACHED, cfg.hidden_size)), empty_cache(Run(cfg=cfg), BATCH)
    )
    counter = Counter()
    _, cache = decode_absorbed(
        Run(cfg=cfg, counter=counter), p, rng.standard_normal((BATCH, new, cfg.hidden_size)), cache
    )
    found = graph_ops(cfg, new)
    projections = sum(found[name].flops for name in PROJECTIONS if name in found)
    wanted = sum(counter.total(op=f"attn.{name}").flops for name in ("q_a", "q", "q_b", "kv_a", "o"))
    assert projections == wanted
    absorbed = counter.total(op="attn.kv_b").flops
    assert found["attn.w_uk"].flops + found["attn.w_uv"].flops == absorbed
    assert sum(op.flops for op in found.values()) == projections + absorbed + found["attn.core"].flops
    heads, rank = cfg.num_attention_heads, cfg.kv_lora_rank or 0
    pairs = BATCH * heads * new * (CACHED + new)
    assert found["attn.core"].flops == 2 * pairs * (2 * rank + cfg.qk_rope_head_dim)
    assert found["attn.core"].work.kv_bytes == 2 * (cache.latent.size + cache.k_rope.size)  # type: ignore[union-attr]


def whole_model(cfg: RefConfig, *more: str) -> PricedModel:
    """The decode step of the reference's model, all of it, on one rank."""
    overrides = [f"model.{key}={getattr(cfg, key)}" for key in SIZES]
    overrides += [f"model.num_key_value_heads={cfg.num_attention_heads}", "precision.recipe=bf16"]
    overrides += [f"model.q_lora_rank={cfg.q_lora_rank or 'none'}", "serving.two_batch_overlap=false"]
    overrides += [f"serving.sequences={BATCH}", f"serving.context={CACHED}", "gpus=1", "layout.ep=1"]
    overrides += ["model.max_position_embeddings=1000000", "stack=torch-serving"]
    overrides += ["model.topk_method=greedy"] if cfg.n_group == 1 else []
    return built(load_scenario("deepseek-v3-decode-ep128", [*overrides, *more]))[0]


def ran(cfg: RefConfig, new: int) -> Counter:
    """What the reference does of the main model for `new` tokens of each sequence over what is cached."""
    params = init_params(cfg, 0)
    tokens = as_tokens(cfg, 0, BATCH, CACHED + new)[:, : CACHED + new]
    _, _, caches = forward(Run(cfg=cfg), params, tokens[:, :CACHED], empty_caches(Run(cfg=cfg), BATCH))
    counter = Counter()
    forward(Run(cfg=cfg, counter=counter), params, tokens[:, CACHED:], caches)
    return counter


@pytest.mark.parametrize("depth", [0, 2])
def test_a_whole_step_has_the_flop_that_the_reference_counts(depth: int) -> None:
    """Every GEMM of every layer, gate, experts, shared expert and head; drafts are verified as further tokens."""
    cfg = tiny_v3()
    model = whole_model(cfg, f"serving.mtp_depth={depth}")
    counter = ran(cfg, 1 + depth)
    kinds = [kind for kind in model.stages[0] if kind not in (BlockKind.MTP, BlockKind.DRAFT)]
    assert len(kinds) == cfg.num_hidden_layers + 2
    assert sum(model.blocks[kind].flops() for kind in kinds) == counter.total().flops


def test_a_pass_of_the_module_has_the_flop_that_the_reference_counts() -> None:
    """Projection, layer, and the head of one row for each sequence; the first pass over all verified tokens."""
    cfg, depth = tiny_v3(), 2
    model = whole_model(cfg, f"serving.mtp_depth={depth}")
    params, run = init_params(cfg, 0), Run(cfg=cfg)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((BATCH, CACHED + depth + 1, cfg.hidden_size))
    tokens = as_tokens(cfg, 0, BATCH, CACHED + depth + 1)[:, : CACHED + depth + 1]
    _, _, cache = draft(run, params, states[:, :CACHED], tokens[:, :CACHED], empty_caches(run, BATCH).module)
    counter = Counter()
    draft(Run(cfg=cfg, counter=counter), params, states[:, CACHED:], tokens[:, CACHED:], cache)
    assert model.blocks[BlockKind.MTP].flops() == counter.total().flops


def test_a_step_reads_the_weights_and_the_cache_that_the_reference_reads() -> None:
    """Weights of GEMMs once each, those of chosen experts only, and every cached latent."""
    cfg = tiny_v3()
    counter = ran(cfg, 1)
    widths = counter.widths
    model = whole_model(cfg)
    found = {op.name: op.work for op in model.blocks[BlockKind.MOE].ops()}
    core = found["attn.core"]
    assert isinstance(core, DecodeAttention)
    assert core.kv_bytes == BATCH * (CACHED + 1) * (cfg.kv_lora_rank + cfg.qk_rope_head_dim) * widths.default  # type: ignore[operator]
    dense = ("attn.qkv_a", "attn.q_b", "attn.o", "router.gate", "shared.up_gate", "shared.down")
    sizes = sum(work.n * work.k for name in dense if isinstance(work := found[name], Gemm))
    params = init_params(cfg, 0)["layers.1"]
    named = ("attn.q_a", "attn.kv_a", "attn.q_b", "attn.o", "router.gate", "shared.up_gate", "shared.down")
    assert sizes == sum(params[name].size for name in named)
    up = found["moe.up_gate"]
    assert isinstance(up, Gemm)
    assert up.m == BATCH * cfg.num_experts_per_tok
    assert up.groups <= cfg.experts
