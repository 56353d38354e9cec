"""Files that transformers' own config classes write load unchanged, and describe as many parameters as its models have.

Counts were taken once from transformers 5.24's model classes, built on PyTorch's meta device; correction biases of
gates, which are buffers there, are in them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.inputs import ARCHITECTURES, load_model
from simulator.inputs.hf_config import read_config

SMALL = {
    "vocab_size": 1000,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MHA = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
FALCON = {key: value for key, value in MHA.items() if key != "intermediate_size"}
GPT = {
    "vocab_size": 1000,
    "n_embd": 96,
    "n_layer": 4,
    "n_head": 8,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = SMALL | {
    "num_key_value_heads": 8,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
}
TOP_2 = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROUTED = {"n_routed_experts": 4, **TOP_2}
QWEN_MOE = {"num_experts": 4, **TOP_2, "shared_expert_intermediate_size": 40}
WIDE = {"head_dim": 16}
ERNIE = SMALL | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24}
DBRX = {
    "vocab_size": 1000,
    "d_model": 96,
    "n_heads": 8,
    "n_layers": 4,
    "max_seq_len": 64,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 500000},
    "ffn_config": {"ffn_hidden_size": 40, "hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
}

DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "full_attention_interval": 2,
}
NO_DENSE = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
NEMOTRON = {
    **{key: value for key, value in SMALL.items() if key != "num_hidden_layers"},
    **{**WIDE, **TOP_2, "n_routed_experts": 4, "moe_shared_expert_intermediate_size": 40},
    **{"mamba_num_heads": 6, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 16},
    "hybrid_override_pattern": "M*-E",
}
SPARSE = {"n_group": 1, "topk_group": 1, "index_n_heads": 4, "index_head_dim": 16, "index_topk": 32}
M3 = {
    **{
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 40,
        "dense_intermediate_size": 200,
    },
    **{"index_n_heads": 2, "index_head_dim": 8, "index_block_size": 16, "index_topk_blocks": 2, "rotary_dim": 8},
    "layer_types": ["full_attention", *["minimax_m3_sparse"] * 3],
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
}
KIMI = LATENT | TOP_2 | {"num_experts": 4, "linear_head_dim": 12, "linear_num_heads": 4, "q_lora_rank": None}
V4 = {
    **{key: value for key, value in SMALL.items() if key not in ("intermediate_size", "num_key_value_heads")},
    **{"num_key_value_heads": 1, "head_dim": 16, "q_lora_rank": 24, "o_groups": 2, "o_lora_rank": 12, "hc_mult": 2},
    **{"index_n_heads": 4, "index_head_dim": 8, "index_topk": 32, "n_routed_experts": 4, **TOP_2},
}
JAMBA = {
    **{"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8},
    **{"attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
}
SHORT = {"layer_types": ["conv", "full_attention", "conv", "conv"]}
ALONE = {key: value for key, value in FALCON.items() if key != "num_attention_heads"}
BIASED = {"attention_bias": True, "mlp_bias": True}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 24, "mamba_d_state": 16}
STEP = TOP_2 | {
    "n_routed_experts": 4,
    "share_expert_dim": 24,
    "sliding_window": 32,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "num_sliding_attention_heads": 16,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
}

GEMMA4 = {"head_dim": 16, "global_head_dim": 32, "hidden_size_per_layer_input": 0}
ALTERNATE = {"layer_types": ["sliding_attention", "full_attention"] * 2}
GEMMA4_MOE = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}

CONFIGS: list[tuple[str, dict[str, Any], int]] = [
    ("llama", SMALL, 469_344),
    ("llama", SMALL | WIDE | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, 406_880),
    ("mistral", SMALL | WIDE | {"sliding_window": None}, 500_064),
    ("mixtral", SMALL | {"num_local_experts": 4}, 1_023_840),
    ("qwen2", SMALL, 469_920),
    ("qwen3", SMALL | WIDE, 500_192),
    ("qwen3", SMALL | WIDE | {"attention_bias": True, "tie_word_embeddings": True}, 405_344),
    ("qwen2_moe", SMALL | QWEN_MOE | {"decoder_sparse_step": 2}, 457_056),
    ("qwen2_moe", SMALL | QWEN_MOE | {"mlp_only_layers": [1], "qkv_bias": False}, 450_048),
    ("qwen3_moe", SMALL | WIDE | TOP_2 | {"num_experts": 4}, 428_000),
    ("deepseek_v2", LATENT | ROUTED | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}, 437_888),
    ("deepseek_v2", LATENT | ROUTED | {"q_lora_rank": None}, 452_000),
    (
        "deepseek_v3",
        LATENT | ROUTED | {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "attention_bias": True},
        417_724,
    ),
    (
        "glm4_moe",
        SMALL | WIDE | ROUTED | {"attention_bias": True, "use_qk_norm": True, "first_k_dense_replace": 2},
        478_696,
    ),
    ("glm4_moe_lite", LATENT | ROUTED | {"n_group": 1, "topk_group": 1}, 417_164),
    (
        "dots1",
        SMALL | WIDE | ROUTED | {"n_shared_experts": 2, "first_k_dense_replace": 1, "sliding_window": None},
        487_532,
    ),
    ("minimax_m2", SMALL | WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2}, 1_055_216),
    ("olmoe", SMALL | {"num_experts": 4, "num_experts_per_tok": 2}, 1_024_320),
    ("phimoe", SMALL | {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True}, 1_026_664),
    ("dbrx", DBRX, 470_880),
    ("granitemoe", SMALL | {"num_local_experts": 4}, 1_023_840),
    ("hunyuan_v1_moe", SMALL | WIDE | {"num_experts": 4, "moe_topk": 2}, 1_239_008),
    (
        "hunyuan_v1_moe",
        SMALL | WIDE | {"num_experts": 4, "moe_topk": [2] * 4, "attention_bias": True, "tie_word_embeddings": True},
        1_144_160,
    ),
    ("hunyuan_v1_dense", SMALL | WIDE, 500_192),
    ("ernie4_5_moe", ERNIE | {"moe_layer_end_index": 2}, 364_904),
    ("ernie4_5_moe", ERNIE | {"moe_layer_end_index": -1, "tie_word_embeddings": False}, 456_684),
    ("ernie4_5", SMALL | WIDE | {"use_bias": True}, 406_880),
    ("olmo2", SMALL, 469_824),
    ("phi3", SMALL, 469_344),
    ("smollm3", SMALL, 373_344),
    ("smollm3", SMALL | {"attention_bias": True}, 374_304),
    ("seed_oss", SMALL | WIDE, 500_832),
    ("seed_oss", SMALL | WIDE | {"attention_out_bias": True, "mlp_bias": True}, 502_880),
    ("glm", SMALL | WIDE, 500_832),
    ("glm4", SMALL | WIDE, 501_600),
    ("granite", SMALL | {"attention_bias": True, "mlp_bias": True}, 471_968),
    ("gemma", SMALL | WIDE, 404_064),
    ("gpt2", GPT, 549_696),
    ("gpt2", GPT | {"n_inner": 160}, 376_768),
    ("gpt_bigcode", GPT, 484_512),
    ("gpt_bigcode", GPT | {"multi_query": False, "n_inner": 160}, 376_768),
    ("gptj", GPT | {"rotary_dim": 4}, 638_248),
    ("gpt_neox", MHA, 466_624),
    ("gpt_neox", MHA | {"attention_bias": False, "use_parallel_residual": False}, 465_088),
    ("falcon", FALCON, 474_816),
    ("falcon", FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True, "bias": True}, 487_680),
    (
        "falcon",
        FALCON
        | {"num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 160},
        312_000,
    ),
    ("falcon", FALCON | {"parallel_attn": False, "multi_query": False, "num_kv_heads": 8}, 540_096),
    ("phi", SMALL, 410_984),
    ("stablelm", SMALL, 470_208),
    ("stablelm", SMALL | {"use_qkv_bias": True, "use_parallel_residual": True}, 470_016),
    ("starcoder2", SMALL, 314_752),
    ("starcoder2", SMALL | {"use_bias": False}, 312_768),
    ("internlm3", SMALL | WIDE, 500_064),
    ("internlm3", SMALL | WIDE | {"attention_bias": True, "mlp_bias": True}, 502_880),
    ("exaone", SMALL | WIDE, 500_064),
    ("iquestcoder", SMALL | WIDE, 500_064),
    ("helium", SMALL | {"head_dim": 12, "attention_bias": True}, 469_920),
    ("arcee", SMALL | WIDE | {"mlp_bias": True}, 439_648),
    ("hyperclovax", SMALL | WIDE, 500_832),
    ("hyperclovax", SMALL | WIDE | {"use_post_norm": False, "attention_bias": True}, 501_216),
    ("mistral4", LATENT | ROUTED | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}, 417_152),
    ("sarvam_mla", LATENT | ROUTED | {"n_group": 1, "topk_group": 1}, 417_164),
    ("youtu", LATENT, 354_560),
    ("minicpm3", LATENT | {"attention_bias": True}, 355_120),
    ("sarvam_moe", SMALL | WIDE | ROUTED, 466_796),
    ("solar_open", FALCON | WIDE | ROUTED | {"num_key_value_heads": 2}, 455_536),
    ("hy_v3", SMALL | WIDE | TOP_2 | {"num_experts": 4}, 466_796),
    ("granitemoeshared", SMALL | {"num_local_experts": 4, "shared_intermediate_size": 40}, 1_069_920),
    ("opt", FALCON | {"ffn_dim": 160, "max_position_embeddings": 64, "word_embed_proj_dim": 96}, 376_960),
    ("nemotron", SMALL | WIDE, 439_488),
    ("jais2", SMALL | WIDE, 441_664),
    ("cohere", SMALL, 372_960),
    ("cohere", SMALL | {"attention_bias": True}, 373_920),
    ("gpt_oss", SMALL | WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}, 1_062_416),
    ("gemma2", SMALL | WIDE, 404_832),
    ("gemma3_text", SMALL | WIDE, 404_960),
    ("gemma4_text", SMALL | GEMMA4 | {"hidden_size_per_layer_input": 256}, 269_166_720),
    (
        "gemma4_text",
        SMALL | GEMMA4 | ALTERNATE | {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
        448_032,
    ),
    (
        "gemma4_text",
        SMALL
        | GEMMA4
        | ALTERNATE
        | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True}
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 900},
        578_552,
    ),
    ("gemma4_text", SMALL | GEMMA4 | GEMMA4_MOE, 549_392),
    ("gemma4_unified_text", SMALL | {"head_dim": 16, "global_head_dim": 32}, 435_712),
    ("afmoe", SMALL | WIDE | TOP_2 | {"num_experts": 4}, 537_452),
    ("exaone_moe", SMALL | WIDE | TOP_2 | {"num_experts": 4}, 466_796),
    ("mellum", SMALL | WIDE | TOP_2 | {"num_experts": 4}, 428_000),
    ("ministral", SMALL | WIDE, 500_064),
    ("granite_swa", SMALL, 373_376),
    ("vaultgemma", SMALL | WIDE, 404_064),
    ("cohere2", SMALL, 372_960),
    ("olmo3", SMALL, 469_824),
    ("exaone4", SMALL, 469_440),
    ("cwm", SMALL | WIDE, 500_064),
    (
        "llama4_text",
        SMALL | WIDE | {"num_local_experts": 4, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 200},
        892_512,
    ),
    ("mimo_v2_flash", SMALL | WIDE | ROUTED | {"v_head_dim": 12}, 446_724),
    ("step3p5", SMALL | WIDE | STEP, 520_556),
    ("deepseek_v4", V4, 414_599),
    ("deepseek_v4", V4 | {"compress_ratios": [0, 4, 128, 4, 0], "num_hash_layers": 1}, 414_919),
    ("minimax_m3_vl_text", SMALL | WIDE | M3, 969_116),
    ("kimi_linear", KIMI, 435_436),
    ("qwen3_next", SMALL | WIDE | QWEN_MOE | DELTA, 473_544),
    ("qwen3_5_moe_text", NO_DENSE | WIDE | QWEN_MOE | DELTA, 473_544),
    ("qwen3_5_text", SMALL | WIDE | DELTA, 499_272),
    ("nemotron_h", NEMOTRON, 301_590),
    ("nemotron_h", NEMOTRON | {"moe_latent_size": 32, "num_nextn_predict_layers": 1}, 295_446),
    ("falcon_h1", SMALL | MAMBA | {"mamba_d_ssm": 192}, 710_464),
    (
        "falcon_h1",
        SMALL | MAMBA | BIASED | {"mamba_d_ssm": 192, "mamba_rms_norm": True, "mamba_n_groups": 2},
        726_784,
    ),
    ("lfm2", SMALL | {"full_attn_idxs": [1], "block_multiple_of": 8}, 360_408),
    ("lfm2", SMALL | SHORT | {"block_auto_adjust_ff_dim": False, "tie_word_embeddings": False}, 511_704),
    ("lfm2_moe", SMALL | SHORT | TOP_2 | {"num_experts": 4, "num_dense_layers": 1}, 361_572),
    ("jamba", SMALL | JAMBA, 868_194),
    ("mamba", ALONE | {"state_size": 8}, 350_688),
    ("falcon_mamba", ALONE | {"state_size": 8, "time_step_rank": 10, "tie_word_embeddings": False}, 452_832),
    ("mamba2", ALONE | {"num_heads": 8, "head_dim": 24, "state_size": 16, "n_groups": 2}, 447_296),
    ("jamba", SMALL | JAMBA | {"mamba_dt_rank": 10, "num_experts": 1, "tie_word_embeddings": True}, 499_566),
    ("deepseek_v32", LATENT | ROUTED | SPARSE, 453_380),
    ("glm_moe_dsa", LATENT | ROUTED | SPARSE, 453_380),
    ("bamba", SMALL | MAMBA | {"attn_layer_indices": [1]}, 581_640),
    (
        "granitemoehybrid",
        SMALL
        | MAMBA
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 40}
        | {"layer_types": ["mamba", "attention", "mamba", "mamba"]},
        1_182_216,
    ),
    ("granitemoehybrid", SMALL | MAMBA | {"num_local_experts": 0, "shared_intermediate_size": 40}, 480_832),
]
WITH_TEXT: list[tuple[str, dict[str, Any], int]] = [
    (
        "kimi_k25",
        {
            "text_config": LATENT
            | ROUTED
            | {"model_type": "deepseek_v3", "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
            "tie_word_embeddings": False,
        },
        417_164,
    ),
    ("qwen3_vl", {"text_config": SMALL | WIDE}, 500_192),
    ("qwen3_vl_moe", {"text_config": SMALL | WIDE | TOP_2 | {"num_experts": 4}}, 428_000),
    ("qwen2_5_vl", {"text_config": SMALL}, 469_920),
    ("qwen2_vl", {"text_config": SMALL}, 469_920),
    ("mistral3", {"text_config": SMALL | WIDE | {"model_type": "mistral", "sliding_window": None}}, 404_064),
    ("glm4v_moe", {"text_config": SMALL | ROUTED | {"attention_bias": True}}, 436_524),
    ("llava", {"text_config": SMALL | {"model_type": "llama"}}, 469_344),
]
OF_NO_TRANSFORMERS_CLASS = {
    "kimi_k2",
    "internlm2",
    "glm4v_text",
    "deepseek",
    "mimo",
    "bailing_moe",
    "bailing_moe_v2",
    "ministral3",  # the class is another type's, text parts are tried inside their models
    "qwen2_vl_text",
    "qwen2_5_vl_text",
    "qwen3_vl_text",
    "qwen3_vl_moe_text",
    "qwen3_omni_moe_text",
    "glm4v_moe_text",
    "qwen2_vl",
    "qwen2_5_vl",
    "step3p7",
    "step3p7_text",
    "minimax_m3",
}


def saved(model_type: str, values: dict[str, Any], folder: Path, *, everything: bool) -> Path:
    """The config.json that transformers writes; `everything` also keys that are as by default."""
    transformers = pytest.importorskip("transformers", minversion="5")
    file = folder / "config.json"
    config = transformers.CONFIG_MAPPING[model_type](**values)
    file.write_text(config.to_json_string(use_diff=not everything))
    return file


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize(("model_type", "values", "parameters"), CONFIGS + WITH_TEXT)
@pytest.mark.filterwarnings("ignore")
def test_a_file_of_transformers_loads(
    model_type: str, values: dict[str, Any], parameters: int, everything: bool, tmp_path: Path
) -> None:
    model = load_model(str(saved(model_type, values, tmp_path, everything=everything)))
    assert model.parameters() == parameters
    assert (model.vocab_size, model.num_hidden_layers, model.hidden_size) == (1000, 4, 96)


def test_every_shipped_type_that_transformers_has_is_tried() -> None:
    tried = {model_type for model_type, _, _ in CONFIGS}
    assert set(ARCHITECTURES.shipped) - tried == OF_NO_TRANSFORMERS_CLASS


@pytest.mark.filterwarnings("ignore")
def test_a_class_with_its_own_defaults_loads_or_says_what_is_missing(tmp_path: Path) -> None:
    """Defaults of config classes are published shapes of small members of their families, or name no experts."""
    transformers = pytest.importorskip("transformers", minversion="5")
    for model_type in sorted({model_type for model_type, _, _ in CONFIGS}):
        table = json.loads(transformers.CONFIG_MAPPING[model_type]().to_json_string())
        if model_type in ("dots1", "deepseek_v2"):
            continue  # their classes give no number of experts, of a token's or of all
        assert read_config(table, model_type, "config.json").model.num_hidden_layers > 0
