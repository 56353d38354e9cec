"""Types that are known and not supported: what each would need that the op graph does not have, and what comes nearest.

Read in the modelling code of transformers 5.24 and on the models' pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What is missing, and the nearest supported `model_type`."""

    missing: str
    nearest: str


_WINDOWS = "sliding-window attention in some layers"
_ALIBI = "ALiBi, a bias of the scores instead of rotary embedding"
_ENCODER = "an encoder, or cross-attention to one"


def _all(missing: str, nearest: str, types: str) -> dict[str, Refusal]:
    return {name: Refusal(missing=missing, nearest=nearest) for name in types.split()}


REFUSED: Mapping[str, Refusal] = {
    **_all(
        "several residual streams that predict each other, and low-rank parts", "gemma4_text", "gemma3n gemma3n_text"
    ),
    **_all("keys of its own", "exaone4", "exaone4_5"),
    **_all("experts in a parallel block", "cohere2", "cohere2_moe"),
    **_all("keys of its own", "gpt_oss", "laguna"),
    **_all(
        "an indexer over pools of keys that layers share, and hyper-connections around latent attention and KDA",
        "glm_moe_dsa",
        "glm5_next glm5_next_text",
    ),
    **_all(
        "keys and choices that layers share, and tables of n-grams", "deepseek_v4", "deepseek_v41 deepseek_v41_text"
    ),
    **_all("a newer form of delta-rule layers", "qwen3_next", "qwen4_exp qwen4_exp_text"),
    **_all("delta-rule layers with norms behind the branches", "qwen3_5_text", "olmo_hybrid"),
    **_all(
        "linear attention between latent-attention layers",
        "bailing_moe_v2",
        "bailing_hybrid bailing_moe_linear bailing_moe_v2_5",
    ),
    **_all("lightning attention between softmax-attention layers", "mixtral", "minimax minimax_text_01 minimax_m1"),
    **_all("Mamba-2 layers and attention layers that share their weights", "bamba", "zamba zamba2"),
    **_all("Mamba-2 layers of another form", "bamba", "plamo2"),
    **_all("recurrent layers", "llama", "rwkv xlstm recurrent_gemma"),
    **_all("layers of different widths, or without attention", "llama", "nemotron-nas deci openelm"),
    **_all("two attention blocks a layer and experts that compute nothing", "deepseek_v3", "longcat_flash"),
    **_all("feed-forward parts with xIELU, which has weights of its own", "qwen3", "apertus"),
    **_all("a norm behind the experts", "deepseek_v3", "axk1 axk2"),
    **_all("LayerNorm without weights", "olmo2", "olmo"),
    **_all(_ALIBI, "falcon", "bloom mpt baichuan"),
    **_all("local attention in every second layer", "gpt2", "gpt_neo"),
    **_all("a dense part next to the experts", "mixtral", "arctic"),
    **_all("two matrices of experts for text and for images", "ernie4_5_moe", "ernie4_5_vl_moe ernie4_5_vl_moe_text"),
    **_all("cross-attention to images between the layers", "llama", "mllama mllama_text_model"),
    **_all(_ENCODER, "llama", "t5 mt5 umt5 bart mbart pegasus t5gemma t5gemma2 whisper switch_transformers nllb-moe"),
    **_all("attention without a causal mask", "llama", "bert roberta modernbert deberta deberta-v2 albert electra"),
}

KEYS: Mapping[str, str] = {
    "index_topk": "sparse attention with an indexer",
    "index_n_heads": "sparse attention with an indexer",
    "attention_chunk_size": "chunked attention",
    "sliding_window": "sliding-window attention",
    "sliding_window_pattern": "sliding-window attention in some layers",
    "block_configs": "layers of different widths",
    "full_attention_interval": "linear attention between full attention",
    "linear_num_value_heads": "linear attention",
    "mamba_d_state": "Mamba layers",
    "ssm_state_size": "Mamba layers",
    "hybrid_override_pattern": "layers of different kinds",
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "alibi": _ALIBI,
}
"""Keys that change the shape of a type that does not have them, and what they ask for."""
