"""Kimi Linear: Kimi Delta Attention between layers of latent attention that rotate nothing (arXiv 2510.26692); Kimi K3:
the same with a gate of latent attention, experts in a narrower width and attention over earlier layers."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.inputs.architectures.architecture import (
    EXPERT_COUNT,
    Architecture,
    Table,
    Unsupported,
    output_bias,
    spelled,
    steps,
)
from simulator.inputs.architectures.deepseek import AUX_FREE, LATENT, MOE
from simulator.inputs.architectures.layers import are_integers, counts_layers, mlp_layer_types
from simulator.inputs.architectures.llama import published

_KINDS = {"linear_attention": "kda", "kda": "kda", "full_attention": "full", "full": "full"}


def _heads(table: Table) -> Table:
    """Heads of keys and values are as many and as wide; so wide is the input of the gate's and decays' projections."""
    many, wide = table.pop("linear_num_heads", 32), table.pop("linear_head_dim", 128)
    widths = dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_gate_rank"), wide)
    return table | widths | {"linear_num_key_heads": many, "linear_num_value_heads": many}


def _mixers(table: Table) -> Table:
    """Which layers attend: listed, counted from 1 in published files, or every fourth after the first."""
    full, others = table.pop("full_attn_layers", None), table.pop("kda_layers", None)
    kinds = table.pop("layer_types", None)
    if not counts_layers(table):
        return table
    layers = table["num_hidden_layers"]
    if kinds is None and full is not None:
        listed = sorted([*full, *(others or [])]) if are_integers(full) and are_integers(others or []) else []
        if listed != list(range(1, layers + 1)):
            right = f"must name, with kda_layers, each of the {layers} layers once, counted from 1"
            raise Unsupported("full_attn_layers", full, right)
        kinds = ["full" if i + 1 in full else "kda" for i in range(layers)]
    if kinds is None:
        kinds = ["full" if i and i % 4 == 0 else "kda" for i in range(layers)]
    if not isinstance(kinds, (list, tuple)) or len(kinds) != layers or not all(kind in _KINDS for kind in kinds):
        right = f"must be a list of {', '.join(_KINDS)}, one for each of the {layers} layers"
        raise Unsupported("layer_types", kinds, right)
    return table | {"layer_types": [_KINDS[kind] for kind in kinds]}


def _widths(table: Table) -> Table:
    """`qk_head_dim` follows from its parts."""
    table.pop("qk_head_dim", None)
    return table


def _gates(table: Table) -> Table:
    """A gate for each value of latent attention's output; SiTU moves the bytes of SwiGLU; a norm in the experts' width
    counts where they have one."""
    gate = "element" if table.pop("gates_output", False) else "none"
    act = {"hidden_act": "silu"} if table.get("hidden_act") == "situ" else {}
    normed = bool(table.get("moe_latent_norm")) and bool(table.get("moe_latent_size"))
    return table | act | {"attention_gate": gate, "moe_latent_norm": normed}


_NOPE = "latent attention rotates nothing, which saves a small kernel; its widths are the same"

SHIPPED: Mapping[str, Architecture] = {
    "kimi_linear": Architecture(
        keys=spelled(
            *(*LATENT, *MOE, "layer_types", "linear_head_dim", "linear_num_heads", "linear_conv_kernel_dim"),
            **{
                "linear_attn_config.full_attn_layers": "full_attn_layers",
                "linear_attn_config.kda_layers": "kda_layers",
                "linear_attn_config.head_dim": "linear_head_dim",
                "linear_attn_config.num_heads": "linear_num_heads",
                "linear_attn_config.short_conv_kernel_size": "linear_conv_kernel_dim",
                "num_experts_per_token": "num_experts_per_tok",
                "num_shared_experts": "n_shared_experts",
                "num_expert_group": "n_group",
                "model_max_length": "max_position_embeddings",
                "linear_attn_config.use_full_rank_gate": "linear_full_rank_gate",
                "routed_expert_hidden_size": "moe_latent_size",
                "latent_moe_use_norm": "moe_latent_norm",
                "attn_res_block_size": "attn_res_block_size",
                "mla_use_output_gate": "gates_output",
            },
        )
        | EXPERT_COUNT,
        fixed={
            **AUX_FREE,
            **{"n_shared_experts": 1, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64},
            **{"v_head_dim": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1024, "first_k_dense_replace": 1},
        },
        finish=steps(_heads, _mixers, _widths, _gates, output_bias, mlp_layer_types),
        ignored={
            "head_dim": "of latent attention: qk_nope_head_dim, qk_rope_head_dim and v_head_dim give the widths",
            "mla_use_nope": _NOPE,
            "moe_renormalize": "how the gate computes its weights",
            "moe_router_activation_func": "how the gate computes its weights",
            "use_grouped_topk": "n_group and topk_group say it",
            "linear_attn_config.gate_lower_bound": "a bound of the decay, not a size",
            "activation_situ_beta": "a number inside the activation, not a size",
            "activation_situ_linear_beta": "a number inside the activation, not a size",
        },
        moe=True,
        dense="qwen3_5_text",
        title="Kimi Linear 48B-A3B, Kimi K3",
        source=f"{published('kimi_linear')}; arXiv 2510.26692, 2607.24653; vLLM, vllm/models/kimi_k3",
    ),
}
