"""Models of Mamba-1 layers. Jamba: every so many layers one with attention that rotates nothing, experts in every so
many (arXiv 2403.19887). Mamba (arXiv 2312.00752), Falcon-Mamba (arXiv 2410.05355) and Mamba-2: such layers alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from simulator.inputs.architectures.architecture import (
    EXPERT_COUNT,
    Architecture,
    Finish,
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
    expand, hidden, rank = table.pop("mamba_expand", None), table.get("hidden_size"), table.get("mamba_dt_rank", "auto")
    expand = 2 if expand is None else expand
    if type(expand) is int and type(hidden) is int:
        table = {"mamba_inner_size": expand * hidden} | table
        if rank == "auto":
            table["mamba_dt_rank"] = ceil(hidden / 16)
    return table


def _alone(mixer: str) -> Finish:
    """Every layer is such a mixer, and nothing else; heads and dense parts are named in no file, and have no size."""

    def run(table: Table) -> Table:
        if not counts_layers(table):
            return table
        many = table["num_hidden_layers"]
        return table | {"layer_types": [mixer] * many, "mixer_only_layers": list(range(many))}

    return run


_NAMED = {
    **{name: name for name in ("vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings")},
    **{"state_size": "ssm_state_size", "conv_kernel": "mamba_conv_kernel"},
}
_NO_SIZES = {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 1}
_ALONE_ONLY = {
    "use_conv_bias": Only(values=(True,), otherwise="a convolution without a bias"),
    "use_bias": Only(values=(False,), otherwise="biases of Mamba's projections"),
    "hidden_act": Only(values=("silu",), otherwise="another activation behind the convolution"),
}
_ALONE_IGNORED = {
    **dict.fromkeys(
        ("time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme", "time_step_floor"),
        "a bound of the step size, not a size",
    ),
    **dict.fromkeys(("use_mambapy", "use_associative_scan", "residual_in_fp32"), "how a forward call is programmed"),
    **dict.fromkeys(("d_model", "d_inner", "n_layer", "ssm_cfg"), "other keys say it"),
    "rescale_prenorm_residual": "training only: initialisation",
    "mixer_rms_eps": "a number inside a norm, not a size",
    "rms_norm": "a norm before each layer",
    "fused_add_norm": "how a forward call is programmed",
    "time_step_limit": "a bound of the step size, not a size",
    "layer_types": "all are recurrent",
}


def _of_mamba1(title: str, kind: str, source: str, **fixed: bool) -> Architecture:
    return Architecture(
        keys=_NAMED
        | {"expand": "mamba_expand", "intermediate_size": "mamba_inner_size", "time_step_rank": "mamba_dt_rank"},
        fixed={**_NO_SIZES, "ssm_state_size": 16, "tie_word_embeddings": True, **fixed},
        finish=steps(_state, _alone("mamba1")),
        only=_ALONE_ONLY,
        ignored=_ALONE_IGNORED,
        title=title,
        source=f"{published(kind)}; {source}",
    )


SHIPPED: Mapping[str, Architecture] = {
    "mamba": _of_mamba1("Mamba", "mamba", "arXiv 2312.00752", mamba_state_norms=False),
    "falcon_mamba": _of_mamba1("Falcon-Mamba 7B", "falcon_mamba", "arXiv 2410.05355", mamba_norm_gains=False),
    "mamba2": Architecture(
        keys=_NAMED
        | {"num_heads": "mamba_num_heads", "head_dim": "mamba_head_dim", "n_groups": "mamba_n_groups"}
        | {"chunk_size": "mamba_chunk_size"},
        fixed={
            **_NO_SIZES,
            **{"mamba_num_heads": 128, "mamba_head_dim": 64, "mamba_n_groups": 8, "ssm_state_size": 128},
        },
        finish=_alone("mamba2"),
        only=_ALONE_ONLY,
        ignored=_ALONE_IGNORED
        | dict.fromkeys(("expand", "intermediate_size"), "num_heads and head_dim say it")
        | {"time_step_rank": "of Mamba-1", "norm_before_gate": "a gate before or behind a norm"},
        title="Mamba-2, Mamba-Codestral 7B",
        source=f"{published('mamba2')}; arXiv 2405.21060",
    ),
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
