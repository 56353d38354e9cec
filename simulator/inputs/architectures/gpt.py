"""Decoders after GPT-2: LayerNorm, a feed-forward part without a gate, often parallel to attention."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.inputs.architectures.architecture import (
    Architecture,
    Only,
    Table,
    Unsupported,
    fill,
    grouped_query,
    output_bias,
    spelled,
    steps,
)
from simulator.inputs.architectures.layers import rotary_dim, window
from simulator.inputs.architectures.llama import published

_LAYER = {"norm": "layer", "gated_mlp": False, "hidden_act": "gelu"}
_BIASES = {"attention_bias": True, "mlp_bias": True}
_ONE_NORM = {"parallel_block": True, "shared_norm": True}
_GPT_KEYS = {
    "vocab_size": "vocab_size",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "activation_function": "hidden_act",
    "tie_word_embeddings": "tie_word_embeddings",
}


def four_times_hidden(table: Table) -> Table:
    """The feed-forward part is four times as wide as the model where nothing is said."""
    hidden = table.get("hidden_size", 0)
    wide = 4 * hidden if isinstance(hidden, int) else hidden
    return table | {"intermediate_size": table.get("intermediate_size", wide)}


def _falcon(table: Table) -> Table:
    """Falcon's two generations: the newer one gives its key-value heads and has two norms unless it says one."""
    newer, parallel = table.pop("new_decoder_architecture", False), table.pop("parallel_attn", True)
    single, norms = table.pop("multi_query", True), table.pop("num_ln_in_parallel_attn", None)
    biased, heads = table.pop("bias", False), table.get("num_attention_heads")
    kv_heads = table.pop("num_kv_heads", heads) if newer or not single else 1
    table.pop("num_kv_heads", None)
    two = (norms or (2 if newer else 1)) == 2
    shape = {"num_key_value_heads": kv_heads, "parallel_block": parallel, "shared_norm": bool(parallel) and not two}
    return table | shape | dict.fromkeys(("attention_bias", "attention_out_bias", "mlp_bias"), biased)


def _opt(table: Table) -> Table:
    """One key for all biases; an embedding of two positions more than the longest sequence, which starts at the third;
    embeddings as wide as the model."""
    longest, wide = table.get("max_position_embeddings", 2048), table.pop("word_embed_proj_dim", None)
    if wide not in (None, table.get("hidden_size")):
        raise Unsupported(
            "word_embed_proj_dim", wide, "must be hidden_size: projections of embeddings are not modelled"
        )
    biased = table.pop("enable_bias")
    more = {"max_position_embeddings": longest + 2} if isinstance(longest, int) else {}
    return table | more | dict.fromkeys(("attention_bias", "attention_out_bias", "mlp_bias"), biased)


def _one_key(table: Table) -> Table:
    """All queries share one head of keys and values, unless `multi_query` says no."""
    single, heads = table.pop("multi_query", True), table.get("num_attention_heads")
    if not isinstance(single, bool):
        raise Unsupported("multi_query", single, "must be true or false")
    return table | {"num_key_value_heads": 1 if single else heads}


def _parallel(table: Table) -> Table:
    """A parallel block with one norm, where a key asks for it (StableLM)."""
    parallel = table.pop("use_parallel_residual", False)
    return table | {"parallel_block": parallel, "shared_norm": parallel}


SHIPPED: Mapping[str, Architecture] = {
    "gpt2": Architecture(
        keys=_GPT_KEYS,
        fixed={**_LAYER, **_BIASES, "positions": "learned", "tie_word_embeddings": True},
        finish=steps(four_times_hidden, output_bias),
        title="GPT-2, GPT-3 in its keys",
        source=published("gpt2"),
    ),
    "gpt_bigcode": Architecture(
        keys=_GPT_KEYS | {"multi_query": "multi_query", "num_key_value_heads": "num_key_value_heads"},
        fixed={**_LAYER, **_BIASES, "positions": "learned", "tie_word_embeddings": True},
        finish=steps(four_times_hidden, _one_key, output_bias),
        ignored=dict.fromkeys(
            (
                *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "inference_runner"),
                *("validate_runner_input", "pre_allocate_kv_cache", "max_batch_size", "max_sequence_length"),
            ),
            "how a forward call is programmed",
        ),
        title="SantaCoder, StarCoder 15B",
        source=f"{published('gpt_bigcode')}; arXiv 2305.06161",
    ),
    "gpt_neox": Architecture(
        keys=grouped_query("attention_bias", use_parallel_residual="parallel_block"),
        fixed={**_LAYER, **_BIASES, "parallel_block": True, "partial_rotary_factor": 0.25},
        finish=steps(output_bias, rotary_dim),
        title="GPT-NeoX-20B, Pythia",
        source=f"{published('gpt_neox')}; arXiv 2204.06745",
    ),
    "gptj": Architecture(
        keys=_GPT_KEYS | {"rotary_dim": "rotary_dim"},
        fixed={**_LAYER, **_ONE_NORM, "mlp_bias": True, "head_bias": True},
        finish=steps(four_times_hidden, rotary_dim),
        only={"rotary": Only(values=(True,), otherwise="other positions")},
        title="GPT-J-6B",
        source=published("gptj"),
    ),
    "falcon": Architecture(
        keys=grouped_query(
            "new_decoder_architecture",
            "parallel_attn",
            "multi_query",
            "num_ln_in_parallel_attn",
            "num_kv_heads",
            "bias",
            ffn_hidden_size="intermediate_size",
            activation="hidden_act",
        ),
        fixed={**_LAYER, "tie_word_embeddings": True},
        finish=steps(_falcon, four_times_hidden, rotary_dim),
        only={
            "alibi": Only(values=(False,), otherwise="ALiBi, a bias of the scores instead of rotary embedding"),
            "apply_residual_connection_post_layernorm": Only(values=(False,), otherwise="a residual behind the norm"),
        },
        ignored={"ff_factor": "ffn_hidden_size says it"},
        title="Falcon 7B, 40B, 180B and Falcon 2 11B",
        source=f"{published('falcon')}; arXiv 2311.16867",
    ),
    "opt": Architecture(
        keys=spelled(
            "enable_bias", "word_embed_proj_dim", ffn_dim="intermediate_size", activation_function="hidden_act"
        ),
        fixed={
            **_LAYER,
            "hidden_act": "relu",
            "positions": "learned",
            "tie_word_embeddings": True,
            "enable_bias": True,
        },
        finish=_opt,
        only={
            "do_layer_norm_before": Only(values=(True,), otherwise="norms behind the residual"),
            "layer_norm_elementwise_affine": Only(values=(True,), otherwise="LayerNorm without weights"),
            "_remove_final_layer_norm": Only(values=(False,), otherwise="no norm before the head"),
        },
        title="OPT",
        source=f"{published('opt')}; arXiv 2205.01068",
    ),
    "nemotron": Architecture(
        keys=grouped_query("attention_bias", "mlp_bias"),
        fixed={"norm": "layer", "gated_mlp": False, "hidden_act": "relu2", "partial_rotary_factor": 0.5},
        finish=steps(output_bias, rotary_dim),
        title="Nemotron-4, Minitron",
        source=published("nemotron"),
    ),
    "jais2": Architecture(
        keys=grouped_query("attention_bias", "mlp_bias"),
        fixed={"norm": "layer", "gated_mlp": False, "hidden_act": "relu2", "attention_bias": True, "mlp_bias": True},
        finish=steps(output_bias, rotary_dim),
        title="Jais 2",
        source=published("jais2"),
    ),
    "phi": Architecture(
        keys=grouped_query(),
        fixed={**_LAYER, **_BIASES, **_ONE_NORM, "head_bias": True, "partial_rotary_factor": 0.5},
        finish=steps(output_bias, rotary_dim),
        only={"qk_layernorm": Only(values=(False,), otherwise="LayerNorms of queries and keys")},
        title="Phi-1, Phi-1.5, Phi-2",
        source=published("phi"),
    ),
    "stablelm": Architecture(
        keys=grouped_query("use_parallel_residual", use_qkv_bias="attention_bias"),
        fixed={"norm": "layer", "partial_rotary_factor": 0.25},
        finish=steps(_parallel, rotary_dim),
        only={"qk_layernorm": Only(values=(False,), otherwise="LayerNorms of queries and keys")},
        title="StableLM 2",
        source=published("stablelm"),
    ),
    "starcoder2": Architecture(
        keys=grouped_query(use_bias="mlp_bias"),
        fixed={**_LAYER, "mlp_bias": True, "tie_word_embeddings": True},
        finish=steps(window, fill(attention_bias="mlp_bias", attention_out_bias="mlp_bias"), rotary_dim),
        only={
            "mlp_type": Only(values=("default",), otherwise="another feed-forward part"),
            "norm_type": Only(values=("layer_norm",), otherwise="another norm"),
        },
        title="StarCoder2",
        source=published("starcoder2"),
    ),
    "cohere": Architecture(
        keys=grouped_query("attention_bias"),
        fixed={"norm": "layer", "norm_bias": False, **_ONE_NORM, "tie_word_embeddings": True},
        finish=steps(output_bias, rotary_dim),
        only={"use_qk_norm": Only(values=(False,), otherwise="LayerNorms of queries and keys")},
        title="Command R",
        source=published("cohere"),
    ),
}
