"""What files of many families say: read, implied, ignored; and what is refused, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.errors import InputError
from simulator.inputs import ARCHITECTURES, Reading, load_scenario, read_model
from simulator.inputs.architectures.ignored import reason
from simulator.inputs.hf_config import read_config
from simulator.validation.public_models import public_models

SMALL: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
}
MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FULL, SLIDING = "full_attention", "sliding_attention"


def reading(model_type: str, *, small: dict[str, Any] | None = None, **keys: Any) -> Reading:
    table = {"model_type": model_type, **(SMALL if small is None else small), **keys}
    return read_config(table, "mine", "config.json")


def refusal(model_type: str, **keys: Any) -> str:
    with pytest.raises(InputError) as caught:
        reading(model_type, **keys)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix("config.json: ")


def of(name: str) -> Reading:
    """A public model's file."""
    return read_config(next(one.config for one in public_models() if one.name == name), name, "config.json")


# ---- an account of every key -------------------------------------------------------------------------------------


def test_every_key_is_read_or_ignored_with_a_reason() -> None:
    for public in public_models():
        try:
            found = read_config(public.config, public.name, "config.json")
        except InputError:
            continue
        seen = {one.key for one in found.read} | {one.key for one in found.ignored}
        assert {key for key in public.config if key not in ("model_type", "text_config")} <= {
            key.partition(".")[0] for key in seen
        } | {"tie_word_embeddings"}
        assert all(one.why for one in found.ignored)
        fields = {one.field for one in found.read}
        assert {name for name, _ in found.implied} & fields == set()


def test_a_key_that_is_read_says_its_name_here() -> None:
    found = of("Mixtral-8x7B")
    assert [one.field for one in found.read if one.key == "num_local_experts"] == ["n_routed_experts"]
    assert dict(found.implied)["moe_intermediate_size"] == 14336
    why = {one.key: one.why for one in found.ignored}
    assert why["router_aux_loss_coef"] == "training only: dropout, initialisation and losses"
    assert why["sliding_window"] == "not set: null says nothing"


@pytest.mark.parametrize("key", ["hidden_size", "num_experts", "moe_intermediate_size", "window", "head_dim", "n_id"])
def test_what_may_change_the_shape_is_never_harmless(key: str) -> None:
    assert reason(key) == ""


def test_keys_of_generation_are_harmless() -> None:
    """Older versions of transformers wrote them into every text_config."""
    keys = {"temperature": 1.0, "top_k": 50, "max_length": 20, "bad_words_ids": None, "add_cross_attention": False}
    assert reading("llama", **keys, pruned_heads={}, id2label={"0": "a"}).model.hidden_size == 96


# ---- what types imply ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GLM-4.5", {"qk_norm": True, "attention_bias": True, "attention_out_bias": False, "first_k_dense_replace": 3}),
        ("GLM-4.5", {"partial_rotary_factor": 0.5, "num_nextn_predict_layers": 1}),
        ("GLM-4.5-Air", {"qk_norm": False, "shared_width": 1408}),
        ("GLM-4-32B-0414", {"norm_placement": "both", "norms_per_layer": 4, "partial_rotary_factor": 0.5}),
        ("dots.llm1", {"qk_norm": True, "qk_norm_over": "head", "shared_width": 2816, "sliding_window": None}),
        ("MiniMax-M2.5", {"qk_norm_over": "projection", "partial_rotary_factor": 0.5, "moe_intermediate_size": 1536}),
        ("MiniMax-M2.5", {"num_nextn_predict_layers": 3, "topk_method": "noaux_tc", "shared_width": 0}),
        ("Qwen2-57B-A14B", {"shared_width": 20480, "shared_expert_gate": True, "attention_bias": True}),
        ("Qwen3-Coder-480B-A35B", {"qk_norm": True, "attention_bias": False, "shared_width": 0}),
        ("Kimi-K2.5", {"is_mla": True, "n_routed_experts": 384, "tie_word_embeddings": False}),
        ("OLMoE-1B-7B", {"qk_norm_over": "projection", "moe_intermediate_size": 1024, "norm_placement": "pre"}),
        ("DBRX", {"norm": "layer", "norm_bias": False, "num_key_value_heads": 8, "moe_intermediate_size": 10752}),
        ("Phi-3.5-MoE", {"norm": "layer", "norm_bias": True, "head_bias": True, "attention_out_bias": True}),
        ("Hunyuan-A13B", {"num_experts_per_tok": 8, "shared_width": 3072, "tie_word_embeddings": True}),
        ("ERNIE-4.5-21B-A3B", {"mlp_only_layers": (0,), "shared_width": 3072, "topk_method": "noaux_tc"}),
        ("ERNIE-4.5-300B-A47B", {"mlp_only_layers": (0, 1, 2), "shared_width": 0}),
        ("Ling-lite", {"shared_width": 2816, "qk_norm": False, "topk_method": "greedy"}),
        ("Ling-1T", {"first_k_dense_replace": 4, "qk_norm": True, "partial_rotary_factor": 0.5, "n_group": 8}),
        ("OLMo-2-32B", {"norm_placement": "post", "qk_norm_over": "projection", "num_key_value_heads": 8}),
        ("Phi-4-mini", {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}),
        ("SmolLM3-3B", {"nope_layers": 9, "rotated_share": 0.75, "tie_word_embeddings": True}),
        ("Seed-OSS-36B", {"attention_bias": True, "attention_out_bias": False, "head_dim": 128}),
        ("MiMo-7B", {"attention_bias": True, "attention_out_bias": False, "num_nextn_predict_layers": 1}),
        ("Falcon-7B", {"num_key_value_heads": 1, "parallel_block": True, "shared_norm": True, "mlp_bias": False}),
        ("Falcon-40B", {"num_key_value_heads": 8, "parallel_block": True, "norms_per_layer": 2}),
        ("Falcon2-11B", {"norms_per_layer": 1, "intermediate_size": 16384, "tie_word_embeddings": False}),
        ("GPT-2", {"positions": "learned", "parallel_block": False, "mlp_bias": True, "intermediate_size": 3072}),
        ("GPT-NeoX-20B", {"parallel_block": True, "shared_norm": False, "partial_rotary_factor": 0.25}),
        ("GPT-J-6B", {"shared_norm": True, "partial_rotary_factor": 0.25, "attention_bias": False, "head_bias": True}),
        ("Mistral-7B-v0.1", {"sliding_window": 4096}),
        ("Qwen2.5-7B", {"sliding_window": None, "attention_bias": True}),
    ],
)
def test_what_a_file_implies(name: str, expected: dict[str, Any]) -> None:
    model = of(name).model
    assert {key: getattr(model, key) for key in expected} == expected


def test_a_vision_model_is_read_as_its_language_model(tmp_path: Path) -> None:
    text = {"model_type": "qwen3", **SMALL, "tie_word_embeddings": False}
    table = {"model_type": "anything", "tie_word_embeddings": True, "text_config": text, "vision_config": {"depth": 27}}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(table))
    found = read_model(str(file))
    assert found.model.model_type == "qwen3"
    assert found.model.tie_word_embeddings  # what stands around decides, as in transformers
    assert {one.key: one.why for one in found.ignored}["vision_config"] == (
        "not the language model, which is in text_config"
    )
    nested = {"model_type": "omni", "thinker_config": {"model_type": "thinker", "text_config": text}}
    assert read_config(nested, "mine", "config.json").model.qk_norm


def test_errors_in_a_part_name_it() -> None:
    table = {"model_type": "anything", "text_config": {"model_type": "qwen3", **SMALL, "hidden_size": None}}
    with pytest.raises(InputError, match=r"^config.json: text_config.hidden_size: null: missing: must be an integer"):
        read_config(table, "mine", "config.json")


# ---- layers ----------------------------------------------------------------------------------------------------


def test_layer_types_of_full_attention_are_harmless() -> None:
    assert reading("dots1", **MOE, layer_types=[FULL] * 4, sliding_window=4096).model.sliding_window is None


def test_a_window_of_all_layers_is_a_window() -> None:
    assert reading("mistral", layer_types=[SLIDING] * 4, sliding_window=64).model.sliding_window == 64
    assert reading("qwen2", use_sliding_window=True, max_window_layers=0, sliding_window=64).model.sliding_window == 64


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ({"layer_types": [SLIDING, FULL] * 2}, "layers with sliding attention need it, at least 1"),
        ({"layer_types": [FULL, "lightning"] * 2}, "lightning in 2 of 4 layers is not modelled"),
        ({"layer_types": [FULL, "conv"] * 2}, "conv layers need it: at least 1"),
        ({"layer_types": [FULL, "linear_attention"] * 2}, "delta layers need it: at least 1"),
        ({"layer_types": [FULL] * 3}, "lists 3 layers, num_hidden_layers is 4"),
        ({"layer_types": 3}, "must be a list, each a string"),
    ],
)
def test_lists_of_layers_that_cannot_be(keys: dict[str, Any], shown: str) -> None:
    assert shown in refusal("qwen3", **keys)


def mixers(model_type: str, **keys: Any) -> list[str]:
    return [str(mixer) for mixer in reading(model_type, **keys).model.layer_types]


def test_layers_that_differ_have_their_own_mixers() -> None:
    listed = {"layer_types": [SLIDING, FULL] * 2, "sliding_window": 64}
    assert mixers("qwen3", **listed) == ["sliding", "full"] * 2
    last = {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 64}
    assert mixers("qwen3", **last) == ["full", "full", "full", "sliding"]
    assert mixers("gemma2") == ["sliding", "full"] * 2
    assert mixers("gemma3_text", sliding_window_pattern=3) == ["sliding", "sliding", "full", "sliding"]
    assert mixers("exaone4", sliding_window=64, sliding_window_pattern="LG") == ["sliding", "full"] * 2
    assert mixers("cwm") == ["full", "sliding", "sliding", "sliding"]
    assert mixers("llama", attention_chunk_size=64) == ["chunked"] * 4


def test_a_window_pattern_that_is_no_number_is_refused() -> None:
    assert "must be an integer, at least 1" in refusal("gemma2", sliding_window_pattern=0)


def test_layers_with_full_attention_do_not_rotate_between_others() -> None:
    assert reading("cohere2").model.full_rotary_factor == 0.0
    assert reading("exaone4", sliding_window=64).model.full_rotary_factor == 0.0
    assert reading("exaone4").model.full_rotary_factor is None  # without windows all layers rotate
    assert reading("gemma2").model.full_rotary_factor is None


def test_layers_without_rotary_embedding_are_counted() -> None:
    assert reading("smollm3", no_rope_layers=[1, 1, 0, 1]).model.nope_layers == 1
    assert reading("smollm3", no_rope_layer_interval=2).model.nope_layers == 2
    assert "one 0 or 1 for each of the 4 layers" in refusal("smollm3", no_rope_layers=[1, 0])


def test_a_pattern_that_does_not_divide_the_layers_is_reported() -> None:
    found = reading("qwen3_moe", **MOE, decoder_sparse_step=3)
    assert found.model.layer_kinds() == ("dense", "dense", "moe", "dense")
    assert found.notes == ("decoder_sparse_step 3 does not divide num_hidden_layers 4: the last is cut",)
    windows = reading("gemma2", sliding_window_pattern=3)
    assert windows.notes == ("sliding_window_pattern 3 does not divide num_hidden_layers 4: the last is cut",)
    none = reading("qwen3_moe", **MOE, decoder_sparse_step=5)
    assert none.notes[-1] == "none of the 4 layers has experts"


def test_a_window_that_is_no_limit_is_reported() -> None:
    found = reading("mistral", sliding_window=4096, max_position_embeddings=2048)
    assert found.notes == ("sliding_window 4096 is not shorter than the longest sequence, 2048: it never counts",)


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", [name for name, one in ARCHITECTURES.shipped.items() if one.moe])
@pytest.mark.parametrize("value", [None, 0, "absent"])
def test_a_mixture_of_experts_says_how_many(model_type: str, value: Any) -> None:
    """It is not turned into a dense model."""
    small = (
        {"vocab_size": 9, "d_model": 8, "n_layers": 2, "n_heads": 2, "ffn_config": {"ffn_hidden_size": 8}}
        if model_type == "dbrx"
        else SMALL
    )
    keys = {} if value == "absent" or model_type == "dbrx" else {"num_experts": value}
    shown = refusal(model_type, small=small, **keys)
    assert f"missing: {model_type} is a mixture of experts, and says how many: at least 1" in shown
    assert shown.endswith("docs/howto/model.md says how to add one")


def test_a_dense_relative_is_named() -> None:
    assert "; a dense model like it is of type qwen3;" in refusal("qwen3_moe")


def test_experts_may_be_set_to_none_on_purpose() -> None:
    dense = load_scenario("llama-3-8b", ["model=mixtral-8x7b", "model.n_routed_experts=8"])
    assert dense.model.is_moe


@pytest.mark.parametrize(
    ("model_type", "keys", "shown"),
    [
        (
            "llama",
            {"num_local_experts": 8},
            "num_local_experts: 8: unknown key for llama, it may change the shape: a mixture of experts is not modelled"
            " for llama; docs/howto/model.md says how to add one",
        ),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder: true: only decoders are supported"),
        ("gpt2", {"small": {}, "add_cross_attention": True}, "add_cross_attention: true: only decoders are supported"),
        (
            "falcon",
            {"alibi": True},
            "alibi: true: must be false: ALiBi, a bias of the scores instead of rotary embedding: not modelled for",
        ),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm: true: must be false: LayerNorms of queries and keys: not"),
        (
            "qwen3_moe",
            {**MOE, "num_local_experts": 8},
            "num_local_experts: 8: contradicts num_experts: give one of them",
        ),
        (
            "hunyuan_v1_moe",
            {"num_experts": 4, "moe_topk": [2, 2, 2, 1]},
            "moe_topk: [2, 2, 2, 1]: layers of different widths are not modelled: must be the same for all",
        ),
        (
            "minimax_m2",
            {
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "use_mtp": True,
                "num_mtp_modules": 1,
                "mtp_transformer_layers": 2,
            },
            "mtp_transformer_layers: 2: must be 1: MTP modules of several layers are not modelled",
        ),
        ("bloom", {}, 'model_type: "bloom": not supported: ALiBi, a bias of the scores instead of rotary embedding, '),
        ("qwen33", {}, 'model_type: "qwen33": not a known architecture: did you mean qwen3'),
    ],
)
def test_what_is_not_modelled_is_reported_in_one_line(model_type: str, keys: dict[str, Any], shown: str) -> None:
    if model_type == "gpt2":
        keys = {"small": {}, "n_embd": 96, "n_layer": 4, "n_head": 8, "vocab_size": 1000, **keys}
    assert refusal(model_type, **keys).startswith(shown)


def test_a_known_type_that_is_refused_is_reported_before_its_parts() -> None:
    table = {"model_type": "mllama", "text_config": {"model_type": "mllama_text_model"}}
    with pytest.raises(InputError, match=r"^config.json: model_type: \"mllama\": not supported: cross-attention"):
        read_config(table, "mine", "config.json")


def test_set_replaces_whatever_spelling_the_file_has(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "qwen3_moe", **SMALL, **MOE}))
    for key in ("n_routed_experts", "num_experts", "num_local_experts"):
        assert load_scenario("tiny-1f1b", [f"model={file}", f"model.{key}=8"]).model.n_routed_experts == 8


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("model.parallel_block=true", "only dense models with grouped queries have such blocks here"),
        ("model.norm_placement=post", "only dense models with grouped queries have such blocks here"),
        ("model.qk_norm_over=projection", "latent attention norms its latents only"),
        ("model.partial_rotary_factor=0.5", "of latent attention qk_rope_head_dim gives the part that rotates"),
        ("model.nope_layers=2", "of latent attention qk_rope_head_dim gives the part that rotates"),
        ("model.shared_norm=true", "branches share a norm in a parallel block only"),
        ("model.nope_layers=99", "must be at most num_hidden_layers 6"),
        ("model.sliding_window=64", "latent attention sees all tokens: only full attention is modelled"),
        ("model.sliding_head_dim=64", "no layer has a window: set layer_types and sliding_window, or leave it out"),
        ("model.attention_chunk_size=64", "no layer has chunks: set layer_types, or leave it out"),
        ("model.full_rotary_factor=0.5", "is of layers with full attention between others"),
    ],
)
def test_blocks_that_the_graph_does_not_have(setting: str, shown: str) -> None:
    with pytest.raises(InputError, match=shown):
        load_scenario("tiny-1f1b", [setting])


# ---- DeepSeek-V4 -------------------------------------------------------------------------------------------------

V4: dict[str, Any] = {
    **{key: value for key, value in SMALL.items() if key not in ("intermediate_size", "num_key_value_heads")},
    **{"head_dim": 16, "q_lora_rank": 24, "o_groups": 2, "o_lora_rank": 12, "index_topk": 32, "index_head_dim": 8},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}


def v4(**keys: Any) -> Reading:
    return reading("deepseek_v4", small=V4, **keys)


def test_both_spellings_of_what_layers_compress() -> None:
    by_rate = v4(compress_ratios=[0, 128, 4, 4, 0], num_hash_layers=1).model
    listed = v4(
        layer_types=["sliding_attention", "heavily_compressed_attention", *["compressed_sparse_attention"] * 2],
        mlp_layer_types=["hash_moe", "moe", "moe", "moe"],
    ).model
    assert by_rate == listed
    assert [str(kind) for kind in by_rate.layer_kinds()] == ["sliding+hash", "hca+moe", "csa+moe", "csa+moe"]
    assert [str(kind) for kind in v4().model.layer_kinds()] == ["hca+hash", "hca+hash", "hca+hash", "csa+moe"]
    assert v4(compress_rates={"compressed_sparse_attention": 8}).model.compress_rate_csa == 8


@pytest.mark.parametrize(
    ("keys", "right"),
    [
        ({"compress_ratios": [0, 4]}, "must be a list of 0, 4, 128, one for each of the 4 layers"),
        ({"compress_ratios": [0, 4, 16, 4]}, "must be a list of 0, 4, 128"),
        ({"layer_types": ["full_attention"] * 4}, "must be a list of sliding_attention"),
        ({"mlp_layer_types": ["moe", "hash_moe", "moe", "moe"]}, 'first of "hash_moe", then of "moe"'),
        ({"o_groups": 3}, "must divide the 8 heads"),
        ({"o_lora_rank": 0}, "must be at least 1"),
        ({"hc_mult": 0}, "must be from 1 to 64"),
        ({"num_hash_layers": 5}, "must be at most num_hidden_layers 4"),
        ({"n_routed_experts": None}, "is a mixture of experts, and says how many"),
        ({"attention_bias": True}, "biases of its projections"),
        ({"kv_lora_rank": 512}, "unknown key for deepseek_v4, it may change the shape"),
        ({"sliding_window": 0}, "must be at least 1"),
        ({"index_topk": 0}, "csa layers need it: at least 1"),
        ({"partial_rotary_factor": 0.0}, "a part of each head rotates"),
    ],
)
def test_what_no_such_model_can_be_is_refused(keys: dict[str, Any], right: str) -> None:
    with pytest.raises(InputError) as caught:
        v4(**keys)
    assert right in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "right"),
    [
        ("model.hc_mult=4", "streams are of models whose key is the value"),
        ("model.num_hash_layers=1", "experts by table are of models whose key is the value"),
        ("model.o_groups=4", "of models whose key is the value"),
        ('model.layer_types=["hca","hca","hca","hca"]', "csa and hca layers are of models whose key is the value"),
        ("model.shared_key_value=true", "such a model has one key-value head"),
    ],
)
def test_what_belongs_to_such_models_is_refused_elsewhere(setting: str, right: str) -> None:
    layers = [] if "shared" in setting else ["model.num_hidden_layers=4"]
    with pytest.raises(InputError, match=right):
        load_scenario("llama-3-8b", [*layers, setting])
