"""Dense decoders after Llama: RMSNorm, gated feed-forward part, rotary embedding, grouped queries."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.inputs.architectures.architecture import (
    Architecture,
    Only,
    Table,
    grouped_query,
    output_bias,
    steps,
)
from simulator.inputs.architectures.layers import no_window_unless_used, rotary_dim, window, without_rotation

_TRANSFORMERS = "transformers, models/{}"


def published(folder: str) -> str:
    """Where transformers keeps the code of a type."""
    return _TRANSFORMERS.format(folder)


def _use_bias(table: Table) -> Table:
    """ERNIE's one key for all biases."""
    biased = table.pop("use_bias", False)
    return table | dict.fromkeys(("attention_bias", "attention_out_bias", "mlp_bias"), biased)


def _post_norm(table: Table) -> Table:
    """HyperCLOVA X's key for norms behind the branches as well as before them."""
    return table | {"norm_placement": "both" if table.get("norm_placement") else "pre"}


LLAMA = Architecture(
    keys=grouped_query("attention_bias", "mlp_bias"),
    finish=steps(window, output_bias, rotary_dim),
    title="Llama 1 to 3.3, Yi, DeepSeek LLM",
    source=published("llama"),
)
MISTRAL = Architecture(
    keys=grouped_query(),
    finish=steps(window, rotary_dim),
    title="Mistral 7B, Nemo, Small, Large",
    source=published("mistral"),
)
QWEN2 = Architecture(
    keys=grouped_query(),
    fixed={"attention_bias": True},
    finish=steps(no_window_unless_used, rotary_dim),
    title="Qwen1.5, Qwen2, Qwen2.5 and their vision models",
    source=published("qwen2"),
)
QWEN3 = Architecture(
    keys=grouped_query("attention_bias"),
    fixed={"qk_norm": True},
    finish=steps(no_window_unless_used, output_bias, rotary_dim),
    title="Qwen3 and Qwen3-VL, dense",
    source=published("qwen3"),
)
GEMMA = Architecture(
    keys=grouped_query("attention_bias", hidden_activation="hidden_act"),
    fixed={"tie_word_embeddings": True},
    finish=steps(window, output_bias, rotary_dim),
    only={"use_bidirectional_attention": Only(values=(False,), otherwise="attention without a causal mask")},
    title="Gemma 1",
    source=published("gemma"),
)


_GLM4 = Architecture(
    keys=grouped_query("attention_bias"),
    fixed={"attention_bias": True, "partial_rotary_factor": 0.5, "norm_placement": "both"},
    finish=steps(window, rotary_dim),
    title="GLM-4-0414, dense, and GLM-4.1V",
    source=published("glm4"),
)


def _like_llama(title: str, source: str, **fixed: object) -> Architecture:
    """Llama's keys and shape, by another name."""
    return Architecture(
        keys=LLAMA.keys, fixed=dict(fixed), finish=steps(window, output_bias, rotary_dim), title=title, source=source
    )


SHIPPED: Mapping[str, Architecture] = {
    "llama": LLAMA,
    "internlm3": _like_llama("InternLM3", published("internlm3")),
    "exaone": Architecture(
        keys={**LLAMA.keys, "num_layers": "num_hidden_layers", "activation_function": "hidden_act"},
        finish=LLAMA.finish,
        title="EXAONE 3.0 and 3.5",
        source=published("exaone"),
    ),
    "iquestcoder": _like_llama("IQuest-Coder", published("iquestcoder")),
    "helium": _like_llama("Helium 1", published("helium"), attention_out_bias=False),
    "arcee": _like_llama("AFM-4.5B", published("arcee"), gated_mlp=False, hidden_act="relu2"),
    "internlm2": Architecture(
        keys=grouped_query(bias="attention_bias"),
        finish=steps(window, output_bias, rotary_dim),
        title="InternLM2 and 2.5",
        source="huggingface.co/internlm/internlm2-20b, arXiv 2403.17297",
    ),
    "hyperclovax": Architecture(
        keys=grouped_query("attention_bias", "mlp_bias", use_post_norm="norm_placement"),
        fixed={"norm_placement": True},
        finish=steps(window, output_bias, _post_norm, rotary_dim),
        title="HyperCLOVA X",
        source=published("hyperclovax"),
    ),
    "mistral": MISTRAL,
    "ministral3": MISTRAL,
    "qwen2": QWEN2,
    "qwen2_vl": QWEN2,
    "qwen2_vl_text": QWEN2,
    "qwen2_5_vl": QWEN2,
    "qwen2_5_vl_text": QWEN2,
    "qwen3": QWEN3,
    "qwen3_vl_text": QWEN3,
    "gemma": GEMMA,
    "phi3": Architecture(
        keys=grouped_query(),
        finish=steps(window, rotary_dim),
        only={
            "full_attn_mod": Only(values=(1,), otherwise="full attention in some layers only"),
            "lm_head_bias": Only(values=(False,), otherwise="a bias of the head"),
            "mlp_bias": Only(values=(False,), otherwise="biases in the feed-forward parts"),
        },
        ignored={
            "attention_bias": "no layer of this type reads it",
            "interpolate_factor": "angles of the rotary embedding, not its width",
        },
        title="Phi-3, Phi-3.5 and Phi-4, mini to medium",
        source=published("phi3"),
    ),
    "smollm3": Architecture(
        keys=grouped_query("attention_bias", "mlp_bias", "no_rope_layers", "no_rope_layer_interval"),
        fixed={"tie_word_embeddings": True},
        finish=steps(no_window_unless_used, output_bias, without_rotation, rotary_dim),
        title="SmolLM3",
        source=published("smollm3"),
    ),
    "seed_oss": Architecture(
        keys=grouped_query("attention_bias", "attention_out_bias", "mlp_bias"),
        fixed={"attention_bias": True},
        finish=steps(window, rotary_dim),
        title="Seed-OSS",
        source=published("seed_oss"),
    ),
    "mimo": Architecture(
        keys=grouped_query("attention_bias", "num_nextn_predict_layers"),
        fixed={"attention_bias": True},
        finish=steps(no_window_unless_used, rotary_dim),
        title="MiMo-7B",
        source="huggingface.co/XiaomiMiMo/MiMo-7B-Base, arXiv 2505.07608",
    ),
    "olmo2": Architecture(
        keys=grouped_query("attention_bias"),
        fixed={"qk_norm": True, "qk_norm_over": "projection", "norm_placement": "post"},
        finish=steps(window, output_bias, rotary_dim),
        title="OLMo 2",
        source=f"{published('olmo2')}; arXiv 2501.00656, section 2.1",
    ),
    "glm": Architecture(
        keys=grouped_query("attention_bias"),
        fixed={"attention_bias": True, "partial_rotary_factor": 0.5},
        finish=steps(window, rotary_dim),
        title="GLM-4-9B",
        source=published("glm"),
    ),
    "glm4": _GLM4,
    "glm4v_text": _GLM4,
    "granite": Architecture(
        keys=grouped_query("attention_bias", "mlp_bias"),
        fixed={"tie_word_embeddings": False},
        finish=steps(window, output_bias, rotary_dim),
        title="Granite 3, dense",
        source=published("granite"),
    ),
    "ernie4_5": Architecture(
        keys=grouped_query("use_bias"),
        fixed={"tie_word_embeddings": True},
        finish=steps(window, _use_bias, rotary_dim),
        title="ERNIE 4.5, dense",
        source=published("ernie4_5"),
    ),
    "hunyuan_v1_dense": Architecture(
        keys=grouped_query("attention_bias", attention_head_dim="head_dim", use_qk_norm="qk_norm"),
        fixed={"qk_norm": True},
        finish=steps(window, output_bias, rotary_dim),
        title="Hunyuan, dense",
        source=published("hunyuan_v1_dense"),
    ),
}
