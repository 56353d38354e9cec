"""Fresh weights for a config: {unit: {weight: array}}, units being embed, layers.i, head and mtp.k."""

import numpy as np

from workloads.reference.config import BLOCKS, CSA, RefConfig
from workloads.reference.count import Weights

Params = dict[str, Weights]
Shapes = dict[str, tuple[int, ...]]


def units(cfg: RefConfig) -> list[str]:
    """The model's units in the order a token passes them."""
    return [
        "embed",
        *(f"layers.{i}" for i in range(cfg.num_hidden_layers)),
        "head",
        *(f"mtp.{k}" for k in range(cfg.num_nextn_predict_layers)),
    ]


def unit_shapes(cfg: RefConfig, unit: str) -> Shapes:
    """Shapes [in, out] of a unit's own weights; shared ones (MTP's embedding and head) belong to their owner."""
    h = cfg.hidden_size
    if unit == "embed":
        return {"embed": (cfg.vocab_size, h)}
    if unit == "head":
        return {"norm.final": (h,), "head": (h, cfg.vocab_size)} | _hyper_shapes(cfg, "head", cfg.hc_mult, 1)
    kind, index = unit.split(".")
    if kind == "mtp":
        joined: Shapes = {"mtp.norm_h": (h,), "mtp.norm_e": (h,), "mtp.proj": (2 * h, h), "norm.final": (h,)}
        return joined | _layer_shapes(cfg, cfg.num_hidden_layers + int(index))
    return _layer_shapes(cfg, int(index))


def init_params(cfg: RefConfig, seed: int, dtype: type = np.float64) -> Params:
    """Matrices from N(0, initializer_range), gains near 1, balancing biases 0."""
    rng = np.random.default_rng(seed)
    return {
        unit: {name: _draw(cfg, rng, name, shape).astype(dtype) for name, shape in unit_shapes(cfg, unit).items()}
        for unit in units(cfg)
    }


def _draw(cfg: RefConfig, rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name == "router.bias":
        return np.zeros(shape)
    noise = rng.standard_normal(shape) * cfg.initializer_range
    return 1.0 + noise if "norm" in name or name.endswith(".scale") else noise


def _hyper_shapes(c: RefConfig, branch: str, weights: int, scales: int) -> Shapes:
    """What weighs the streams around a branch, or before the output head."""
    if c.hc_mult == 1:
        return {}
    names = {"fn": (c.stream_width, weights), "base": (weights,), "scale": (scales,)}
    return {f"hc.{branch}.{name}": shape for name, shape in names.items()}


def _layer_shapes(c: RefConfig, layer: int) -> Shapes:
    h = c.hidden_size
    shapes: Shapes = dict.fromkeys(_norms(c, layer), (h,)) | _mixer_shapes(c, layer)
    if not c.has("ffn", layer):
        return shapes
    for branch in ("attn", "ffn"):
        shapes |= _hyper_shapes(c, branch, c.hc_weights, 3)
    if not c.is_moe(layer):
        return shapes | {"dense.up_gate": (h, c.up * c.intermediate_size), "dense.down": (c.intermediate_size, h)}
    n, f, wide = c.experts, c.moe_intermediate_size, c.expert_hidden
    shapes |= {"router.gate": (h, n), "moe.up_gate": (n, wide, c.up * f), "moe.down": (n, f, wide)}
    if c.moe_latent_size:
        shapes |= {"moe.latent_in": (h, wide), "moe.latent_out": (wide, h)}
        shapes |= {"moe.latent_norm": (wide,)} if c.moe_latent_norm else {}
    if c.topk_method == "noaux_tc" and layer >= c.num_hash_layers:
        shapes["router.bias"] = (n,)
    if c.n_shared_experts:
        shared = c.shared_width
        shapes |= {"shared.up_gate": (h, c.up * shared), "shared.down": (shared, h)}
    return shapes


def _mixer_shapes(c: RefConfig, layer: int) -> Shapes:
    if not c.has("attn", layer):
        return {}
    if not c.is_recurrent(layer):
        if c.shared_key_value:
            return _shared_key_shapes(c, layer)
        shapes = _mla_shapes(c) if c.is_mla else _gqa_shapes(c)
        if c.mixer(layer) == BLOCKS:
            shapes |= _block_shapes(c)
        return shapes | (_state_shapes(c, layer) if c.mixer(layer) == "hybrid" else {})
    if c.mixer(layer) == "conv":
        inner = c.short_conv_size
        taps = {"mixer.conv": (inner * c.short_conv_kernel,)}
        return taps | {"mixer.in": (c.hidden_size, 3 * inner), "mixer.out": (inner, c.hidden_size)}
    return _selective_shapes(c) if c.mixer(layer) == "mamba1" else _state_shapes(c, layer)


def _selective_shapes(c: RefConfig) -> Shapes:
    inner, rank, rows = c.mamba_inner_size, c.mamba_dt_rank, c.ssm_state_size
    shapes: Shapes = {
        "mixer.in": (c.hidden_size, 2 * inner),
        "mixer.conv": (inner * c.conv_kernel,),
        "mixer.conv_bias": (inner,),
        "mixer.select": (inner, rank + 2 * rows),
        "mixer.step": (rank, inner),
        "mixer.dt_bias": (inner,),
        "mixer.a_log": (inner * rows,),
        "mixer.skip": (inner,),
        "mixer.out": (inner, c.hidden_size),
    }
    norms: Shapes = {"norm.step": (rank,), "norm.b": (rows,), "norm.c": (rows,)}
    return shapes | (norms if c.mamba_state_norms and c.mamba_norm_gains else {})


def _state_shapes(c: RefConfig, layer: int) -> Shapes:
    r, mamba = c.state(layer), c.mixer(layer) in ("mamba", "hybrid")
    shapes: Shapes = {
        "mixer.in": (c.hidden_size, r.projected),
        "mixer.conv": (r.channels * c.conv_kernel,),
        "mixer.a_log": (r.heads,),
        "mixer.dt_bias": (r.heads * r.key_dim if r.rank else r.heads,),
        "mixer.out": (r.inner, c.hidden_size),
    }
    if r.norms:
        shapes["norm.mixer"] = (r.inner if mamba else r.value_dim,)
    if r.rank:
        shapes["mixer.decay"] = (r.rank, r.heads * r.key_dim)
        shapes |= {} if r.full_gate else {"mixer.gate": (r.rank, r.inner)}
    return shapes | ({"mixer.skip": (r.heads,), "mixer.conv_bias": (r.channels,)} if mamba else {})


def _norms(c: RefConfig, layer: int) -> list[str]:
    """Norms of a layer that are as wide as the stream."""
    alone = [half for half in ("attn", "ffn") if not c.has(half, layer)]
    if alone:
        return ["norm.ffn" if alone == ["attn"] else "norm.attn"]
    before = ["norm.attn"] if c.shared_norm else ["norm.attn", "norm.ffn"]
    behind = ["norm.attn.out", "norm.ffn.out"]
    return {"pre": before, "post": behind, "both": before + behind}[c.norm_placement]


def _shared_key_shapes(c: RefConfig, layer: int) -> Shapes:
    h, n, d, latent, wide = c.hidden_size, c.num_attention_heads, c.v_dim, c.q_lora_rank or 0, c.index_head_dim
    shapes: Shapes = {
        "attn.qkv_a": (h, latent + d),
        "norm.q_lora": (latent,),
        "norm.kv": (d,),
        "attn.q_b": (latent, n * d),
        "attn.sinks": (n,),
        "attn.o_a": (c.o_groups, n * d // c.o_groups, c.o_lora_rank),
        "attn.o_b": (c.o_groups * c.o_lora_rank, h),
    }
    rate, overlap = c.compress_rate(layer), 2 if c.mixer(layer) == CSA else 1
    if rate:
        shapes |= {
            "attn.compress": (h, 2 * overlap * d),
            "attn.compress.bias": (rate * overlap * d,),
            "norm.entry": (d,),
        }
    if overlap == 2:
        shapes |= {
            "attn.index_compress": (h, 4 * wide),
            "attn.index_compress.bias": (rate * 2 * wide,),
            "norm.index": (wide,),
            "attn.index_q": (latent, c.index_n_heads * wide),
            "attn.index_w": (h, c.index_n_heads),
        }
    return shapes


def _chosen_shapes(c: RefConfig) -> Shapes:
    h, n, rank, latent = c.hidden_size, c.num_attention_heads, c.kv_lora_rank or 0, c.q_lora_rank or 0
    return {
        "attn.kv_a": (h, rank + c.qk_rope_head_dim),
        "norm.kv_lora": (rank,),
        "attn.w_uk": (n, c.qk_nope_head_dim, rank),
        "attn.w_uv": (n, rank, c.v_head_dim),
        "attn.o": (n * c.v_head_dim, h),
        "attn.q_a": (h, latent),
        "norm.q_lora": (latent,),
        "attn.q_b": (latent, n * c.qk_head_dim),
        "attn.index_q": (latent, c.index_n_heads * c.index_head_dim),
        "attn.index_k": (h, c.index_head_dim),
        "norm.index": (c.index_head_dim,),
        "attn.index_bias": (c.index_head_dim,),
        "attn.index_w": (h, c.index_n_heads),
    }


def _mla_shapes(c: RefConfig) -> Shapes:
    h, n, rank = c.hidden_size, c.num_attention_heads, c.kv_lora_rank or 0
    if c.is_chosen:
        return _chosen_shapes(c)
    shapes: Shapes = {
        "attn.kv_a": (h, rank + c.qk_rope_head_dim),
        "norm.kv_lora": (rank,),
        "attn.kv_b": (rank, n * (c.qk_nope_head_dim + c.v_head_dim)),
        "attn.o": (n * c.v_head_dim, h),
    }
    if c.is_gated:
        shapes["attn.gate_proj"] = (h, n * c.v_head_dim)
    if c.q_lora_rank is None:
        return shapes | {"attn.q": (h, n * c.qk_head_dim)}
    return shapes | {
        "attn.q_a": (h, c.q_lora_rank),
        "norm.q_lora": (c.q_lora_rank,),
        "attn.q_b": (c.q_lora_rank, n * c.qk_head_dim),
    }


def _block_shapes(c: RefConfig) -> Shapes:
    """The indexer of MiniMax-M3."""
    wide = c.index_head_dim
    return {
        "attn.index_q": (c.hidden_size, c.index_n_heads * wide),
        "attn.index_k": (c.hidden_size, wide),
        "norm.index_q": (wide,),
        "norm.index_k": (wide,),
    }


def _gqa_shapes(c: RefConfig) -> Shapes:
    made = 1 if c.key_is_value else 2
    width = (c.num_attention_heads * (1 + c.is_gated) + made * c.num_key_value_heads) * c.v_dim
    shapes: Shapes = {"attn.qkv": (c.hidden_size, width), "attn.o": (c.num_attention_heads * c.v_dim, c.hidden_size)}
    if c.attention_bias:
        shapes["attn.qkv_bias"] = (width,)
    if c.qk_norm:
        heads = {"norm.q": c.num_attention_heads, "norm.k": c.num_key_value_heads}
        shapes |= {op: (c.v_dim * (n if c.qk_norm_over == "projection" else 1),) for op, n in heads.items()}
    if c.attention_sinks:
        shapes["attn.sinks"] = (c.num_attention_heads,)
    return shapes
