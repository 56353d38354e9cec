"""DeepSeek-V4: compressed attention, hyper-connections, experts by table (its report, sections 2.1 to 2.3).

Published files say `compress_ratios` and `num_hash_layers`, transformers' `layer_types` and
`mlp_layer_types`."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.inputs.architectures.architecture import (
    EXPERT_COUNT,
    Architecture,
    Only,
    Table,
    Unsupported,
    spelled,
    steps,
)
from simulator.inputs.architectures.layers import are_integers, counts_layers
from simulator.inputs.architectures.llama import published
from simulator.spec.mixer import Mixer

_KINDS = {
    "sliding_attention": Mixer.SLIDING,
    "compressed_sparse_attention": Mixer.CSA,
    "heavily_compressed_attention": Mixer.HCA,
    **{str(mixer): mixer for mixer in (Mixer.SLIDING, Mixer.CSA, Mixer.HCA)},
}
_RATES = {"csa": 4, "hca": 128}


def _compressed(table: Table) -> Table:
    """The kind of each layer: listed, by its rate (0: a window alone), or two heavily compressed ones and then both in
    turn. Rates beyond the last layer are those of MTP modules."""
    rates = {name: table.setdefault(f"compress_rate_{name}", rate) for name, rate in _RATES.items()}
    ratios, kinds = table.pop("compress_ratios", None), table.pop("layer_types", None)
    if not counts_layers(table):
        return table
    layers = table["num_hidden_layers"]
    if kinds is None and ratios is not None:
        by_rate = {0: Mixer.SLIDING, rates["csa"]: Mixer.CSA, rates["hca"]: Mixer.HCA}
        if not are_integers(ratios) or len(ratios) < layers or not set(ratios[:layers]) <= set(by_rate):
            right = f"must be a list of {', '.join(map(str, by_rate))}, one for each of the {layers} layers"
            raise Unsupported("compress_ratios", ratios, right)
        kinds = [str(by_rate[rate]) for rate in ratios[:layers]]
    if kinds is None:
        kinds = [str(Mixer.CSA if i > 1 and i % 2 else Mixer.HCA) for i in range(layers)]
    if not isinstance(kinds, (list, tuple)) or len(kinds) != layers or not all(kind in _KINDS for kind in kinds):
        right = f"must be a list of {', '.join(_KINDS)}, one for each of the {layers} layers"
        raise Unsupported("layer_types", kinds, right)
    return table | {"layer_types": [str(_KINDS[kind]) for kind in kinds]}


def _hashed(table: Table) -> Table:
    """The first layers take experts from a table, as `mlp_layer_types` says or `num_hash_layers` counts."""
    kinds = table.pop("mlp_layer_types", None)
    if kinds is None:
        return table
    names = kinds if isinstance(kinds, list) else []
    hashed = [kind == "hash_moe" for kind in names]
    if not names or not set(map(str, names)) <= {"hash_moe", "moe"} or hashed != sorted(hashed, reverse=True):
        raise Unsupported("mlp_layer_types", kinds, 'must be a list, first of "hash_moe", then of "moe"')
    return table | {"num_hash_layers": sum(hashed)}


def _rotated(table: Table) -> Table:
    """The end of each head rotates; experts are all there is, so that no dense part has a width."""
    wide, head = table.pop("rotated", None), table.get("head_dim")
    if isinstance(wide, int) and isinstance(head, int) and head > 0:
        table = {"partial_rotary_factor": wide / head} | table
    return {"intermediate_size": table.get("moe_intermediate_size"), "partial_rotary_factor": 0.125} | table


_NAMES = (
    *("head_dim", "q_lora_rank", "o_groups", "o_lora_rank", "sliding_window", "layer_types", "compress_ratios"),
    *("index_n_heads", "index_head_dim", "index_topk", "hc_mult", "num_hash_layers", "mlp_layer_types"),
    *("num_experts_per_tok", "moe_intermediate_size", "n_shared_experts", "num_nextn_predict_layers", "topk_method"),
    *("compress_rate_csa", "compress_rate_hca", "partial_rotary_factor"),
)
_ANGLES = "angles of the rotary embedding, not its width"
_DRAFTS = "of a module that drafts several tokens at once, which is not modelled"

SHIPPED: Mapping[str, Architecture] = {
    "deepseek_v4": Architecture(
        keys=spelled(
            *_NAMES,
            **{
                "qk_rope_head_dim": "rotated",
                "compress_rates.compressed_sparse_attention": "compress_rate_csa",
                "compress_rates.heavily_compressed_attention": "compress_rate_hca",
            },
        )
        | EXPERT_COUNT,
        fixed={
            **{"shared_key_value": True, "attention_sinks": "all", "topk_method": "noaux_tc", "num_key_value_heads": 1},
            **{"hc_mult": 4, "num_hash_layers": 3, "n_shared_experts": 1, "sliding_window": 128, "head_dim": 512},
            **{"o_groups": 8, "o_lora_rank": 1024, "q_lora_rank": 1024},
            **{"index_n_heads": 64, "index_head_dim": 128, "index_topk": 512},
        },
        finish=steps(_compressed, _hashed, _rotated),
        only={
            "attention_bias": Only(values=(False,), otherwise="biases of its projections"),
            "mlp_bias": Only(values=(False,), otherwise="biases in the feed-forward parts"),
        },
        ignored={
            **dict.fromkeys(("compress_rope_theta", "rope_parameters.main", "rope_parameters.compress"), _ANGLES),
            **dict.fromkeys(("hc_sinkhorn_iters", "hc_eps"), "rounds and a bound inside a kernel, not sizes"),
            "swiglu_limit": "a bound of the activation, not a size",
            "expert_dtype": "how weights are stored: serving.expert_weights says how they are used",
            **dict.fromkeys(
                ("dspark_block_size", "dspark_noise_token_id", "dspark_target_layer_ids", "dspark_markov_rank"), _DRAFTS
            ),
        },
        moe=True,
        title="DeepSeek-V4: Flash and Pro",
        source=f"{published('deepseek_v4')}; huggingface.co/deepseek-ai/DeepSeek-V4-Pro, DeepSeek_V4.pdf",
    ),
}
