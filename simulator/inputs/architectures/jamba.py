"""Jamba: Mamba-1 layers, every so many one with attention that rotates nothing, experts in every so many layers
(arXiv 2403.19887)."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from simulator.inputs.architectures.architecture import (
    EXPERT_COUNT,
    Architecture,
    Only,
    Table,
    Unsupported,
    grouped_query,
    steps,
)
from simulator.inputs.architectures.layers import counts_layers
from simulator.inputs.architectures.llama import published

_KINDS = {"mamba": "mamba1", "linear_attention": "mamba1", "attention": "full", "full_attention": "full"}


def _every(table: Table, name: str, layers: int, default: tuple[int, int]) -> list[int]:
    """Layers whose index modulo `NAME_layer_period` is `NAME_layer_offset`."""
    period, offset = (table.pop(f"{name}_layer_{word}", given) for word, given in zip(_WORDS, default, strict=True))
    if type(period) is not int or period < 1:
        raise Unsupported(f"{name}_layer_period", period, "must be an integer, at least 1")
    if type(offset) is not int or not 0 <= offset < period:
        raise Unsupported(f"{name}_layer_offset", offset, f"must be from 0 to {period - 1}: the period is {period}")
    return [i for i in range(layers) if i % period == offset]


_WORDS = ("period", "offset")


def _layers(table: Table) -> Table:
    """Which layers attend, and which have experts; one expert is a dense part."""
    if not counts_layers(table):
        return table
    many = table["num_hidden_layers"]
    attend, routed = _every(table, "attn", many, (8, 4)), _every(table, "expert", many, (2, 1))
    kinds, listed = table.pop("layer_types", None), table.pop("layers_block_type", None)
    kinds = listed if kinds is None else kinds
    if kinds is None:
        kinds = ["full" if i in attend else "mamba1" for i in range(many)]
    elif not isinstance(kinds, list) or len(kinds) != many or not all(kind in _KINDS for kind in kinds):
        raise Unsupported("layer_types", kinds, f"must be a list of {', '.join(_KINDS)}, one for each of {many} layers")
    table["layer_types"] = [_KINDS.get(kind, kind) for kind in kinds]
    if table.get("n_routed_experts") is None:
        raise Unsupported("n_routed_experts", None, "missing: how many experts a layer has; 1 where all are dense")
    if table["n_routed_experts"] == 1:
        return table | {"n_routed_experts": 0}
    dense = [i for i in range(many) if i not in routed]
    return table | {"mlp_only_layers": dense, "moe_intermediate_size": table.get("intermediate_size")}


def _state(table: Table) -> Table:
    """Channels, and the width of step sizes: a sixteenth of the hidden size where the file does not say."""
    expand, hidden, rank = table.pop("mamba_expand", 2), table.get("hidden_size"), table.get("mamba_dt_rank", "auto")
    if type(expand) is int and type(hidden) is int:
        table = {"mamba_inner_size": expand * hidden} | table
        if rank == "auto":
            table["mamba_dt_rank"] = ceil(hidden / 16)
    return table


SHIPPED: Mapping[str, Architecture] = {
    "jamba": Architecture(
        keys=grouped_query(
            *("num_experts_per_tok", "layers_block_type", "mamba_expand", "mamba_dt_rank"),
            *(f"{name}_layer_{word}" for name in ("attn", "expert") for word in _WORDS),
            mamba_d_state="ssm_state_size",
            mamba_d_conv="mamba_conv_kernel",
            mamba_inner_layernorms="mamba_state_norms",
        )
        | EXPERT_COUNT,
        fixed={"ssm_state_size": 16, "num_experts_per_tok": 2, "partial_rotary_factor": 0.0},
        finish=steps(_layers, _state),
        only={
            "mamba_conv_bias": Only(values=(True,), otherwise="a convolution without a bias"),
            "mamba_proj_bias": Only(values=(False,), otherwise="biases of Mamba's projections"),
        },
        ignored={
            "use_mamba_kernels": "how a forward call is programmed",
            "use_mambapy": "how a forward call is programmed",
            "use_associative_scan": "how a forward call is programmed",
            "num_logits_to_keep": "how text is generated",
            "calc_logits_for_entire_prompt": "how text is generated",
        },
        title="Jamba",
        source=f"{published('jamba')}; arXiv 2403.19887, 2408.12570",
    ),
}
