"""Mixtures of experts of other families: Mixtral, Qwen, Phi, OLMoE, DBRX, MiniMax, Granite, Hunyuan, ERNIE, Ling."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.inputs.architectures.architecture import (
    EXPERT_COUNT,
    Architecture,
    Only,
    Table,
    Unsupported,
    experts_as_wide_as_dense,
    fill,
    grouped_query,
    output_bias,
    steps,
)
from simulator.inputs.architectures.layers import (
    are_integers,
    counts_layers,
    mlp_layer_types,
    no_window_unless_used,
    rotary_dim,
    sparse_step,
    uniform,
    window,
)
from simulator.inputs.architectures.llama import published

_QWEN = ("num_experts_per_tok", "moe_intermediate_size", "mlp_only_layers", "decoder_sparse_step")
_ZERO = "shared experts, which models of this type do not have"
QWEN3_MOE = Architecture(
    keys=grouped_query("attention_bias", *_QWEN, qkv_bias="attention_bias", use_qk_norm="qk_norm") | EXPERT_COUNT,
    fixed={"qk_norm": True},
    finish=steps(no_window_unless_used, sparse_step, output_bias, rotary_dim),
    only={"shared_expert_intermediate_size": Only(values=(0,), otherwise=_ZERO)},
    moe=True,
    dense="qwen3",
    title="Qwen3 A3B and A22B, Qwen3-Coder, Qwen3-VL, MoE",
    source=published("qwen3_moe"),
)


def _minimax(table: Table) -> Table:
    """MTP modules count where `use_mtp` says so; a head's norm is over all heads (`qk_norm_type` per_layer)."""
    used, modules = table.pop("use_mtp", False), table.pop("num_mtp_modules", 0)
    layers, bias = table.pop("mtp_transformer_layers", 1), table.pop("use_routing_bias", True)
    if used and layers != 1:
        raise Unsupported("mtp_transformer_layers", layers, "must be 1: MTP modules of several layers are not modelled")
    method = "noaux_tc" if bias else "greedy"
    return table | {"num_nextn_predict_layers": modules if used else 0, "topk_method": method}


def _ernie(table: Table) -> Table:
    """MoE are the layers from start to end (-1: the last) of which (i + 1) % interval == 0."""
    first, last = table.pop("moe_layer_start_index", 0), table.pop("moe_layer_end_index", -1)
    interval, layers = table.pop("moe_layer_interval", 1), table.get("num_hidden_layers")
    if are_integers([first, last, interval]) and interval > 0 and isinstance(layers, int) and counts_layers(table):
        end = last if last >= 0 else layers - 1
        dense = [i for i in range(layers) if (i + 1) % interval or not first <= i <= end]
        return table | {"mlp_only_layers": dense}
    return table


def _bailing(table: Table) -> Table:
    """Its key for QKV biases, and whether the gate has a correction bias."""
    biased, of_qkv = table.pop("use_bias", False), table.pop("use_qkv_bias", False)
    corrected = table.pop("moe_router_enable_expert_bias", False)
    bias = {"attention_bias": biased or of_qkv, "attention_out_bias": biased}
    return table | bias | {"topk_method": "noaux_tc" if corrected else "greedy"}


def _hunyuan(table: Table) -> Table:
    """Shared experts are as wide as routed ones; false and null of keys that are not used say nothing."""
    table = {key: value for key, value in table.items() if value is not False or key not in ("n_group", "topk_group")}
    return {"n_shared_experts": 1} | table


def _minimax3(table: Table) -> Table:
    """Which layers choose blocks of keys and which have experts: listed by name, or as ones and zeros."""
    chooses, experts = table.pop("sparse_attention_freq", None), table.pop("moe_layer_types", None)
    kinds, mlps = table.pop("layer_types", None), table.pop("mlp_layer_types", None)
    if not counts_layers(table):
        return table
    layers = table["num_hidden_layers"]
    for name, listed in (("sparse_attention_freq", chooses), ("moe_layer_freq", experts)):
        if listed is not None and (not are_integers(listed) or len(listed) != layers or not set(listed) <= {0, 1}):
            raise Unsupported(name, listed, f"must be a list of one 0 or 1 for each of the {layers} layers")
    if kinds is None:
        kinds = ["minimax_m3_sparse" if one else "full_attention" for one in chooses or [0] * layers]
    names = {"minimax_m3_sparse": "blocks", "blocks": "blocks", "full_attention": "full", "full": "full"}
    if not isinstance(kinds, (list, tuple)) or len(kinds) != layers or not all(kind in names for kind in kinds):
        right = f"must be a list of {', '.join(names)}, one for each of the {layers} layers"
        raise Unsupported("layer_types", kinds, right)
    if mlps is None:
        mlps = ["sparse" if one else "dense" for one in experts or [1] * layers]
    wide = table.pop("dense_width", 12288)
    table = table | ({"hidden_act": "silu"} if table.get("hidden_act") == "swigluoai" else {})
    table = table | {"moe_intermediate_size": table.get("intermediate_size"), "intermediate_size": wide}
    return mlp_layer_types(table | {"layer_types": [names[kind] for kind in kinds], "mlp_layer_types": mlps})


_MINIMAX3 = Architecture(
    keys=grouped_query(
        *("num_experts_per_tok", "index_n_heads", "index_head_dim", "index_block_size", "mlp_layer_types"),
        *("moe_intermediate_size", "num_nextn_predict_layers"),
        **{
            "moe_layer_freq": "moe_layer_types",
            "dense_intermediate_size": "dense_width",
            "shared_intermediate_size": "shared_expert_intermediate_size",
            "index_topk_blocks": "index_topk",
            "use_qk_norm": "qk_norm",
            "sparse_attention_config.sparse_attention_freq": "sparse_attention_freq",
            "sparse_attention_config.sparse_index_dim": "index_head_dim",
            "sparse_attention_config.sparse_num_index_heads": "index_n_heads",
            "sparse_attention_config.sparse_block_size": "index_block_size",
            "sparse_attention_config.sparse_topk_blocks": "index_topk",
        },
    )
    | EXPERT_COUNT,
    fixed={
        **{"qk_norm": True, "topk_method": "noaux_tc", "shared_expert_intermediate_size": 3072, "head_dim": 128},
        **{"index_n_heads": 4, "index_head_dim": 128, "index_block_size": 128, "index_topk": 16},
    },
    finish=steps(_minimax3, rotary_dim),
    only={
        "qk_norm_type": Only(values=("per_head",), otherwise="norms over all heads"),
        "attention_output_gate": Only(values=(False,), otherwise="a gate of attention's output"),
        "n_shared_experts": Only(values=(1,), otherwise="more shared experts than shared_intermediate_size says"),
    },
    ignored={
        **dict.fromkeys(("swiglu_alpha", "swiglu_limit"), "a number inside the activation, not a size"),
        "first_k_dense_replace": "moe_layer_freq says it of each layer",
        "index_local_blocks": "of the blocks that are chosen, those before the query",
        "num_mtp_modules": "num_nextn_predict_layers says how many the file has",
        "use_gemma_norm": "gains are stored less one",
        "use_routing_bias": "the gate has a correction bias",
        **{
            f"sparse_attention_config.{name}": why
            for name, why in {
                "sparse_init_block": "of the blocks that are chosen, the first ones",
                "sparse_local_block": "of the blocks that are chosen, those before the query",
                "sparse_score_type": "how a block's score is made of its keys'",
                "sparse_disable_index_value": "the indexer has no values",
                "use_sparse_attention": "sparse_attention_freq says where",
            }.items()
        },
    },
    moe=True,
    dense="qwen3",
    title="MiniMax-M3",
    source=published("minimax_m3_vl"),
)

SHIPPED: Mapping[str, Architecture] = {
    "minimax_m3": _MINIMAX3,
    "minimax_m3_vl_text": _MINIMAX3,
    "mixtral": Architecture(
        keys=grouped_query("num_experts_per_tok") | EXPERT_COUNT,
        finish=steps(window, experts_as_wide_as_dense, rotary_dim),
        moe=True,
        dense="mistral",
        title="Mixtral 8x7B and 8x22B",
        source=published("mixtral"),
    ),
    "qwen2_moe": Architecture(
        keys=grouped_query(*_QWEN, "shared_expert_intermediate_size", qkv_bias="attention_bias") | EXPERT_COUNT,
        fixed={"attention_bias": True, "shared_expert_gate": True},
        finish=steps(no_window_unless_used, sparse_step, rotary_dim),
        moe=True,
        dense="qwen2",
        title="Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
        source=published("qwen2_moe"),
    ),
    "qwen3_moe": QWEN3_MOE,
    "qwen3_vl_moe_text": QWEN3_MOE,
    "qwen3_omni_moe_text": QWEN3_MOE,
    "phimoe": Architecture(
        keys=grouped_query("attention_bias", "num_experts_per_tok", lm_head_bias="head_bias") | EXPERT_COUNT,
        fixed={"norm": "layer"},
        finish=steps(window, output_bias, experts_as_wide_as_dense, rotary_dim),
        moe=True,
        dense="phi3",
        title="Phi-3.5-MoE, Phi-mini-MoE",
        source=published("phimoe"),
    ),
    "olmoe": Architecture(
        keys=grouped_query("attention_bias", "num_experts_per_tok") | EXPERT_COUNT,
        fixed={"qk_norm": True, "qk_norm_over": "projection"},
        finish=steps(window, output_bias, experts_as_wide_as_dense, rotary_dim),
        moe=True,
        dense="olmo2",
        title="OLMoE-1B-7B",
        source=f"{published('olmoe')}; arXiv 2409.02060",
    ),
    "dbrx": Architecture(
        keys={
            "vocab_size": "vocab_size",
            "d_model": "hidden_size",
            "n_layers": "num_hidden_layers",
            "n_heads": "num_attention_heads",
            "max_seq_len": "max_position_embeddings",
            "attn_config.kv_n_heads": "num_key_value_heads",
            "ffn_config.ffn_hidden_size": "intermediate_size",
            "ffn_config.ffn_act_fn.name": "hidden_act",
            "ffn_config.moe_num_experts": "n_routed_experts",
            "ffn_config.moe_top_k": "num_experts_per_tok",
            "tie_word_embeddings": "tie_word_embeddings",
        },
        fixed={"norm": "layer", "norm_bias": False},
        finish=experts_as_wide_as_dense,
        ignored={
            "num_key_value_heads": "attn_config.kv_n_heads says it",
            "ffn_config.hidden_size": "d_model says it",
            "attn_config": "its keys are read one by one",
            "attn_config.rope_theta": "angles of the rotary embedding, not its width",
            "ffn_config.moe_expert_parallel_world_size": "how a run is laid out",
            "ffn_config.uniform_expert_assignment": "for measuring only",
        },
        moe=True,
        title="DBRX",
        source=published("dbrx"),
    ),
    "minimax_m2": Architecture(
        keys=grouped_query(
            "num_experts_per_tok",
            "use_mtp",
            "num_mtp_modules",
            "mtp_transformer_layers",
            "use_routing_bias",
            use_qk_norm="qk_norm",
            shared_intermediate_size="shared_expert_intermediate_size",
        )
        | EXPERT_COUNT,
        fixed={"qk_norm": True, "qk_norm_over": "projection"},
        finish=steps(window, experts_as_wide_as_dense, rotary_dim, _minimax),
        only={"qk_norm_type": Only(values=("per_layer",), otherwise="norms of each head")},
        ignored={"attn_type_list": "1 for each layer: full attention"},
        moe=True,
        dense="llama",
        title="MiniMax-M2, M2.1, M2.5, M2.7",
        source=published("minimax_m2"),
    ),
    "granitemoe": Architecture(
        keys=grouped_query("attention_bias", "num_experts_per_tok") | EXPERT_COUNT,
        finish=steps(window, output_bias, experts_as_wide_as_dense, rotary_dim),
        moe=True,
        dense="granite",
        title="Granite 3, MoE",
        source=published("granitemoe"),
    ),
    "granitemoeshared": Architecture(
        keys=grouped_query(
            "attention_bias", "num_experts_per_tok", shared_intermediate_size="shared_expert_intermediate_size"
        )
        | EXPERT_COUNT,
        finish=steps(window, output_bias, experts_as_wide_as_dense, rotary_dim),
        moe=True,
        dense="granite",
        title="Granite 3, MoE with a shared expert",
        source=published("granitemoeshared"),
    ),
    "hunyuan_v1_moe": Architecture(
        keys=grouped_query(
            "attention_bias",
            "moe_intermediate_size",
            "n_group",
            "topk_group",
            attention_head_dim="head_dim",
            moe_topk="num_experts_per_tok",
            num_shared_expert="n_shared_experts",
            moe_layer_num_skipped="first_k_dense_replace",
            use_qk_norm="qk_norm",
            mlp_bias="mlp_bias",
        )
        | EXPERT_COUNT,
        fixed={"qk_norm": True},
        finish=steps(
            window,
            uniform("num_experts_per_tok", "n_shared_experts", "moe_intermediate_size", "n_routed_experts"),
            output_bias,
            experts_as_wide_as_dense,
            _hunyuan,
            rotary_dim,
        ),
        only={
            "use_cla": Only(values=(False,), otherwise="keys and values that layers share (cross-layer attention)"),
            "use_mla": Only(values=(False,), otherwise="latent attention in this type"),
            "use_mixed_mlp_moe": Only(values=(True,), otherwise="experts without a shared one"),
            "norm_type": Only(values=("rms",), otherwise="other norms"),
            "group_limited_greedy": Only(values=(False,), otherwise="groups of experts"),
            "position_embedding_xdrope": Only(values=(False,), otherwise="another rotary embedding"),
        },
        ignored={
            "cla_share_factor": "read where use_cla is true only",
            "moe_drop_tokens": "tokens are not dropped here",
            "moe_random_routing_dropped_token": "tokens are not dropped here",
            "dense_list": "of a head for classification, not for language",
            "skip_cls_token": "of a head for classification, not for language",
            "anyres_pooling_size": "not the language model",
            "anyres_vit_max_image_size": "not the language model",
            "anyres_vit_two_views": "not the language model",
            "num_media_embeds": "not the language model",
        },
        moe=True,
        dense="hunyuan_v1_dense",
        title="Hunyuan-A13B",
        source=published("hunyuan_v1_moe"),
    ),
    "ernie4_5_moe": Architecture(
        keys=grouped_query(
            "moe_intermediate_size",
            "moe_layer_start_index",
            "moe_layer_end_index",
            "moe_layer_interval",
            "num_nextn_predict_layers",
            moe_num_experts="n_routed_experts",
            moe_k="num_experts_per_tok",
            moe_num_shared_experts="n_shared_experts",
        )
        | EXPERT_COUNT,
        fixed={"topk_method": "noaux_tc", "tie_word_embeddings": True},
        finish=steps(window, _ernie, rotary_dim),
        only={
            "use_bias": Only(values=(False,), otherwise="biases of everything but the experts"),
            "moe_gate": Only(values=("topk", "top2_fused"), otherwise="another gate"),
            "moe_use_aux_free": Only(values=(True,), otherwise="a gate without a correction bias"),
        },
        moe=True,
        dense="ernie4_5",
        title="ERNIE 4.5 21B-A3B and 300B-A47B",
        source=published("ernie4_5_moe"),
    ),
}

_BAILING_KEYS = (
    "num_experts_per_tok",
    "moe_intermediate_size",
    "first_k_dense_replace",
    "n_group",
    "topk_group",
    "num_nextn_predict_layers",
    "use_bias",
    "use_qkv_bias",
    "moe_router_enable_expert_bias",
)


def _ling(title: str, source: str, **fixed: object) -> Architecture:
    return Architecture(
        keys=grouped_query(
            *_BAILING_KEYS,
            num_shared_experts="n_shared_experts",
            moe_shared_expert_intermediate_size="shared_expert_intermediate_size",
            use_qk_norm="qk_norm",
        )
        | EXPERT_COUNT,
        fixed=dict(fixed),
        finish=steps(window, _bailing, fill(n_shared_experts="n_shared_experts"), rotary_dim),
        only={
            "multi_gate": Only(values=(False,), otherwise="a gate for each modality"),
            "use_rmsnorm": Only(values=(True,), otherwise="LayerNorm"),
        },
        ignored={
            "norm_head": "the head's columns are normed once, not for each token",
            "norm_softmax": "a number inside a softmax, not a size",
            "router_type": "topk is the only one there is",
        },
        moe=True,
        dense="llama",
        title=title,
        source=source,
    )


LING: Mapping[str, Architecture] = {
    "bailing_moe": _ling("Ling-lite, Ling-plus", "huggingface.co/inclusionAI/Ling-lite, arXiv 2503.05139"),
    "bailing_moe_v2": _ling(
        "Ling 2.0: mini, flash and 1T",
        "huggingface.co/inclusionAI/Ling-flash-2.0, arXiv 2510.22115",
        qk_norm=True,
        moe_router_enable_expert_bias=True,
    ),
}
