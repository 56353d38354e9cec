"""DeepSeek's latent attention and its mixture of experts, and the models that took one or both.

First layers dense, shared experts, a gate with sigmoid scores and a correction bias (arXiv 2412.19437, section 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping

from simulator.inputs.architectures.architecture import (
    EXPERT_COUNT,
    ROTARY,
    Architecture,
    Only,
    Table,
    Unsupported,
    fill,
    grouped_query,
    output_bias,
    spelled,
    steps,
)
from simulator.inputs.architectures.layers import counts_layers, mlp_layer_types, rotary_dim, window
from simulator.inputs.architectures.llama import published

LATENT = (
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "qk_head_dim",
    "attention_bias",
)
MOE = (
    "num_experts_per_tok",
    "moe_intermediate_size",
    "n_shared_experts",
    "first_k_dense_replace",
    "moe_layer_freq",
    "n_group",
    "topk_group",
    "topk_method",
    "num_nextn_predict_layers",
    "mlp_layer_types",
)
AUX_FREE = {"topk_method": "noaux_tc"}
"""DeepSeek-V3's gate."""


def _latent(table: Table) -> Table:
    """`qk_head_dim` follows from its two parts."""
    whole = table.pop("qk_head_dim", None)
    parts = table.get("qk_nope_head_dim", 0), table.get("qk_rope_head_dim", 0)
    if whole is not None and all(isinstance(part, int) for part in parts) and whole != sum(parts):
        raise Unsupported("qk_head_dim", whole, f"must be qk_nope_head_dim + qk_rope_head_dim = {sum(parts)}")
    return table


def _glm_heads(table: Table) -> Table:
    """Without a head width transformers rounds hidden size over heads down; GLM's own files give one."""
    hidden, heads = table.get("hidden_size"), table.get("num_attention_heads")
    if "head_dim" not in table and isinstance(hidden, int) and isinstance(heads, int) and 0 < heads <= hidden:
        return table | {"head_dim": hidden // heads}
    return table


_LATENT_KEYS = spelled(*LATENT, *MOE) | EXPERT_COUNT
_OF_LATENT = {
    "head_dim": "of latent attention: qk_nope_head_dim, qk_rope_head_dim and v_head_dim give the widths",
    **dict.fromkeys(ROTARY, "of latent attention: qk_rope_head_dim gives the part that rotates"),
}
_NO_BIAS = Only(values=(False,), otherwise="biases in the feed-forward parts")
_GREEDY = {"topk_method": "greedy"}


def _latent_moe(title: str, source: str, gate: Table) -> Architecture:
    """Latent attention and DeepSeek's experts."""
    return Architecture(
        keys=_LATENT_KEYS,
        fixed=gate,
        finish=steps(_latent, output_bias, mlp_layer_types),
        only={"mlp_bias": _NO_BIAS},
        ignored=_OF_LATENT,
        moe=True,
        title=title,
        source=source,
    )


_INDEXER = ("index_n_heads", "index_head_dim", "index_topk", "indexer_types", "layer_types")


def _sparse(table: Table) -> Table:
    """All layers choose the tokens that they attend to; those that `indexer_types` calls shared are not modelled."""
    kinds = table.pop("indexer_types", None)
    if kinds is not None and set(map(str, kinds)) != {"full"}:
        raise Unsupported("indexer_types", kinds, "layers that share an indexer are not modelled: must all be full")
    listed = table.pop("layer_types", None)
    if listed is not None:
        names = {"indexed_attention": "sparse", "sparse": "sparse", "full_attention": "full", "full": "full"}
        if any(kind not in names for kind in listed):
            raise Unsupported("layer_types", list(listed), f"must be of {', '.join(names)}")
        return table | {"layer_types": [names[kind] for kind in listed]}
    return table | ({"layer_types": ["sparse"] * table["num_hidden_layers"]} if counts_layers(table) else {})


def _latent_sparse(title: str, source: str, **fixed: object) -> Architecture:
    """Latent attention to the tokens that an indexer chooses, and DeepSeek's experts."""
    return Architecture(
        keys=_LATENT_KEYS | {name: name for name in _INDEXER},
        fixed={**AUX_FREE, "index_topk": 2048, "index_head_dim": 128, **fixed},
        finish=steps(_latent, output_bias, mlp_layer_types, _sparse),
        only={"mlp_bias": _NO_BIAS, "index_topk_freq": Only(values=(1,), otherwise="layers that share an indexer")},
        ignored=_OF_LATENT
        | dict.fromkeys(
            ("indexer_rope_interleave", "index_skip_topk_offset"), "angles, or of layers that share an indexer"
        ),
        moe=True,
        title=title,
        source=f"{source}; arXiv 2512.02556",
    )


def _latent_dense(title: str, source: str) -> Architecture:
    """Latent attention without experts."""
    return Architecture(
        keys=spelled(*LATENT, "mlp_bias"),
        fixed={"tie_word_embeddings": True},
        finish=steps(_latent, output_bias),
        ignored=_OF_LATENT | dict.fromkeys(("scale_emb", "dim_model_base"), "a number inside a scaling, not a size"),
        title=title,
        source=source,
    )


_GLM = Architecture(
    keys=grouped_query("attention_bias", *MOE, use_qk_norm="qk_norm") | EXPERT_COUNT,
    fixed={**AUX_FREE, "partial_rotary_factor": 0.5},
    finish=steps(window, mlp_layer_types, _glm_heads, rotary_dim),
    moe=True,
    dense="glm4",
    title="GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7",
    source=published("glm4_moe"),
)

SHIPPED: Mapping[str, Architecture] = {
    "deepseek_v2": _latent_moe("DeepSeek-V2, V2-Lite, Coder-V2", published("deepseek_v2"), _GREEDY),
    "mistral4": _latent_moe("Mistral 4", published("mistral4"), _GREEDY),
    "deepseek_v3": _latent_moe("DeepSeek-V3, R1, V3.1, Moonlight", published("deepseek_v3"), AUX_FREE),
    "kimi_k2": _latent_moe(
        "Kimi K2, and K2.5 to K2.7 as a text_config", "huggingface.co/moonshotai/Kimi-K2-Instruct", AUX_FREE
    ),
    "deepseek_v32": _latent_sparse("DeepSeek-V3.2", published("deepseek_v32"), index_n_heads=64),
    "glm_moe_dsa": _latent_sparse("GLM-5", published("glm_moe_dsa"), index_n_heads=32),
    "glm4_moe_lite": _latent_moe("GLM-4.7-Flash", published("glm4_moe_lite"), AUX_FREE),
    "sarvam_mla": _latent_moe("Sarvam 105B", published("sarvam_mla"), AUX_FREE),
    "youtu": _latent_dense("Youtu-LLM", published("youtu")),
    "minicpm3": _latent_dense("MiniCPM3", published("minicpm3")),
    "sarvam_moe": Architecture(
        keys=grouped_query("attention_bias", *MOE, use_qk_norm="qk_norm") | EXPERT_COUNT,
        fixed={**AUX_FREE, "qk_norm": True},
        finish=steps(window, output_bias, mlp_layer_types, rotary_dim),
        moe=True,
        dense="qwen3",
        title="Sarvam 30B",
        source=published("sarvam_moe"),
    ),
    "solar_open": Architecture(
        keys=grouped_query("attention_bias", *MOE) | EXPERT_COUNT,
        fixed=AUX_FREE,
        finish=steps(window, fill(intermediate_size="moe_intermediate_size"), rotary_dim),
        moe=True,
        dense="llama",
        title="Solar Open 100B",
        source=published("solar_open"),
    ),
    "hy_v3": Architecture(
        keys=grouped_query(
            "attention_bias",
            "mlp_bias",
            *MOE,
            num_shared_experts="n_shared_experts",
        )
        | EXPERT_COUNT,
        fixed={**AUX_FREE, "qk_norm": True, "n_shared_experts": 1},
        finish=steps(window, output_bias, mlp_layer_types, rotary_dim),
        ignored={"enable_moe_fp32_combine": "how a forward call is programmed"},
        moe=True,
        dense="hunyuan_v1_dense",
        title="Hunyuan 3",
        source=published("hy_v3"),
    ),
    "deepseek": Architecture(
        keys=grouped_query("attention_bias", *MOE) | EXPERT_COUNT,
        fixed=_GREEDY,
        finish=steps(window, output_bias, rotary_dim),
        moe=True,
        dense="llama",
        title="DeepSeekMoE 16B",
        source="huggingface.co/deepseek-ai/deepseek-moe-16b-base, arXiv 2401.06066",
    ),
    "dots1": Architecture(
        keys=grouped_query("attention_bias", *MOE) | EXPERT_COUNT,
        fixed={**AUX_FREE, "qk_norm": True},
        finish=steps(window, output_bias, rotary_dim),
        moe=True,
        dense="qwen3",
        title="dots.llm1",
        source=published("dots1"),
    ),
    "glm4_moe": _GLM,
    "glm4v_moe_text": _GLM,
}
