"""Gemma 4: heads twice as wide in layers with full attention, whose values are made of their keys; layers at the end
that reuse keys and values; experts next to a dense part; values of a token that enter each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.inputs.architectures.architecture import (
    EXPERT_COUNT,
    Architecture,
    Only,
    Table,
    Unsupported,
    grouped_query,
    output_bias,
    steps,
)
from simulator.inputs.architectures.layers import counts_layers, every, rotary_dim, window
from simulator.inputs.architectures.llama import published

_REUSED = {"sliding_attention": "sliding_reused", "full_attention": "reused"}
_OVERRIDES = ("head_dim", "num_key_value_heads")


def _listed(table: Table, listed: Any) -> tuple[Any, Any]:
    """Width and number of the heads with full attention, as transformers writes them, layer by layer."""
    kinds = table.get("layer_types") or []
    full = [at for at, kind in enumerate(kinds) if kind == "full_attention"]
    tables = list(listed.values()) if isinstance(listed, dict) else []
    named = sorted(int(at) if str(at).isdecimal() else -1 for at in listed) if tables else []
    own = tables[0] if tables and isinstance(tables[0], dict) else {"": 0}
    if any(one != own for one in tables) or named != full or not set(own) <= {*_OVERRIDES}:
        right = f"must give {' and '.join(_OVERRIDES)} of the layers with full attention, the same for all"
        raise Unsupported("per_layer_config", listed, right)
    return own.get("head_dim", table.get("head_dim")), own.get("num_key_value_heads")


def _heads(table: Table) -> Table:
    """Heads of layers with a window are those that the file gives; those of the others have a width, and perhaps a
    number, of their own: by key, or, as transformers writes it, layer by layer."""
    wide, many = table.pop("global_head_dim", 512), table.pop("global_key_value_heads", None)
    listed = table.pop("per_layer_config", None)
    if listed:
        wide, many = _listed(table, listed)
    elif not table.get("attention_k_eq_v"):
        many = None
    sliding = {f"sliding_{name}": table[name] for name in _OVERRIDES if name in table}
    return table | sliding | {"head_dim": wide} | ({} if many is None else {"num_key_value_heads": many})


def _experts(table: Table) -> Table:
    """Experts count where `enable_moe_block` says so; next to them all tokens pass the dense part."""
    if not table.pop("enable_moe_block", False):
        for name in ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"):
            table.pop(name, None)
        return table
    spelled = {"n_routed_experts": "num_experts", "num_experts_per_tok": "top_k_experts"}
    for name in (*spelled, "moe_intermediate_size"):
        if not table.get(name):
            right = "missing: enable_moe_block asks for it, at least 1"
            raise Unsupported(spelled.get(name, name), table.get(name), right)
    return table | {"branch_norms": True, "shared_expert_intermediate_size": table.get("intermediate_size", 0)}


def _reuse(table: Table) -> Table:
    """The last `num_kv_shared_layers` layers reuse keys and values; the last layer has full attention."""
    shared = table.pop("num_kv_shared_layers", 0)
    kinds: Any = table.get("layer_types")
    if not counts_layers(table) or not isinstance(kinds, list) or len(kinds) != table["num_hidden_layers"]:
        return table
    if type(shared) is not int or not 0 <= shared < len(kinds):
        right = f"must be an integer from 0, less than the {len(kinds)} layers"
        raise Unsupported("num_kv_shared_layers", shared, right)
    kinds = [*kinds[:-1], "full_attention"] if kinds[-1] == "sliding_attention" else kinds
    first = len(kinds) - shared
    kinds = kinds[:first] + [_REUSED.get(str(kind), kind) for kind in kinds[first:]]
    doubled = shared > 0 and table.get("use_double_wide_mlp", False)
    return table | {"layer_types": kinds, "use_double_wide_mlp": doubled}


def _inputs(table: Table) -> Table:
    """A table of values that enter the layers counts where they have a width."""
    wide = table.get("hidden_size_per_layer_input", 0)
    return table if wide else table | {"vocab_size_per_layer_input": 0}


def _one_mixer(table: Table) -> Table:
    """Sizes of layers with a window where none has one."""
    kinds = table.get("layer_types") or []
    if not any("sliding" in str(kind) for kind in kinds):
        return {key: value for key, value in table.items() if not key.startswith("sliding_")}
    return table


_ROTATED = "angles of the rotary embedding: a part of them is zero"


def _gemma4(title: str, folder: str, **fixed: object) -> Architecture:
    return Architecture(
        keys=grouped_query(
            *("attention_bias", "attention_k_eq_v", "num_kv_shared_layers", "use_double_wide_mlp", "global_head_dim"),
            *("enable_moe_block", "moe_intermediate_size", "per_layer_config"),
            *("hidden_size_per_layer_input", "vocab_size_per_layer_input"),
            hidden_activation="hidden_act",
            num_global_key_value_heads="global_key_value_heads",
            top_k_experts="num_experts_per_tok",
        )
        | EXPERT_COUNT,
        fixed={
            **{"vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30},
            **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_act": "gelu"},
            **{"tie_word_embeddings": True, "norm_placement": "both", "qk_norm": True, "value_norm": True},
            **fixed,
        },
        finish=steps(every(6), _heads, _experts, _reuse, _inputs, _one_mixer, window, output_bias, rotary_dim),
        only={
            "use_bidirectional_attention": Only(
                values=("vision", False), otherwise="attention without a causal mask over text"
            )
        },
        ignored={
            "final_logit_softcapping": "a number inside a softmax, not a size",
            "expert_intermediate_size": "moe_intermediate_size says it",
            "rope_parameters": _ROTATED,
        },
        title=title,
        source=published(folder),
    )


_TEXT = _gemma4(
    "Gemma 4 E2B, E4B, 26B-A4B, 31B",
    "gemma4",
    sliding_window=512,
    hidden_size_per_layer_input=256,
    vocab_size_per_layer_input=262144,
)
SHIPPED: Mapping[str, Architecture] = {
    "gemma4_text": _TEXT,
    "gemma4_unified_text": _gemma4("Gemma 4 12B", "gemma4_unified", sliding_window=1024),
}
