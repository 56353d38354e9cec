"""Models with recurrent layers: the gated delta rule (Qwen3-Next, Qwen3.5), Mamba-2 (Nemotron-H, Bamba, Granite 4,
Falcon-H1)."""

from __future__ import annotations

from collections.abc import Mapping

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
from simulator.inputs.architectures.layers import (
    are_integers,
    counts_layers,
    no_window_unless_used,
    rotary_dim,
    sparse_step,
    window,
)
from simulator.inputs.architectures.llama import published

_DELTA = (
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
    "full_attention_interval",
)
_QWEN_MOE = ("num_experts_per_tok", "moe_intermediate_size", "mlp_only_layers", "shared_expert_intermediate_size")
_GATED = {
    "qk_norm": True,
    "attention_gate": "element",
    "partial_rotary_factor": 0.25,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "head_dim": 256,
}
_ONLY_GATED = {
    "attn_output_gate": Only(values=(True,), otherwise="attention without a gate in this type"),
    "mtp_use_dedicated_embeddings": Only(values=(False,), otherwise="MTP modules with embeddings of their own"),
}
_PRECISION = {
    "mamba_ssm_dtype": "how states are stored: FP32 is taken",
    "mamba_ssm_cache_dtype": "how states are stored: FP32 is taken",
}


def _every_fourth(table: Table) -> Table:
    """Every `full_attention_interval`-th layer attends, where the file does not list the layers."""
    step = table.pop("full_attention_interval", 4)
    if table.get("layer_types") is not None or not counts_layers(table):
        return table
    if type(step) is not int or step < 1:
        raise Unsupported("full_attention_interval", step, "must be an integer, at least 1")
    layers = range(table["num_hidden_layers"])
    return table | {"layer_types": ["linear_attention" if (i + 1) % step else "full_attention" for i in layers]}


def _wide(table: Table) -> Table:
    """A file of the MoE type needs no width of dense layers: it has none."""
    return {"intermediate_size": table.get("moe_intermediate_size")} | table


def _qwen(title: str, folder: str, *, moe: bool, steps_of_moe: bool = False) -> Architecture:
    moe_keys = (*_QWEN_MOE, *(("decoder_sparse_step",) if steps_of_moe else ())) if moe else ()
    keys = grouped_query("attention_bias", *_DELTA, *moe_keys, mtp_num_hidden_layers="num_nextn_predict_layers")
    first = (_every_fourth, _wide, sparse_step) if moe else (_every_fourth,)
    return Architecture(
        keys=keys | (EXPERT_COUNT if moe else {}),
        fixed=_GATED | ({"shared_expert_gate": True} if moe else {}),
        finish=steps(*first, no_window_unless_used, output_bias, rotary_dim),
        only=_ONLY_GATED | ({} if moe else {"mlp_only_layers": Only(values=([],), otherwise="experts")}),
        ignored=_PRECISION,
        moe=moe,
        dense="qwen3_5_text" if moe else "",
        title=title,
        source=f"{published(folder)}; arXiv 2412.06464",
    )


_PARTS = {
    "M": "linear_attention",
    "*": "full_attention",
    "-": "mlp",
    "E": "moe",
    "mamba": "linear_attention",
    "attention": "full_attention",
}
"""Nemotron-H's letters, and former names -> names of a layer's one part."""


def _nemotron(table: Table) -> Table:
    """Each layer is one part: Mamba-2, attention that rotates nothing, a feed-forward part or experts."""
    table = table | {"partial_rotary_factor": 0.0}
    pattern, listed = table.pop("hybrid_override_pattern", None), table.pop("layers_block_type", None)
    kinds = [_PARTS.get(kind, kind) for kind in listed] if listed is not None else None
    if kinds is None and pattern is not None:
        wrong = sorted(set(pattern) - set(_PARTS))
        if wrong:
            raise Unsupported("hybrid_override_pattern", pattern, "must be of the letters M, *, - and E")
        kinds = [_PARTS[letter] for letter in pattern]
    if kinds is None:
        return table
    layers = table.setdefault("num_hidden_layers", len(kinds))
    if layers != len(kinds):
        name = "layers_block_type" if listed is not None else "hybrid_override_pattern"
        right = f"lists {len(kinds)} layers, num_hidden_layers is {layers}"
        raise Unsupported(name, pattern if listed is None else listed, right)
    mixers = {"linear_attention": "mamba2", "full_attention": "full", "mlp": "none", "moe": "none"}
    if not set(kinds) <= set(mixers):
        raise Unsupported("layers_block_type", kinds, f"must be of {', '.join(mixers)}")
    if "moe" not in kinds:
        table = table | {"n_routed_experts": 0, "moe_latent_size": 0}
    return _nemotron_mtp(table) | {
        "layer_types": [mixers[kind] for kind in kinds],
        "mixer_only_layers": [i for i, kind in enumerate(kinds) if mixers[kind] != "none"],
        "mlp_only_layers": [i for i, kind in enumerate(kinds) if kind == "mlp"],
    }


def _nemotron_mtp(table: Table) -> Table:
    """An MTP module is an attention layer and one with experts: what other models have as one layer."""
    given = {name: table.pop(name, None) for name in ("mtp_hybrid_override_pattern", "mtp_layers_block_type")}
    for name, pattern in given.items():
        kinds = [_PARTS.get(kind, kind) for kind in pattern or ()]
        if table.get("num_nextn_predict_layers") and kinds not in ([], ["full_attention", "moe"]):
            raise Unsupported(name, pattern, "MTP modules of an attention layer and one with experts (*E) are modelled")
    return table


_MAMBA = {
    "mamba_n_heads": "mamba_num_heads",
    "mamba_d_head": "mamba_d_head",
    "mamba_n_groups": "mamba_n_groups",
    "mamba_d_state": "ssm_state_size",
    "mamba_d_conv": "mamba_conv_kernel",
    "mamba_expand": "mamba_expand",
    "mamba_chunk_size": "mamba_chunk_size",
}
_PLAIN_MAMBA = {
    "mamba_conv_bias": Only(values=(True,), otherwise="a convolution without a bias"),
    "mamba_proj_bias": Only(values=(False,), otherwise="biases of Mamba's projections"),
}
_STEPS = dict.fromkeys(
    ("time_step_limit", "time_step_min", "time_step_max", "time_step_floor", "time_step_rank", "z_loss_coefficient"),
    "a bound of the step size, not a size",
)


def _heads(table: Table) -> Table:
    """Heads as wide as `mamba_expand` times the hidden size needs, where their width is not given."""
    wide, expand = table.pop("mamba_d_head", "auto"), table.pop("mamba_expand", 2)
    heads, hidden = table.get("mamba_num_heads"), table.get("hidden_size")
    if wide == "auto" and are_integers([heads, hidden, expand]) and heads and hidden:
        wide = hidden * expand // heads
    return table | {"mamba_head_dim": wide}


def _of_inner(table: Table) -> Table:
    """Heads of Mamba-2 as wide as `mamba_d_ssm` needs, or `mamba_expand` times the hidden size; where both are given
    they must agree."""
    inner, heads, given = table.pop("mamba_d_ssm", None), table.get("mamba_num_heads"), table.get("mamba_d_head")
    if inner is None:
        return _heads(table)
    table.pop("mamba_expand", None)
    wide = table.pop("mamba_d_head", "auto")
    if not are_integers([inner, heads]) or not heads:
        return table | {"mamba_head_dim": wide}
    if inner % heads or wide not in ("auto", inner // heads):
        raise Unsupported("mamba_d_ssm", inner, f"must be the {heads} heads (mamba_n_heads) of {given} (mamba_d_head)")
    return table | {"mamba_head_dim": inner // heads}


def _both(table: Table) -> Table:
    """Attention and Mamba-2 in every layer."""
    table.pop("layers_block_type", None)
    kinds = table.pop("layer_types", None)
    if not counts_layers(table):
        return table
    layers = table["num_hidden_layers"]
    if kinds is not None and list(kinds) != ["hybrid"] * layers:
        raise Unsupported("layer_types", kinds, f"must be hybrid for each of the {layers} layers")
    return table | {"layer_types": ["hybrid"] * layers}


def _attended(table: Table) -> Table:
    """The layers that `attn_layer_indices` names attend, all others are Mamba-2 layers."""
    named, listed = table.pop("attn_layer_indices", None), table.pop("layers_block_type", None)
    if listed is not None:
        table = {"layer_types": listed} | table
    if table.get("layer_types") is None and counts_layers(table):
        layers = range(table["num_hidden_layers"])
        kinds = ["full_attention" if i in (named or ()) else "linear_attention" for i in layers]
        table = table | {"layer_types": kinds}
    if isinstance(table.get("layer_types"), list):
        names = {"linear_attention": "mamba", "attention": "full_attention"}
        table = table | {"layer_types": [names.get(kind, kind) for kind in table["layer_types"]]}
    return table


def _granite(table: Table) -> Table:
    """Without experts only the shared one is left, as a dense part; "nope": nothing rotates."""
    kind = table.pop("position_embedding_type", None)
    table = table | ({} if kind == "rope" else {"partial_rotary_factor": 0.0})
    if not table.get("n_routed_experts"):
        shared = table.pop("shared_expert_intermediate_size", None)
        return table | {"n_routed_experts": 0, "intermediate_size": shared or table.get("intermediate_size")}
    return table | {"moe_intermediate_size": table.get("intermediate_size")}


_MAMBA_FIXED = {"mamba_num_heads": 128, "mamba_n_groups": 1, "ssm_state_size": 256}
SHIPPED: Mapping[str, Architecture] = {
    "qwen3_next": _qwen("Qwen3-Next-80B-A3B", "qwen3_next", moe=True, steps_of_moe=True),
    "qwen3_5_moe_text": _qwen("Qwen3.5, MoE", "qwen3_5_moe", moe=True),
    "qwen3_5_text": _qwen("Qwen3.5, dense", "qwen3_5", moe=False),
    "nemotron_h": Architecture(
        keys=grouped_query(
            "attention_bias",
            "mlp_bias",
            "hybrid_override_pattern",
            "layers_block_type",
            "mamba_num_heads",
            "mamba_head_dim",
            "ssm_state_size",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "n_group",
            "topk_group",
            "moe_latent_size",
            "num_nextn_predict_layers",
            "mtp_hybrid_override_pattern",
            "mtp_layers_block_type",
            n_groups="mamba_n_groups",
            mamba_n_groups="mamba_n_groups",
            conv_kernel="mamba_conv_kernel",
            chunk_size="mamba_chunk_size",
            attention_head_dim="head_dim",
            mlp_hidden_act="hidden_act",
            moe_shared_expert_intermediate_size="shared_expert_intermediate_size",
        )
        | EXPERT_COUNT,
        fixed={
            **{"gated_mlp": False, "hidden_act": "relu2", "partial_rotary_factor": 0.0, "topk_method": "noaux_tc"},
            **{"mamba_num_heads": 128, "mamba_head_dim": 64, "mamba_n_groups": 8, "ssm_state_size": 128},
        },
        finish=steps(_nemotron, window, output_bias),
        only={
            "use_bias": Only(values=(False,), otherwise="biases of Mamba's projections"),
            "use_conv_bias": Only(values=(True,), otherwise="a convolution without a bias"),
        }
        | _PLAIN_MAMBA,
        ignored=_STEPS
        | _PRECISION
        | {
            "expand": "mamba_num_heads and mamba_head_dim say it",
            "n_shared_experts": "moe_shared_expert_intermediate_size gives the width of all",
            "mamba_hidden_act": "SiLU behind the convolution",
            "use_mamba_kernels": "how a forward call is programmed",
            "num_logits_to_keep": "how text is generated",
            "rescale_prenorm_residual": "training only: initialisation",
            "residual_in_fp32": "how a forward call is programmed",
            "moe_shared_expert_overlap": "how a forward call is programmed",
            "keep_mtp_spec_in_bf16": "how weights are stored: a job's precision says how they are used",
        },
        title="Nemotron-H, Nemotron 3 Nano and Super",
        source=f"{published('nemotron_h')}; arXiv 2504.03624, 2604.12374",
    ),
    "falcon_h1": Architecture(
        keys=grouped_query(
            "attention_bias", "mlp_bias", "layers_block_type", "mamba_d_ssm", "mamba_rms_norm", **_MAMBA
        ),
        fixed={**_MAMBA_FIXED, "mamba_d_ssm": 1024, "mamba_rms_norm": False},
        finish=steps(_of_inner, _both, window, output_bias, rotary_dim),
        only=_PLAIN_MAMBA | {"projectors_bias": Only(values=(False,), otherwise="a bias of Mamba's output projection")},
        ignored=_STEPS
        | dict.fromkeys(
            (
                *("lm_head_multiplier", "mlp_multipliers", "key_multiplier", "attention_out_multiplier"),
                *("attention_in_multiplier", "ssm_multipliers", "ssm_in_multiplier", "ssm_out_multiplier"),
            ),
            "a factor that scales a weight or rides on a kernel",
        )
        | {"mamba_norm_before_gate": "a gate before or behind a norm", "num_logits_to_keep": "how text is generated"}
        | {"mamba_use_mlp": "every layer has a feed-forward part", "mlp_expansion_factor": "intermediate_size says it"},
        title="Falcon-H1",
        source=f"{published('falcon_h1')}; arXiv 2507.22448",
    ),
    "bamba": Architecture(
        keys=grouped_query("attention_bias", "mlp_bias", "attn_layer_indices", "layers_block_type", **_MAMBA),
        fixed={**_MAMBA_FIXED, "partial_rotary_factor": 0.5},
        finish=steps(_heads, _attended, window, output_bias, rotary_dim),
        only=_PLAIN_MAMBA,
        ignored=_STEPS | {"num_logits_to_keep": "how text is generated", "attn_rotary_emb": "angles, half of a head"},
        title="Bamba 9B",
        source=published("bamba"),
    ),
    "granitemoehybrid": Architecture(
        keys=grouped_query(
            "attention_bias",
            "num_experts_per_tok",
            "position_embedding_type",
            "layers_block_type",
            shared_intermediate_size="shared_expert_intermediate_size",
            **_MAMBA,
        )
        | EXPERT_COUNT,
        fixed=_MAMBA_FIXED,
        finish=steps(_heads, _attended, _granite, window, output_bias, rotary_dim),
        only=_PLAIN_MAMBA,
        ignored=_STEPS,
        title="Granite 4.0, hybrid",
        source=published("granitemoehybrid"),
    ),
}
