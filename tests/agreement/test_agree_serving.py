"""Absorbed decoding: the reference counts the FLOP that the graph says."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.graph.serving.mla import core, prepare
from simulator.graph.serving.shapes import ServingShapes
from simulator.inputs import load_scenario
from simulator.ops import Op
from simulator.results.simulate import prepare as built
from workloads.reference.config import RefConfig
from workloads.reference.count import Counter, Run
from workloads.reference.init import init_params
from workloads.reference.layers.mla_decode import decode_absorbed, empty_cache
from workloads.reference.presets import tiny_v2_lite, tiny_v3

BATCH, CACHED = 3, 16
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
