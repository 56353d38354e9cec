"""Decoding with MLA: a cache of latents only, and the absorbed form (DeepSeek-V2 section 2.1.2).

Because a key is W_UK c, the product q . (W_UK c) equals (W_UK^T q) . c: the up-projection moves to the query, and each
head attends over the latents themselves, which makes MLA a multi-query attention of width rank + rope. Values likewise:
the weights average latents, and W_UV is applied to that average once.
"""

from dataclasses import dataclass

import numpy as np

from workloads.reference.core import attend
from workloads.reference.count import Array, Run, Weights
from workloads.reference.layers.linear import linear
from workloads.reference.layers.norm import rmsnorm
from workloads.reference.layers.rope import angles, rotate, softmax_scale


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentCache:
    """What MLA remembers of L positions: latents [B, L, rank] after their norm, rotated keys [B, L, rope]."""

    latent: Array
    k_rope: Array

    @property
    def length(self) -> int:
        return int(self.latent.shape[1])


def empty_cache(run: Run, batch: int, dtype: type = np.float64) -> LatentCache:
    return LatentCache(
        latent=np.zeros((batch, 0, run.cfg.kv_lora_rank or 0), dtype),
        k_rope=np.zeros((batch, 0, run.cfg.qk_rope_head_dim), dtype),
    )


def decode_plain(run: Run, p: Weights, x: Array, cache: LatentCache) -> tuple[Array, LatentCache]:
    """Output [B, S, hidden] for S new positions, keys and values expanded from all cached latents."""
    c, (b, s, _) = run.cfg, x.shape
    q_nope, q_rope, cache = _query_and_cache(run, p, x, cache)
    kv = linear(run, "attn.kv_b", cache.latent, p["attn.kv_b"]).reshape(b, cache.length, c.num_attention_heads, -1)
    k_rope = np.broadcast_to(cache.k_rope[:, :, None], (*kv.shape[:3], c.qk_rope_head_dim))
    k = np.concatenate([kv[..., : c.qk_nope_head_dim], k_rope], axis=-1)
    out, _ = attend(run, np.concatenate([q_nope, q_rope], axis=-1), k, kv[..., c.qk_nope_head_dim :], softmax_scale(c))
    return linear(run, "attn.o", out.reshape(b, s, -1), p["attn.o"]), cache


def decode_absorbed(run: Run, p: Weights, x: Array, cache: LatentCache) -> tuple[Array, LatentCache]:
    """The same output without ever expanding a cached position."""
    c, (b, s, _) = run.cfg, x.shape
    q_nope, q_rope, cache = _query_and_cache(run, p, x, cache)
    up = p["attn.kv_b"].reshape(c.kv_lora_rank or 0, c.num_attention_heads, -1)
    up_k, up_v = up[..., : c.qk_nope_head_dim], up[..., c.qk_nope_head_dim :]
    q = np.concatenate([np.einsum("bshd,rhd->bshr", q_nope, up_k), q_rope], axis=-1)
    k = np.concatenate([cache.latent, cache.k_rope], axis=-1)[:, :, None]
    latent, _ = attend(run, q, k, cache.latent[:, :, None], softmax_scale(c))
    out = np.einsum("bshr,rhd->bshd", latent, up_v)
    positions, products = b * s, up_k.size + up_v.size
    run.count("attn.kv_b", "F", flops=2 * positions * products, read={"x": q_nope, "w": up}, written={"y": out})
    return linear(run, "attn.o", out.reshape(b, s, -1), p["attn.o"]), cache


def _query_and_cache(run: Run, p: Weights, x: Array, cache: LatentCache) -> tuple[Array, Array, LatentCache]:
    """Both parts of the new queries [B, S, H, .], and the cache with the new positions appended."""
    c, (b, s, _) = run.cfg, x.shape
    cos, sin = angles(c, s, cache.length)
    compressed = linear(run, "attn.kv_a", x, p["attn.kv_a"])
    latent, _ = rmsnorm(run, "norm.kv_lora", compressed[..., : c.kv_lora_rank], p["norm.kv_lora"])
    k_rope = rotate(compressed[..., None, c.kv_lora_rank :], cos, sin)[:, :, 0]
    if c.q_lora_rank is None:
        q = linear(run, "attn.q", x, p["attn.q"])
    else:
        narrow, _ = rmsnorm(run, "norm.q_lora", linear(run, "attn.q_a", x, p["attn.q_a"]), p["norm.q_lora"])
        q = linear(run, "attn.q_b", narrow, p["attn.q_b"])
    q = q.reshape(b, s, c.num_attention_heads, c.qk_head_dim)
    grown = LatentCache(
        latent=np.concatenate([cache.latent, latent], axis=1), k_rope=np.concatenate([cache.k_rope, k_rope], axis=1)
    )
    return q[..., : c.qk_nope_head_dim], rotate(q[..., c.qk_nope_head_dim :], cos, sin), grown
