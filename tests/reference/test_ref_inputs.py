"""Configs and inputs that make no sense, each with its message; and small ones that do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workloads.reference.config import RefConfig
from workloads.reference.count import Run
from workloads.reference.hf_config import config_from_dict
from workloads.reference.init import init_params
from workloads.reference.layers.linear import grouped, linear
from workloads.reference.model import as_tokens, loss_and_grads, split_stages, stage_forward, stage_input_grad
from workloads.reference.presets import tiny_gqa, tiny_v3

MODELS = Path(__file__).parents[2] / "workloads" / "models"
HF_V3 = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "intermediate_size": 18432,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 3,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "torch_dtype": "bfloat16",
}


def test_hugging_face_keys() -> None:
    cfg = config_from_dict(HF_V3)
    assert (cfg.qk_head_dim, cfg.v_dim, cfg.is_moe(2), cfg.is_moe(3)) == (192, 128, False, True)
    llama = config_from_dict(
        {k: HF_V3[k] for k in ("vocab_size", "num_hidden_layers", "intermediate_size")}
        | {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    )
    assert (llama.is_mla, llama.v_dim, llama.is_moe(5)) == (False, 128, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts_per_tok": 129}, r"must lie in 1\.\.128, the experts of 4 of 8 groups"),
        ({"n_group": 7}, "must be a multiple of n_group 7"),
        ({"topk_group": 9}, r"must lie in 1\.\.n_group"),
        ({"qk_rope_head_dim": 63}, "must be even"),
        ({"v_head_dim": 0}, "v_head_dim is 0"),
        ({"scoring_func": "tanh"}, "'sigmoid' or 'softmax'"),
        ({"hidden_size": 0}, "hidden_size is 0, must be at least 1"),
        ({"topk_method": "best"}, "noaux_tc"),
    ],
)
def test_impossible_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict(HF_V3 | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_groups": 8}, "unknown key 'n_groups'; did you mean 'n_group'"),
        ({"altup_inputs": 4}, "unknown key 'altup_inputs'; it may change"),
        ({"attention_bias": True}, "attention_bias is for grouped-query attention only"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True is not implemented: only False is"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not implemented"),
        ({"sliding_window": 4096}, "sliding_window 4096 without layer_types is not implemented"),
        ({"moe_layer_freq": 2}, "moe_layer_freq 2 is not implemented"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not implemented"),
    ],
)
def test_nothing_is_ignored_that_could_change_the_computation(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict(HF_V3 | change)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in MODELS.glob("*/config.json")))
def test_shipped_models_are_read_or_refused(name: str) -> None:
    data = json.loads((MODELS / name / "config.json").read_text(encoding="utf-8"))
    refused = ("gpt2", "deepseek_v32", "deepseek_v4", "gpt_oss", "qwen3_next", "gemma4", "kimi_k3", "nemotron_h")
    if data["model_type"] in refused:
        with pytest.raises(ValueError, match=f"model_type '{data['model_type']}' is not implemented"):
            config_from_dict(data)
        return
    cfg = config_from_dict(data)
    assert cfg.attention_bias == (data["model_type"] == "qwen2")
    assert cfg.qk_norm == data["model_type"].startswith("qwen3")
    assert (cfg.n_routed_experts is not None) == ("num_experts_per_tok" in data)


def test_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match="lacks vocab_size"):
        config_from_dict({k: v for k, v in HF_V3.items() if k != "vocab_size"})


def test_unknown_rope_scaling_is_named() -> None:
    cfg = replace(tiny_gqa(), rope_scaling={"rope_type": "llama3"})
    with pytest.raises(ValueError, match="'llama3' is not implemented: use 'yarn'"):
        loss_and_grads(Run(cfg=cfg), init_params(cfg, 0), as_tokens(cfg, 0, 1, 3))


def test_wrong_inputs() -> None:
    cfg = tiny_v3()
    run, params = Run(cfg=cfg), init_params(cfg, 0)
    with pytest.raises(ValueError, match=r"must be \[batch, S \+ 1 \+ 1\]"):
        loss_and_grads(run, params, np.zeros((1, 2), int))
    with pytest.raises(ValueError, match=r"tokens span 0\.\.48, must lie in 0\.\.47"):
        loss_and_grads(run, params, np.array([[0, 48, 1, 2]]))
    with pytest.raises(ValueError, match=r"layers\.1: state has shape \(1, 3, 24\), must be \(1, 2, 24\)"):
        stage_forward(run, params, ["layers.1"], np.zeros((1, 3, 24)), np.zeros((1, 4), int))
    with pytest.raises(ValueError, match="input width 3 must equal the weight's 4 rows"):
        linear(run, "attn.o", np.ones((2, 3)), np.ones((4, 5)))
    out = stage_forward(run, params, ["embed", "layers.0"], None, np.zeros((1, 4), int))
    with pytest.raises(ValueError, match="backward needs the gradient of its output"):
        stage_input_grad(run, params, ["embed", "layers.0"], out.saved, None)
    with pytest.raises(ValueError, match=r"5 stages for 4 layers: must lie in 1\.\.4"):
        split_stages(cfg, 5)
    with pytest.raises(ValueError, match=r"recompute .* unknown"):
        Run(cfg=cfg, recompute=frozenset({"attention"}))


@pytest.mark.parametrize("unit", ["layers.1", "head"])
def test_nan_weights_are_refused(unit: str) -> None:
    cfg = tiny_v3()
    params = init_params(cfg, 0)
    name = "norm.ffn" if unit != "head" else "norm.final"
    params[unit][name][0] = np.nan
    with pytest.raises(ValueError, match="not finite at index"):
        loss_and_grads(Run(cfg=cfg), params, as_tokens(cfg, 0, 1, 3))


@pytest.mark.parametrize("cfg", [tiny_v3(), tiny_gqa()], ids=["v3", "gqa"])
def test_one_token_batch(cfg: RefConfig) -> None:
    losses, grads = loss_and_grads(Run(cfg=cfg), init_params(cfg, 0), as_tokens(cfg, 0, 1, 1))
    assert all(np.isfinite(v) for v in losses.values())
    assert all(np.isfinite(g).all() for weights in grads.values() for g in weights.values())


def test_grouped_gemm_without_rows() -> None:
    out = grouped(Run(cfg=tiny_v3()), "moe.down", np.zeros((0, 3)), np.ones((2, 3, 4)), np.array([0, 0]))
    assert out.shape == (0, 4)


def test_split_covers_every_unit_once_in_order() -> None:
    cfg = replace(tiny_v3(), num_hidden_layers=7)
    for count in range(1, 8):
        stages = split_stages(cfg, count)
        assert [u for s in stages for u in s] == ["embed", *(f"layers.{i}" for i in range(7)), "head", "mtp.0"]
        layers = [sum(u.startswith("layers.") for u in s) for s in stages]
        assert max(layers) - min(layers) <= 1
