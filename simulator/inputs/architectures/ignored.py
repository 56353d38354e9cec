"""Keys of config.json that leave the shape of a model alone, and why.

transformers writes many of them into every file it saves. What is not here, and not read, is an error.
"""

from __future__ import annotations

import re

_WORDS = {
    "says what the file is": """
        architectures model_type transformers_version auto_map name torch_dtype dtype tokenizer_class finetuning_task
        task_specific_params prefix license model_max_length org_vocab_size tokenizer_type
    """,
    "how text is generated": """
        max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k
        top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
        bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
        remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens renormalize_logits
        use_cache cache_implementation
    """,
    "what a forward call returns, or how it is programmed": """
        output_attentions output_hidden_states output_router_logits return_dict torchscript use_bfloat16
        chunk_size_feed_forward attn_implementation gradient_checkpointing pretraining_tp ep_size
        reorder_and_upcast_attn tf_legacy_loss problem_type id2label label2id num_labels is_decoder
        slow_but_exact use_flash_attn use_fused_rms_norm fused_ops attn_impl router_dtype moe_token_dispatcher_type
        softmax_scale use_fused_cross_entropy ignore_index fuse_swiglu fuse_rms_norm
        sequence_parallel recompute use_recompute_moe disable_ffn_model_parallel moe_capacity
        moe_dense_experts_token_type_id
    """,
    "training only: dropout, initialisation and losses": """
        initializer_range embedding_initializer_range initializer_factor init_std aux_loss_alpha
        seq_aux router_aux_loss_coef router_z_loss_coef
        router_jitter_noise input_jitter_noise moe_jitter_eps moe_loss_weight mtp_loss_scaling_factor layerdrop
        router_bias_update_rate moe_group_use_gate moe_aux_loss_lambda moe_orthogonal_loss_lambda moe_z_loss_lambda
        classifier_dropout mtp_loss_weight
    """,
    "a number inside a norm, a softmax or a scaling, not a size": """
        rms_norm_eps layer_norm_epsilon layer_norm_eps norm_epsilon norm_eps epsilon logit_scale logits_scaling
        embedding_multiplier residual_multiplier attention_multiplier scale_attn_weights scale_attn_by_inverse_layer_idx
        clip_qkv moe_norm_min moe_normalize_expert_weights scale_depth query_pre_attn_scalar attn_logit_softcapping
    """,
    "how the gate computes its weights: the same experts, tokens and bytes": """
        scoring_func score_function norm_topk_prob routed_scaling_factor router_scaling_factor
    """,
    "angles of the rotary embedding, not its width": """
        rope_theta rope_scaling rope_parameters rope_interleave original_max_position_embeddings rope_type
        rotary_emb_base rope_is_neox_style use_mrope mrope_section rope_local_base_freq freq_allocation
        default_theta use_rotary_pos_emb max_seq_length n_ctx
    """,
    "how weights are stored: a job's precision says how they are used": "quantization_config compression_config",
    "a head for classification, not for language": """
        summary_type summary_use_proj summary_activation summary_first_dropout summary_proj_to_labels class_num
        add_classification_head pool_type
    """,
}
WHY: dict[str, str] = {word: why for why, words in _WORDS.items() for word in words.split()}
"""Key -> why it leaves the shape alone."""

_PATTERNS = (
    (
        re.compile(r"_token_ids?$|_token_index$|^(im|text|video|image|eod|pad|sep|mask_init|bos|eos)_.*id$|^pad_id$"),
        "a token",
    ),
    (re.compile(r"dropout$|_pdrop$|_dropout_prob$|_drop_rate$"), "training only: dropout, initialisation and losses"),
    (re.compile(r"^(vision|visual|audio|speech|vit|vae|image|video)(_|$)|_placeholder$"), "not the language model"),
    (re.compile(r"^_"), "a note of the software that wrote the file"),
)
NOT_SET = "not set: null says nothing"


def reason(key: str) -> str:
    """Why `key`, which may be dotted, leaves the shape alone; empty where it may not."""
    for name in (key, *reversed(key.split("."))):
        if name in WHY:
            return WHY[name]
        for pattern, why in _PATTERNS:
            if pattern.search(name):
                return why
    return ""


ENCODER = {
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "cross_attention_hidden_size": (),
}
"""Keys of every type, each with the values that leave a decoder a decoder (null always does)."""
