"""Rotary positions (arXiv 2104.09864) and their YaRN stretching (arXiv 2309.00071, section 3)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from workloads.reference.config import RefConfig
from workloads.reference.count import Array


def frequencies(cfg: RefConfig) -> Array:
    """Angle per position of each rotated pair [rope_dim / 2] [rad].

    YaRN: pairs that turn often within the original context keep their frequency, slow ones are divided by `factor`,
    and a linear ramp joins them (NTK-by-parts, section 3.2).
    """
    pairs = cfg.rope_dim // 2
    base: Array = cfg.rope_theta ** (-np.arange(pairs, dtype=np.float64) / pairs)
    if cfg.rope_scaling is None:
        return base
    s = _yarn(cfg.rope_scaling)
    low, high = (_pair_with_turns(cfg, float(s[key]), s) for key in ("beta_fast", "beta_slow"))
    low, high = max(math.floor(low), 0), min(math.ceil(high), cfg.rope_dim - 1)
    ramp = np.clip((np.arange(pairs) - low) / max(high - low, 1e-3), 0.0, 1.0)
    stretched: Array = base / float(s["factor"]) * ramp + base * (1.0 - ramp)
    return stretched


def softmax_scale(cfg: RefConfig) -> float:
    """What attention logits are multiplied by: 1/sqrt(d), times YaRN's squared temperature when stretched."""
    scale = float(cfg.qk_head_dim**-0.5)
    if cfg.rope_scaling is None:
        return scale
    s = _yarn(cfg.rope_scaling)
    m = _mscale(float(s["factor"]), float(s.get("mscale_all_dim", 0.0)))
    return scale * m * m


def angles(cfg: RefConfig, length: int, start: int = 0) -> tuple[Array, Array]:
    """cos and sin [length, rope_dim / 2] for positions start .. start + length - 1."""
    phase = np.outer(np.arange(start, start + length), frequencies(cfg))
    if cfg.rope_scaling is None:
        return np.cos(phase), np.sin(phase)
    s = _yarn(cfg.rope_scaling)
    factor = float(s["factor"])
    m = _mscale(factor, float(s.get("mscale", 1.0))) / _mscale(factor, float(s.get("mscale_all_dim", 0.0)))
    return np.cos(phase) * m, np.sin(phase) * m


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turn neighbouring pairs of x [batch, length, heads, rope_dim] by its position's angles."""
    c, s = cos[:, None, :].astype(x.dtype), sin[:, None, :].astype(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * c - odd * s
    out[..., 1::2] = even * s + odd * c
    return out


def rotate_input_grad(dy: Array, cos: Array, sin: Array) -> Array:
    """The transpose of a rotation is the rotation by the opposite angle (a scaled one keeps its scale)."""
    return rotate(dy, cos, -sin)


def _yarn(scaling: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind != "yarn":
        raise ValueError(f"rope_scaling type {kind!r} is not implemented: use 'yarn' or no rope_scaling")
    defaults = {"beta_fast": 32.0, "beta_slow": 1.0}
    missing = {"factor", "original_max_position_embeddings"} - set(scaling)
    if missing:
        raise ValueError(f"rope_scaling lacks {', '.join(sorted(missing))}: YaRN needs them")
    return {**defaults, **scaling}


def _pair_with_turns(cfg: RefConfig, turns: float, s: Mapping[str, Any]) -> float:
    """Index of the pair that makes this many turns within the original context (equation 17 solved for it)."""
    context = float(s["original_max_position_embeddings"])
    return cfg.rope_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(cfg.rope_theta))


def _mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature, 0.1 m ln(s) + 1 (section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
