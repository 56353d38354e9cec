"""What belongs to DeepSeek-V4's blocks: one key that is the value, compressed entries, streams, experts by table."""

from __future__ import annotations

from simulator.spec.mixer import Mixer
from simulator.spec.model import ModelSpec

Rule = tuple[bool, str, object, str]
"""Whether it holds, the key to blame, its value, and what would be right."""

_WITH = (Mixer.SLIDING, Mixer.CSA, Mixer.HCA)


def shared_rules(m: ModelSpec) -> list[Rule]:
    """Sizes that go together in such a model, and what only it can have."""
    mixers = {kind.mixer for kind in m.layer_kinds()}
    if m.shared_key_value:
        return _of_shared(m, mixers)
    only = "of models whose key is the value (shared_key_value)"
    return [
        (not mixers & {Mixer.CSA, Mixer.HCA}, "layer_types", list(m.layer_types), f"csa and hca layers are {only}"),
        (not m.o_groups and not m.o_lora_rank, "o_groups", m.o_groups or m.o_lora_rank, only),
        (m.hc_mult == 1, "hc_mult", m.hc_mult, f"streams are {only}"),
        (
            not m.num_hash_layers,
            "num_hash_layers",
            m.num_hash_layers,
            f"experts by table are {only}",
        ),
    ]


def _of_shared(m: ModelSpec, mixers: set[Mixer]) -> list[Rule]:
    heads, groups = m.num_attention_heads, m.o_groups
    plain = not (m.is_mla or m.parallel_block or m.qk_norm or m.attention_bias or m.attention_out_bias)
    plain = plain and m.norm_placement == "pre" and m.attention_gate == "none" and m.norm == "rms"
    return [
        (
            plain and m.num_key_value_heads == 1 and bool(m.n_routed_experts) and not m.v_head_dim,
            "shared_key_value",
            True,
            "such a model has one key-value head, experts, RMSNorms before its branches, no biases, norms of heads, "
            "gates or widths of values",
        ),
        (
            mixers <= set(_WITH) and not m.mixer_only_layers,
            "layer_types",
            list(m.layer_types),
            f"layers of such a model must be of {', '.join(_WITH)}",
        ),
        (bool(m.sliding_window), "sliding_window", m.sliding_window, "all layers have a window: at least 1"),
        (bool(m.q_lora_rank), "q_lora_rank", m.q_lora_rank, "queries come from a latent: must be at least 1"),
        (bool(m.head_dim), "head_dim", m.head_dim, "gives the width of the key: must be at least 1"),
        (groups > 0 and heads % max(1, groups) == 0, "o_groups", groups, f"must divide the {heads} heads"),
        (m.o_lora_rank > 0, "o_lora_rank", m.o_lora_rank, "must be at least 1"),
        (m.attention_sinks == "all", "attention_sinks", m.attention_sinks, "all layers of such a model have sinks"),
        (
            all(kind.is_moe for kind in m.layer_kinds()),
            "first_k_dense_replace",
            m.first_k_dense_replace,
            "all layers of such a model have experts",
        ),
        (
            m.num_hash_layers <= m.num_hidden_layers,
            "num_hash_layers",
            m.num_hash_layers,
            f"must be at most num_hidden_layers {m.num_hidden_layers}",
        ),
        (
            m.partial_rotary_factor > 0 and not m.nope_layers,
            "partial_rotary_factor",
            m.partial_rotary_factor,
            "a part of each head rotates in all layers: must be over 0",
        ),
    ]
