"""Sizes of a model that must go together, reported with the key to change."""

from __future__ import annotations

from simulator.inputs.problems import problem
from simulator.inputs.ranges.reused import reused_rules
from simulator.inputs.ranges.shared_key import Rule, shared_rules
from simulator.spec.mixer import BlockKind, Mixer
from simulator.spec.model import ModelSpec


def check_consistent(m: ModelSpec, source: str) -> None:
    """Raise for the first pair of sizes that cannot belong to one model."""
    rules: list[Rule] = [
        (
            m.is_mla or m.num_attention_heads % m.num_key_value_heads == 0,
            "num_key_value_heads",
            m.num_key_value_heads,
            f"must divide num_attention_heads {m.num_attention_heads}",
        ),
        (
            m.is_mla or m.head_dim is not None or m.hidden_size % m.num_attention_heads == 0,
            "num_attention_heads",
            m.num_attention_heads,
            f"must divide hidden_size {m.hidden_size}, or give head_dim",
        ),
        (
            not m.is_mla or min(m.qk_nope_head_dim, m.qk_rope_head_dim, m.v_head_dim) > 0,
            "kv_lora_rank",
            m.kv_lora_rank,
            "multi-head latent attention needs qk_nope_head_dim, qk_rope_head_dim and v_head_dim, each at least 1",
        ),
        (
            not m.moe_latent_size or m.n_routed_experts > 0,
            "moe_latent_size",
            m.moe_latent_size,
            "a dense model has no experts: leave it out",
        ),
    ]
    rules += _block_rules(m) + _mixer_rules(m) + shared_rules(m) + reused_rules(m)
    if m.n_routed_experts:
        rules += _expert_rules(m)
    for holds, key, value, right in rules:
        if not holds:
            raise problem(source, key, value, right)


def _block_rules(m: ModelSpec) -> list[Rule]:
    """What the blocks of the op graph can be."""
    plain = not m.is_mla and not m.n_routed_experts
    right = "only dense models with grouped queries have such blocks here"
    return [
        (plain or not m.parallel_block, "parallel_block", m.parallel_block, right),
        (
            plain or m.norm_placement == "pre" or (m.norm_placement == "both" and not m.is_mla),
            "norm_placement",
            m.norm_placement,
            right if m.is_mla else "layers with experts have norms before their branches, or before and behind (both)",
        ),
        (
            m.norm_placement == "pre" or not m.parallel_block,
            "norm_placement",
            m.norm_placement,
            "the branches of a parallel block have their norms before them",
        ),
        (
            m.nope_layers <= m.num_hidden_layers,
            "nope_layers",
            m.nope_layers,
            f"must be at most num_hidden_layers {m.num_hidden_layers}",
        ),
        (
            m.parallel_block or not m.shared_norm,
            "shared_norm",
            m.shared_norm,
            "branches share a norm in a parallel block only: set parallel_block, too",
        ),
        (
            not m.is_mla or m.rotated_share == 1,
            "partial_rotary_factor" if m.partial_rotary_factor < 1 else "nope_layers",
            m.partial_rotary_factor if m.partial_rotary_factor < 1 else m.nope_layers,
            "of latent attention qk_rope_head_dim gives the part that rotates",
        ),
        (
            m.qk_norm_over == "head" or not m.is_mla,
            "qk_norm_over",
            m.qk_norm_over,
            "latent attention norms its latents only",
        ),
    ]


def _mixer_rules(m: ModelSpec) -> list[Rule]:
    """What layers that differ in how they mix tokens need, and what only they can have."""
    mixers = {kind.mixer for kind in m.layer_kinds()}
    windowed, chunked = Mixer.SLIDING in mixers, Mixer.CHUNKED in mixers
    own = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim")
    sliding = m.of_kind(BlockKind.layer(Mixer.SLIDING, "dense"))
    return [
        *_state_rules(m, mixers),
        (
            len(m.layer_types) in (0, m.num_hidden_layers),
            "layer_types",
            list(m.layer_types),
            f"lists {len(m.layer_types)} layers, num_hidden_layers is {m.num_hidden_layers}",
        ),
        (
            bool(m.sliding_window) or not windowed,
            "sliding_window",
            m.sliding_window,
            "layers with a window need it: at least 1",
        ),
        (
            bool(m.attention_chunk_size) or not chunked,
            "attention_chunk_size",
            m.attention_chunk_size,
            "layers with chunks need it: at least 1",
        ),
        (
            not m.attention_chunk_size or chunked,
            "attention_chunk_size",
            m.attention_chunk_size,
            "no layer has chunks: set layer_types, or leave it out",
        ),
        (
            not m.is_mla or not mixers & {Mixer.SLIDING, Mixer.CHUNKED},
            "layer_types" if m.layer_types else "sliding_window",
            list(m.layer_types) if m.layer_types else m.sliding_window,
            "latent attention sees all tokens: only full attention is modelled",
        ),
        (
            m.full_rotary_factor is None or (len(mixers) > 1 and Mixer.FULL in mixers),
            "full_rotary_factor",
            m.full_rotary_factor,
            "is of layers with full attention between others: use partial_rotary_factor",
        ),
        (
            m.attention_sinks == "none" or not m.is_mla,
            "attention_sinks",
            m.attention_sinks,
            "latent attention has no sinks here",
        ),
        (
            m.attention_gate == "none" or not (m.is_mla and Mixer.SPARSE in mixers),
            "attention_gate",
            m.attention_gate,
            "latent attention to chosen tokens has no gate here",
        ),
        (
            m.attention_sinks != "sliding" or windowed,
            "attention_sinks",
            m.attention_sinks,
            "no layer has a window",
        ),
        *(
            (
                not getattr(m, f"sliding_{name}") or windowed,
                f"sliding_{name}",
                getattr(m, f"sliding_{name}"),
                "no layer has a window: set layer_types and sliding_window, or leave it out",
            )
            for name in own
        ),
        (
            not windowed or sliding.num_attention_heads % sliding.num_key_value_heads == 0,
            "sliding_num_key_value_heads",
            sliding.num_key_value_heads,
            f"must divide the {sliding.num_attention_heads} query heads of layers with a window",
        ),
    ]


def _state_rules(m: ModelSpec, mixers: set[Mixer]) -> list[Rule]:
    """What recurrent layers need, and what only they can have."""
    delta = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
    mamba = ("mamba_num_heads", "mamba_head_dim", "ssm_state_size")
    index = ("index_n_heads", "index_head_dim", "index_topk")
    needed = [(name, mixer) for name in index for mixer in (Mixer.SPARSE, Mixer.BLOCKS, Mixer.CSA)]
    needed.append(("index_block_size", Mixer.BLOCKS))
    needed += [(name, mixer) for name in delta for mixer in (Mixer.DELTA, Mixer.KDA)]
    needed.append(("linear_gate_rank", Mixer.KDA))
    needed.append(("short_conv_size", Mixer.CONV))
    needed += [(name, Mixer.MAMBA1) for name in ("mamba_inner_size", "mamba_dt_rank", "ssm_state_size")]
    needed += [(name, mixer) for name in mamba for mixer in (Mixer.MAMBA2, Mixer.HYBRID)]
    rules: list[Rule] = [
        (
            getattr(m, name) > 0 or mixer not in mixers,
            name,
            getattr(m, name),
            f"{mixer} layers need it: at least 1",
        )
        for name, mixer in needed
    ]
    heads, shared = m.linear_num_value_heads, m.linear_num_key_heads
    return [
        *rules,
        (
            Mixer.SPARSE not in mixers or (m.is_mla and m.q_lora_rank is not None),
            "layer_types",
            list(m.layer_types),
            "sparse attention chooses by the latent of queries: it needs latent attention with q_lora_rank",
        ),
        (
            Mixer.BLOCKS not in mixers or not m.is_mla,
            "layer_types",
            list(m.layer_types),
            "blocks of keys are chosen for grouped queries: latent attention has sparse layers",
        ),
        (
            not mixers & {Mixer.DELTA, Mixer.KDA} or heads % max(1, shared) == 0,
            "linear_num_key_heads",
            shared,
            f"must divide linear_num_value_heads {heads}",
        ),
        (
            not mixers & {Mixer.MAMBA2, Mixer.HYBRID} or m.mamba_num_heads % max(1, m.mamba_n_groups) == 0,
            "mamba_n_groups",
            m.mamba_n_groups,
            f"must divide mamba_num_heads {m.mamba_num_heads}",
        ),
        (
            Mixer.HYBRID not in mixers or (not m.is_mla and m.norm_placement == "pre" and not m.parallel_block),
            "layer_types",
            list(m.layer_types),
            "attention next to Mamba-2 has grouped queries, and one norm before both",
        ),
        (
            all(m.mixer_of(i) is not Mixer.NONE for i in m.mixer_only_layers if i < len(m.layer_types)),
            "mixer_only_layers",
            list(m.mixer_only_layers),
            "a layer without a mixer needs a feed-forward part",
        ),
        (
            (m.norm_placement == "pre" and not m.parallel_block) or not (m.mixer_only_layers or Mixer.NONE in mixers),
            "mixer_only_layers",
            list(m.mixer_only_layers),
            "layers of one part have a norm before it",
        ),
    ]


def _expert_rules(m: ModelSpec) -> list[Rule]:
    reachable = m.n_routed_experts // m.n_group * m.topk_group
    return [
        (m.moe_intermediate_size > 0, "moe_intermediate_size", m.moe_intermediate_size, "must be at least 1"),
        (
            m.moe_latent_size < m.hidden_size,
            "moe_latent_size",
            m.moe_latent_size,
            f"must be less than hidden_size {m.hidden_size}, or 0",
        ),
        (
            1 <= m.num_experts_per_tok <= m.n_routed_experts,
            "num_experts_per_tok",
            m.num_experts_per_tok,
            f"must be from 1 to the {m.n_routed_experts} routed experts",
        ),
        (
            m.n_routed_experts % m.n_group == 0,
            "n_group",
            m.n_group,
            f"must divide the {m.n_routed_experts} routed experts",
        ),
        (m.topk_group <= m.n_group, "topk_group", m.topk_group, f"must be from 1 to n_group {m.n_group}"),
        (
            m.num_experts_per_tok <= reachable,
            "topk_group",
            m.topk_group,
            f"reaches {reachable} experts, fewer than num_experts_per_tok {m.num_experts_per_tok}",
        ),
    ]
