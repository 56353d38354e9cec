"""The same model twice: as the reference counts it while it runs, and as the simulator's graph says it would."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from simulator.dtypes import FP8_TILE
from simulator.graph.block import Block
from simulator.graph.shapes import Shapes, shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.ops import Attention
from simulator.spec.precision import Recipe
from simulator.spec.scenario import Scenario
from workloads.reference.config import BLOCKS, CSA, HCA, RefConfig
from workloads.reference.count import OUTSIDE, Counter, Run, Widths
from workloads.reference.init import init_params
from workloads.reference.model import as_tokens, loss_and_grads
from workloads.reference.presets import (
    tiny_chunks,
    tiny_delta,
    tiny_falcon_h1,
    tiny_falcon_mamba,
    tiny_gqa,
    tiny_jamba,
    tiny_k3,
    tiny_kda,
    tiny_lfm2,
    tiny_m3,
    tiny_mamba,
    tiny_nemotron,
    tiny_qwen3_moe,
    tiny_trinity,
    tiny_v2_lite,
    tiny_v3,
    tiny_v4,
    tiny_v32,
    tiny_windows,
)

BATCH, LENGTH = 2, 8
FP8 = 1.0 + 4.0 / FP8_TILE  # a value with its share of an FP32 scale [B]
E5M6 = 1.5  # DeepSeek-V3 section 3.3.3 [B]

MODELS: dict[str, tuple[RefConfig, str]] = {
    "v3": (tiny_v3(), "deepseek_v3"),
    "v3-no-shared": (replace(tiny_v3(), n_shared_experts=0), "deepseek_v3"),
    "v3-wide": (replace(tiny_v3(), num_experts_per_tok=4, moe_intermediate_size=20, v_head_dim=6), "deepseek_v3"),
    "v2-lite": (tiny_v2_lite(), "deepseek_v2"),
    "v4": (tiny_v4(), "deepseek_v4"),
    "v3.2": (tiny_v32(), "deepseek_v32"),
    "m3": (tiny_m3(), "minimax_m3_vl_text"),
    "llama": (tiny_gqa(), "llama"),
    "qwen2": (replace(tiny_gqa(), attention_bias=True), "qwen2"),
    "qwen3-moe": (tiny_qwen3_moe(), "qwen3_moe"),
    "trinity": (tiny_trinity(), "afmoe"),
    "tied": (replace(tiny_gqa(), qk_norm=True, value_norm=True, key_is_value=True), "llama"),
    "windows": (tiny_windows(), "qwen2"),
    "chunks": (tiny_chunks(), "llama"),
    "delta": (tiny_delta(), "qwen3_5_text"),
    "mamba": (tiny_mamba(), "bamba"),
    "kda": (tiny_kda(), "kimi_linear"),
    "k3": (tiny_k3(), "kimi_linear"),
    "nemotron": (tiny_nemotron(), "nemotron_h"),
    "falcon-h1": (tiny_falcon_h1(), "falcon_h1"),
    "jamba": (tiny_jamba(), "jamba"),
    "lfm2": (tiny_lfm2(), "lfm2_moe"),
    "mamba1": (replace(tiny_falcon_mamba(), mamba_state_norms=False), "mamba"),
    "falcon-mamba": (tiny_falcon_mamba(), "falcon_mamba"),
    "relu2": (replace(tiny_gqa(), gated_mlp=False), "llama"),
    "post-norm": (replace(tiny_gqa(), norm_placement="post", qk_norm=True, qk_norm_over="projection"), "olmo2"),
    "both-norms": (replace(tiny_gqa(), norm_placement="both"), "llama"),
    "parallel": (replace(tiny_gqa(), parallel_block=True), "llama"),
    "one-norm": (replace(tiny_gqa(), parallel_block=True, shared_norm=True), "llama"),
    "gated": (replace(tiny_gqa(), attention_gate="element", head_dim=8, partial_rotary_factor=0.25), "llama"),
}
SET = {
    "v4": (),
    "v3.2": (),
    "m3": (),
    "trinity": (),
    "tied": ("model.qk_norm=true", "model.value_norm=true", "model.attention_k_eq_v=true"),
    "windows": ("model.attention_sinks=all",),
    "chunks": ("model.full_rotary_factor=0",),
    "delta": ("model.linear_chunk_size=3",),
    "mamba": (),
    "nemotron": (),
    "falcon-h1": (),
    "lfm2": (),
    "jamba": ("model.mamba_inner_size=18",),
    "mamba1": ("model.mamba_inner_size=18",),
    "falcon-mamba": ("model.mamba_inner_size=18",),
    "relu2": ("model.gated_mlp=false",),
    "kda": ("model.linear_chunk_size=3",),
    "k3": ("model.linear_chunk_size=3",),
    "both-norms": ("model.norm_placement=both",),
    "parallel": ("model.parallel_block=true",),
    "one-norm": ("model.parallel_block=true", "model.shared_norm=true"),
    "gated": ("model.attention_gate=element",),
}
"""What no key of the family's config.json says."""

_ANY = """vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size rope_theta
    rope_scaling rms_norm_eps initializer_range"""
_LAYERS = "layer_types sliding_window"
_STATES = "vocab_size hidden_size num_hidden_layers ssm_state_size mamba_dt_rank"
_EXPERTS = "n_routed_experts num_experts_per_tok moe_intermediate_size norm_topk_prob"
_DEEPSEEK = f"""{_ANY} {_EXPERTS} q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim n_shared_experts
    first_k_dense_replace n_group topk_group scoring_func topk_method routed_scaling_factor aux_loss_alpha
    num_nextn_predict_layers"""
KEYS = {
    "deepseek_v3": _DEEPSEEK.split(),
    "deepseek_v2": _DEEPSEEK.split(),
    "deepseek_v32": f"{_DEEPSEEK} index_n_heads index_head_dim index_topk".split(),
    "minimax_m3_vl_text": f"""{_ANY} layer_types num_experts_per_tok head_dim partial_rotary_factor index_n_heads
        index_head_dim index_block_size""".split(),
    "afmoe": f"{_ANY} {_LAYERS} num_experts_per_tok moe_intermediate_size head_dim".split(),
    "llama": f"{_ANY} {_LAYERS} head_dim attention_bias partial_rotary_factor attention_chunk_size".split(),
    "qwen2": f"{_ANY} {_LAYERS}".split(),
    "olmo2": _ANY.split(),
    "qwen3_5_text": f"""{_ANY} {_LAYERS} head_dim linear_num_key_heads linear_num_value_heads linear_key_head_dim
        linear_value_head_dim""".split(),
    "kimi_linear": f"{_DEEPSEEK} layer_types linear_key_head_dim linear_num_value_heads".split(),
    "bamba": f"""{_ANY} {_LAYERS} partial_rotary_factor mamba_num_heads mamba_head_dim mamba_n_groups ssm_state_size
        state_chunk_size""".split(),
    "falcon_h1": f"""{_ANY} mamba_num_heads mamba_head_dim mamba_n_groups ssm_state_size state_chunk_size
        mamba_rms_norm""".split(),
    "jamba": f"""{_ANY} ssm_state_size mamba_dt_rank n_routed_experts num_experts_per_tok""".split(),
    "lfm2_moe": f"""{_ANY} {_EXPERTS} layer_types first_k_dense_replace short_conv_kernel""".split(),
    "mamba": _STATES.split(),
    "falcon_mamba": _STATES.split(),
    "nemotron_h": f"""{_ANY} {_EXPERTS} layer_types mamba_num_heads mamba_head_dim mamba_n_groups ssm_state_size
        state_chunk_size n_shared_experts shared_expert_intermediate_size moe_latent_size
        num_nextn_predict_layers""".split(),
    "deepseek_v4": f"""{_ANY} {_LAYERS} {_EXPERTS} head_dim partial_rotary_factor q_lora_rank o_groups o_lora_rank
        index_n_heads index_head_dim index_topk compress_rate_csa compress_rate_hca hc_mult num_hash_layers
        n_shared_experts num_nextn_predict_layers""".split(),
    "qwen3_moe": f"{_ANY} {_EXPERTS} head_dim attention_bias".split(),
}
"""What the config.json of a family says."""

HEAD = ("norm.final", "head", "loss", "hc.head")
MTP = ("mtp.", "embed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A block of the graph and the reference's layer that it stands for; `only` what an end block shares with it."""

    kind: str
    layer: int
    only: tuple[str, ...] = ()

    def holds(self, name: str) -> bool:
        """Whether this reference op or tensor belongs to the block."""
        return name.startswith(self.only) if self.only else not name.startswith(HEAD + MTP)


def parts(cfg: RefConfig) -> list[Part]:
    """Every kind of block that the model has, MTP module included."""
    found = [Part(kind="embed", layer=OUTSIDE, only=("embed",)), Part(kind="head", layer=OUTSIDE, only=HEAD)]
    found += [Part(kind=kind_of(cfg, layer), layer=layer) for layer in range(cfg.num_hidden_layers)]
    for module in range(cfg.num_nextn_predict_layers):
        layer = cfg.num_hidden_layers + module
        found += [Part(kind="mtp", layer=layer, only=MTP), Part(kind=kind_of(cfg, layer), layer=layer)]
        found += [Part(kind="head", layer=layer, only=HEAD)]
    return found


MIXERS = {"full_attention": "", "sliding_attention": "sliding+", "chunked_attention": "chunked+"}
MIXERS |= {
    "linear_attention": "delta+",
    "mamba": "mamba2+",
    "conv": "conv+",
    "mamba1": "mamba1+",
    "none": "none+",
    "hybrid": "hybrid+",
    CSA: "csa+",
    BLOCKS: "blocks+",
    HCA: "hca+",
}


def kind_of(cfg: RefConfig, layer: int) -> str:
    """The graph's name of a layer's kind."""
    if cfg.linear_gate_rank and cfg.is_recurrent(layer):
        return "kda+" + ("moe" if cfg.is_moe(layer) else "dense")
    if not cfg.has("ffn", layer):
        return (MIXERS[cfg.mixer(layer)] or "full+") + "none"
    mixer = "sparse+" if cfg.is_chosen else MIXERS[cfg.mixer(layer)]
    experts = "hash" if layer < cfg.num_hash_layers else "moe"
    return mixer + (experts if cfg.is_moe(layer) else "dense")


BAMBA = {
    "mamba_num_heads": "mamba_n_heads",
    "mamba_head_dim": "mamba_d_head",
    "ssm_state_size": "mamba_d_state",
    "state_chunk_size": "mamba_chunk_size",
}
"""Its spelling."""
ALONE = {"ssm_state_size": "state_size", "mamba_dt_rank": "time_step_rank"}
LFM2 = {
    "n_routed_experts": "num_experts",
    "first_k_dense_replace": "num_dense_layers",
    "short_conv_kernel": "conv_L_cache",
}
JAMBA = {"ssm_state_size": "mamba_d_state", "n_routed_experts": "num_experts"}
NEMOTRON = {
    "mamba_n_groups": "n_groups",
    "state_chunk_size": "chunk_size",
    "shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
    "layer_types": "layers_block_type",
}
PARTS = {"mamba": "linear_attention", "full_attention": "full_attention", "none": "moe"}
"""What its layers are, where all feed-forward parts have experts."""
KIMI = {"linear_key_head_dim": "linear_head_dim", "linear_num_value_heads": "linear_num_heads"}


SPELLED: dict[str, dict[str, str]] = {
    **dict.fromkeys(("bamba", "falcon_h1"), BAMBA),
    **dict.fromkeys(("mamba", "falcon_mamba"), ALONE),
    **{"jamba": JAMBA, "lfm2_moe": LFM2, "nemotron_h": NEMOTRON, "kimi_linear": KIMI},
    "qwen3_moe": {"n_routed_experts": "num_experts"},
}
"""Families that have other names for our keys."""


def _besides(cfg: RefConfig, family: str) -> dict[str, object]:
    """What no single field of the config says."""
    if family == "falcon_h1":
        return {"mamba_d_ssm": cfg.mamba_num_heads * cfg.mamba_head_dim}
    if family == "jamba":
        return {"attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1}
    if family == "nemotron_h":
        return {"layers_block_type": [PARTS[kind] for kind in cfg.layer_types]}
    if family == "minimax_m3_vl_text":
        kinds = ["dense" if layer < cfg.first_k_dense_replace else "sparse" for layer in range(cfg.num_hidden_layers)]
        return {
            **{"num_local_experts": cfg.n_routed_experts, "index_topk_blocks": cfg.index_topk},
            **{"intermediate_size": cfg.moe_intermediate_size, "dense_intermediate_size": cfg.intermediate_size},
            **{"shared_intermediate_size": cfg.shared_width, "mlp_layer_types": kinds},
        }
    if family == "kimi_linear" and cfg.moe_latent_norm:
        experts = {"routed_expert_hidden_size": cfg.moe_latent_size, "latent_moe_use_norm": True}
        full = {"use_full_rank_gate": cfg.linear_full_rank_gate}
        return experts | {"mla_use_output_gate": cfg.is_gated, "linear_attn_config": full}
    if family == "afmoe":
        many = {"num_experts": cfg.n_routed_experts, "num_shared_experts": cfg.n_shared_experts}
        return many | {"num_dense_layers": cfg.first_k_dense_replace}
    return {}


def config_json(cfg: RefConfig, family: str) -> dict[str, object]:
    """`cfg` in the keys of the family's config.json."""
    values = {key: value for key, value in asdict(cfg).items() if value is not None and key in KEYS[family]}
    values = {key: value for key, value in values.items() if value or key not in ("layer_types", "sliding_window")}
    names = SPELLED.get(family, {})
    values = {names.get(key, key): value for key, value in values.items()}
    return values | _besides(cfg, family) | {"model_type": family, "tie_word_embeddings": False}


def scenario_of(
    name: str, folder: Path, *overrides: str, recipe: Recipe = "bf16", recompute: str | tuple[str, ...] = "none"
) -> Scenario:
    """One GPU with one microbatch of the model: the simulator's side of a reference run."""
    cfg, family = MODELS[name]
    return load_scenario(
        "tiny-bf16",
        [
            f"model={write_config(cfg, family, folder)}",
            *("gpus=1", "layout.pp=1", "layout.ep=1", "layout.schedule=1f1b"),
            f"layout.recompute={recompute if isinstance(recompute, str) else json.dumps(recompute)}",
            f"precision.recipe={recipe}",
            f"batch.sequence_length={LENGTH}",
            f"batch.microbatch_size={BATCH}",
            f"batch.global_batch_size={BATCH}",
            *SET.get(name, ()),
            *overrides,
        ],
    )


def write_config(cfg: RefConfig, family: str, folder: Path) -> Path:
    """The model as a file that the simulator reads."""
    path = folder / "config.json"
    path.write_text(json.dumps(config_json(cfg, family)), encoding="utf-8")
    return path


def unpadded(scenario: Scenario) -> Shapes:
    """Shapes without the padding of FP8 rows, which the reference does not have."""
    found = shapes_of(scenario)
    return replace(found, rows=found.tokens * scenario.model.num_experts_per_tok if found.rows else 0)


def blocks_of(scenario: Scenario) -> dict[str, Block]:
    """The graph of one microbatch, by kind of block."""
    return build_blocks(unpadded(scenario))


def graph_flops(block: Block) -> dict[tuple[str, str], float]:
    """FLOP of a block by (reference op, part); attention over the full square, as the reference computes it."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for op in block.ops():
        flops = op.work.flops_full * op.count if isinstance(op.work, Attention) else op.flops
        if flops:
            found[op.name.removesuffix(".again").rpartition(".")[0], op.part] += flops
    return dict(found)


def reference_flops(counter: Counter, part: Part) -> dict[tuple[str, str], float]:
    """FLOP of a block by (op, part), counted while it ran."""
    return {
        (op, what): float(count.flops)
        for (layer, op, what), count in counter.counts.items()
        if layer == part.layer and count.flops and part.holds(op)
    }


def reference_kept(counter: Counter, part: Part) -> dict[str, float]:
    """Bytes that a block keeps until backward, by tensor."""
    return {
        tensor: size for (layer, tensor), size in counter.kept.items() if layer == part.layer and part.holds(tensor)
    }


def widths(cfg: RefConfig, recipe: str) -> Widths:
    """Sizes of elements under a recipe: DeepSeek-V3 section 3.3.3 for FP8, BF16 and FP32 statistics else."""
    if recipe == "bf16":
        return Widths()
    narrow = {"u": FP8, "moe.dispatch/x": FP8} | {f"{kind}.down/x": FP8 for kind in ("dense", "shared", "moe")}
    core = "attn.gate/y" if cfg.is_gated else "attn.o/x"
    out = {core: E5M6} if cfg.is_mla and not cfg.is_chosen else {}
    return Widths(by_tensor={**Widths().by_tensor, **narrow, **out})


def recomputed(recipe: str, policy: str | tuple[str, ...]) -> frozenset[str]:
    """The reference's words for a recomputation policy. FP8 always keeps tokens as they arrived, in FP8."""
    presets = {"none": (), "deepseek": ("norm", "mla_up", "swiglu"), "full": ("layer",)}
    modules = presets[policy] if isinstance(policy, str) else policy
    return frozenset(modules) | ({"permute"} if recipe == "fp8" else set())


def counted(
    name: str, *, recipe: str = "bf16", recompute: str | tuple[str, ...] = "none", early_stop: bool = False
) -> Counter:
    """The counter after one forward and backward of the reference."""
    cfg, _ = MODELS[name]
    counter = Counter(widths(cfg, recipe))
    run = Run(cfg=cfg, counter=counter, recompute=recomputed(recipe, recompute), early_stop=early_stop)
    loss_and_grads(run, init_params(cfg, 0), as_tokens(cfg, 0, BATCH, LENGTH))
    return counter
