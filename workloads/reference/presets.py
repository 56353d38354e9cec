"""Tiny models with the shape of real ones, for tests and experiments, and the full DeepSeek-V3 routing numbers."""

from dataclasses import replace

from workloads.reference.config import BLOCKS, CSA, HCA, RefConfig

YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 2.0,
    "beta_slow": 0.5,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def tiny_v3() -> RefConfig:
    """DeepSeek-V3 in small: one dense layer, experts in four groups, sigmoid gate, one MTP module, YaRN."""
    return RefConfig(
        vocab_size=48,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        q_lora_rank=14,
        kv_lora_rank=10,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=5,
        intermediate_size=40,
        moe_intermediate_size=12,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
        aux_loss_alpha=0.01,
        rope_scaling=YARN,
        initializer_range=0.25,
    )


def tiny_v2_lite() -> RefConfig:
    """DeepSeek-V2-Lite in small: no query compression, softmax gate without normalisation, two shared experts."""
    return replace(
        tiny_v3(),
        q_lora_rank=None,
        scoring_func="softmax",
        topk_method="greedy",
        norm_topk_prob=False,
        n_group=1,
        topk_group=1,
        n_shared_experts=2,
        num_nextn_predict_layers=0,
        routed_scaling_factor=1.0,
    )


def tiny_gqa() -> RefConfig:
    """A dense Llama-like model in small: grouped-query attention, no experts, plain rope."""
    return RefConfig(
        vocab_size=48,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=36,
        initializer_range=0.25,
    )


def tiny_qwen3_moe() -> RefConfig:
    """Qwen3's mixture in small: grouped-query attention with normed heads, softmax gate, no shared expert."""
    return replace(
        tiny_gqa(),
        num_hidden_layers=2,
        head_dim=8,
        qk_norm=True,
        n_routed_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=12,
        scoring_func="softmax",
        topk_method="greedy",
    )


def tiny_windows() -> RefConfig:
    """gpt-oss in small: a window in every second layer, sinks, biases; a dense feed-forward part."""
    return replace(
        tiny_gqa(),
        layer_types=("sliding_attention", "full_attention") * 2,
        sliding_window=3,
        attention_sinks=True,
        attention_bias=True,
    )


def tiny_chunks() -> RefConfig:
    """Llama 4's attention in small: chunks, and layers with full attention that do not rotate."""
    return replace(
        tiny_gqa(),
        layer_types=("chunked_attention",) * 3 + ("full_attention",),
        attention_chunk_size=3,
        full_layers_rotate=False,
    )


def tiny_delta() -> RefConfig:
    """Qwen3-Next in small: the gated delta rule in every layer but each fourth, which has gated attention."""
    return replace(
        tiny_gqa(),
        layer_types=("linear_attention",) * 3 + ("full_attention",),
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=6,
        linear_value_head_dim=5,
        state_chunk_size=3,
        attention_gate="element",
        qk_norm=True,
        head_dim=8,
        partial_rotary_factor=0.25,
    )


def tiny_kda() -> RefConfig:
    """Kimi Linear in small: Kimi Delta Attention in three of four layers, latent attention in the fourth. Its gates are
    those of the delta rule (SiLU, not a sigmoid), which differ in no FLOP."""
    return replace(
        tiny_v2_lite(),
        num_hidden_layers=4,
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        layer_types=("linear_attention",) * 3 + ("full_attention",),
        linear_num_key_heads=3,
        linear_num_value_heads=3,
        linear_key_head_dim=6,
        linear_value_head_dim=6,
        linear_gate_rank=6,
        state_chunk_size=3,
    )


def tiny_k3() -> RefConfig:
    """Kimi K3 in small, but for its residual: gates from the input, experts in a narrower width under a norm."""
    return replace(
        tiny_kda(),
        q_lora_rank=10,
        attention_gate="element",
        linear_full_rank_gate=True,
        moe_latent_size=10,
        moe_latent_norm=True,
    )


def tiny_mamba() -> RefConfig:
    """Mamba-2 layers and one with attention, as Nemotron-H and Bamba mix them."""
    return replace(
        tiny_gqa(),
        layer_types=("mamba", "mamba", "full_attention", "mamba"),
        mamba_num_heads=4,
        mamba_head_dim=6,
        mamba_n_groups=2,
        ssm_state_size=5,
        state_chunk_size=3,
    )


def tiny_falcon_h1() -> RefConfig:
    """Falcon-H1 in small: attention and Mamba-2 next to each other in every layer, and no norm of Mamba-2's output."""
    return replace(tiny_mamba(), num_hidden_layers=2, layer_types=("hybrid",) * 2, mamba_rms_norm=False)


def tiny_lfm2() -> RefConfig:
    """LFM2 in small: short convolutions in two of three layers, normed heads, experts behind a dense layer."""
    return replace(
        tiny_gqa(),
        num_hidden_layers=3,
        layer_types=("conv", "full_attention", "conv"),
        short_conv_size=24,
        qk_norm=True,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        first_k_dense_replace=1,
    )


def tiny_falcon_mamba() -> RefConfig:
    """Falcon-Mamba in small: layers of Mamba-1 alone, whose norms have no weights."""
    return replace(
        tiny_gqa(),
        num_hidden_layers=2,
        layer_types=("mamba1",) * 2,
        mixer_only_layers=(0, 1),
        mamba_inner_size=18,
        mamba_dt_rank=5,
        ssm_state_size=4,
        mamba_norm_gains=False,
    )


def tiny_jamba() -> RefConfig:
    """Jamba in small: Mamba-1 in three of four layers, attention that rotates nothing in one, experts in half."""
    return replace(
        tiny_gqa(),
        layer_types=("mamba1", "mamba1", "full_attention", "mamba1"),
        partial_rotary_factor=0.0,
        mamba_inner_size=18,
        mamba_dt_rank=5,
        ssm_state_size=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=36,
        mlp_only_layers=(0, 2),
        scoring_func="softmax",
        topk_method="greedy",
        norm_topk_prob=False,
    )


def tiny_nemotron() -> RefConfig:
    """Nemotron 3 Super in small: layers of one part, experts in a narrower width without gates, an MTP module."""
    return replace(
        tiny_mamba(),
        layer_types=("mamba", "none", "full_attention", "none"),
        mixer_only_layers=(0, 2),
        partial_rotary_factor=0.0,
        gated_mlp=False,
        n_routed_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=12,
        moe_latent_size=8,
        n_shared_experts=1,
        shared_expert_intermediate_size=20,
        num_nextn_predict_layers=1,
    )


def tiny_v32() -> RefConfig:
    """DeepSeek-V3.2 in small: V3's blocks, and queries that attend to three chosen tokens."""
    return replace(tiny_v3(), index_n_heads=3, index_head_dim=4, index_topk=3)


def tiny_m3() -> RefConfig:
    """MiniMax-M3 in small: a dense layer with full attention, then experts under attention to two chosen blocks."""
    return replace(
        tiny_qwen3_moe(),
        num_hidden_layers=3,
        layer_types=("full_attention", BLOCKS, BLOCKS),
        head_dim=8,
        partial_rotary_factor=0.5,
        index_n_heads=2,
        index_head_dim=6,
        index_topk=2,
        index_block_size=2,
        n_shared_experts=1,
        shared_expert_intermediate_size=10,
        first_k_dense_replace=1,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
    )


def tiny_trinity() -> RefConfig:
    """Trinity in small: norms before and behind both branches, experts too; windows, a gate of attention's output."""
    return replace(
        tiny_m3(),
        layer_types=("sliding_attention", "sliding_attention", "full_attention"),
        partial_rotary_factor=1.0,
        sliding_window=3,
        index_topk=0,
        full_layers_rotate=False,
        attention_gate="element",
        norm_placement="both",
        shared_expert_intermediate_size=0,
        n_shared_experts=2,
    )


def tiny_v4() -> RefConfig:
    """DeepSeek-V4 in small: a window alone, both kinds of entries, two streams, experts by table in two layers. Gates
    are V3's, which differ from V4's (the root of a softplus) in no FLOP."""
    return RefConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=6,
        q_lora_rank=10,
        head_dim=8,
        partial_rotary_factor=0.25,
        shared_key_value=True,
        attention_sinks=True,
        o_groups=2,
        o_lora_rank=5,
        layer_types=("sliding_attention", CSA, HCA, CSA),
        sliding_window=2,
        compress_rate_csa=2,
        compress_rate_hca=3,
        index_n_heads=3,
        index_head_dim=4,
        index_topk=2,
        hc_mult=2,
        num_hash_layers=2,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=6,
        initializer_range=0.3,
    )


def toy_trainee() -> RefConfig:
    """A V3-shaped model large enough to learn and to have 128-wide tiles, small enough to train in a minute."""
    return RefConfig(
        vocab_size=64,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=64,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        intermediate_size=256,
        moe_intermediate_size=64,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        routed_scaling_factor=1.0,
        num_nextn_predict_layers=1,
        initializer_range=0.05,
    )
