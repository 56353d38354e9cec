"""Models whose layers differ in how far attention sees: windows, chunks, and full attention between them."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.inputs.architectures.architecture import (
    EXPERT_COUNT,
    Architecture,
    Only,
    Table,
    Unsupported,
    experts_as_wide_as_dense,
    grouped_query,
    output_bias,
    steps,
)
from simulator.inputs.architectures.layers import (
    are_integers,
    counts_layers,
    every,
    mlp_layer_types,
    rotary_dim,
    window,
)
from simulator.inputs.architectures.llama import published

_CAUSAL = {"use_bidirectional_attention": Only(values=(False,), otherwise="attention without a causal mask")}
_CAPPED = {
    "final_logit_softcapping": "a number inside a softmax, not a size",
    "swiglu_limit": "a bound of the activation, not a size",
    "swiglu_alpha": "a number inside the activation, not a size",
}


def _gemma(title: str, folder: str, step: int, **fixed: object) -> Architecture:
    """Norms before and behind the branches, a window in all layers but every `step`-th."""
    return Architecture(
        keys=grouped_query("attention_bias", hidden_activation="hidden_act"),
        fixed={"tie_word_embeddings": True, "norm_placement": "both", "hidden_act": "gelu", **fixed},
        finish=steps(every(step), window, output_bias, rotary_dim),
        only=_CAUSAL,
        ignored=_CAPPED,
        title=title,
        source=published(folder),
    )


_GEMMA3 = _gemma(
    "Gemma 3, 1B to 27B",
    "gemma3",
    6,
    qk_norm=True,
    sliding_window=4096,
    head_dim=256,
    vocab_size=262208,
    num_attention_heads=8,
    num_key_value_heads=4,
)


def _unrotated(table: Table) -> Table:
    """Layers with full attention do not rotate where others have a window."""
    return table | ({"full_rotary_factor": 0.0} if table.get("layer_types") else {})


def _llama4(table: Table) -> Table:
    """Every `no_rope_layer_interval`-th layer has full attention and does not rotate, the others chunks; every
    `interleave_moe_layer_step`-th has experts, as wide as `intermediate_size`, and a shared one."""
    rotating, step = table.pop("no_rope_layers", None), table.pop("no_rope_layer_interval", 4)
    sparse, moe_step = table.pop("moe_layers", None), table.pop("interleave_moe_layer_step", 1)
    wide = table.pop("intermediate_size_mlp", None)
    table = table | {"moe_intermediate_size": table.get("intermediate_size", 0), "full_rotary_factor": 0.0}
    table = table | {"intermediate_size": wide or table.get("intermediate_size")}
    if not counts_layers(table):
        return table
    layers = range(table["num_hidden_layers"])
    if not sparse:
        if type(moe_step) is not int or moe_step < 1:
            raise Unsupported("interleave_moe_layer_step", moe_step, "must be an integer, at least 1")
        sparse = [i for i in layers if (i + 1) % moe_step == 0]
    if not rotating:
        if type(step) is not int or step < 1:
            raise Unsupported("no_rope_layer_interval", step, "must be an integer, at least 1")
        rotating = [int((i + 1) % step != 0) for i in layers]
    if not are_integers(rotating) or len(rotating) != len(layers):
        right = f"must be a list of one 0 or 1 for each of the {len(layers)} layers"
        raise Unsupported("no_rope_layers", rotating, right)
    kinds = ["chunked_attention" if rotates else "full_attention" for rotates in rotating]
    table = {"layer_types": kinds} | table if table.get("attention_chunk_size") else table
    return table | {"mlp_only_layers": [i for i in layers if i not in sparse]}


def _mimo(table: Table) -> Table:
    """The hub's lists of layers with a window and with experts; heads of layers with a window."""
    table.pop("attention_chunk_size", None)  # no layer of this type has chunks
    before = table.pop("sliding_window_size", None)
    if isinstance(before, int):  # so many keys and the query's own (transformers' MiMoV2FlashConfig)
        table = table | {"sliding_window": before + 1}
    pattern, sparse = table.pop("hybrid_layer_pattern", None), table.pop("moe_layer_types", None)
    if pattern is not None:
        table = {"layer_types": ["sliding_attention" if one else "full_attention" for one in pattern]} | table
    if sparse is not None:
        table = {"mlp_layer_types": ["sparse" if one else "dense" for one in sparse]} | table
    if "sliding_num_key_value_heads" not in table and isinstance(table.get("num_key_value_heads"), int):
        table = table | {"sliding_num_key_value_heads": 2 * table["num_key_value_heads"]}
    if counts_layers(table):
        layers = range(table["num_hidden_layers"])
        kinds = ["full_attention" if i == 0 or (i + 1) % 6 == 0 else "sliding_attention" for i in layers]
        table = {"layer_types": kinds, "mlp_layer_types": ["dense"] + ["sparse"] * (len(layers) - 1)} | table
    return table


def _step(table: Table) -> Table:
    """Lists that go on with the layers of MTP modules, a number of heads for layers with a window, MoE from layer 3."""
    other, enum = table.pop("attention_other_setting", None), table.pop("moe_layers_enum", None)
    table.pop("per_layer_config", None)
    if isinstance(other, dict) and isinstance(other.get("num_attention_heads"), int):
        table = {"sliding_num_attention_heads": other["num_attention_heads"]} | table
    if not counts_layers(table):
        return table
    layers = range(table["num_hidden_layers"])
    if "sliding_attention" not in (table.get("layer_types") or ()):  # transformers writes their heads all the same
        table.pop("sliding_num_attention_heads", None)
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(table.get(name), list) and len(table[name]) > len(layers):
            table = table | {name: table[name][: len(layers)]}
    if table.get("mlp_layer_types") is None:
        items = enum.split(",") if isinstance(enum, str) else enum
        sparse = {int(i) for i in items} if items else set(layers[table.get("first_k_dense_replace", 3) :])
        table = table | {"mlp_layer_types": ["sparse" if i in sparse else "dense" for i in layers]}
    return table


_STEP = Architecture(
    keys=grouped_query(
        "attention_bias",
        "mlp_bias",
        "mlp_layer_types",
        "moe_layers_enum",
        "attention_other_setting",
        "per_layer_config",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "n_shared_experts",
        "first_k_dense_replace",
        "num_nextn_predict_layers",
        num_attention_groups="num_key_value_heads",
        num_sliding_attention_heads="sliding_num_attention_heads",
        share_expert_dim="shared_expert_intermediate_size",
        share_expert_dims="shared_expert_intermediate_size",
        moe_num_experts="n_routed_experts",
        moe_top_k="num_experts_per_tok",
    )
    | EXPERT_COUNT,
    fixed={
        "qk_norm": True,
        "attention_gate": "head",
        "topk_method": "noaux_tc",
        "shared_expert_intermediate_size": 1280,
        "moe_intermediate_size": 1280,
        "num_experts_per_tok": 8,
    },
    finish=steps(_step, window, output_bias, mlp_layer_types, rotary_dim),
    only={"gating": Only(values=(True, "per-head"), otherwise="a gate of each value")} | _CAUSAL,
    ignored={
        "partial_rotary_factors": "angles of the rotary embedding: a part of them is zero",
        "swiglu_limits": "bounds of the activation, not sizes",
        "swiglu_limits_shared": "bounds of the activation, not sizes",
        "mtp_layer_types": "of the MTP modules: as other layers with full attention",
        "mtp_mlp_layer_types": "of the MTP modules",
        "moe_router_scaling_factor": "how the gate computes its weights",
        "use_moe_router_bias": "the gate has a correction bias",
        "use_head_wise_attn_gate": "heads have a gate in this type",
        "use_qk_norm": "heads are normed in this type",
    },
    moe=True,
    dense="qwen3",
    title="Step-3.5-Flash, Step-3.7-Flash",
    source=published("step3p7"),
)

_ROUTED = ("num_experts_per_tok", "moe_intermediate_size", "n_group", "topk_group", "num_nextn_predict_layers")
_ONE_GROUP = Only(values=(0, 1), otherwise="groups by another name than n_group and topk_group")

SHIPPED: Mapping[str, Architecture] = {
    "afmoe": Architecture(
        keys=grouped_query(
            *("attention_bias", *_ROUTED),
            num_dense_layers="first_k_dense_replace",
            num_shared_experts="n_shared_experts",
            global_attn_every_n_layers="sliding_window_pattern",
        )
        | EXPERT_COUNT,
        fixed={
            **{"qk_norm": True, "norm_placement": "both", "attention_gate": "element", "topk_method": "noaux_tc"},
            **{"sliding_window": 1024, "first_k_dense_replace": 1, "n_shared_experts": 2, "num_experts_per_tok": 6},
        },
        finish=steps(every(4), window, _unrotated, output_bias, rotary_dim),
        only={"num_expert_groups": _ONE_GROUP, "num_limited_groups": _ONE_GROUP},
        ignored={
            **dict.fromkeys(("route_scale", "route_norm", "score_func"), "how the gate computes its weights"),
            **{"mup_enabled": "a factor of the embedding", "load_balance_coeff": "training only"},
            "use_grouped_mm": "how a forward call is programmed",
        },
        moe=True,
        dense="qwen3",
        title="Trinity Nano, Mini, Large",
        source=published("afmoe"),
    ),
    "exaone_moe": Architecture(
        keys=grouped_query(
            *("mlp_layer_types", "first_k_dense_replace", *_ROUTED), num_shared_experts="n_shared_experts"
        )
        | EXPERT_COUNT,
        fixed={
            **{"qk_norm": True, "topk_method": "noaux_tc", "sliding_window": 4096},
            **{"first_k_dense_replace": 1, "n_shared_experts": 1, "num_experts_per_tok": 8},
        },
        finish=steps(every(4), window, mlp_layer_types, _unrotated, rotary_dim),
        moe=True,
        dense="exaone4",
        title="K-EXAONE 236B-A23B",
        source=published("exaone_moe"),
    ),
    "mellum": Architecture(
        keys=grouped_query("attention_bias", "mlp_layer_types", *_ROUTED) | EXPERT_COUNT,
        fixed={"qk_norm": True},
        finish=steps(window, mlp_layer_types, output_bias, rotary_dim),
        ignored={
            "mtp_layer_types": "of the MTP modules: as other layers with full attention",
            "mtp_mlp_layer_types": "of the MTP modules",
        },
        moe=True,
        dense="qwen3",
        title="Mellum 2",
        source=published("mellum"),
    ),
    "ministral": Architecture(
        keys=grouped_query(),
        finish=steps(window, rotary_dim),
        title="Ministral 8B",
        source=published("ministral"),
    ),
    "granite_swa": Architecture(
        keys=grouped_query("attention_bias", "mlp_bias"),
        fixed={"attention_sinks": "all"},
        finish=steps(every(4, first=True), window, output_bias, rotary_dim),
        ignored={"layer_rope_theta": "angles of the rotary embedding, not its width"},
        title="Granite with windows, dense",
        source=published("granite_swa"),
    ),
    "gpt_oss": Architecture(
        keys=grouped_query(
            "attention_bias", "num_experts_per_tok", "swiglu_limit", experts_per_token="num_experts_per_tok"
        )
        | EXPERT_COUNT,
        fixed={"attention_bias": True, "mlp_bias": True, "router_bias": True, "attention_sinks": "all"},
        finish=steps(every(2), window, output_bias, experts_as_wide_as_dense, rotary_dim),
        ignored={key: why for key, why in _CAPPED.items() if key != "swiglu_limit"}
        | {"initial_context_length": "angles of the rotary embedding, not its width"},
        moe=True,
        dense="llama",
        title="gpt-oss 20B and 120B",
        source=f"{published('gpt_oss')}; arXiv 2508.10925, section 2",
    ),
    "gemma2": _gemma("Gemma 2, 2B to 27B", "gemma2", 2, sliding_window=4096),
    "gemma3_text": _GEMMA3,
    "vaultgemma": Architecture(
        keys=grouped_query("attention_bias", hidden_activation="hidden_act"),
        fixed={"tie_word_embeddings": True, "hidden_act": "gelu", "sliding_window": 512},
        finish=steps(every(2), window, output_bias, rotary_dim),
        only=_CAUSAL,
        ignored=_CAPPED,
        title="VaultGemma 1B",
        source=published("vaultgemma"),
    ),
    "cohere2": Architecture(
        keys=grouped_query("attention_bias"),
        fixed={
            **{"norm": "layer", "norm_bias": False, "parallel_block": True, "shared_norm": True},
            **{"tie_word_embeddings": True, "sliding_window": 4096},
        },
        finish=steps(every(4), window, _unrotated, output_bias, rotary_dim),
        only={"use_qk_norm": Only(values=(False,), otherwise="LayerNorms of queries and keys")},
        title="Command R7B, Command A",
        source=f"{published('cohere2')}; arXiv 2504.00698, section 2.1",
    ),
    "olmo3": Architecture(
        keys=grouped_query("attention_bias"),
        fixed={"qk_norm": True, "qk_norm_over": "projection", "norm_placement": "post", "sliding_window": 4096},
        finish=steps(every(4), window, output_bias, rotary_dim),
        title="OLMo 3",
        source=published("olmo3"),
    ),
    "exaone4": Architecture(
        keys=grouped_query("attention_bias"),
        fixed={"qk_norm": True, "norm_placement": "post"},
        finish=steps(every(4), window, _unrotated, output_bias, rotary_dim),
        title="EXAONE 4.0",
        source=f"{published('exaone4')}; arXiv 2507.11407, section 2.1",
    ),
    "cwm": Architecture(
        keys=grouped_query("attention_bias", "mlp_bias"),
        fixed={"sliding_window": 8192},
        finish=steps(every(4, first=True), window, output_bias, rotary_dim),
        title="Code World Model 32B",
        source=f"{published('cwm')}; arXiv 2510.02387",
    ),
    "llama4_text": Architecture(
        keys=grouped_query(
            "attention_bias",
            "num_experts_per_tok",
            "no_rope_layers",
            "no_rope_layer_interval",
            "interleave_moe_layer_step",
            "moe_layers",
            "intermediate_size_mlp",
        )
        | EXPERT_COUNT,
        fixed={"attention_chunk_size": 8192, "n_shared_experts": 1, "num_experts_per_tok": 1},
        finish=steps(_llama4, window, output_bias, rotary_dim),
        ignored={
            "use_qk_norm": "norms without weights; their kernels over queries and keys are left out",
            "attn_temperature_tuning": "a number inside a softmax, not a size",
            "floor_scale": "a number inside a softmax, not a size",
            "attn_scale": "a number inside a softmax, not a size",
            "for_llm_compressor": "how a forward call is programmed",
        },
        moe=True,
        dense="llama",
        title="Llama 4 Scout, Maverick",
        source=published("llama4"),
    ),
    "mimo_v2_flash": Architecture(
        keys=grouped_query(
            "attention_bias",
            "v_head_dim",
            "hybrid_layer_pattern",
            "sliding_window_size",
            "mlp_layer_types",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "n_shared_experts",
            "n_group",
            "topk_group",
            "topk_method",
            "num_nextn_predict_layers",
            moe_layer_freq="moe_layer_types",
            swa_num_attention_heads="sliding_num_attention_heads",
            swa_num_key_value_heads="sliding_num_key_value_heads",
            swa_head_dim="sliding_head_dim",
            swa_v_head_dim="sliding_v_head_dim",
        )
        | EXPERT_COUNT,
        fixed={"topk_method": "noaux_tc", "attention_sinks": "sliding", "sliding_window": 128},
        finish=steps(_mimo, window, mlp_layer_types, rotary_dim),
        only={
            "add_swa_attention_sink_bias": Only(values=(True,), otherwise="layers with a window and no sinks"),
            "add_full_attention_sink_bias": Only(values=(False,), otherwise="sinks in layers with full attention"),
        },
        ignored={
            "swa_rope_theta": "angles of the rotary embedding, not its width",
            "layernorm_epsilon": "a number inside a norm",
            "attention_value_scale": "a number inside attention, not a size",
        },
        moe=True,
        dense="qwen3",
        title="MiMo-V2-Flash",
        source=published("mimo_v2_flash"),
    ),
    "step3p5": _STEP,
    "step3p7": _STEP,
    "step3p7_text": _STEP,
}
