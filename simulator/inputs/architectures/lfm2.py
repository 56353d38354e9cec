"""LFM2: short convolutions between layers of grouped-query attention (arXiv 2511.23404)."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.inputs.architectures.architecture import EXPERT_COUNT, Architecture, Only, Table, grouped_query, steps
from simulator.inputs.architectures.deepseek import AUX_FREE
from simulator.inputs.architectures.layers import are_integers, counts_layers, window
from simulator.inputs.architectures.llama import published


def _mixers(table: Table) -> Table:
    """Which layers attend: listed, or numbered from 0; all others convolve, as wide as the model."""
    full = table.pop("full_attn_idxs", None)
    if table.get("layer_types") is None and counts_layers(table):
        attend = full if are_integers(full) else range(table["num_hidden_layers"])
        layers = range(table["num_hidden_layers"])
        table = table | {"layer_types": ["full_attention" if i in attend else "conv" for i in layers]}
    return table | {"short_conv_size": table.get("hidden_size")}


def _width(table: Table) -> Table:
    """Dense parts are two thirds as wide as the file says, times a factor, rounded up, unless it says otherwise."""
    adjusts, factor = table.pop("block_auto_adjust_ff_dim", True), table.pop("block_ffn_dim_multiplier", 1.0)
    multiple, wide = table.pop("block_multiple_of", 256), table.get("intermediate_size")
    numbers = isinstance(factor, (int, float)) and are_integers([wide, multiple])
    if adjusts and wide is not None and numbers and multiple:
        table["intermediate_size"] = -(-int(factor * int(2 * wide / 3)) // multiple) * multiple
    return table


_BLOCK = {
    "full_attn_idxs": "full_attn_idxs",
    "conv_L_cache": "short_conv_kernel",
}
_ADJUST = ("block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of")
_ONLY = {
    "conv_bias": Only(values=(False,), otherwise="biases of convolutions and their projections"),
    "block_use_swiglu": Only(values=(True,), otherwise="feed-forward parts without a gate"),
}
_SAID = "hidden_size, num_attention_heads and num_key_value_heads say it"
_IGNORED = {
    **dict.fromkeys(("block_dim", "conv_dim", "conv_dim_out", "num_heads", "block_mlp_init_scale"), _SAID),
    **dict.fromkeys(("block_out_init_scale", "conv_use_xavier_init", "block_use_xavier_init"), "initialisation"),
    **dict.fromkeys(("theta", "block_norm_eps"), "a number inside a norm or an angle, not a size"),
    "use_pos_enc": "rotary embedding",
}
SHIPPED: Mapping[str, Architecture] = {
    "lfm2": Architecture(
        keys=grouped_query(*_ADJUST, block_ff_dim="intermediate_size", **_BLOCK),
        fixed={"qk_norm": True, "tie_word_embeddings": True},
        finish=steps(_mixers, _width, window),
        only=_ONLY,
        ignored=_IGNORED | {"tie_embedding": "tie_word_embeddings says it"},
        title="LFM2, dense",
        source=f"{published('lfm2')}; arXiv 2511.23404",
    ),
    "lfm2_moe": Architecture(
        keys=grouped_query(
            "num_experts_per_tok", "moe_intermediate_size", num_dense_layers="first_k_dense_replace", **_BLOCK
        )
        | EXPERT_COUNT,
        fixed={**AUX_FREE, "qk_norm": True, "tie_word_embeddings": True, "first_k_dense_replace": 2},
        finish=steps(_mixers, window),
        only=_ONLY | {"use_expert_bias": Only(values=(True,), otherwise="a gate without correction biases")},
        ignored=_IGNORED | {"tie_embedding": "tie_word_embeddings says it"},
        moe=True,
        dense="lfm2",
        title="LFM2, MoE",
        source=f"{published('lfm2_moe')}; arXiv 2511.23404",
    ),
}
