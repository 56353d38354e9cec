"""What belongs to Gemma 4's blocks: keys of an earlier layer, values made of keys, norms of the branches, and values of
a token that enter each layer."""

from __future__ import annotations

from simulator.inputs.ranges.shared_key import Rule
from simulator.spec.mixer import Mixer
from simulator.spec.model import ModelSpec


def reused_rules(m: ModelSpec) -> list[Rule]:
    """Sizes that go together in such a model, and what its blocks need."""
    kinds = m.layer_kinds()
    mixers = [kind.mixer for kind in kinds]
    owned = {at: mixer.owner in mixers[:at] for at, mixer in enumerate(mixers) if mixer.reuses}
    grouped = not m.is_mla and not m.shared_key_value
    wide, rows = m.hidden_size_per_layer_input, m.vocab_size_per_layer_input
    blocks = m.attn_res_block_size
    stream = m.norm_placement == "pre" and not m.parallel_block and m.hc_mult == 1 and not m.num_nextn_predict_layers
    whole = set(mixers) <= {Mixer.FULL, Mixer.KDA, Mixer.DELTA} and not m.mixer_only_layers
    plain = all(kind.ffn == "dense" for kind in kinds) and not m.parallel_block and m.hc_mult == 1
    return [
        (
            all(owned.values()) and (grouped or not owned),
            "layer_types",
            list(m.layer_types),
            "a layer that reuses keys and values needs one of grouped queries before it, with as wide a window, "
            "that makes them",
        ),
        (
            not m.use_double_wide_mlp or bool(owned),
            "use_double_wide_mlp",
            m.use_double_wide_mlp,
            "is of layers that reuse keys: there are none",
        ),
        (
            not m.attention_k_eq_v or (m.qk_norm and m.value_norm and not m.v_head_dim and Mixer.FULL in mixers),
            "attention_k_eq_v",
            m.attention_k_eq_v,
            "values are made of keys in layers with full attention, as wide, under norms of their own (value_norm)",
        ),
        (
            not m.value_norm or (grouped and m.qk_norm_over == "head"),
            "value_norm",
            m.value_norm,
            "norms of value heads go with grouped queries and norms of their heads",
        ),
        (
            not m.branch_norms or (m.norm_placement == "both" and bool(m.n_routed_experts and m.shared_width)),
            "branch_norms",
            m.branch_norms,
            "such layers have experts and shared experts, and norms before and behind both branches",
        ),
        (
            not blocks or (stream and whole),
            "attn_res_block_size",
            blocks,
            "needs layers of full attention or of the delta rule, each with a feed-forward part, norms before the "
            "branches, one residual stream, and no MTP modules",
        ),
        (
            not m.moe_latent_norm or m.moe_latent_size > 0,
            "moe_latent_norm",
            m.moe_latent_norm,
            "is a norm in the experts' own width: set moe_latent_size, too",
        ),
        (
            not m.linear_full_rank_gate or Mixer.KDA in mixers,
            "linear_full_rank_gate",
            m.linear_full_rank_gate,
            "is of kda layers: there are none",
        ),
        (
            bool(wide) == bool(rows) and (plain or not wide),
            "hidden_size_per_layer_input",
            wide,
            "needs vocab_size_per_layer_input, and dense layers of one residual stream",
        ),
    ]
