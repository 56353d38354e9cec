"""Reading Hugging Face's config.json: what the reference model computes, and a refusal of everything else.

A key is read, known to leave the computation alone, allowed with one value only, or an error: a model that silently
lacks a bias or a window would prove nothing.
"""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from workloads.reference.config import RefConfig

REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
RENAMED = {"num_experts": "n_routed_experts", "num_local_experts": "n_routed_experts"}  # Qwen's, Mixtral's
ONE_VALUE: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "tie_word_embeddings": (False,),
    "mlp_bias": (False,),
    "moe_layer_freq": (1,),
    "decoder_sparse_step": (1,),
    "use_sliding_window": (False,),
    "rope_interleave": (True,),
    "ep_size": (1,),
    "pretraining_tp": (1,),
    "attention_dropout": (0, 0.0),
}
"""Keys with the only value that is implemented; null is always that."""
HARMLESS = frozenset(
    """
    architectures auto_map bos_token_id dtype eos_token_id max_position_embeddings max_window_layers model_type name
    output_router_logits pad_token_id quantization_config router_aux_loss_coef seq_aux torch_dtype transformers_version
    use_cache
    """.split()  # noqa: SIM905 - a list of words reads better so
)
SOFTMAX = {"scoring_func": "softmax", "topk_method": "greedy"}
IMPLIED: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v2": SOFTMAX,
    "deepseek_v3": {},
    "kimi_k2": {},
    "llama": {},
    "mistral": {},
    "mixtral": SOFTMAX,
    "olmo2": {"qk_norm": True, "qk_norm_over": "projection", "norm_placement": "post"},
    "qwen2": {"attention_bias": True},
    "qwen3": {"qk_norm": True},
    "qwen3_moe": SOFTMAX | {"qk_norm": True},
}
"""What a family computes without its config.json saying so."""


def config_from_dict(data: Mapping[str, Any]) -> RefConfig:
    """A RefConfig from a parsed config.json; what is missing, unknown or not implemented is named."""
    family = data.get("model_type")
    if family is not None and family not in IMPLIED:
        raise ValueError(f"config.json: model_type {family!r} is not implemented: use one of {', '.join(IMPLIED)}")
    values: dict[str, Any] = {**IMPLIED.get(str(family), {}), **_read(data)}
    missing = [key for key in REQUIRED if key not in values]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}: every model has them")
    if family == "llama" and values.get("attention_bias"):
        raise ValueError("config.json: attention_bias true of model_type llama also biases attn.o: not implemented")
    if family == "mixtral":
        values.setdefault("moe_intermediate_size", values["intermediate_size"])
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    return RefConfig(**values)


def _read(data: Mapping[str, Any]) -> dict[str, Any]:
    """The values that shape the model; null stands for the default."""
    known = {f.name for f in fields(RefConfig)} - {"mtp_loss_weight"}
    windowed = data.get("use_sliding_window", True) and data.get("sliding_window") is not None
    listed = data.get("layer_types") is not None
    values: dict[str, Any] = {}
    for key, value in data.items():
        ours = RENAMED.get(key, key)
        if key == "sliding_window" and windowed and not listed:
            raise ValueError(f"config.json: sliding_window {value!r} without layer_types is not implemented: give both")
        if ours in known:
            if value is not None:
                values[ours] = tuple(value) if isinstance(value, list) else value
        elif key in ONE_VALUE:
            if value is not None and value not in ONE_VALUE[key]:
                raise ValueError(f"config.json: {key} {value!r} is not implemented: only {ONE_VALUE[key][0]!r} is")
        elif key not in HARMLESS and not key.startswith("_"):
            raise ValueError(f"config.json: unknown key {key!r}{_near(key, known)}")
    return values


def _near(key: str, known: set[str]) -> str:
    near = get_close_matches(key, known | set(ONE_VALUE) | HARMLESS, n=1)
    return f"; did you mean {near[0]!r}?" if near else "; it may change what the model computes"
